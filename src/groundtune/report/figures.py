"""Draw the figures of a report: charts, the confusion matrix, and the gallery of images.

Colors come from the page's CSS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from groundtune.data.images import data_uri, load_image, thumbnail
from groundtune.errors import DataError
from groundtune.metrics.errors import CROWD, ERROR_TYPES, MATCHED, ImageMatches

Series = tuple[str, Sequence[float], Sequence[float]]
"""Name, x values, y values."""

_WIDTH, _HEIGHT = 520, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 34
_THUMBNAIL_SIDE, _THUMBNAIL_QUALITY = 360, 72  # pixels of the long side, JPEG quality
_MAX_BOXES = 60  # per image; more would hide it


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

    def position(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return across, down

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(x_label)}">'
    ]
    for y in ticks(y_low, y_high):
        _, down = position(x_low, y)
        ends = f'x1="{_LEFT}" y1="{down:.1f}" x2="{_WIDTH - _RIGHT}" y2="{down:.1f}"'
        parts.append(f'<line class="grid" {ends}/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(x_low, x_high):
        across, _ = position(x, y_low)
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>')
    for number, (_, xs, ys) in enumerate(series):
        for piece in _pieces(xs, ys):
            points = " ".join("{:.1f},{:.1f}".format(*position(x, y)) for x, y in piece)
            if len(piece) == 1:
                across, down = position(*piece[0])
                parts.append(f'<circle class="fill{number % 6}" cx="{across:.1f}" cy="{down:.1f}" r="3"/>')
            else:
                parts.append(f'<polyline class="line{number % 6}{_dashed(number)}" points="{points}"/>')
    parts.append('</svg><div class="legend">')
    for i, (name, _, _) in enumerate(series):
        parts.append(f'<span><i class="dot{i % 6}{_dashed(i)}"></i>{escape(name)}</span>')
    return "".join([*parts, "</div>"])


def _dashed(number: int) -> str:
    return " dashed" if number >= 6 else ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return at least one and at most `count` round numbers from low to high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> str:
    """Return a confusion matrix (N, N) as an HTML table; rows are ground truth."""
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    head = "".join(f'<th class="slant"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for index, name in enumerate(names):
        cells = ""
        for column, count in enumerate(matrix[index]):
            kind = "hit" if index == column and column < len(names) - 1 else "off"
            share = f"{count / totals[index, 0]:.3f}"
            cells += f'<td class="{kind}" style="--share:{share}">{count if count else ""}</td>'
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f'<table class="heat"><tr><th>ground truth ↓ prediction →</th>{head}</tr>{"".join(rows)}</table>'


def _pieces(xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


@dataclass
class Card:
    """One image of the gallery.

    Attributes:
        name: file name.
        image: thumbnail as a data URI.
        width, height: original size in pixels.
        boxes: x, y, w, h in original pixels, `label`, and `kind`: "truth", "missed", "matched" or
            an error type.
        classes: names of the classes of its boxes and detections.
        tags: its error types, for the filter.
    """

    name: str
    image: str
    width: int
    height: int
    boxes: list[dict[str, Any]]
    classes: list[str]
    tags: list[str]


def gallery(
    results: Sequence[ImageMatches], class_names: Sequence[str], thresholds: np.ndarray, max_images: int
) -> tuple[list[Card], list[str]]:
    """Draw the worst images with their boxes and the detections at or above the thresholds (C,).

    Returns:
        The cards, the worst first, and messages about images that cannot be read.
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
    shown = result.scores >= thresholds[result.class_ids]
    false = np.array([kind in ERROR_TYPES for kind in result.types], bool) & shown
    return float(len(result.missed(thresholds)) + result.scores[false].sum())


def _card(result: ImageMatches, class_names: Sequence[str], thresholds: np.ndarray) -> Card:
    sample, missed = result.sample, result.missed(thresholds)
    boxes, detected = [], []
    for i in np.flatnonzero(~sample.crowd):
        kind = "missed" if i in missed else "truth"
        boxes.append(_rectangle(sample.boxes_xyxy[i], kind, class_names[sample.class_ids[i]]))
    confident = result.scores >= thresholds[result.class_ids]
    shown = [i for i in np.flatnonzero(confident) if result.types[i] != CROWD]
    for i in shown:
        label = f"{class_names[result.class_ids[i]]} {result.scores[i]:.2f}"
        detected.append(_rectangle(result.boxes_xyxy[i], result.types[i], label))
    tags = dict.fromkeys(["missed"] * min(len(missed), 1) + [result.types[i] for i in shown])
    height, width = sample.size_hw
    decoded = load_image(sample.image_path, sample.size_hw)
    return Card(
        name=sample.image_path.name,
        image=data_uri(thumbnail(decoded, _THUMBNAIL_SIDE, _THUMBNAIL_QUALITY)),
        width=width,
        height=height,
        boxes=boxes[:_MAX_BOXES] + detected[:_MAX_BOXES],
        classes=sorted({class_names[c] for c in (*sample.class_ids, *result.class_ids[shown])}),
        tags=[tag for tag in tags if tag != MATCHED] or ["correct"],
    )


def _rectangle(box_xyxy: np.ndarray, kind: str, label: str) -> dict[str, Any]:
    x0, y0, x1, y1 = (round(float(value), 1) for value in box_xyxy)
    return {"x": x0, "y": y0, "w": round(x1 - x0, 1), "h": round(y1 - y0, 1), "kind": kind, "label": label}
