"""A full disk and a read-only run folder: one message, exit code 4, and the checkpoints of before
are whole.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import Recorder, differing, options, run, tiny_bundle, weights

from groundtune.engine import checkpoint
from groundtune.engine import train as engine
from groundtune.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def whole(
    data: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights and the lines of metrics.jsonl of the run that met no fault."""
    bundle, out = tiny_bundle(tokenizer), tmp_path_factory.mktemp("whole") / "run"
    run(options(data), bundle, out)
    return weights(bundle), (out / "metrics.jsonl").read_text().splitlines()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 64 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs to mount a tmpfs, which only root may do")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (2**20, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


class Fills(Recorder):
    """Fills the disk at the n-th event of a kind."""

    def __init__(self, disk: Path, event: str, number: int) -> None:
        super().__init__()
        self.disk, self.event, self.number = disk, event, number

    def _note(self, event: str) -> None:
        if event == self.event and sum(name == event for name, _ in self.events) == self.number:
            fill(self.disk)

    def step(self, *args: Any) -> None:
        super().step(*args)
        self._note("step")

    def evaluation(self, *args: Any) -> None:
        super().evaluation(*args)
        self._note("evaluation")

    def metrics(self, *args: Any) -> None:
        super().metrics(*args)
        self._note("metrics")


@pytest.mark.parametrize(
    ("event", "number", "changed"),
    [
        ("step", 4, {}),  # a line of metrics.jsonl, or the state
        ("step", 4, {"report_to": ["tensorboard"]}),
        ("step", 4, {"log_steps": 100}),  # the state
        ("evaluation", 4, {}),  # of the second epoch: the best weights
        ("metrics", 2, {}),  # the last state
    ],
)
def test_a_full_disk(
    data: Path, tokenizer, disk: Path, whole, event: str, number: int, changed: dict[str, Any]
) -> None:
    """The run says so and can go on when there is room, to the end of the one that met no fault."""
    config, out, bundle = options(data, save_steps=2, **changed), disk / "run", tiny_bundle(tokenizer)
    with pytest.raises(CheckpointError, match="(?s)cannot be written.*whole") as error:
        run(config, tiny_bundle(tokenizer), out, Fills(disk, event, number))
    assert error.value.exit_code == 4 and str(out) in str(error.value) and "No space left" in str(error.value)
    assert checkpoint.load_state(out / "checkpoints/last.pt")["state"]["step"] in (2, 3, 4, 6)
    (disk / "filler").unlink()
    config.resume = str(out)
    run(config, bundle, out)
    assert differing(weights(bundle), whole[0]) == []
    expected = [line for line in whole[1] if config.log_steps == 1 or "valid/AP" in line]
    assert (out / "metrics.jsonl").read_text().splitlines() == expected


@pytest.mark.parametrize("what", ["build_setup", "write_samples", "save_bundle"])
def test_a_disk_that_is_full_before_or_after_training(
    tmp_path: Path, data: Path, tokenizer, disk: Path, monkeypatch, what: str
) -> None:
    written = getattr(engine, what)

    def filled(*args: Any) -> Any:
        fill(disk)
        return written(*args)

    monkeypatch.setattr(engine, what, filled)
    with pytest.raises(CheckpointError, match="No space left") as error:
        run(options(data), tiny_bundle(tokenizer), disk / "run")
    assert error.value.exit_code == 4 and "\n" not in str(error.value)
    monkeypatch.undo()
    (disk / "filler").unlink()
    if what != "build_setup":  # which has not even written its options
        run(options(data, resume=str(disk / "run")), tiny_bundle(tokenizer), disk / "run")
        assert (disk / "run/model/groundtune.json").is_file()


def remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True, capture_output=True)


def test_a_disk_that_becomes_read_only(data: Path, tokenizer, disk: Path) -> None:
    class Remounts(Recorder):
        def step(self, done: int, *args: Any) -> None:
            super().step(done, *args)
            if done == 5:
                remount(disk, "ro")

    config = options(data, save_steps=2)
    with pytest.raises(CheckpointError, match="Read-only file system.*resume with: groundtune train"):
        run(config, tiny_bundle(tokenizer), disk / "run", Remounts())
    assert checkpoint.load_state(disk / "run/checkpoints/last.pt")["state"]["step"] == 4
    config.resume = str(disk / "run")
    with pytest.raises(CheckpointError, match="Read-only file system") as error:
        run(config, tiny_bundle(tokenizer), disk / "run")
    assert error.value.exit_code == 4
    with pytest.raises(ConfigError, match="cannot be created: Read-only"):
        run(options(data), tiny_bundle(tokenizer), disk / "new")
    remount(disk, "rw")
    assert run(config, tiny_bundle(tokenizer), disk / "run").metrics


def test_a_run_folder_that_vanishes(tmp_path: Path, data: Path, tokenizer) -> None:
    class Removes(Recorder):
        def step(self, done: int, *args: Any) -> None:
            super().step(done, *args)
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    with pytest.raises(CheckpointError, match="No such file"):
        run(options(data), tiny_bundle(tokenizer), tmp_path / "run", Removes())
