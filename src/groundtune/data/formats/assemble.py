"""Turn raw records into samples: annotations of all formats are checked here and only here.

Problems of images and classes (missing files, ambiguous ids) are errors, all in one message. A
problem of an annotation costs only that annotation, and is counted in `Dataset.findings`.

Other tools, such as pycocotools, trust the file. Differences:

- Classes are mapped by name; equal names are one class.
- Boxes are clipped to the image and dropped if nothing is left.
- Duplicates of a box are dropped: one-to-one matching could not match both.
- Boxes in a wrong form (corners for widths, normalized for pixels) are reported, by evidence over
  the whole set; they are not converted by a guess.
"""

import itertools
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.data.formats.files import Found, find_images, truncated_repr
from groundtune.data.formats.records import RawData, RawImage
from groundtune.data.formats.tree import Tree
from groundtune.data.problems import FATAL
from groundtune.data.sample import Dataset, Grounding, Sample
from groundtune.errors import DataError
from groundtune.text.prompt import clean_name

_EDGE_TOLERANCE = 0.5  # pixels beyond the edge that are rounding errors and not reported
_SUSPICIOUS = 0.1  # fraction of boxes that must not fit to consider another form
_FAR_ABOVE_ONE = 2.0


def assemble(raw: RawData, name: str, tree: Tree, folders: Sequence[str], keep_going: bool) -> Dataset:
    """Check the records of one split and turn them into a data set.

    Args:
        raw: records of a reader; its collector gets the problems.
        name: name of the split.
        tree: files of the data folder, which no image may be outside of.
        folders: folders in it that file names may be relative to, the most likely first.
        keep_going: skip images that cannot be used, instead of raising an error.

    Returns:
        The data set. Images without boxes are kept; no boxes at all are valid.

    Raises:
        DataError: there are no images or no classes; or, without `keep_going`, images are missing
            or outside the data folder, ids are ambiguous, or no box is usable.
    """
    root = tree.root
    if not raw.images:
        _check_usable(raw, root, folders)
        raise DataError(f"{raw.file} lists no images. Expected at least one.")
    dataset, class_of = _without_samples(raw, name, root)
    found = _merge_entries(find_images(raw, name, tree, folders), raw)
    if raw.problems.count("image-missing") * 2 <= len(raw.images):
        raw.problems.soften("image-missing")
    if not keep_going:
        _check_usable(raw, root, folders)
    taken = {image.image_id for image, _, _ in found}
    free = (number for number in itertools.count(1) if number not in taken)
    for image, _, _ in found:
        if image.image_id is None:
            image.image_id = next(free)
    measured = array("d")
    dataset.samples = [_sample(each, class_of, raw, measured) for each in found]
    if measured:
        _check_form(measured, raw)
    dataset.findings = raw.problems.findings()
    usable = any(len(sample.boxes_xyxy) for sample in dataset.samples)
    if any(image.boxes for image, _, _ in found) and not usable and not keep_going:
        raise DataError(f"{raw.file}: none of its boxes can be used. {' '.join(map(str, dataset.findings))}")
    return dataset


def _merge_entries(found: list[Found], raw: RawData) -> list[Found]:
    """Join the boxes of several entries of one image file, which would contradict each other."""
    merged: dict[Path, Found] = {}
    for image, path, size_hw in found:
        if image.caption is not None:
            return found  # each caption of an image has an entry
        if path in merged:
            first = merged[path][0]
            first.boxes += image.boxes
            first.incomplete += image.incomplete
            if first.absent is not None:
                first.absent += image.absent or []
            raw.problems.add("image-entry-twice", image.file_names[0])
        else:
            merged[path] = image, path, size_hw
    return [*merged.values()]


def _check_usable(raw: RawData, root: Path, folders: Sequence[str]) -> None:
    """Raise one error with all problems that make the data set unusable."""
    findings = {each.check: each for each in raw.problems.findings() if each.severity == "error"}
    searched = ", ".join(str(root / folder) for folder in folders[:4])
    details = {
        "image-missing": f" Searched {searched} for {len(raw.images)} images.",
        "image-outside": f" The data folder is {root}.",
    }
    problems = [
        f"{raw.file}: {findings[check]}{details.get(check, '')} {findings[check].fix}"
        for check in FATAL
        if check in findings
    ]
    if problems:
        raise DataError("\n  ".join(problems))


def _without_samples(raw: RawData, name: str, root: Path) -> tuple[Dataset, dict[Any, int]]:
    """Return the data set with its classes, and the class index of each key of the file."""
    if not raw.classes:
        if any(image.caption is not None for image in raw.images):
            return Dataset(name, root, [], [], [], lvis=raw.lvis), {}
        broken = [f"{each} " for each in raw.problems.findings() if each.check == "category-broken"]
        raise DataError(f"{raw.file} has no categories. {''.join(broken)}Expected at least one to learn.")
    index: dict[str, int] = {}
    ids: list[int] = []
    for entry in raw.classes:
        if entry.name in index:
            raw.problems.add("names-merged", repr(entry.name))
        else:
            index[entry.name] = len(ids)
            ids.append(entry.number)
    class_of = {entry.key: index[entry.name] for entry in raw.classes}
    return Dataset(name, root, list(index), [], ids, lvis=raw.lvis), class_of


