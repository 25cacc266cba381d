"""The pictures of a report: thumbnails with what is there beside what was said, the worst first."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundtune.data.transforms import load_picture
from groundtune.errors import DataError
from groundtune.metrics.errors import CROWD, KINDS, MATCHED, PictureResult

_SIDE = 360  # pixels of a thumbnail's longer side
_QUALITY = 72
_MOST_BOXES = 60  # drawn in one picture; more would hide it


@dataclass
class Card:
    """One picture of the gallery, ready for the page.

    Attributes:
        name: the file's name.
        image: data URI of the thumbnail.
        width: pixels of the original.
        height: pixels of the original.
        boxes: what is drawn: x, y, width, height in pixels, `kind` ("truth", "matched", "missed" or one of `KINDS`) and
            `label`.
        classes: names of the classes of its boxes and detections.
        tags: kinds of what is wrong in it, for the filter.
        worst: how wrong it is, the more the worse.
    """

    name: str
    image: str
    width: int
    height: int
    boxes: list[dict[str, Any]]
    classes: list[str]
    tags: list[str]
    worst: float


def gallery(
    results: Sequence[PictureResult], class_names: Sequence[str], thresholds: np.ndarray, most: int
) -> tuple[list[Card], list[str]]:
    """Choose the worst pictures and draw them.

    Args:
        results: of `metrics.errors.collect`.
        class_names: of the data set.
        thresholds: (C,) smallest score that is shown of each class.
        most: pictures at the most.

    Returns:
        The cards, the worst first; and messages about pictures that cannot be read any more.
    """
    ranked = sorted(results, key=lambda result: -badness(result, thresholds))[:most]
    cards, messages = [], []
    for result in ranked:
        try:
            image = _thumbnail(result)
        except DataError as error:
            messages.append(str(error))
            continue
        cards.append(_card(result, image, class_names, thresholds))
    return cards, messages


def badness(result: PictureResult, thresholds: np.ndarray) -> float:
    """How wrong a picture is: its missed boxes, and its false detections by their scores."""
    false = sum(
        float(score)
        for score, class_id, kind in zip(result.scores, result.class_ids, result.kinds, strict=True)
        if kind in KINDS and score >= thresholds[class_id]
    )
    return len(result.missed(thresholds)) + false


def _card(result: PictureResult, image: str, class_names: Sequence[str], thresholds: np.ndarray) -> Card:
    sample = result.sample
    missed = set(result.missed(thresholds).tolist())
    boxes = [
        _drawn(box, "missed" if index in missed else "truth", class_names[class_id])
        for index, (box, class_id) in enumerate(zip(sample.boxes_xyxy, sample.class_ids, strict=True))
        if not sample.crowd[index]
    ]
    tags = ["missed"] if missed else []
    found: list[dict[str, Any]] = []
    for box, score, class_id, kind in zip(
        result.boxes_xyxy, result.scores, result.class_ids, result.kinds, strict=True
    ):
        if score >= thresholds[class_id] and kind != CROWD:
            found.append(_drawn(box, kind, f"{class_names[class_id]} {score:.2f}"))
            tags += [] if kind == MATCHED or kind in tags else [kind]
    classes = {class_names[c] for c in sample.class_ids} | {box["label"].rsplit(" ", 1)[0] for box in found}
    height, width = sample.size_hw
    return Card(
        sample.image_path.name,
        image,
        width,
        height,
        boxes[:_MOST_BOXES] + found[:_MOST_BOXES],
        sorted(classes),
        tags or ["right"],
        badness(result, thresholds),
    )


def _drawn(box_xyxy: np.ndarray, kind: str, label: str) -> dict[str, Any]:
    x0, y0, x1, y1 = (round(float(value), 1) for value in box_xyxy)
    return {"x": x0, "y": y0, "w": round(x1 - x0, 1), "h": round(y1 - y0, 1), "kind": kind, "label": label}


def _thumbnail(result: PictureResult) -> str:
    picture = load_picture(result.sample.image_path, result.sample.size_hw)
    picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
