"""Run folders from strangers: their checkpoints are gone on from or refused, their files become a
page or one message.
"""

import hashlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import Recorder, options, run, scenes
from fuzz_files import mutate
from small_models import small_bundle
from test_models import JUNK, spoil_value
from test_pages import PLAIN, make_run
from watch import FOREIGN, watched, within

from groundtune.config import TrainConfig
from groundtune.data.formats.detect import load_splits
from groundtune.engine import resume, train
from groundtune.engine.checkpoint import load_state, save_state
from groundtune.engine.setup import TrainSetup, TrainState
from groundtune.errors import ConfigError, GroundtuneError
from groundtune.report.build import build_report
from groundtune.report.compare import build_comparison


class Ready(Exception):
    """The run is set up."""


class Resuming:
    """Goes on from a checkpoint up to the point from which it would train, again and again on the
    same parts.
    """

    def __init__(self, folder: Path) -> None:
        data = scenes(folder / "data", train=3, valid=2)
        folder.joinpath("model").mkdir()
        bundle = small_bundle(folder / "model")
        self.out = folder / "run"
        run(options(data, epochs=1, retention_data=[]), bundle, self.out)
        self.last = self.out / "checkpoints/last.pt"
        self.sound = self.last.read_bytes()
        self.config = options(data, epochs=1, retention_data=[], resume=str(self.out))
        self.splits = load_splits(data)
        self.parts = self._set_up(bundle)

    def _set_up(self, bundle) -> TrainSetup:
        caught: list[TrainSetup] = []

        def stop(parts: TrainSetup, place: TrainState, resumed: resume.Resumed) -> None:
            caught.append(parts)
            raise Ready

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Ready):
            patch.setattr(train, "restore_state", stop)
            train.train(self.config, bundle, self.splits, self.out, Recorder(), {})
        return caught[0]

    def go_on(self) -> TrainState:
        place = TrainState()
        config = replace(self.config, precision=self.parts.config.precision)
        found = resume.newest_state(config, self.splits["train"], self.splits["valid"].class_names, self.out)
        resume.restore_state(self.parts, place, found)
        for field in fields(TrainState):  # what training will count with
            assert isinstance(getattr(place, field.name), type(getattr(TrainState(), field.name))), field.name
        return place


@pytest.fixture(scope="module")
def resuming(tmp_path_factory) -> Resuming:
    return Resuming(tmp_path_factory.mktemp("run"))


