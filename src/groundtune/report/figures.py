"""The images of a report: thumbnails with what is there beside what was said, the worst first.

Charts as SVG text: lines over steps, precision over recall, and a heat map. Colors come from the page's CSS.
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
from groundtune.metrics.errors import CROWD, KINDS, MATCHED, ImageMatches

Series = tuple[str, Sequence[float], Sequence[float]]
"""Name, x and y values."""

_WIDTH, _HEIGHT = 520, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 34


def line_chart(series: Sequence[Series], x_label: str, y_range: tuple[float, float] | None = None) -> str:
    """Lines in one frame with a legend below.

    Args:
        series: six are told apart by color, the next six are dashed; values that are not finite interrupt a line.
        x_label: what the x axis counts.
        y_range: lower and upper end; None takes those of the values.

    Returns:
        An `<svg>` element; "" without any finite value.
    """
    finite = [(x, y) for _, xs, ys in series for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not finite:
        return ""
    x_low, x_high = min(x for x, _ in finite), max(x for x, _ in finite)
    y_low, y_high = y_range or (min(y for _, y in finite), max(y for _, y in finite))
    x_high, y_high = (x_high if x_high > x_low else x_low + 1), (y_high if y_high > y_low else y_low + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return across, down

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(x_label)}">'
    ]
    for y in ticks(y_low, y_high):
        _, down = place(x_low, y)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" y1="{down:.1f}" x2="{_WIDTH - _RIGHT}" y2="{down:.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(x_low, x_high):
        across, _ = place(x, y_low)
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>')
    for number, (_, xs, ys) in enumerate(series):
        for piece in _pieces(xs, ys):
            points = " ".join(f"{across:.1f},{down:.1f}" for across, down in (place(x, y) for x, y in piece))
            if len(piece) == 1:
                across, down = place(*piece[0])
                parts.append(f'<circle class="fill{number % 6}" cx="{across:.1f}" cy="{down:.1f}" r="3"/>')
            else:
                parts.append(f'<polyline class="line{number % 6}{_dashed(number)}" points="{points}"/>')
    names = [
        f'<span><i class="dot{i % 6}{_dashed(i)}"></i>{escape(name)}</span>'
        for i, (name, _, _) in enumerate(series)
    ]
    return "".join([*parts, '</svg><div class="legend">', *names, "</div>"])


def _dashed(number: int) -> str:
    return " dashed" if number >= 6 else ""


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, `most` at the most and at least one."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix (N, N) as a table: rows are what is there, columns what was said, shaded by the row's share."""
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    head = "".join(f'<th class="slant"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for index, name in enumerate(names):
        cells = "".join(
            f'<td class="{"hit" if index == column and column < len(names) - 1 else "off"}" '
            f'style="--share:{share:.3f}">{count if count else ""}</td>'
            for column, (count, share) in enumerate(
                zip(matrix[index], matrix[index] / totals[index], strict=True)
            )
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f'<table class="heat"><tr><th>there ↓ &nbsp; said →</th>{head}</tr>{"".join(rows)}</table>'


def _pieces(xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


_SIDE = 360  # pixels of a thumbnail's longer side
_QUALITY = 72
_MOST_BOXES = 60  # drawn in one image; more would hide it


@dataclass
class Card:
    """One image of the gallery, ready for the page."""

    name: str  # of the file
    image: str  # data URI of the thumbnail
    width: int  # pixels of the original
    height: int
    boxes: list[
        dict[str, Any]
    ]  # what is drawn: x, y, w, h in pixels, `label`, and `kind`: "truth", "missed" or the error's
    classes: list[str]  # names of the classes of its boxes and detections
    tags: list[str]  # kinds of what is wrong in it, for the filter
    worst: float  # how wrong it is, the more the worse


def gallery(
    results: Sequence[ImageMatches], class_names: Sequence[str], thresholds: np.ndarray, most: int
) -> tuple[list[Card], list[str]]:
    """Choose the worst images, `most` at the most, and draw them with what is at or above the thresholds (C,).

    Returns:
        The cards, the worst first; and messages about images that cannot be read any more.
    """
    cards, messages = [], []
    for result in sorted(results, key=lambda result: -_badness(result, thresholds))[:most]:
        try:
            cards.append(_card(result, class_names, thresholds))
        except DataError as error:
            messages.append(str(error))
    return cards, messages


def _badness(result: ImageMatches, thresholds: np.ndarray) -> float:
    """How wrong an image is: its missed boxes, and its false detections by their scores."""
    shown = result.scores >= thresholds[result.class_ids]
    false = np.array([kind in KINDS for kind in result.kinds], bool) & shown
    return float(len(result.missed(thresholds)) + result.scores[false].sum())


def _card(result: ImageMatches, class_names: Sequence[str], thresholds: np.ndarray) -> Card:
    sample, missed = result.sample, result.missed(thresholds)
    boxes = [
        _drawn(sample.boxes_xyxy[i], "missed" if i in missed else "truth", class_names[sample.class_ids[i]])
        for i in np.flatnonzero(~sample.crowd)
    ]
    shown = [
        i
        for i, c in enumerate(result.class_ids)
        if result.scores[i] >= thresholds[c] and result.kinds[i] != CROWD
    ]
    labels = [f"{class_names[result.class_ids[i]]} {result.scores[i]:.2f}" for i in shown]
    found = [
        _drawn(result.boxes_xyxy[i], result.kinds[i], label) for i, label in zip(shown, labels, strict=True)
    ]
    tags = dict.fromkeys(["missed"] * min(len(missed), 1) + [result.kinds[i] for i in shown])
    height, width = sample.size_hw
    decoded = load_image(sample.image_path, sample.size_hw)
    return Card(
        name=sample.image_path.name,
        image=data_uri(thumbnail(decoded, _SIDE, _QUALITY)),
        width=width,
        height=height,
        boxes=boxes[:_MOST_BOXES] + found[:_MOST_BOXES],
        classes=sorted({class_names[c] for c in (*sample.class_ids, *result.class_ids[shown])}),
        tags=[tag for tag in tags if tag != MATCHED] or ["right"],
        worst=_badness(result, thresholds),
    )


def _drawn(box_xyxy: np.ndarray, kind: str, label: str) -> dict[str, Any]:
    x0, y0, x1, y1 = (round(float(value), 1) for value in box_xyxy)
    return {"x": x0, "y": y0, "w": round(x1 - x0, 1), "h": round(y1 - y0, 1), "kind": kind, "label": label}
