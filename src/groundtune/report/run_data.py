"""What a run folder tells, read with tolerance: a run that was cut off has a report of what there is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundtune.data.reading import read_run_data
from groundtune.errors import DataError
from groundtune.files import parse_yaml
from groundtune.metrics.errors import best_thresholds, collect

Metrics = dict[str, float | None]
_SCORES = ("valid/AP", "valid/recall@1")


@dataclass
class RunData:
    """The files of a run folder."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)  # options as resolved, by name
    environment: dict[str, Any] = field(default_factory=dict)  # names and values of env.json
    steps: list[dict[str, Any]] = field(default_factory=list)  # lines of metrics.jsonl with a loss
    evaluations: list[dict[str, Any]] = field(
        default_factory=list
    )  # lines with "valid/…"; the first is zero-shot
    zero_shot: Metrics = field(default_factory=dict)  # before the first step
    best: Metrics = field(default_factory=dict)  # of the best weights
    final: Metrics = field(default_factory=dict)  # of the last weights
    per_class: dict[str, Metrics] = field(default_factory=dict)  # AP and AP50 of the best weights
    retained: dict[str, dict[str, Metrics]] = field(
        default_factory=dict
    )  # other data sets, "before" and "after"
    seconds: float | None = None  # wall time of the training
    memory_bytes: int | None = None  # the most that it needed
    valid_images: int | None = None  # of the validation split
    predictions: list[dict[str, Any]] = field(
        default_factory=list
    )  # of the best weights, in COCO's result format
    finished: bool = False
    missing: list[str] = field(default_factory=list)  # what could not be read, in words


def read_run(folder: Path) -> RunData:
    """Read the folder of a run, finished or not.

    Raises:
        DataError: it is no run folder.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder} is not a run folder: it has no config.yaml.")
    run = RunData(folder)
    run.config = _read(run, "config.yaml", parse_yaml, {})
    run.environment = _read(run, "env.json", json.loads, {})
    for line in _read(run, "metrics.jsonl", _lines, []):
        (run.evaluations if any(name in line for name in _SCORES) else run.steps).append(line)
    summary = _read(run, "metrics.json", json.loads, {})
    run.finished = bool(summary)
    run.predictions = _read(run, "predictions_valid.json", json.loads, [])
    numbers = [{name: v for name, v in line.items() if name.startswith("valid/")} for line in run.evaluations]
    run.zero_shot = summary.get("zero_shot") or (numbers[0] if numbers else {})
    run.final = summary.get("final") or (numbers[-1] if len(numbers) > 1 else {})
    run.best = summary.get("best") or max(numbers[1:], key=score, default={})
    run.per_class = summary.get("per_class", {})
    run.retained = summary.get("retained", {})
    run.seconds, run.memory_bytes = summary.get("seconds"), summary.get("memory_bytes")
    run.valid_images = summary.get("valid_images")
    return run


@contextmanager
def values_of_runs(*folders: Path) -> Iterator[None]:
    """Turns what values of other types raise, where a page is made of them, into a `DataError`: runs come from anywhere."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"values that no run writes ({error!r:.120}). Look into its .json files."
        raise DataError(f"{' or '.join(map(str, folders))} holds {what}") from error


def _read(run: RunData, name: str, parse: Callable[[str], Any], empty: Any) -> Any:
    """What a file of the run holds; `empty`, and a word about it, where it is not there or not of that type."""
    try:
        content = parse((run.folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        run.missing.append(f"{name} is not there (yet)")
        return empty
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, type(empty)):
        run.missing.append(f"{name} cannot be read")
        return empty
    return content


def _lines(text: str) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; one that was cut off while it was written is left out."""
    found = []
    for row in text.splitlines():
        with suppress(ValueError):
            line = json.loads(row)
            if isinstance(line, dict) and "step" in line:
                found.append(line)
    return found


def score(numbers: Mapping[str, Any]) -> float:
    """What the best weights are chosen by: AP, of captions recall@1; 0 where there was nothing to count."""
    return float(next((numbers[name] for name in _SCORES if numbers.get(name)), 0.0))


def run_thresholds(folder: Path) -> dict[str, float]:
    """Return the confidence threshold with the best F1 of each class on the validation split of a run.

    Classes without a right detection are absent.

    Raises:
        DataError: it is not a run directory, it has no detections of classes yet, or its data cannot be read.
    """
    run = read_run(folder)
    splits = read_run_data(run.config)
    if "valid" not in splits or splits["valid"].is_grounding or not run.predictions:
        problem = f"{folder} has no thresholds, because it has no detections of classes."
        raise DataError(f"{problem} Choose a run that was evaluated.")
    names = splits["valid"].class_names
    best = best_thresholds(collect(splits["valid"], run.predictions), len(names))
    return {name: result.threshold for name, result in zip(names, best, strict=True) if result.f1}
