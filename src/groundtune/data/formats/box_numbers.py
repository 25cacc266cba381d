"""The numbers of boxes: clip those of many images at once, and judge the form of a whole set."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from groundtune.data.formats.records import RawData

_EDGE_TOLERANCE = 0.5  # pixels beyond the edge that are rounding errors and not reported
_SUSPICIOUS = 0.1  # fraction of boxes that must not fit to consider another form
_FAR_ABOVE_ONE = 2.0
_NUMBERS = {int, float}


def four_numbers(numbers: Any) -> Sequence[float]:
    """Return four numbers, NaN for a box that has others. Texts and truth values are no numbers."""
    if isinstance(numbers, list | tuple) and len(numbers) == 4 and _NUMBERS.issuperset(map(type, numbers)):
        with suppress(OverflowError):
            return [float(number) for number in numbers]
    return [math.nan] * 4


def clipped(numbers: np.ndarray, sizes_hw: np.ndarray, form: str) -> tuple[np.ndarray, list[str]]:
    """Return (N, 4) float32 corners inside the images, and the check of each problem or ""."""
    a, b, c, d = numbers.T
    height, width = sizes_hw.T
    with np.errstate(over="ignore", invalid="ignore"):
        if form == "cxcywh":
            a, c = (a - c / 2) * width, c * width
            b, d = (b - d / 2) * height, d * height
        if form == "xyxy":
            c, d = c - a, d - b
        corners = numbers if form == "xyxy" else np.stack([a, b, a + c, b + d], axis=1)
    limits = np.stack([width, height, width, height], axis=1)
    # clip in float32, the type of the sample: a sliver at the edge may round to nothing
    inside = np.minimum(np.where(corners > 0, corners, 0.0), limits).astype(np.float32)
    is_empty = (inside[:, 2:] <= inside[:, :2]).any(axis=1)
    at_edge = ((corners <= 0) | (corners >= limits)).any(axis=1)
    found = [
        ("box-inverted", (c < 0) | (d < 0)),
        ("box-zero-area", (c == 0) | (d == 0)),
        ("box-not-numbers", np.isnan(corners).any(axis=1)),  # also huge numbers that cancel out
        ("box-outside", is_empty & at_edge),
        ("box-zero-area", is_empty),
        ("box-clipped", (np.abs(corners - inside) > _EDGE_TOLERANCE).any(axis=1)),
    ]
    return inside, np.select([mask for _, mask in found], [check for check, _ in found], "").tolist()


def check_form(measured: np.ndarray, raw: RawData) -> None:
    """Report a wrong form of the boxes if the whole set is evidence for another one.

    `measured` has the four numbers of each box, and the height and width of its image.
    """
    a, b, c, d, height, width = measured.T
    right, low = width + _EDGE_TOLERANCE, height + _EDGE_TOLERANCE
    starts = (a >= -_EDGE_TOLERANCE) & (b >= -_EDGE_TOLERANCE)
    with np.errstate(over="ignore"):
        as_xywh = starts & (a + c <= right) & (b + d <= low) & (c > 0) & (d > 0)
    as_xyxy = starts & (c <= right) & (d <= low) & (c > a) & (d > b)
    fits, fits_as_other = (as_xyxy, as_xywh) if raw.form == "xyxy" else (as_xywh, as_xyxy)
    largest, unfit = np.abs([a, b, c, d]).max(axis=0), int((~fits).sum())
    if raw.form == "cxcywh":
        far_above_one = int((largest > _FAR_ABOVE_ONE).sum())
        if far_above_one * 2 > len(a):
            raw.problems.add("boxes-look-pixels", count=far_above_one)
    elif ((largest <= 1) & (np.minimum(height, width) > 4)).all():
        raw.problems.add("boxes-look-normalized", count=len(a))
    elif unfit >= 2 and unfit > _SUSPICIOUS * len(a) and fits_as_other.all():
        raw.problems.add(f"boxes-look-{'xywh' if raw.form == 'xyxy' else 'xyxy'}", count=unfit)