def _sample(found: Found, class_of: dict[Any, int], raw: RawData, measured: "array[float]") -> Sample:
    """Check the boxes of one image; `measured` gets their numbers and the size of the image."""
    image, path, size_hw = found
    grounding, index_of = None, class_of
    if image.caption is not None:
        grounding, index_of = _grounding(image.caption, image, raw)
    kept: dict[tuple[Any, ...], tuple[float, float]] = {}  # score, area by class, crowd, four numbers
    for row in image.boxes:
        where = f"{row.where} of {image.file_names[0]}"
        class_index = index_of.get(row.label)
        if class_index is None:
            if grounding is None:  # phrases without usable spans are reported by `_grounding`
                raw.problems.add("annotation-unknown-category", f"{where} ({truncated_repr(row.label)})")
            continue
        numbers = _finite(row.numbers)
        measured.extend((*numbers, *size_hw) if numbers else ())
        box, problem = _clipped(numbers, size_hw, raw.form) if numbers else (None, "box-not-numbers")
        if problem:
            raw.problems.add(problem, f"{where} {truncated_repr(row.numbers)}")
        if box is None:
            continue
        key = (class_index, row.crowd, *box)
        if key in kept:
            raw.problems.add("box-duplicate", f"{where} {truncated_repr(row.numbers)}")
        elif row.crowd:
            raw.problems.add("crowd-regions", where)
        score, area = row.confidence, row.area
        score = float(score) if isinstance(score, int | float) and 0 < score <= 1 else 1.0
        is_area = type(area) in (int, float) and 0 <= area < 2**63
        kept.setdefault(key, (score, float(area) if is_area else math.nan))
    assert image.image_id is not None
    scores, areas = np.array([*kept.values()]).reshape(-1, 2).T
    exhaustive = None
    if image.absent is not None:
        listed = {class_index for class_index, *_ in kept} | {index_of.get(key, -1) for key in image.absent}
        exhaustive = frozenset(listed - {-1, *(index_of.get(key, -1) for key in image.incomplete)})
    return Sample(
        image_path=path,
        image_id=image.image_id,
        size_hw=size_hw,
        boxes_xyxy=np.array([box for _, _, *box in kept], np.float32).reshape(-1, 4),
        class_ids=np.array([class_index for class_index, *_ in kept], np.int64),
        crowd=np.array([crowd for _, crowd, *_ in kept], bool),
        grounding=grounding,
        exhaustive=exhaustive,
        confidence=None if (scores == 1).all() else scores.astype(np.float32),
        areas=None if np.isnan(areas).all() else areas,
        file_name=next((n for n in image.file_names if n.endswith(path.name)), path.name),
    )


def _grounding(caption: str, image: RawImage, raw: RawData) -> tuple[Grounding, dict[Any, int]]:
    """Return the usable phrases, and the index among them of each phrase of the file."""
    kept: list[tuple[tuple[int, int], ...]] = []
    index_of: dict[Any, int] = {}
    for number, spans in enumerate(image.phrases):
        usable = sorted({(span[0], span[1]) for span in spans if _holds_letters(caption, span)})
        if len(usable) < len(spans):
            example = f"{image.where} ({image.file_names[0]}): {truncated_repr(spans)}"
            raw.problems.add("span-outside-caption", f"{example} of {len(caption)} characters")
        if usable:
            index_of[number] = len(kept)
            kept.append(tuple(usable))
    return Grounding(caption, tuple(kept)), index_of


def _holds_letters(text: str, span: Any) -> bool:
    """Return whether a span is two integers with letters of the text between them."""
    if not isinstance(span, list | tuple) or len(span) != 2 or not all(type(end) is int for end in span):
        return False
    begin, end = span
    words = text[begin:end] if 0 <= begin < end <= len(text) else ""
    return bool(clean_name(words) or words.strip(" ._?\n\t"))


def _finite(numbers: Any) -> list[float] | None:
    """Return four finite numbers, or None. Texts and truth values are no numbers."""
    if not isinstance(numbers, list | tuple) or len(numbers) != 4:
        return None
    try:
        finite = [float(n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool)]
    except OverflowError:
        return None
    return finite if len(finite) == 4 and all(map(math.isfinite, finite)) else None


def _clipped(numbers: list[float], size_hw: tuple[int, int], form: str) -> tuple[list[float] | None, str]:
    """Return xyxy corners inside the image, or None; and the check of a problem, or ""."""
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
    # clip in float32, the type of the sample: a sliver at the edge may round to nothing
    clipped = [min(max(0.0, value), limit) for value, limit in zip(corners, limits, strict=True)]
    inside = np.array(clipped, np.float32).tolist()
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        at_edge = any(value <= 0 or value >= limit for value, limit in zip(corners, limits, strict=True))
        return None, "box-outside" if at_edge else "box-zero-area"
    beyond = max(abs(value - clipped) for value, clipped in zip(corners, inside, strict=True))
    return inside, "box-clipped" if beyond > _EDGE_TOLERANCE else ""


def _check_form(measured: "array[float]", raw: RawData) -> None:
    """Report a wrong form of the boxes if the whole set is evidence for another one.

    `measured` has the four numbers of each box, and the height and width of its image.
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
