"""COCO detection JSON: one file becomes one `Dataset`.

A file is either usable or one `DataError`. What concerns the file (not JSON, not COCO, ambiguous ids, missing pictures)
is an error, all of a kind in one message. What concerns a single annotation costs that annotation alone, never its
picture, and is counted in `Dataset.messages`.

Deviations from pycocotools, which trusts the file:

- Category ids may be anything, in any order, with gaps; classes are mapped by name and unused categories stay classes.
  One exception: exports (Roboflow's) carry a root, without boxes, which the other categories name as supercategory.
- Boxes are clipped to the picture and dropped when nothing is left. Zero-area boxes have no meaning to a detector.
- A picture's path must stay inside the data folder: `..` and absolute paths that leave it are refused.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from groundtune.data.sample import Dataset, Sample, listed
from groundtune.errors import DataError
from groundtune.text.prompt import unique_names

_EDGE_TOLERANCE = 0.5  # pixels beyond the edge that are rounding and not worth a message
_INT64 = 2**63


def read_coco(
    json_path: Path, image_dir: Path, name: str, *, root: Path | None = None, other_dirs: Sequence[Path] = ()
) -> Dataset:
    """Read one COCO annotation file.

    Args:
        json_path: the file, with the lists `images`, `annotations` and `categories`.
        image_dir: the folder that `file_name` is relative to.
        name: the split's name.
        root: the folder that no picture may lie outside of; `image_dir` when not given.
        other_dirs: folders to try where `image_dir` has none of the first pictures.

    Returns:
        The data set. Pictures without boxes are kept; no annotations at all is legal.

    Raises:
        DataError: the file is not COCO detection JSON, has no pictures or no classes, its ids are ambiguous, picture
            files are missing or outside the data folder, or not one of its boxes is usable.
    """
    root = root or image_dir
    images, annotations, categories = _coco_lists(json_path)
    messages: list[str] = []
    names, category_ids, class_of = _classes(categories, annotations, json_path, messages)
    entries, index_of = _image_entries(images, json_path, messages)
    paths = _picture_paths([entry["file_name"] for entry in entries], [image_dir, *other_dirs], root, json_path)
    stated = [_stated_size(entry) for entry in entries]
    sizes = [size or _stored_size(path) for size, path in zip(stated, paths, strict=True)]
    if None in stated:
        messages.append(f"{stated.count(None)} pictures without a usable width and height: taken from the pictures.")
    boxes, classes, crowd = _boxes(annotations, sizes, index_of, class_of, json_path, messages)
    samples = [
        Sample(
            image_path=path,
            image_id=entry["id"],
            size_hw=size,
            boxes_xyxy=np.asarray(boxes[i], dtype=np.float32).reshape(-1, 4),
            class_ids=np.asarray(classes[i], dtype=np.int64),
            crowd=np.asarray(crowd[i], dtype=bool),
        )
        for i, (entry, path, size) in enumerate(zip(entries, paths, sizes, strict=True))
    ]
    return Dataset(name, root, names, samples, category_ids, [f"{name}: {message}" for message in messages])


def read_json(path: Path) -> Any:
    """Read a JSON file of any content.

    Raises:
        DataError: the file cannot be opened, is not UTF-8, or is not JSON; with line and column where known.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, bad UTF-8, integers of thousands of digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{path} is not valid JSON: {reason}. Export the annotations again.") from error


def _coco_lists(json_path: Path) -> tuple[list[Any], list[Any], list[Any]]:
    content = read_json(json_path)
    expected = "Expected COCO detection JSON: an object with the lists 'images', 'annotations' and 'categories'"
    if not isinstance(content, dict):
        raise DataError(f"{json_path} holds a JSON {type(content).__name__}. {expected}.")
    wrong = [
        f"'{key}' is " + (f"a {type(content[key]).__name__}" if key in content else "missing")
        for key in ("images", "annotations", "categories")
        if not isinstance(content.get(key), list)
    ]
    if wrong:
        found = listed([repr(key) for key in content], 8) or "nothing"
        raise DataError(f"{json_path}: {', '.join(wrong)}. {expected}; found {found}.")
    if not content["images"]:
        raise DataError(f"{json_path} lists no pictures ('images' is empty).")
    if any(isinstance(row, dict) and "tokens_positive" in row for row in content["annotations"][:100]):
        raise DataError(f"{json_path} is grounding data (phrases, 'tokens_positive'). Expected boxes with categories.")
    return content["images"], content["annotations"], content["categories"]


