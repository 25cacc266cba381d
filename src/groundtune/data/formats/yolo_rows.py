"""The rows of YOLO's label files: boxes, outlines, and boxes with key points."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from groundtune.data.formats.records import centered
from groundtune.data.problems import Collector
from groundtune.files import MAX_LABELS, read_bytes


def read_rows(path: Path, problems: Collector) -> list[tuple[int, list[float]]]:
    """Return line number and numbers of each readable row."""
    try:
        text = read_bytes(path, MAX_LABELS).decode("utf-8-sig", errors="replace")
    except OSError as error:
        problems.add("annotation-file-unreadable", f"{path.name} ({error.strerror or error})")
        return []
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            numbers = [float(word) for word in line.split()]
        except ValueError:
            numbers = []
        if numbers:
            rows.append((number, numbers))
        elif line.strip():
            problems.add("annotation-broken", f"{path.name} line {number} {line[:40]!r}")
    return rows


def box_of(numbers: Sequence[float], outlines: bool, where: str, problems: Collector) -> list[float] | None:
    """Return the four numbers of a row's box; None if the row is broken."""
    if len(numbers) <= 6:
        return list(numbers[1:5])
    if not outlines:
        problems.add("key-points-ignored", where)
        return list(numbers[1:5])
    if len(numbers) % 2 == 0:
        problems.add("annotation-broken", f"{where} with {len(numbers)} numbers")
        return None
    problems.add("segments-to-boxes", where)
    xs, ys = numbers[1::2], numbers[2::2]
    return centered([min(xs), min(ys), max(xs), max(ys)])


def all_key_points(rows: Sequence[Sequence[float]]) -> bool:
    """Return whether all long rows can only be boxes with key points, of equal number.

    Each box is in the image and contains its points. Four corners of a parallelogram are not key
    points but a rotated box.
    """
    long = [row for row in rows if len(row) > 6]
    if not long or len({len(row) for row in long}) > 1:
        return False
    values = np.array(long)
    flagged = (values.shape[1] - 5) % 3 == 0 and np.isin(values[:, 7::3], (0, 1, 2)).all()
    step = 3 if flagged else 2  # x, y and the visibility
    if (values.shape[1] - 5) % step:
        return False
    center, size = values[:, None, 1:3], values[:, None, 3:5]
    points = values[:, 5:].reshape(len(values), -1, step)[..., :2]
    inside = (np.abs(points - center) <= size / 2 + 1e-3) | (points == 0)
    in_image = (center - size / 2 >= -1e-3) & (center + size / 2 <= 1 + 1e-3)
    if not (inside.all() and in_image.all()):
        return False
    if values.shape[1] != 9:
        return True
    corners = values[:, 1:].reshape(-1, 4, 2)
    closes = np.abs(corners[:, 0] + corners[:, 2] - corners[:, 1] - corners[:, 3]).max(axis=1)
    return bool((closes > 1e-3).all())
