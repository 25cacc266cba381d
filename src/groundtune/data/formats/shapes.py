"""The bounding boxes of shapes of labeling tools. Values of files may be of any type."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from groundtune.data.formats.files import is_text

CROWD = ("difficult", "crowd", "iscrowd", "is_crowd", "ignore")
"""Flags of objects that are not trained on, and not counted in evaluation."""


def label_of(value: Any) -> str | None:
    """Return a class name of a file as text; None if it is none."""
    text = str(value) if type(value) is int and abs(value) < 2**63 else value
    return text.strip() or None if is_text(text) else None


def numbers(row: Any, keys: str) -> list[float] | None:
    """Return the finite numbers of some keys, which may be text; None unless all are numbers."""
    try:
        values = [float(row[key]) for key in keys.split()]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return values if all(map(math.isfinite, values)) else None


def angle_of(row: Any, key: str = "rotation") -> float:
    """Return an angle that may be missing; 0 without it."""
    return (numbers(row, key) or [0.0])[0]


def bounds(points: Any) -> list[float] | None:
    """Return the box xyxy around points; None unless all are pairs of finite numbers."""
    try:
        xs, ys = zip(*[(float(x), float(y)) for x, y in points], strict=True)
    except (TypeError, ValueError, OverflowError):
        return None
    return [min(xs), min(ys), max(xs), max(ys)] if all(map(math.isfinite, xs + ys)) else None


def rotated(box: Sequence[float], degrees: float, pivot: Sequence[float]) -> list[float] | None:
    """Return the box around a box xyxy that is rotated clockwise about a point."""
    if not degrees:
        return [*box]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - pivot[0], y - pivot[1]) for x in box[::2] for y in box[1::2]]
    return bounds([(pivot[0] + x * cos - y * sin, pivot[1] + x * sin + y * cos) for x, y in corners])


def ellipse(center_radii: Sequence[float] | None, degrees: float) -> list[float] | None:
    """Return the box around an ellipse (x, y, radius x, radius y) that is rotated clockwise."""
    if center_radii is None:
        return None
    x, y, rx, ry = center_radii
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    return [x - across, y - down, x + across, y + down]


def outline_box(segmentation: Any, size_hw: tuple[Any, Any]) -> list[float] | None:
    """Return the box xywh around polygons or a mask in run-length encoding; None without one."""
    if isinstance(segmentation, list):
        try:
            points = np.concatenate([np.reshape(each, (-1, 2)) for each in segmentation]).astype(float)
            (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        except (ValueError, TypeError, OverflowError):  # ValueError: also of no points
            return None
        return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
    if isinstance(segmentation, dict):
        from faster_coco_eval.core import mask

        try:
            counts, (height, width) = segmentation["counts"], segmentation["size"]
            encoded = (
                mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
            )
            return [float(number) for number in mask.toBbox(encoded)]
        except (KeyError, ValueError, TypeError, RuntimeError, OverflowError):
            return None
    return None