def _identity(value: Any) -> str | None:
    """Give ids one form, so that 7, 7.0 and "7" are the same id; None where the value is no id."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < _INT64 else None
    if isinstance(value, int):
        return str(value) if abs(value) < _INT64 else None
    return value


def _numbers(identities: Sequence[str], first: int) -> tuple[list[int], bool]:
    """Turn ids into unique integers: themselves where all are integers, else numbered from `first`."""
    if all(i.removeprefix("-").isdecimal() and len(i) < 20 and str(int(i)) == i for i in identities):
        numbers = [int(i) for i in identities]
        if all(abs(number) < _INT64 for number in numbers):
            return numbers, True
    return list(range(first, first + len(identities))), False


def _classes(
    categories: list[Any], annotations: list[Any], json_path: Path, messages: list[str]
) -> tuple[list[str], list[int], dict[str, int]]:
    """Give the class names, the category id of each, and the class index of each id in its `_identity` form."""
    problems: list[str] = []
    entries: dict[str, dict[str, Any]] = {}
    for place, category in enumerate(categories):
        identity = _identity(category.get("id")) if isinstance(category, dict) else None
        if identity is None or not _is_text(category.get("name")):
            problems.append(f"categories[{place}] has no usable 'id' and 'name'")
        elif identity in entries and entries[identity]["name"] != category["name"]:
            problems.append(f"id {identity} is both {entries[identity]['name']!r} and {category['name']!r}")
        else:
            entries[identity] = category
    if problems:
        raise DataError(f"{json_path}: {listed(problems)}. Every category needs its own id and a name.")
    used = {_identity(row.get("category_id")) for row in annotations if isinstance(row, dict)}
    roots = {
        identity
        for identity, category in entries.items()
        if identity not in used
        and category.get("supercategory") == "none"
        and any(other.get("supercategory") == category["name"] for other in entries.values())
    }
    if roots:
        quoted = listed([repr(entries[identity]["name"]) for identity in roots])
        messages.append(f"placeholder category {quoted} has no boxes and is only the parent of the others: ignored.")
    kept = [identity for identity in entries if identity not in roots]
    if not kept:
        raise DataError(f"{json_path} has no categories, so there is nothing to learn. Expected at least one.")
    numbers, integers = _numbers(kept, first=1)
    if not integers:
        messages.append("category ids are not integers: numbered from 1 in the order of the file.")
    try:
        names, index, merged = unique_names([entries[identity]["name"] for identity in kept])
    except DataError as error:
        raise DataError(f"{json_path}: {error}") from error
    messages.extend(merged)
    category_ids = [numbers[index.index(i)] for i in range(len(names))]
    return names, category_ids, dict(zip(kept, index, strict=True))


def _is_text(value: Any) -> bool:
    # JSON can carry halves of surrogate pairs, which no tokenizer and no terminal takes
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _image_entries(
    images: list[Any], json_path: Path, messages: list[str]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Give the usable copies of the entries (with integer ids) and the place of each id in its `_identity` form."""
    problems: list[str] = []
    entries: list[dict[str, Any]] = []
    index_of: dict[str, int] = {}
    for place, image in enumerate(images):
        identity = _identity(image.get("id")) if isinstance(image, dict) else None
        file_name = image.get("file_name") if isinstance(image, dict) else None
        if identity is None or not isinstance(file_name, str) or not file_name.strip():
            problems.append(f"images[{place}] has no usable 'id' and 'file_name'")
        elif identity in index_of:
            problems.append(f"images[{place}] repeats the id {identity} of {entries[index_of[identity]]['file_name']}")
        else:
            index_of[identity] = len(entries)
            entries.append({**image, "file_name": file_name.replace("\\", "/")})
    if problems:
        raise DataError(f"{json_path}: {listed(problems)}. Every picture needs its own id and a file name.")
    numbers, integers = _numbers(list(index_of), first=1)
    if not integers:
        messages.append("picture ids are not integers: numbered from 1 in the order of the file.")
    for entry, number in zip(entries, numbers, strict=True):
        entry["id"] = number
    return entries, index_of


