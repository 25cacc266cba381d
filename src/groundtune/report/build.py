"""The report of a run, `report.html`: one file without network, script libraries or fonts, that opens from disk.

Everything that comes from users (class names, file names, options) passes Jinja's autoescape or `html.escape`: a class
called `<script>` is text, and the browser runs no script but the page's own, which a number used once tells. Images are
thumbnails inside the file; boxes are drawn over them as SVG, so that the page can show and hide them.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import groundtune
from groundtune.data.check.names import count_boxes
from groundtune.data.sample import Dataset
from groundtune.metrics import errors
from groundtune.metrics.grounding import retention
from groundtune.report.advice import advice
from groundtune.report.figures import Series, gallery, heat_map, line_chart
from groundtune.report.run_data import RunData, read_run, values_of_runs
from groundtune.text.prompt import class_prompt

_MOST_IMAGES = 500
_MOST_CLASSES_IN_MATRIX, _MOST_CURVES = 30, 6
_TERMS = ("loss_cls", "loss_bbox", "loss_giou")
_HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR100")
_OF_CAPTIONS = ("recall@1", "recall@5", "recall@10", "T-acc", "N-acc", "Pr@F1=1")


def build_report(folder: Path, splits: dict[str, Dataset], most_images: int = _MOST_IMAGES) -> Path:
    """Write `report.html` into a run folder, finished or not, and give its path.

    Args:
        folder: the run folder.
        splits: its data; without "valid" the report has no gallery and no error analysis.
        most_images: of the gallery, the worst ones.

    Raises:
        DataError: it is no run folder, or its files hold something else than a run writes.
    """
    path = folder / "report.html"
    with values_of_runs(folder):
        write_page(path, "report.html.jinja", _context(read_run(folder), splits, most_images))
    return path


def write_page(path: Path, template: str, context: dict[str, Any]) -> None:
    """Fill one of the templates and write it, so that a reader sees the old page or the new one."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("groundtune.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    about = {
        "version": groundtune.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "nonce": secrets.token_hex(16),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(environment.get_template(template).render(about | context), encoding="utf-8")
    os.replace(temporary, path)


def _context(run: RunData, splits: dict[str, Dataset], most_images: int) -> dict[str, Any]:
    """What the page of a run shows, by the template's names."""
    valid = splits.get("valid")
    context: dict[str, Any] = {
        "title": f"{Path(str(run.config.get('data', ''))).name or 'data'} · {run.config.get('model', '')}",
        "run": run,
        "headline": _headline(run),
        "retained": [(name, *retention(numbers)) for name, numbers in run.retention.items()],
        "charts": _charts(run),
        "summary": _data_summary(splits),
        "environment": run.environment,
        "config": {name: json.dumps(value, ensure_ascii=False) for name, value in run.config.items()},
        "messages": run.missing,
    }
    if valid is not None and run.predictions and not valid.is_grounding:  # phrases have no classes to confuse
        context |= _analysis(run, splits, valid, most_images)
    return context


def _headline(run: RunData) -> list[dict[str, str]]:
    rows = []
    for name in _HEADLINE + _OF_CAPTIONS:
        key = f"valid/{name}"
        before, best, final = run.zero_shot.get(key), run.best.get(key), run.final.get(key)
        if before is None and best is None and final is None:
            continue
        gain = f"{best - before:+.3f}" if best is not None and before is not None else ""
        rows.append(
            {"name": name, "before": share(before), "final": share(final), "best": share(best), "gain": gain}
        )
    return rows


def _charts(run: RunData) -> list[dict[str, str]]:
    captions = any("valid/recall@1" in row for row in run.evaluations)
    title, measured = (
        ("Recall of phrases", _OF_CAPTIONS[:3]) if captions else ("Average precision", _HEADLINE[:2])
    )
    rates = [{"step": row["step"], **row.get("lr", {})} for row in run.steps]
    groups = sorted({group for row in rates for group in row} - {"step"})
    charts = [
        (title, line_chart(chart_series(run.evaluations, measured, "valid/"), "step", (0.0, 1.0))),
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
    return {
        "splits": [
            (name, len(d.samples), sum(len(s.boxes_xyxy) for s in d.samples)) for name, d in splits.items()
        ],
        "classes": [
            {
                "id": first.category_ids[index],
                "name": name,
                "boxes": [counts[index] for counts in boxes.values()],
            }
            for index, name in enumerate(first.class_names)
        ],
        "prompt": class_prompt(first.class_names).caption.strip() if len(first.class_names) <= 200 else "",
    }


def _analysis(run: RunData, splits: dict[str, Dataset], valid: Dataset, most_images: int) -> dict[str, Any]:
    results = errors.collect(valid, run.predictions)
    names = valid.class_names
    best = errors.best_thresholds(results, len(names))
    thresholds = np.array([entry.threshold for entry in best])
    counts = errors.error_counts(results, thresholds, len(names))
    matrix, shown = _matrix(errors.confusion(results, thresholds, len(names)), names)
    bins, gap = errors.calibration(results)
    cards, messages = gallery(results, names, thresholds, most_images)
    analysis = {
        "classes": [
            _class_row(run, name, best[index], {k: int(v[index]) for k, v in counts.items()})
            for index, name in enumerate(names)
        ],
        "kinds": [(kind, int(counts[kind].sum())) for kind in ("matched", *errors.KINDS, "missed")],
        "matrix": heat_map(matrix, shown),
        "curves": line_chart(_precision_recall(results, names), "recall", (0.0, 1.0)),
        "calibration": line_chart(
            [
                ("right", [b["score"] for b in bins], [b["right"] for b in bins]),
                ("score itself", [0, 1], [0, 1]),
            ],
            "score",
            (0.0, 1.0),
        ),
        "gap": gap,
    }
    return {
        "analysis": analysis,
        "cards": cards,
        "messages": [*run.missing, *messages],
        "advice": advice(run, splits.get("train"), names, counts),
        "names": names,
    }


def _class_row(
    run: RunData, name: str, best: errors.ClassThreshold, counts: dict[str, int]
) -> dict[str, Any]:
    scores = run.per_class.get(name, {})
    shares = {
        "AP": scores.get("AP"),
        "AP50": scores.get("AP50"),
        "threshold": best.threshold if best.f1 else None,
    }
    shares |= {"f1": best.f1, "precision": best.precision, "recall": best.recall}
    return {"name": name, **{key: share(value) for key, value in shares.items()}, **counts}


def _matrix(matrix: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The matrix of the classes with most boxes; the others become one row and column."""
    count = len(names)
    if count <= _MOST_CLASSES_IN_MATRIX:
        return matrix, [*names, "background"]
    kept = np.sort(np.argsort(-matrix[:count].sum(axis=1), kind="stable")[:_MOST_CLASSES_IN_MATRIX])
    group = np.full(count + 1, len(kept))
    group[kept] = np.arange(len(kept))
    group[count] = len(kept) + 1
    small = np.zeros((len(kept) + 2, len(kept) + 2), int)
    np.add.at(small, (group[:, None], group[None]), matrix)
    return small, [*(names[index] for index in kept), "other classes", "background"]


def _precision_recall(results: list[errors.ImageMatches], names: Sequence[str]) -> list[Series]:
    """Precision over recall at an IoU of 0.5, for the six classes with most boxes."""
    totals = errors.box_totals(results, len(names))
    series: list[Series] = []
    for class_id in np.argsort(-totals, kind="stable")[:_MOST_CURVES]:
        _, right = errors.scored(results, int(class_id))
        if totals[class_id] == 0 or not len(right):
            continue
        found = np.cumsum(right)
        precision = np.maximum.accumulate((found / np.arange(1, len(right) + 1))[::-1])[::-1]
        keep = np.unique(np.linspace(0, len(right) - 1, 120).astype(int))
        series.append((names[class_id], (found / totals[class_id])[keep].tolist(), precision[keep].tolist()))
    return series


def share(value: float | None) -> str:
    """A share with three decimals; a dash for none."""
    return "–" if value is None else f"{value:.3f}"
