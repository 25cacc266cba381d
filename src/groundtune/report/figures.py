"""Draw the figures of a report: charts, the confusion matrix, and the gallery of images.

Templates draw them, and the page's CSS has the colors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from groundtune.data.images import data_uri, load_image, thumbnail
from groundtune.errors import DataError
from groundtune.metrics.errors import ERROR_TYPES, MATCHED, ImageMatches
from groundtune.progress import format_metric

Series = tuple[str, Sequence[float], Sequence[float]]
"""Name, x values, y values."""

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("groundtune.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_WIDTH, _HEIGHT = 520, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, _WIDTH - 12, 12, _HEIGHT - 34
_THUMBNAIL_SIDE, _THUMBNAIL_QUALITY = 360, 72  # pixels of the long side, JPEG quality
_MAX_BOXES = 60  # per image; more would hide it
TEMPLATES.filters["metric"] = format_metric


def line_chart(series: Sequence[Series], x_label: str, y_range: tuple[float, float] | None = None) -> str:
    """Draw lines with a legend.

    Args:
        series: lines; the first six differ in color, the next six are dashed. Values that are not
            finite interrupt a line.
        x_label: label of the x axis.
        y_range: limits of the y axis; None means those of the values.

    Returns:
        An `<svg>` element, or "" without finite values.
    """
    finite = [(x, y) for _, xs, ys in series for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not finite:
        return ""
    x_low, x_high = min(x for x, _ in finite), max(x for x, _ in finite)
    y_low, y_high = y_range or (min(y for _, y in finite), max(y for _, y in finite))
    x_high, y_high = (x_high if x_high > x_low else x_low + 1), (y_high if y_high > y_low else y_low + 1)

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_RIGHT - _LEFT)

    def down(y: float) -> float:
        return _BOTTOM - (y - y_low) / (y_high - y_low) * (_BOTTOM - _TOP)

    return TEMPLATES.get_template("chart.html.jinja").render(
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_RIGHT,
        x_label=x_label,
        x_ticks=[(x, across(x)) for x in ticks(x_low, x_high)],
        y_ticks=[(y, down(y)) for y in ticks(y_low, y_high)],
        lines=[
            (name, [[(across(x), down(y)) for x, y in piece] for piece in _pieces(xs, ys)])
            for name, xs, ys in series
        ],
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return at least one and at most `count` round numbers from low to high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _pieces(xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> str:
    """Return a confusion matrix (N, N) as an HTML table; rows are ground truth."""
    return TEMPLATES.get_template("heat.html.jinja").render(matrix=matrix.tolist(), names=names)


def gallery(
    results: Sequence[ImageMatches], class_names: Sequence[str], thresholds: np.ndarray, max_images: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw the worst images with their boxes and the detections at or above the thresholds (C,).

    Returns the template's values of each image, the worst first, and messages about images that
    cannot be read.
    """
    cards, messages = [], []
    for result in sorted(results, key=lambda result: -_badness(result, thresholds))[:max_images]:
        try:
            cards.append(_card(result, class_names, thresholds))
        except DataError as error:
            messages.append(str(error))
    return cards, messages


def _badness(result: ImageMatches, thresholds: np.ndarray) -> float:
    """Sum up the missed boxes of an image and the scores of its false detections."""
    false = [i for i in result.shown(thresholds) if result.types[i] in ERROR_TYPES]
    return float(len(result.missed(thresholds)) + result.scores[false].sum())


def _card(result: ImageMatches, class_names: Sequence[str], thresholds: np.ndarray) -> dict[str, Any]:
    """Return thumbnail, boxes (original pixels), classes and, for the filter, error types."""
    sample, missed = result.sample, result.missed(thresholds)
    shown = result.shown(thresholds)
    truth = [
        _rectangle(
            sample.boxes_xyxy[i], "missed" if i in missed else "truth", class_names[sample.class_ids[i]]
        )
        for i in np.flatnonzero(~sample.crowd)
    ]
    detected = [
        _rectangle(
            result.boxes_xyxy[i],
            result.types[i],
            f"{class_names[result.class_ids[i]]} {result.scores[i]:.2f}",
        )
        for i in shown
    ]
    tags = dict.fromkeys(["missed"] * min(len(missed), 1) + [result.types[i] for i in shown])
    decoded = load_image(sample.image_path, sample.size_hw)
    return {
        "name": sample.image_path.name,
        "image": data_uri(thumbnail(decoded, _THUMBNAIL_SIDE, _THUMBNAIL_QUALITY)),
        "width": sample.size_hw[1],
        "height": sample.size_hw[0],
        "boxes": truth[:_MAX_BOXES] + detected[:_MAX_BOXES],
        "classes": sorted({class_names[c] for c in (*sample.class_ids, *result.class_ids[shown])}),
        "tags": [tag for tag in tags if tag != MATCHED] or ["correct"],
    }


def _rectangle(box_xyxy: np.ndarray, kind: str, label: str) -> dict[str, Any]:
    x0, y0, x1, y1 = (round(float(value), 1) for value in box_xyxy)
    return {"x": x0, "y": y0, "w": round(x1 - x0, 1), "h": round(y1 - y0, 1), "kind": kind, "label": label}
