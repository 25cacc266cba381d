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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.data.formats.box_numbers import check_form, clipped, four_numbers
from groundtune.data.formats.files import Found, find_images, truncated_repr
from groundtune.data.formats.records import RawBox, RawData, RawImage
from groundtune.data.formats.tree import Tree
from groundtune.data.problems import FATAL, Collector
from groundtune.data.sample import Dataset, Grounding, Sample
from groundtune.errors import DataError
from groundtune.text.prompt import clean_name

_USABLE = ("", "box-clipped")  # problems
_PART = 4096  # images whose boxes are checked at once


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
    has_boxes = any(image.boxes for image, _, _ in found)
    measured: list[np.ndarray] = []
    for begin in range(0, len(found), _PART):
        dataset.samples += _samples(found[begin : begin + _PART], class_of, raw, measured)
    if any(map(len, measured)):
        check_form(np.concatenate(measured), raw)
    dataset.findings = raw.problems.findings()
    usable = any(len(sample.boxes_xyxy) for sample in dataset.samples)
    if has_boxes and not usable and not keep_going:
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


def _samples(
    part: Sequence[Found], class_of: dict[Any, int], raw: RawData, measured: list[np.ndarray]
) -> Iterator[Sample]:
    """Check the boxes of some images, and drop the raw ones.

    `measured` gets four numbers of each box, and the height and width of its image.
    """
    rows = [row for image, _, _ in part for row in image.boxes]
    sizes_hw = np.array([size_hw for _, _, size_hw in part], float)
    sizes_hw = sizes_hw.repeat([len(image.boxes) for image, _, _ in part], axis=0)
    flat = itertools.chain.from_iterable(four_numbers(row.numbers) for row in rows)
    numbers = np.fromiter(flat, float, 4 * len(rows)).reshape(-1, 4)
    numbers[~np.isfinite(numbers).all(axis=1)] = math.nan
    corners, problems = clipped(numbers, sizes_hw, raw.form)
    boxes = enumerate(zip(rows, corners.tolist(), problems, strict=True))
    class_ids = np.full(len(rows), -1)
    kept: list[int] = []
    ends, groundings = [0], []
    for image, _, _ in part:
        grounding, index_of = None, class_of
        if image.caption is not None:
            grounding, index_of = _grounding(image.caption, image, raw)
        groundings.append(grounding)
        kept += _usable(image, itertools.islice(boxes, len(image.boxes)), index_of, class_ids, raw.problems)
        ends.append(len(kept))
        image.boxes = []
    measured.append(np.hstack([numbers, sizes_hw])[(class_ids >= 0) & ~np.isnan(numbers[:, 0])])
    scores, areas = (np.array([each(rows[i]) for i in kept], float) for each in (_score, _area))
    crowd = np.array([rows[i].crowd for i in kept], bool)
    corners, class_ids = corners[kept], class_ids[kept]
    for (image, path, size_hw), grounding, begin, end in zip(part, groundings, ends, ends[1:], strict=False):
        own = slice(begin, end)
        assert image.image_id is not None
        yield Sample(
            image_path=path,
            image_id=image.image_id,
            size_hw=size_hw,
            boxes_xyxy=corners[own],
            class_ids=class_ids[own],
            crowd=crowd[own],
            grounding=grounding,
            exhaustive=_exhaustive(image, class_ids[own].tolist(), class_of),
            confidence=None if (scores[own] == 1).all() else scores[own].astype(np.float32),
            areas=None if np.isnan(areas[own]).all() else areas[own],
            file_name=next((n for n in image.file_names if n.endswith(path.name)), path.name),
        )


def _usable(
    image: RawImage,
    boxes: Iterable[tuple[int, tuple[RawBox, list[float], str]]],
    index_of: dict[Any, int],
    class_ids: np.ndarray,
    problems: Collector,
) -> Iterable[int]:
    """Return the numbers of an image's usable boxes, and set their classes; report the others."""
    kept: dict[tuple[Any, ...], int] = {}
    for number, (row, corners, problem) in boxes:
        class_index = index_of.get(row.label)
        if class_index is None:
            if image.caption is None:  # phrases without usable spans are reported by `_grounding`
                problems.add(
                    "annotation-unknown-category", _place(row, image, f"({truncated_repr(row.label)})")
                )
            continue
        class_ids[number] = class_index
        if problem:
            problems.add(problem, _place(row, image, truncated_repr(row.numbers)))
        if problem not in _USABLE:
            continue
        if kept.setdefault((class_index, row.crowd, *corners), number) != number:
            problems.add("box-duplicate", _place(row, image, truncated_repr(row.numbers)))
        elif row.crowd:
            problems.add("crowd-regions", _place(row, image, "").strip())
    return kept.values()


def _place(row: RawBox, image: RawImage, value: str) -> str:
    return f"{row.where} of {image.file_names[0]} {value}"


def _score(row: RawBox) -> float:
    score = row.confidence
    return float(score) if isinstance(score, int | float) and 0 < score <= 1 else 1.0


def _exhaustive(image: RawImage, with_boxes: list[int], class_of: dict[Any, int]) -> frozenset[int] | None:
    """Return the classes whose boxes are all there; None means each class."""
    if image.absent is None:
        return None
    listed = {*with_boxes, *(class_of[label] for label in image.absent if label in class_of)}
    return frozenset(listed.difference(class_of.get(label) for label in image.incomplete))


def _area(row: RawBox) -> float:
    area = row.area
    return float(area) if type(area) in (int, float) and 0 <= area < 2**63 else math.nan


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
