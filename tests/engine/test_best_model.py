"""The best weights so far are a model in `model/` while a run goes on, and after it was killed."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_processes import Blow, ended, prepare
from engine_runs import RUN_TASK, Recorder, options, run

from groundtune import api
from groundtune.cli import main
from groundtune.engine.evaluate import Evaluation, run_task
from groundtune.errors import CheckpointError
from groundtune.files import atomic_folder
from groundtune.model.checkpoint.load import load_bundle


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "changed",
    [
        {"ema_decay": 0.9},
        {"keep_base": True},
        {"tune": "lora", "ema_decay": 0.9},
        {"tune": "prompt"},
        {"tune": "heads"},
        {"self_distillation": True},
        {"blend": 1.0},
    ],
    ids=lambda changed: next(iter(changed.values()), "") if "tune" in changed else next(iter(changed)),
)
def test_the_model_of_a_run_that_goes_on_is_that_of_a_run_that_ended_there(
    changed: dict[str, Any], data: Path, base: Path, tmp_path: Path, monkeypatch
) -> None:
    """File by file; the rate never drops, so that the first epoch of both is the same one."""
    scores = iter([0.0, 0.9, 0.1] * 2)  # zero-shot, and after the first and the second epoch

    def evaluate(task: Any, *rest: Any) -> Evaluation:
        found = run_task(task, *rest)
        found.metrics["AP"] = next(scores)
        return found

    config = options(data, lr_drop_at=1.0, **changed)
    monkeypatch.setattr(RUN_TASK, evaluate)
    with pytest.raises(KeyboardInterrupt):
        run(config, load_bundle(base), tmp_path / "going", Recorder(stop_at=5))
    config.epochs, scores = 1, iter([0.0, 0.9, 0.9])
    run(config, load_bundle(base), tmp_path / "ended")
    found, expected = (contents(tmp_path / name / "model") for name in ("going", "ended"))
    assert found.keys() == expected.keys() and "README.md" in found
    assert [name for name in found if found[name] != expected[name]] == []
    assert api.load(tmp_path / "going").classes


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> list[str]:
    return prepare(tmp_path_factory.mktemp("killed"), tokenizer)


def test_a_killed_run_can_be_used_once_there_is_a_best_model(
    train: list[str], tmp_path: Path, capsys
) -> None:
    out, image = tmp_path / "run", next(Path(train[1]).rglob("*.jpg"))
    argv = [*train, "--output-dir", str(out)]
    assert ended(argv, Blow("os.rename", ".last.pt.tmp"), tmp_path / "err") == -signal.SIGKILL
    assert main(["predict", str(out), str(image)]) == 4
    assert capsys.readouterr().err == (
        f"groundtune: error: The run {out} has no model: its first evaluation did not end. "
        f"Resume it with: groundtune train --resume {out}\n"
    )
    resumed = ["train", "--resume", str(out)]
    assert ended(resumed, Blow("os.rename", ".last.pt.tmp", 3), tmp_path / "err") == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    assert main(["predict", str(out), str(image), "--threshold", "0"]) == 0
    assert main(["evaluate", str(out), train[1]]) == 0
    file = tmp_path / "x.onnx"
    assert main(["export", str(out), "--format", "onnx", "--fixed-classes", "--output", str(file)]) == 0
    capsys.readouterr()
    for name in ("best", "previous"):
        assert main(["evaluate", str(out / f"checkpoints/{name}.pt"), train[1]]) == 4
        assert f"{name}.pt is a state of a training run, not a model. Use the run directory {out}.\n" in (
            capsys.readouterr().err
        )
    assert ended(resumed, None, tmp_path / "err") == 0


def test_a_copied_state_is_recognized(train: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        ended([*train, "--output-dir", str(out)], Blow("os.rename", ".last.pt.tmp", 3), tmp_path / "err") < 0
    )
    os.rename(out / "checkpoints/best.pt", tmp_path / "copied.pt")
    with pytest.raises(CheckpointError, match="copied.pt is a state of a training run, .* that wrote it"):
        api.load(tmp_path / "copied.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is a moment without a directory")
def test_a_reader_always_finds_a_whole_directory(tmp_path: Path) -> None:
    folder, done, read = tmp_path / "model", threading.Event(), set()

    def write(number: int) -> None:
        with atomic_folder(folder) as staging:
            (staging / "number").write_text(str(number))

    def read_on() -> None:
        while not done.is_set():
            read.add((folder / "number").read_text())

    write(0)
    reader = threading.Thread(target=read_on)
    reader.start()
    for number in range(1, 500):
        write(number)
        assert reader.is_alive()
    done.set()
    reader.join()
    assert len(read) > 20 and (folder / "number").read_text() == "499" and os.listdir(tmp_path) == ["model"]
