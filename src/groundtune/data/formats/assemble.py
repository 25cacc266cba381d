"""Raw records become samples: the one place where annotations are judged, for every format.

A data set is either usable or one `DataError`. What concerns images and classes as such (missing files, ambiguous ids) is
an error, all of it in one message. What concerns a single annotation costs that annotation alone, never its image
(pitfall 31), and is counted in `Dataset.findings`.

Deviations from pycocotools and the peers, which trust the file:

- Classes are mapped by name (semantics 22); names that read the same are one class.
- Boxes are clipped to the image and dropped when nothing is left. Zero-area boxes have no meaning to a detector.
- A box that repeats another of the same class is dropped: one-to-one matching could not satisfy both.
- Boxes in a wrong form (corners for widths, shares for pixels) are not guessed right but told, by evidence over the set.
"""

import itertools
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.data.formats.files import Found, find_images, short
from groundtune.data.formats.records import RawClass, RawData, RawImage
from groundtune.data.problems import FATAL
from groundtune.data.sample import Dataset, Grounding, Sample
from groundtune.errors import DataError
from groundtune.text.prompt import clean_name, unique_names

_EDGE_TOLERANCE = 0.5  # pixels beyond the edge that are rounding and not worth a message
_SUSPICIOUS = 0.1  # share of boxes that must not fit before another form is thought of
_FAR_ABOVE_ONE = 2.0


def assemble(raw: RawData, name: str, root: Path, folders: Sequence[Path], keep_going: bool) -> Dataset:
    """Judge the records of one split.

    Args:
        raw: what a reader gave; its collector takes what is found here.
        name: of the split.
        root: the folder that no image may lie outside of.
        folders: that file names may be relative to, the likeliest first.
        keep_going: whether an image that cannot be used costs that image alone instead of ending the reading.

    Returns:
        The data set. Images without boxes are kept; no boxes at all is legal.

    Raises:
        DataError: there are no images or no classes, images are missing or outside the data folder, ids are
            ambiguous, or not one of the boxes is usable. With `keep_going` only the first two.
    """
    if not raw.images:
        _refuse(raw, root, folders)
        raise DataError(f"{raw.file} lists no images. Expected at least one.")
    names, written_names, category_ids, class_of = _classes(raw)
    found = find_images(raw, root, folders)
    if not keep_going:
        _refuse(raw, root, folders)
    taken = {image.image_id for image, _, _ in found}
    free = (number for number in itertools.count(1) if number not in taken)
    for image, _, _ in found:
        if image.image_id is None:
            image.image_id = next(free)
    measured = array("d")
    samples = [_sample(one, class_of, raw, measured) for one in found]
    if measured:
        _judge_form(measured, raw)
    findings = raw.problems.findings()
    used = any(len(sample.boxes_xyxy) for sample in samples)
    if any(image.boxes for image, _, _ in found) and not used and not keep_going:
        raise DataError(f"{raw.file}: none of its boxes can be used. {' '.join(map(str, findings))}")
    return Dataset(name, root, names, samples, category_ids, findings, written_names, lvis=raw.lvis)


def _refuse(raw: RawData, root: Path, folders: Sequence[Path]) -> None:
    """Raise everything that makes the data set unusable, in one message."""
    found = {finding.check: finding for finding in raw.problems.findings()}
    problems = []
    for finding in (found[check] for check in FATAL if check in found):
        examples = str(finding).removeprefix(finding.message).strip()
        text = f"{raw.file}: {finding} {finding.fix}"
        if finding.check == "image-missing":
            looked = ", ".join(map(str, folders[:4]))
            text = f"{finding.count} of {len(raw.images)} images of {raw.file} are missing: {examples} Looked in {looked}."
        elif finding.check == "image-outside":
            text = (
                f"{raw.file}: image paths that lead out of the data folder {root}: {examples} {finding.fix}"
            )
        problems.append(text)
    if problems:
        raise DataError("\n  ".join(problems))


def _classes(raw: RawData) -> tuple[list[str], list[str], list[int], dict[Any, int]]:
    """Give the class names cleaned and as first written, the category id of each, and the class index of each key."""
    if not raw.classes:
        if any(image.caption is not None for image in raw.images):
            return [], [], [], {}
        broken = " ".join(
            str(finding) for finding in raw.problems.findings() if finding.check == "category-broken"
        )
        raise DataError(
            f"{raw.file} has no categories, so there is nothing to learn. {broken}{' ' * bool(broken)}Expected at least one."
        )
    try:
        names, index, _ = unique_names([entry.name for entry in raw.classes])
    except DataError as error:
        raise DataError(f"{raw.file}: {error}") from error
    groups: list[list[RawClass]] = [[] for _ in names]
    for entry, class_index in zip(raw.classes, index, strict=True):
        groups[class_index].append(entry)
    for name, group in zip(names, groups, strict=True):
        if len(group) > 1:
            raw.problems.add(
                "names-merged", f"{', '.join(repr(entry.name) for entry in group)} read {name!r}"
            )
    class_of = {entry.key: class_index for entry, class_index in zip(raw.classes, index, strict=True)}
    return names, [group[0].name for group in groups], [group[0].number for group in groups], class_of


