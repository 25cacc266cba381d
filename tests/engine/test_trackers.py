"""Trackers: TensorBoard's own reader finds every number; others get the same; one that is not
installed is refused.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from engine_runs import Recorder, options, run, tiny_bundle

from groundtune.config import train_config
from groundtune.errors import ConfigError


def numbers_of(out: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value, from metrics.jsonl."""
    found: dict[str, dict[int, float]] = {}
    for text in (out / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        step = line.pop("step")
        line |= {f"lr/{name}": rate for name, rate in line.pop("lr", {}).items()}
        for name, value in line.items():
            if value is not None:
                found.setdefault(name, {})[step] = value
    return found


def test_tensorboard_has_every_number_also_of_a_resumed_run(tmp_path: Path, data: Path, tokenizer) -> None:
    """The first process is stopped after step 5 of 6, when the last checkpoint is that of step 3."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(options(data, report_to=["auto"]), tiny_bundle(tokenizer), out, Recorder(stop_at=5))
    run(options(data, report_to=["tensorboard"], resume=str(out)), tiny_bundle(tokenizer), out)
    reader = accumulator.EventAccumulator(str(out / "tensorboard" / "groundtune"))
    reader.Reload()
    wanted = numbers_of(out)
    assert {"loss", "loss_giou", "grad_norm", "lr/decoder", "valid/AP", "epoch"} < set(
        reader.Tags()["scalars"]
    )
    assert set(reader.Tags()["scalars"]) == set(wanted)
    for name, values in wanted.items():
        assert {event.step: event.value for event in reader.Scalars(name)} == pytest.approx(values, rel=1e-6)
    assert [event.step for event in reader.Scalars("loss")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]  # 4 and 5 of the first are hidden


def test_other_trackers_get_the_run_and_its_numbers_and_are_closed(
    tmp_path: Path, data: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Fake(tracking.GeneralTracker):
        name, requires_logging_directory, main_process_only, tracker = "wandb", False, True, None

        def __init__(self, project: str, name: str) -> None:
            super().__init__(_blank=True)
            told.append((project, name))

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            assert values["epochs"] == 1 and json.loads(values["report_to"]) == ["wandb"]

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            told.append((step, values.get("valid/AP", values.get("loss"))))

        def finish(self) -> None:
            told.append("closed")

    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    run(options(data, epochs=1, report_to=["wandb"]), tiny_bundle(tokenizer), tmp_path / "run")
    wanted = numbers_of(tmp_path / "run")
    steps = [(step, wanted["loss"][step]) for step in (1, 2, 3)]
    scores = [(step, wanted["valid/AP"][step]) for step in (0, 3)]
    assert told == [("groundtune", "run"), scores[0], *steps, scores[1], "closed"]


def test_a_tracker_that_is_not_installed_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundtune.config.importlib.util.find_spec", lambda name: None)
    assert train_config({"data": "x"}, None, {}).report_to == ["auto"]
    assert train_config({"data": "x", "report_to": "none"}, None, {}).report_to == ["none"]
    with pytest.raises(ConfigError, match=r"report_to: mlflow is not installed.* \(pip install mlflow\)"):
        train_config({"data": "x", "report_to": "auto, mlflow"}, None, {})
    with pytest.raises(ConfigError, match="--report-to: expected auto, none, .*got 'wnadb'"):
        train_config({"data": "x", "report_to": "wnadb"}, None, {})
