"""What a run folder tells, read with tolerance: a run that was cut off has a report of what there is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundtune.errors import DataError

Metrics = dict[str, float | None]


@dataclass
class RunData:
    """The files of a run folder.

    Attributes:
        folder: where it is.
        config: options as resolved, by name.
        environment: names and values of env.json.
        steps: lines of metrics.jsonl with a loss, in order.
        evaluations: lines with "valid/AP", in order; the first one is zero-shot.
        zero_shot: numbers before the first step.
        best: numbers of the best weights.
        final: numbers of the last weights.
        per_class: AP and AP50 of the best weights by class name.
        seconds: wall time of the training.
        predictions: detections of the best weights, in COCO's result format.
        finished: whether the run came to its end.
        missing: what could not be read, in words.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    zero_shot: Metrics = field(default_factory=dict)
    best: Metrics = field(default_factory=dict)
    final: Metrics = field(default_factory=dict)
    per_class: dict[str, Metrics] = field(default_factory=dict)
    seconds: float | None = None
    predictions: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    missing: list[str] = field(default_factory=list)


def read_run(folder: Path) -> RunData:
    """Read a run folder.

    Args:
        folder: of a run, finished or not.

    Raises:
        DataError: it is no run folder.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder} is not a run folder: it has no config.yaml.")
    run = RunData(folder)
    run.config = _yaml(folder / "config.yaml", run)
    run.environment = _json(folder / "env.json", run, {})
    for line in _lines(folder / "metrics.jsonl", run):
        (run.evaluations if "valid/AP" in line else run.steps).append(line)
    summary = _json(folder / "metrics.json", run, {})
    run.finished = bool(summary)
    run.predictions = _json(folder / "predictions_valid.json", run, [])
    numbers = [_metrics(line) for line in run.evaluations]
    run.zero_shot = summary.get("zero_shot") or (numbers[0] if numbers else {})
    run.final = summary.get("final") or (numbers[-1] if len(numbers) > 1 else {})
    run.best = summary.get("best") or max(numbers[1:], key=lambda m: m.get("valid/AP") or 0.0, default={})
    run.per_class = summary.get("per_class", {})
    run.seconds = summary.get("seconds")
    return run


def _metrics(line: dict[str, Any]) -> Metrics:
    return {name: value for name, value in line.items() if name.startswith("valid/")}


def _yaml(path: Path, run: RunData) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        run.missing.append(f"{path.name} cannot be read")
        return {}
    return content


def _json(path: Path, run: RunData, empty: Any) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        run.missing.append(f"{path.name} is not there (yet)")
        return empty
    except (OSError, ValueError):
        run.missing.append(f"{path.name} cannot be read")
        return empty
    return content if isinstance(content, type(empty)) else empty


def _lines(path: Path, run: RunData) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; one that was cut off while it was written is left out."""
    try:
        raw = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        run.missing.append(f"{path.name} cannot be read")
        return []
    found = []
    for text in raw:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            found.append(line)
    return found