class Code:
    """Its unpickling makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.mark,)


def spoil_state(state: Any, rng: random.Random, mark: Path) -> Any:
    """Replace or take away one value at any depth."""
    if isinstance(state, dict) and state and rng.random() < 0.95:
        key = rng.choice(list(state))
        inner = spoil_state(state[key], rng, mark)
        rest = {name: value for name, value in state.items() if name != key}
        return rest if rng.random() < 0.15 else rest | {key if rng.random() < 0.95 else "__class__": inner}
    if isinstance(state, list | tuple) and state and rng.random() < 0.8:
        place = rng.randrange(len(state))
        return type(state)([*state[:place], spoil_state(state[place], rng, mark), *state[place + 1 :]])
    if isinstance(state, torch.Tensor):
        others = [state.flatten()[:1], state.double(), state * float("nan"), state > 0]
        return rng.choice([*others, 3, "x", None, state.to_sparse()])
    return Code(mark) if rng.random() < 0.05 else rng.choice(JUNK)


def with_checksum(content: bytes) -> bytes:
    """What gets past the checksum, which anybody can compute."""
    content = content.rpartition(b"\nsha256 ")[0] or content
    return content + f"\nsha256 {hashlib.sha256(content).hexdigest()}".encode()


def spoil(path: Path, sound: bytes, rng: random.Random, mark: Path) -> None:
    path.write_bytes(sound)
    way = rng.random()
    if way < 0.6:
        state = spoil_state(torch.load(path, weights_only=True), rng, mark)
        save_state(state, path)
    elif way < 0.65:
        path.write_bytes(with_checksum(pickle.dumps({"network": Code(mark), "epoch": 1}, protocol=2)))
    elif way < 0.95:
        data = bytearray(sound)
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data))
            data[at : at + 1] = rng.choice(
                [bytes([rng.randrange(256)]), b"", b"\xff\xff\xff\xff", b"cos\nsystem\n"]
            )
        path.write_bytes(
            with_checksum(bytes(data[: rng.choice([len(data)] * 3 + [rng.randrange(len(data))])]))
        )
    else:
        path.write_bytes(sound[: rng.randrange(len(sound))])


def fuzz_checkpoints(resuming: Resuming, count: int, seed: str, folder: Path) -> dict[str, int]:
    rng, mark = random.Random(seed), folder / "the code ran"
    told = {"resumed": 0, "refused": 0}
    for _ in range(count):
        spoil(resuming.last, resuming.sound, rng, mark)
        with within(120), watched() as seen:
            try:
                resuming.go_on()
                told["resumed"] += 1
            except GroundtuneError as error:
                told["refused"] += 1
                assert len(str(error)) < 20_000
        assert not [event for event in seen if event.startswith(FOREIGN)] and not mark.exists()
    resuming.last.write_bytes(resuming.sound)
    return told


def test_the_sound_checkpoint_is_gone_on_from(resuming: Resuming) -> None:
    assert resuming.go_on().epoch == 1


def test_corrupted_checkpoints_are_gone_on_from_or_refused(resuming: Resuming, tmp_path: Path) -> None:
    told = fuzz_checkpoints(resuming, 20, "fast", tmp_path)
    assert told["resumed"] and told["refused"]


@pytest.mark.slow
def test_5000_corrupted_checkpoints(resuming: Resuming, tmp_path: Path) -> None:
    told = fuzz_checkpoints(resuming, 5000, "slow", tmp_path)
    assert told["resumed"] > 100 and told["refused"] > 500


def test_code_in_a_checkpoint_would_have_run(resuming: Resuming, tmp_path: Path) -> None:
    """The canary lives: the plain unpickler runs what `load_state` refuses."""
    content = pickle.dumps({"network": Code(tmp_path / "ran"), "epoch": 1}, protocol=2)
    (tmp_path / "last.pt").write_bytes(with_checksum(content))
    with pytest.raises(GroundtuneError, match="cannot be read"):
        load_state(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)
    assert (tmp_path / "ran").exists()


def test_a_recipe_has_no_say_in_where_a_run_reads_and_writes() -> None:
    from groundtune.config import train_config

    wild = {"output_dir": "/tmp/x", "report_to": ["wandb"], "data": "y", "epochs": 3}
    with pytest.raises(ConfigError) as error:
        train_config({"data": "d"}, None, wild)
    refused = [f"recipe: {name}: a recipe may not set paths" in str(error.value) for name in wild]
    assert refused == [True, True, True, False]
    assert train_config({"data": "d"}, None, {"epochs": 3, "optimizer": {"lr": 1e-3}}) == replace(
        TrainConfig(data="d"), epochs=3, optimizer=replace(TrainConfig(data="d").optimizer, lr=1e-3)
    )


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("reported")
    return make_run(root, PLAIN), load_splits(root / "data")


def fuzz_reports(sound: Path, splits: dict, count: int, folder: Path) -> dict[str, int]:
    rng, told, corrupted = random.Random(0), {"page": 0, "refused": 0}, folder / "corrupted"
    pages = (
        lambda: build_report(corrupted, splits, 3),
        lambda: build_comparison([corrupted, sound], folder / "c.html"),
    )
    for _ in range(count):
        shutil.rmtree(corrupted, ignore_errors=True)
        shutil.copytree(sound, corrupted)
        path = rng.choice(sorted(path for path in corrupted.iterdir() if path.suffix != ".html"))
        if path.suffix == ".json" and rng.random() < 0.8:
            spoil_value(path, rng)
        elif path.suffix == ".jsonl" and rng.random() < 0.8:
            lines = path.read_text().splitlines()
            (folder / "line.json").write_text(lines.pop(rng.randrange(len(lines))))
            spoil_value(folder / "line.json", rng)
            path.write_text("".join(f"{line}\n" for line in [*lines, (folder / "line.json").read_text()]))
        else:
            path.write_bytes(mutate(path.read_bytes(), path.name, rng))
        for make in pages:
            try:
                with within(120):
                    make()
                told["page"] += 1
            except GroundtuneError as error:
                told["refused"] += 1
                assert "corrupted" in str(error) and len(str(error)) < 1000
    return told


def test_corrupted_runs_become_a_page_or_a_message(reported, tmp_path: Path) -> None:
    told = fuzz_reports(*reported, 20, tmp_path)
    assert told["page"] and told["refused"]


@pytest.mark.slow
def test_5000_corrupted_runs(reported, tmp_path: Path) -> None:
    told = fuzz_reports(*reported, 2500, tmp_path)  # × 2 pages
    assert told["page"] > 500 and told["refused"] > 100


def test_values_in_a_metrics_file_are_told_in_words(reported, tmp_path: Path) -> None:
    run_folder, splits = reported
    copy = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (copy / "metrics.json").write_text(json.dumps({"best": {"valid/AP": "high"}}))
    with pytest.raises(GroundtuneError, match=r"run contains values that no run writes \(TypeError"):
        build_report(copy, splits, 500)
