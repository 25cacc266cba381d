"""Raw records become samples: the one place where annotations are judged, for every format.

A data set is either usable or one `DataError`. What concerns pictures and classes as such (missing files, ambiguous ids) is
an error, all of it in one message. What concerns a single annotation costs that annotation alone, never its picture
(pitfall 31), and is counted in `Dataset.findings`.

Deviations from pycocotools and the peers, which trust the file:

- Classes are mapped by name (semantics 22); names that read the same are one class.
- Boxes are clipped to the picture and dropped when nothing is left. Zero-area boxes have no meaning to a detector.
- A box that repeats another of the same class is dropped: one-to-one matching could not satisfy both.
- Boxes in a wrong form (corners for widths, shares for pixels) are not guessed right but told, by evidence over the set.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.data.formats.pictures import find_pictures, picture_sizes
from groundtune.data.formats.raw import Place, RawBox, RawCaption, RawData, RawPicture
from groundtune.data.formats.reading import FATAL
from groundtune.data.sample import Dataset, Grounding, Sample
from groundtune.errors import DataError
from groundtune.text.prompt import clean_name, unique_names

_EDGE_TOLERANCE = 0.5  # pixels beyond the edge that are rounding and not worth a message
_SUSPICIOUS = 0.1  # share of boxes that must not fit before another form is thought of
_FAR_ABOVE_ONE = 2.0

Box = list[float]


def assemble(raw: RawData, place: Place) -> Dataset:
    """Judge the records of one split.

    Args:
        raw: what a reader gave; its collector takes what is found here.
        place: name and folders of the split.

    Returns:
        The data set. Pictures without boxes are kept; no boxes at all is legal.

    Raises:
        DataError: there are no pictures or no classes, pictures are missing or outside the data folder, ids are
            ambiguous, or not one of the boxes is usable. With `place.keep_going` only the first two.
    """
    if not raw.pictures:
        _refuse(raw, place, 0)
        raise DataError(f"{raw.file} lists no pictures. Expected at least one.")
    names, written_names, category_ids, class_of = _classes(raw)
    total = len(raw.pictures)
    pictures, paths = find_pictures(raw, place)
    pictures, paths, sizes = picture_sizes(pictures, paths, raw)
    if not place.keep_going:
        _refuse(raw, place, total)
    _number_pictures(pictures)
    samples, used, lost = [], 0, 0
    evidence = _Evidence(raw.form)
    for picture, path, size_hw in zip(pictures, paths, sizes, strict=True):
        sample = _sample(picture, path, size_hw, class_of, raw, evidence)
        used += len(sample.boxes_xyxy)
        lost += len(picture.boxes) - len(sample.boxes_xyxy)
        samples.append(sample)
    evidence.judge(raw)
    findings = raw.problems.findings()
    if not used and lost and not place.keep_going:
        raise DataError(f"{raw.file}: none of its boxes can be used. {' '.join(map(str, findings))}")
    return Dataset(place.name, place.root, names, samples, category_ids, findings, written_names)


def _refuse(raw: RawData, place: Place, total: int) -> None:
    """Raise everything that makes the data set unusable, in one message."""
    found = {finding.check: finding for finding in raw.problems.findings()}
    problems = []
    for check in FATAL:
        if check not in found:
            continue
        finding = found[check]
        if check == "picture-missing":
            looked = ", ".join(map(str, place.folders[:4]))
            problems.append(
                f"{finding.count} of {total} pictures of {raw.file} are missing: "
                f"{str(finding).removeprefix(finding.message).strip()} Looked in {looked}."
            )
        elif check == "picture-outside":
            examples = str(finding).removeprefix(finding.message).strip()
            problems.append(
                f"{raw.file}: picture paths that lead out of the data folder {place.root}: {examples} {finding.fix}"
            )
        else:
            problems.append(f"{raw.file}: {finding} {finding.fix}")
    if problems:
        raise DataError("\n  ".join(problems))


def _classes(raw: RawData) -> tuple[list[str], list[str], list[int], dict[Any, int]]:
    """Give the class names cleaned and as first written, the category id of each, and the class index of each key."""
    if not raw.classes:
        if any(picture.caption is not None for picture in raw.pictures):
            return [], [], [], {}
        broken = " ".join(str(finding) for finding in raw.problems.findings() if finding.check == "category-broken")
        raise DataError(
            f"{raw.file} has no categories, so there is nothing to learn. {broken}{' ' * bool(broken)}Expected at least one."
        )
    try:
        names, index, _ = unique_names([entry.name for entry in raw.classes])
    except DataError as error:
        raise DataError(f"{raw.file}: {error}") from error
    written: list[list[str]] = [[] for _ in names]
    category_ids: list[int] = [0] * len(names)
    for entry, class_index in reversed(list(zip(raw.classes, index, strict=True))):
        written[class_index].insert(0, entry.name)
        category_ids[class_index] = entry.number
    for name, group in zip(names, written, strict=True):
        if len(group) > 1:
            raw.problems.add("names-merged", f"{', '.join(map(repr, group))} read {name!r}")
    return (
        names,
        [group[0] for group in written],
        category_ids,
        {entry.key: i for entry, i in zip(raw.classes, index, strict=True)},
    )


def _number_pictures(pictures: list[RawPicture]) -> None:
    taken = {picture.image_id for picture in pictures if picture.image_id is not None}
    free = 0
    for picture in pictures:
        if picture.image_id is None:
            free += 1
            while free in taken:
                free += 1
            picture.image_id = free


def _sample(
    picture: RawPicture,
    path: Path,
    size_hw: tuple[int, int],
    class_of: dict[Any, int],
    raw: RawData,
    evidence: "_Evidence",
) -> Sample:
    """Judge the boxes of one picture."""
    problems = raw.problems
    grounding, index_of = None, class_of
    if picture.caption is not None:
        grounding, index_of = _grounding(picture.caption, picture, raw)
    boxes: list[Box] = []
    classes: list[int] = []
    crowd: list[bool] = []
    seen: set[tuple[Any, ...]] = set()
    for row in picture.boxes:
        class_index = index_of.get(row.label)
        if class_index is None:
            if grounding is None:  # a phrase that is not there has been told already
                problems.add("annotation-unknown-category", f"{_where(row, picture)} ({_short(row.label)})")
            continue
        box, problem = _clipped(row, size_hw, raw.form, evidence)
        if problem:
            problems.add(problem, f"{_where(row, picture)} {_short(row.numbers)}")
        if box is None:
            continue
        key = (class_index, row.crowd, *box)
        if key in seen:
            problems.add("box-duplicate", f"{_where(row, picture)} {_short(row.numbers)}")
            continue
        seen.add(key)
        if row.crowd:
            problems.add("crowd-regions", _where(row, picture))
        boxes.append(box)
        classes.append(class_index)
        crowd.append(row.crowd)
    assert picture.image_id is not None
    return Sample(
        image_path=path,
        image_id=picture.image_id,
        size_hw=size_hw,
        boxes_xyxy=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        class_ids=np.asarray(classes, dtype=np.int64),
        crowd=np.asarray(crowd, dtype=bool),
        grounding=grounding,
    )


def _where(row: RawBox, picture: RawPicture) -> str:
    return f"{row.place} of {picture.file_names[0]}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, deep nesting
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _grounding(caption: RawCaption, picture: RawPicture, raw: RawData) -> tuple[Grounding, dict[Any, int]]:
    """Give the usable phrases, and the place among them of each phrase as numbered in the file."""
    kept: list[tuple[tuple[int, int], ...]] = []
    index_of: dict[Any, int] = {}
    for number, spans in enumerate(caption.phrases):
        usable = sorted({span for span in map(_span, spans) if _holds_letters(caption.text, span)})
        if len(usable) < len(spans):
            raw.problems.add(
                "span-outside-caption",
                f"{picture.place} ({picture.file_names[0]}): {_short(spans)} of {len(caption.text)} characters",
            )
        if usable:
            index_of[number] = len(kept)
            kept.append(tuple(usable))
    return Grounding(caption.text, tuple(kept)), index_of


def _span(span: Any) -> tuple[int, int]:
    """Two whole numbers, or a span that lies nowhere."""
    if isinstance(span, list | tuple) and len(span) == 2 and all(type(end) is int for end in span):
        return span[0], span[1]
    return -1, -1


def _holds_letters(text: str, span: tuple[int, int]) -> bool:
    begin, end = span
    return 0 <= begin < end <= len(text) and bool(clean_name(text[begin:end]) or text[begin:end].strip(" ._?\n\t"))


@dataclass
class _Evidence:
    """How the boxes of a set fit their pictures, in their own form and in the one they may be mistaken for."""

    form: str
    boxes: int = 0
    unfit: int = 0
    unfit_as_other: int = 0
    in_unit: int = 0
    far_above_one: int = 0

    def add(self, numbers: Sequence[float], size_hw: tuple[int, int]) -> None:
        a, b, c, d = numbers
        right, low = size_hw[1] + _EDGE_TOLERANCE, size_hw[0] + _EDGE_TOLERANCE
        starts = a >= -_EDGE_TOLERANCE and b >= -_EDGE_TOLERANCE
        as_xywh = starts and a + c <= right and b + d <= low and c > 0 and d > 0
        as_xyxy = starts and c <= right and d <= low and c > a and d > b
        self.boxes += 1
        self.unfit += not (as_xyxy if self.form == "xyxy" else as_xywh)
        self.unfit_as_other += not (as_xywh if self.form == "xyxy" else as_xyxy)
        largest = max(abs(a), abs(b), abs(c), abs(d))
        self.in_unit += largest <= 1 and min(size_hw) > 4
        self.far_above_one += largest > _FAR_ABOVE_ONE

    def judge(self, raw: RawData) -> None:
        """Tell a wrong form, where the whole set speaks for it."""
        if not self.boxes:
            return
        if self.form == "cxcywh":
            if self.far_above_one * 2 > self.boxes:
                raw.problems.add("boxes-look-pixels", count=self.far_above_one)
            return
        if self.in_unit == self.boxes:
            raw.problems.add("boxes-look-normalised", count=self.boxes)
        elif self.unfit >= 2 and self.unfit > _SUSPICIOUS * self.boxes and not self.unfit_as_other:
            raw.problems.add(f"boxes-look-{'xywh' if self.form == 'xyxy' else 'xyxy'}", count=self.unfit)


def _clipped(row: RawBox, size_hw: tuple[int, int], form: str, evidence: _Evidence) -> tuple[Box | None, str]:
    """Turn four numbers into a box inside the picture, or None; and the check that has something to say, or ""."""
    numbers = _finite(row.numbers)
    if numbers is None:
        return None, "box-not-numbers"
    evidence.add(numbers, size_hw)
    a, b, c, d = numbers
    if form == "cxcywh":
        a, c = (a - c / 2) * size_hw[1], c * size_hw[1]
        b, d = (b - d / 2) * size_hw[0], d * size_hw[0]
    if form == "xyxy":
        c, d = c - a, d - b
    if c < 0 or d < 0:
        return None, "box-inverted"
    if c == 0 or d == 0:
        return None, "box-zero-area"
    corners = (a, b, a + c, b + d) if form != "xyxy" else tuple(numbers)
    if any(map(math.isnan, corners)):  # huge numbers that cancel out
        return None, "box-not-numbers"
    limits = (size_hw[1], size_hw[0]) * 2
    # clipped in float32, which is what the sample stores: a sliver at the edge may round to nothing
    inside = np.minimum(np.maximum(corners, 0.0), limits).astype(np.float32).tolist()
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        at_edge = any(value <= 0 or value >= limit for value, limit in zip(corners, limits, strict=True))
        return None, "box-outside" if at_edge else "box-zero-area"
    beyond = max(abs(value - kept) for value, kept in zip(corners, inside, strict=True))
    return inside, "box-clipped" if beyond > _EDGE_TOLERANCE else ""


def _finite(numbers: Any) -> list[float] | None:
    """Four finite numbers, or None. Text and truth values are no numbers."""
    if not isinstance(numbers, list | tuple) or len(numbers) != 4:
        return None
    try:
        found = [float(n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool)]
    except OverflowError:
        return None
    return found if len(found) == 4 and all(map(math.isfinite, found)) else None
