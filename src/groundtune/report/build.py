"""Write the report of a run, `report.html`: one file that needs no network and opens from disk.

Everything that comes from users (class names, file names, options) passes Jinja's autoescape or
`html.escape`, and the browser runs no script but the page's own (by a nonce). Images are thumbnails
inside the file; boxes are drawn over them as SVG, so that the page can show and hide them.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundtune._version import __version__
from groundtune.data.check.names import count_boxes
from groundtune.data.sample import Dataset
from groundtune.files import atomic_write
from groundtune.metrics import errors
from groundtune.metrics.grounding import retention
from groundtune.report.advice import advice
from groundtune.report.figures import TEMPLATES, Series, gallery, heat_map, line_chart
from groundtune.report.run_data import RunData, read_run, values_of_runs

_MAX_MATRIX_CLASSES, _MAX_CURVES = 30, 6
_TERMS = ("loss_cls", "loss_bbox", "loss_giou")
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR100")
_CAPTION_METRICS = ("recall@1", "recall@5", "recall@10", "T-acc", "N-acc", "Pr@F1=1")


def build_report(folder: Path, splits: dict[str, Dataset], max_images: int) -> Path:
    """Write `report.html` into a run directory, finished or not, and return its path.

    Without a split "valid" it has no error analysis and no gallery (of at most `max_images`).

    Raises:
        DataError: the folder is not a run directory, or its files are malformed.
    """
    path = folder / "report.html"
    with values_of_runs(folder):
        write_page(path, "report.html.jinja", _context(read_run(folder), splits, max_images))
    return path


def write_page(path: Path, template: str, context: dict[str, Any]) -> None:
    """Render a template and replace the file atomically."""
    about = {"version": __version__, "date": time.strftime("%Y-%m-%d %H:%M"), "nonce": secrets.token_hex(16)}
    with atomic_write(path) as file:
        file.write(TEMPLATES.get_template(template).render(about | context).encode())


def _context(run: RunData, splits: dict[str, Dataset], max_images: int) -> dict[str, Any]:
    """Return the variables of the template."""
    valid = splits.get("valid")
    context: dict[str, Any] = {
        "title": f"{Path(str(run.config.get('data', ''))).name or 'data'} · {run.config.get('model', '')}",
        "run": run,
        "headline": _headline(run),
        "retention": [(name, *retention(numbers)) for name, numbers in run.retention.items()],
        "charts": _charts(run),
        "summary": _data_summary(splits),
        "environment": run.environment,
        "config": {name: json.dumps(value, ensure_ascii=False) for name, value in run.config.items()},
        "messages": run.missing,
    }
    if valid is not None and run.predictions and not valid.is_grounding:  # captions have no classes
        context |= _analysis(run, splits, valid, max_images)
    return context


def _headline(run: RunData) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in _METRICS + _CAPTION_METRICS:
        before, final, best = (
            numbers.get(f"valid/{name}") for numbers in (run.zero_shot, run.final, run.best)
        )
        gain = f"{best - before:+.3f}" if best is not None and before is not None else ""
        if {before, final, best} != {None}:
            rows.append({"name": name, "before": before, "final": final, "best": best, "gain": gain})
    return rows


def _charts(run: RunData) -> list[dict[str, str]]:
    captions = any("valid/recall@1" in row for row in run.evaluations)
    title = "Recall of phrases" if captions else "Average precision"
    metrics = _CAPTION_METRICS[:3] if captions else _METRICS[:2]
    rates = [{"step": row["step"], **row.get("lr", {})} for row in run.steps]
    groups = sorted({group for row in rates for group in row} - {"step"})
    charts = [
        (title, line_chart(chart_series(run.evaluations, metrics, "valid/"), "step", (0.0, 1.0))),
        ("Loss (running mean)", line_chart(chart_series(run.steps, ["loss"]), "step")),
        ("Loss terms of the last layer", line_chart(chart_series(run.steps, _TERMS), "step")),
        ("Gradient norm before clipping", line_chart(chart_series(run.steps, ["grad_norm"]), "step")),
        ("Learning rate", line_chart(chart_series(rates, groups), "step")),
    ]
    return [{"title": title, "svg": svg} for title, svg in charts if svg]


def chart_series(rows: list[dict[str, Any]], names: Sequence[str], prefix: str = "") -> list[Series]:
    steps = [row["step"] for row in rows]
    values = {name: [row.get(prefix + name) for row in rows] for name in names}
    return [
        (name, steps, [float(v) if isinstance(v, int | float) else math.nan for v in column])
        for name, column in values.items()
    ]


def _data_summary(splits: dict[str, Dataset]) -> dict[str, Any]:
    if not splits:
        return {}
    first = next(iter(splits.values()))
    boxes = {split: count_boxes(dataset).tolist() for split, dataset in splits.items()}
    classes = [
        {"id": category_id, "name": name, "boxes": [counts[index] for counts in boxes.values()]}
        for index, (category_id, name) in enumerate(zip(first.category_ids, first.class_names, strict=True))
    ]
    numbers = [
        (name, len(d.samples), sum(len(s.boxes_xyxy) for s in d.samples)) for name, d in splits.items()
    ]
    return {
        "splits": numbers,
        "classes": classes,
        "prompt": " ".join(f"{phrase}." for phrase in first.phrases) if len(first.class_names) <= 200 else "",
    }


def _analysis(run: RunData, splits: dict[str, Dataset], valid: Dataset, max_images: int) -> dict[str, Any]:
    results = errors.collect(valid, run.predictions)
    names = valid.class_names
    best = errors.best_thresholds(results, len(names))
    thresholds = np.array([entry.threshold for entry in best])
    counts = errors.error_counts(results, thresholds, len(names))
    matrix, labels = _matrix(errors.confusion(results, thresholds, len(names)), names)
    bins, gap = errors.calibration(results)
    cards, messages = gallery(results, names, thresholds, max_images)
    measured: Series = ("precision", [b["score"] for b in bins], [b["precision"] for b in bins])
    ideal: Series = ("perfect calibration", [0, 1], [0, 1])
    analysis = {
        "classes": [
            {"name": name, "scores": run.per_class.get(name) or run.per_class.get(phrase, {})}
            | {"best": best[index]}
            | {kind: int(numbers[index]) for kind, numbers in counts.items()}
            # runs of older versions have the phrase
            for index, (name, phrase) in enumerate(zip(names, valid.phrases, strict=True))
        ],
        "error_types": [(kind, int(counts[kind].sum())) for kind in (*errors.ERROR_TYPES, errors.MISSED)],
        "matrix": heat_map(matrix, labels),
        "curves": line_chart(_precision_recall(results, names), "recall", (0.0, 1.0)),
        "calibration": line_chart([measured, ideal], "score", (0.0, 1.0)),
        "gap": gap,
    }
    return {
        "analysis": analysis,
        "cards": cards,
        "messages": [*run.missing, *messages],
        "advice": advice(run, splits.get("train"), names, counts),
        "names": names,
    }


def _matrix(matrix: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the matrix of the largest classes with its labels; the others share a row."""
    if len(names) <= _MAX_MATRIX_CLASSES:
        return matrix, [*names, "background"]
    largest = np.sort(np.argsort(-matrix[:-1].sum(axis=1), kind="stable")[:_MAX_MATRIX_CLASSES])
    group = np.full(len(matrix), len(largest))
    group[largest] = np.arange(len(largest))
    group[-1] = len(largest) + 1
    small = np.zeros((len(largest) + 2, len(largest) + 2), int)
    np.add.at(small, (group[:, None], group[None]), matrix)
    return small, [*(names[index] for index in largest), "other classes", "background"]


def _precision_recall(results: list[errors.ImageMatches], names: Sequence[str]) -> list[Series]:
    """Return precision over recall at an IoU of 0.5 of the six classes with the most boxes."""
    totals = errors.box_totals(results, len(names))
    series: list[Series] = []
    for class_id in np.argsort(-totals, kind="stable")[:_MAX_CURVES]:
        _, correct = errors.scored_detections(results, int(class_id))
        if totals[class_id] == 0 or not len(correct):
            continue
        matched = np.cumsum(correct)
        precision = np.maximum.accumulate((matched / np.arange(1, len(correct) + 1))[::-1])[::-1]
        keep = np.unique(np.linspace(0, len(correct) - 1, 120).astype(int))
        recall = (matched / totals[class_id])[keep].tolist()
        series.append((names[class_id], recall, precision[keep].tolist()))
    return series
