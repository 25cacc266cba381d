"""The report of a run, `report.html`: one file without network, script libraries or fonts, that opens from disk.

Everything that comes from users (class names, file names, options) passes Jinja's autoescape or `html.escape`: a class
called `<script>` is text. Pictures are thumbnails inside the file; boxes are drawn over them as SVG, so that the page can
show and hide them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import groundtune
from groundtune.data.sample import Dataset
from groundtune.metrics.errors import (
    KINDS,
    ClassThreshold,
    PictureResult,
    best_thresholds,
    calibration,
    collect,
    confusion,
    error_counts,
)
from groundtune.report.advice import advice
from groundtune.report.charts import Series, heat_map, line_chart
from groundtune.report.gallery import gallery
from groundtune.report.run_data import RunData, read_run
from groundtune.text.prompt import class_prompt

_MOST_PICTURES = 500
_MOST_CLASSES_IN_MATRIX = 30
_HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


def build_report(folder: Path, splits: dict[str, Dataset], most_pictures: int = _MOST_PICTURES) -> Path:
    """Write `report.html` into a run folder, finished or not.

    Args:
        folder: the run folder.
        splits: its data; without "valid" the report has no gallery and no error analysis.
        most_pictures: of the gallery, the worst ones.

    Returns:
        The file.

    Raises:
        DataError: it is no run folder.
    """
    run = read_run(folder)
    page = render(run, splits, most_pictures)
    path = folder / "report.html"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(run: RunData, splits: dict[str, Dataset], most_pictures: int = _MOST_PICTURES) -> str:
    """The page of a run as HTML text."""
    valid = splits.get("valid")
    context: dict[str, Any] = {
        "title": f"{Path(str(run.config.get('data', ''))).name or 'data'} · {run.config.get('model', '')}",
        "version": groundtune.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "run": run,
        "headline": _headline(run),
        "charts": _charts(run),
        "summary": _data_summary(splits),
        "environment": run.environment,
        "config": {name: json.dumps(value, ensure_ascii=False) for name, value in run.config.items()},
        "analysis": None,
        "cards": [],
        "messages": list(run.missing),
        "advice": [],
    }
    if valid is not None and run.predictions:
        results = collect(valid, run.predictions)
        context |= _analysis(run, splits, valid, results, most_pictures)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("groundtune.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(context)


def _headline(run: RunData) -> list[dict[str, str]]:
    rows = []
    for name in _HEADLINE:
        key = f"valid/{name}"
        before, best, final = run.zero_shot.get(key), run.best.get(key), run.final.get(key)
        if any(value is not None for value in (before, best, final)):
            gain = best - before if best is not None and before is not None else None
            rows.append(
                {
                    "name": name,
                    "before": share(before),
                    "final": share(final),
                    "best": share(best),
                    "gain": "" if gain is None else f"{gain:+.3f}",
                }
            )
    return rows


def _charts(run: RunData) -> list[dict[str, str]]:
    steps = [line["step"] for line in run.steps]

    def column(name: str) -> list[float]:
        return [float(line.get(name, math.nan)) for line in run.steps]

    evaluated = [line["step"] for line in run.evaluations]
    scores: list[Series] = [
        (name, evaluated, [_number(line.get(f"valid/{name}")) for line in run.evaluations]) for name in ("AP", "AP50")
    ]
    terms: list[Series] = [(n, steps, column(n)) for n in ("loss_cls", "loss_bbox", "loss_giou") if run.steps]
    rates = sorted({group for line in run.steps for group in line.get("lr", {})})
    lr: list[Series] = [(g, steps, [_number(line.get("lr", {}).get(g)) for line in run.steps]) for g in rates]
    charts = [
        ("Average precision", line_chart(scores, "step", (0.0, 1.0))),
        ("Loss (running mean)", line_chart([("loss", steps, column("loss"))], "step")),
        ("Loss terms of the last layer", line_chart(terms, "step")),
        ("Gradient norm before clipping", line_chart([("norm", steps, column("grad_norm"))], "step")),
        ("Learning rate", line_chart(lr, "step")),
    ]
    return [{"title": title, "svg": svg} for title, svg in charts if svg]


def _data_summary(splits: dict[str, Dataset]) -> dict[str, Any]:
    if not splits:
        return {}
    first = next(iter(splits.values()))
    boxes = {
        name: np.bincount(
            np.concatenate([s.class_ids for s in d.samples] or [np.zeros(0, int)]).astype(int),
            minlength=len(d.class_names),
        )
        for name, d in splits.items()
    }
    rows = [
        {"id": first.category_ids[index], "name": name, "boxes": [int(boxes[split][index]) for split in splits]}
        for index, name in enumerate(first.class_names)
    ]
    return {
        "splits": [(name, len(d.samples), int(boxes[name].sum())) for name, d in splits.items()],
        "classes": rows,
        "prompt": class_prompt(first.class_names).caption.strip() if len(first.class_names) <= 200 else "",
    }


def _analysis(
    run: RunData, splits: dict[str, Dataset], valid: Dataset, results: list[PictureResult], most_pictures: int
) -> dict[str, Any]:
    names = valid.class_names
    best = best_thresholds(results, len(names))
    thresholds = np.array([entry.threshold for entry in best])
    counts = error_counts(results, thresholds, len(names))
    matrix, shown = _matrix(confusion(results, thresholds, len(names)), names)
    bins, gap = calibration(results)
    cards, messages = gallery(results, names, thresholds, most_pictures)
    analysis = {
        "classes": [
            _class_row(run, name, best[index], {k: int(v[index]) for k, v in counts.items()})
            for index, name in enumerate(names)
        ],
        "kinds": [(kind, int(counts[kind].sum())) for kind in ("matched", *KINDS, "missed")],
        "matrix": heat_map(matrix, shown),
        "curves": line_chart(_precision_recall(results, names), "recall", (0.0, 1.0)),
        "calibration": line_chart(
            [
                ("right", [b["score"] for b in bins], [b["right"] for b in bins]),
                ("score itself", [0.0, 1.0], [0.0, 1.0]),
            ],
            "score",
            (0.0, 1.0),
        ),
        "gap": gap,
    }
    return {
        "analysis": analysis,
        "cards": cards,
        "card_data": [card.boxes for card in cards],
        "messages": [*run.missing, *messages],
        "advice": advice(run, splits.get("train"), names, counts),
        "names": names,
    }


def _class_row(run: RunData, name: str, best: ClassThreshold, counts: dict[str, int]) -> dict[str, Any]:
    scores = run.per_class.get(name, {})
    return {
        "name": name,
        "AP": share(scores.get("AP")),
        "AP50": share(scores.get("AP50")),
        "threshold": share(best.threshold if best.f1 else None),
        "f1": share(best.f1),
        "precision": share(best.precision),
        "recall": share(best.recall),
        **counts,
    }


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


def _precision_recall(results: list[PictureResult], names: Sequence[str]) -> list[Series]:
    """Precision over recall at an IoU of 0.5, for the six classes with most boxes."""
    totals = np.array(
        [sum(int(((r.sample.class_ids == c) & ~r.sample.crowd).sum()) for r in results) for c in range(len(names))]
    )
    series: list[Series] = []
    for class_id in np.argsort(-totals, kind="stable")[:6]:
        scored = sorted(
            (
                (float(score), kind == "matched")
                for r in results
                for score, c, kind in zip(r.scores, r.class_ids, r.kinds, strict=True)
                if c == class_id and kind != "crowd"
            ),
            reverse=True,
        )
        if totals[class_id] == 0 or not scored:
            continue
        right = np.cumsum([matched for _, matched in scored])
        precision = np.maximum.accumulate((right / np.arange(1, len(scored) + 1))[::-1])[::-1]
        recall = right / totals[class_id]
        keep = np.unique(np.linspace(0, len(scored) - 1, 120).astype(int))
        series.append((names[class_id], recall[keep].tolist(), precision[keep].tolist()))
    return series


def share(value: float | None) -> str:
    """A share with three decimals; a dash for none."""
    return "–" if value is None else f"{value:.3f}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