def _picture_paths(file_names: list[str], folders: list[Path], root: Path, json_path: Path) -> list[Path]:
    """Find every picture; whole folders are listed once, which is fast for 100,000 files."""
    suspects = [n for n in file_names if ".." in n or n.startswith("/") or "\0" in n]
    folders = [f for f in folders if all(_is_inside(f / n, root) and "\0" not in n for n in suspects)]
    if not folders:
        raise DataError(
            f"{json_path}: picture paths that lead out of the data folder {root}: "
            f"{listed([repr(n) for n in suspects])}. Expected file names relative to the picture folder."
        )
    listings: dict[str, set[str]] = {}

    def exists(path: Path) -> bool:
        parent = os.path.normpath(path.parent)
        if parent not in listings:
            try:
                listings[parent] = set(os.listdir(parent))
            except (OSError, ValueError):  # ValueError: characters that no file name can have
                listings[parent] = set()
        return path.name in listings[parent]

    found = (folder for folder in folders if any(exists(folder / n) for n in file_names[:50]))
    folder = next(found, folders[0])
    paths = [folder / n for n in file_names]
    missing = [repr(n) for n, path in zip(file_names, paths, strict=True) if not exists(path)]
    if missing:
        looked = ", ".join(str(f) for f in (folders if len(missing) == len(paths) else [folder]))
        raise DataError(
            f"{len(missing)} of {len(paths)} pictures of {json_path} are missing: {listed(missing)}. Looked in {looked}."
        )
    return paths


def _is_inside(path: Path, root: Path) -> bool:
    # by the text of the path: people do link picture folders into a data folder, and that is theirs to decide
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(root), ""))


def _stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    sides: tuple[Any, Any] = (entry.get("height"), entry.get("width"))
    if not all(_is_number(side) and 1 <= side < _INT64 and side == int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _stored_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except Exception as error:  # Pillow raises many kinds for broken files
        raise DataError(f"The annotations state no size of {path}, and it cannot be opened: {error}.") from error


def _boxes(
    annotations: list[Any],
    sizes: list[tuple[int, int]],
    index_of: dict[str, int],
    class_of: dict[str, int],
    json_path: Path,
    messages: list[str],
) -> tuple[list[list[list[float]]], list[list[int]], list[list[bool]]]:
    """Sort the usable boxes, classes and crowd marks by picture and count what is not usable."""
    boxes: list[list[list[float]]] = [[] for _ in sizes]
    classes: list[list[int]] = [[] for _ in sizes]
    crowd: list[list[bool]] = [[] for _ in sizes]
    dropped: dict[str, list[str]] = defaultdict(list)
    clipped: list[str] = []
    for place, row in enumerate(annotations):
        where = f"annotations[{place}]"
        if not isinstance(row, dict):
            dropped["not an object"].append(where)
            continue
        image = index_of.get(_identity(row.get("image_id")) or "")
        category = _identity(row.get("category_id")) or ""
        if image is None:
            dropped["its picture is not in the file"].append(where)
        elif category not in class_of:
            dropped["its category is not in the file"].append(where)
        else:
            box, reason, beyond = _clip(row.get("bbox"), sizes[image])
            if box is None:
                dropped[reason].append(where)
                continue
            if beyond > _EDGE_TOLERANCE:
                clipped.append(where)
            boxes[image].append(box)
            classes[image].append(class_of[category])
            crowd[image].append(row.get("iscrowd") in (1, True, "1"))
    summary = [f"{len(places)} boxes dropped, {reason}: {listed(places, 3)}." for reason, places in dropped.items()]
    if annotations and not any(boxes):
        raise DataError(f"{json_path}: none of its boxes can be used. {' '.join(summary)}")
    messages.extend(summary)
    if clipped:
        messages.append(
            f"{len(clipped)} boxes reached beyond the picture and were clipped to it: {listed(clipped, 3)}."
        )
    return boxes, classes, crowd


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _clip(bbox: Any, size_hw: tuple[int, int]) -> tuple[list[float] | None, str, float]:
    """Turn COCO's [x, y, width, height] into a clipped xyxy box, or None and the reason; and pixels cut off."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        return None, "no bbox of four numbers", 0.0
    try:
        x, y, width, height = (float(value) for value in bbox)
    except OverflowError:
        return None, "numbers that are not finite", 0.0
    if not all(math.isfinite(value) for value in (x, y, width, height)):
        return None, "numbers that are not finite", 0.0
    if width < 0 or height < 0:
        return None, "negative width or height", 0.0
    if width == 0 or height == 0:
        return None, "no area", 0.0
    box_xyxy = (x, y, x + width, y + height)
    limits = (size_hw[1], size_hw[0]) * 2
    # clipped in float32, which is what the sample stores: a sliver at the edge may round to nothing
    inside = [float(np.float32(min(max(value, 0.0), limit))) for value, limit in zip(box_xyxy, limits, strict=True)]
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, "outside the picture", 0.0
    beyond = max(abs(value - kept) for value, kept in zip(box_xyxy, inside, strict=True))
    return inside, "", beyond
