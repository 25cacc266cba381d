"""The pictures of a report: thumbnails with what is there beside what was said, the worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundtune.data.thumbnails import data_uri, thumbnail
from groundtune.data.transforms import load_picture
from groundtune.errors import DataError
from groundtune.metrics.errors import CROWD, KINDS, MATCHED, PictureResult

_SIDE = 360  # pixels of a thumbnail's longer side
_QUALITY = 72
_MOST_BOXES = 60  # drawn in one picture; more would hide it


@dataclass
class Card:
    """One picture of the gallery, ready for the page."""

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
    results: Sequence[PictureResult], class_names: Sequence[str], thresholds: np.ndarray, most: int
) -> tuple[list[Card], list[str]]:
    """Choose the worst pictures, `most` at the most, and draw them with what is at or above the thresholds (C,).

    Returns:
        The cards, the worst first; and messages about pictures that cannot be read any more.
    """
    cards, messages = [], []
    for result in sorted(results, key=lambda result: -_badness(result, thresholds))[:most]:
        try:
            cards.append(_card(result, class_names, thresholds))
        except DataError as error:
            messages.append(str(error))
    return cards, messages


def _badness(result: PictureResult, thresholds: np.ndarray) -> float:
    """How wrong a picture is: its missed boxes, and its false detections by their scores."""
    shown = result.scores >= thresholds[result.class_ids]
    false = np.array([kind in KINDS for kind in result.kinds], bool) & shown
    return float(len(result.missed(thresholds)) + result.scores[false].sum())


def _card(result: PictureResult, class_names: Sequence[str], thresholds: np.ndarray) -> Card:
    sample, missed = result.sample, result.missed(thresholds)
    boxes = [
        _drawn(sample.boxes_xyxy[i], "missed" if i in missed else "truth", class_names[sample.class_ids[i]])
        for i in np.flatnonzero(~sample.crowd)
    ]
    shown = [
        i for i, c in enumerate(result.class_ids) if result.scores[i] >= thresholds[c] and result.kinds[i] != CROWD
    ]
    labels = [f"{class_names[result.class_ids[i]]} {result.scores[i]:.2f}" for i in shown]
    found = [_drawn(result.boxes_xyxy[i], result.kinds[i], label) for i, label in zip(shown, labels, strict=True)]
    tags = dict.fromkeys(["missed"] * min(len(missed), 1) + [result.kinds[i] for i in shown])
    height, width = sample.size_hw
    picture = load_picture(sample.image_path, sample.size_hw)
    return Card(
        name=sample.image_path.name,
        image=data_uri(thumbnail(picture, _SIDE, _QUALITY)),
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