def _sample(found: Found, class_of: dict[Any, int], raw: RawData, measured: "array[float]") -> Sample:
    """Judge the boxes of one image."""
    image, path, size_hw = found
    grounding, index_of = None, class_of
    if image.caption is not None:
        grounding, index_of = _grounding(image.caption, image, raw)
    kept: dict[tuple[Any, ...], float] = {}  # by class, crowd and the four numbers of each box its confidence
    for row in image.boxes:
        where = f"{row.place} of {image.file_names[0]}"
        class_index = index_of.get(row.label)
        if class_index is None:
            if grounding is None:  # a phrase that is not there has been told already
                raw.problems.add("annotation-unknown-category", f"{where} ({short(row.label)})")
            continue
        numbers = _finite(row.numbers)
        measured.extend((*numbers, *size_hw) if numbers else ())
        box, problem = _clipped(numbers, size_hw, raw.form) if numbers else (None, "box-not-numbers")
        if problem:
            raw.problems.add(problem, f"{where} {short(row.numbers)}")
        if box is None:
            continue
        key = (class_index, row.crowd, *box)
        if key in kept:
            raw.problems.add("box-duplicate", f"{where} {short(row.numbers)}")
        elif row.crowd:
            raw.problems.add("crowd-regions", where)
        kept.setdefault(key, _sure(row.confidence))
    assert image.image_id is not None
    return Sample(
        image_path=path,
        image_id=image.image_id,
        size_hw=size_hw,
        boxes_xyxy=np.array([box for _, _, *box in kept], np.float32).reshape(-1, 4),
        class_ids=np.array([class_index for class_index, *_ in kept], np.int64),
        crowd=np.array([crowd for _, crowd, *_ in kept], bool),
        grounding=grounding,
        confidence=np.array([*kept.values()], np.float32)
        if any(sure < 1 for sure in kept.values())
        else None,
    )


def _grounding(caption: str, image: RawImage, raw: RawData) -> tuple[Grounding, dict[Any, int]]:
    """Give the usable phrases, and the place among them of each phrase as numbered in the file."""
    kept: list[tuple[tuple[int, int], ...]] = []
    index_of: dict[Any, int] = {}
    for number, spans in enumerate(image.phrases):
        usable = sorted({(span[0], span[1]) for span in spans if _holds_letters(caption, span)})
        if len(usable) < len(spans):
            where = f"{image.place} ({image.file_names[0]})"
            raw.problems.add("span-outside-caption", f"{where}: {short(spans)} of {len(caption)} characters")
        if usable:
            index_of[number] = len(kept)
            kept.append(tuple(usable))
    return Grounding(caption, tuple(kept)), index_of


def _holds_letters(text: str, span: Any) -> bool:
    """Whether a span is two whole numbers with letters of the text between them."""
    if not isinstance(span, list | tuple) or len(span) != 2 or not all(type(end) is int for end in span):
        return False
    begin, end = span
    return 0 <= begin < end <= len(text) and bool(
        clean_name(text[begin:end]) or text[begin:end].strip(" ._?\n\t")
    )


def _judge_form(measured: "array[float]", raw: RawData) -> None:
    """Tell a wrong form of the boxes, where the whole set speaks for it: how they fit their images, in their own form and
    in the one they may be mistaken for. Of each box `measured` has the four numbers, and the image's height and width.
    """
    a, b, c, d, height, width = np.frombuffer(measured).reshape(-1, 6).T
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


def _clipped(numbers: list[float], size_hw: tuple[int, int], form: str) -> tuple[list[float] | None, str]:
    """Turn four numbers into a box inside the image, or None; and the check that has something to say, or ""."""
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


def _sure(score: Any) -> float:
    return float(score) if isinstance(score, int | float) and 0 < score <= 1 else 1.0


def _finite(numbers: Any) -> list[float] | None:
    """Four finite numbers, or None. Text and truth values are no numbers."""
    if not isinstance(numbers, list | tuple) or len(numbers) != 4:
        return None
    try:
        found = [float(n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool)]
    except OverflowError:
        return None
    return found if len(found) == 4 and all(map(math.isfinite, found)) else None
