"""COCO detection JSON, and LVIS's, which is COCO's with a few fields more.

Category ids may be anything, in any order, with gaps; classes are mapped by name and unused categories stay classes. One
exception: exports (Roboflow's) carry a root, without boxes, which the other categories name as supercategory.

LVIS: pictures are named by `coco_url`, and the lists of classes that were or were not looked for are ignored, with a note.

Written is Roboflow's layout: `SPLIT/_annotations.coco.json` with the pictures beside it. A data set with captions is
written in the same files as `tokens_positive` JSON.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from groundtune.data.findings import Collector
from groundtune.data.formats.assemble import assemble
from groundtune.data.formats.raw import Place, RawBox, RawClass, RawData, RawPicture, collector, is_text, read_text
from groundtune.data.sample import Dataset, Sample, listed
from groundtune.errors import DataError

_INT64 = 2**63
_EXPECTED = "Expected COCO detection JSON: an object with the lists 'images', 'annotations' and 'categories'"


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
    content = read_json(json_path)
    if is_grounding(content):
        raise DataError(f"{json_path} is grounding data (phrases, 'tokens_positive'). Expected boxes with categories.")
    return assemble(raw_coco(content, json_path), Place(name, root or image_dir, (image_dir, *other_dirs)))


def read_json(path: Path) -> Any:
    """Read a JSON file of any content.

    Raises:
        DataError: the file cannot be opened, is not UTF-8, or is not JSON; with line and column where known.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, integers of thousands of digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{path} is not valid JSON: {reason}. Export the annotations again.") from error


def is_grounding(content: Any) -> bool:
    """Whether JSON content is in the `tokens_positive` form."""
    for key, mark in (("annotations", "tokens_positive"), ("images", "tokens_positive_eval")):
        rows = content.get(key) if isinstance(content, dict) else None
        if isinstance(rows, list) and any(isinstance(row, dict) and mark in row for row in rows[:100]):
            return True
    return False


def raw_coco(content: Any, json_path: Path) -> RawData:
    """Take the records out of COCO content.

    Args:
        content: what the JSON file holds, of any type.
        json_path: named in messages.

    Raises:
        DataError: the content is not COCO's, or its list of pictures is empty.
    """
    images, annotations, categories = coco_lists(content, json_path, ("images", "annotations", "categories"))
    problems = collector()
    classes = _classes(categories, annotations, problems)
    pictures, picture_of = raw_pictures(images, problems)
    for where, row, picture in annotations_of(annotations, picture_of, problems):
        crowd = row.get("iscrowd") in (1, True, "1")
        picture.boxes.append(RawBox(row.get("bbox"), identity(row.get("category_id")), where, crowd))
    lvis = ("neg_category_ids", "not_exhaustive_category_ids")
    restricted = sum(any(image.get(key) for key in lvis) for image in images if isinstance(image, dict))
    if restricted:
        problems.add("annotation-ignored-field", count=restricted)
    return RawData(json_path, "xywh", pictures, classes, problems)


def coco_lists(content: Any, json_path: Path, keys: Sequence[str]) -> list[list[Any]]:
    """The named lists of COCO content; refuses anything else in words."""
    if not isinstance(content, dict):
        raise DataError(f"{json_path} holds a JSON {type(content).__name__}. {_EXPECTED}.")
    wrong = [
        f"'{key}' is " + (f"a {type(content[key]).__name__}" if key in content else "missing")
        for key in keys
        if not isinstance(content.get(key), list)
    ]
    if wrong:
        found = listed([short(key) for key in content], 8) or "nothing"
        raise DataError(f"{json_path}: {', '.join(wrong)}. {_EXPECTED}; found {found}.")
    if not content["images"]:
        raise DataError(f"{json_path} lists no pictures ('images' is empty).")
    return [content[key] for key in keys]


def identity(value: Any) -> str | None:
    """Give ids one form, so that 7, 7.0 and "7" are the same id; None where the value is no id."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < _INT64 else None
    if isinstance(value, int):
        return str(value) if abs(value) < _INT64 else None
    return value


def short(value: Any) -> str:
    """A value for a message, cut after 40 characters."""
    text = (
        repr(value) if isinstance(value, str | int | float | None) and identity(value) is not None else str(type(value))
    )
    return text if len(text) <= 40 else f"{text[:37]}..."


def annotations_of(
    annotations: list[Any], picture_of: Mapping[str, RawPicture], problems: Collector
) -> Iterator[tuple[str, dict[str, Any], RawPicture]]:
    """Give the place, the row and the picture of each usable annotation; the others are told."""
    for place, row in enumerate(annotations):
        where = f"annotations[{place}]"
        picture = picture_of.get(identity(row.get("image_id")) or "") if isinstance(row, dict) else None
        if not isinstance(row, dict):
            problems.add("annotation-broken", where)
        elif picture is None:
            problems.add("annotation-unknown-picture", f"{where} (picture {short(row.get('image_id'))})")
        else:
            yield where, row, picture


def raw_pictures(images: list[Any], problems: Collector) -> tuple[list[RawPicture], dict[str, RawPicture]]:
    """Take the pictures out of COCO's `images`; and give each by its id in the form of `identity`."""
    pictures: list[RawPicture] = []
    picture_of: dict[str, RawPicture] = {}
    for place, image in enumerate(images):
        own = identity(image.get("id")) if isinstance(image, dict) else None
        file_names = _file_names(image) if isinstance(image, dict) else ()
        if own is None or not file_names:
            problems.add("picture-broken", f"images[{place}] has no usable 'id' and 'file_name'")
        elif own in picture_of:
            problems.add("picture-id-twice", f"images[{place}] repeats the id {own} of {picture_of[own].file_names[0]}")
        else:
            picture_of[own] = RawPicture(file_names, f"images[{place}]", (image.get("height"), image.get("width")))
            pictures.append(picture_of[own])
    numbers, integers = _numbers(list(picture_of), first=1)
    if not integers:
        problems.add("picture-ids-numbered", count=len(numbers))
    for picture, number in zip(pictures, numbers, strict=True):
        picture.image_id = number
    return pictures, picture_of


def _file_names(image: dict[str, Any]) -> tuple[str, ...]:
    name = image.get("file_name")
    if isinstance(name, str) and name.strip() and is_text(name):
        return (name.replace("\\", "/"),)
    url = image.get("coco_url")  # LVIS: http://images.cocodataset.org/val2017/000000397133.jpg
    if isinstance(url, str) and is_text(url):
        try:
            path = urlparse(url).path.strip("/")
        except ValueError:
            return ()
        return (path, path.rpartition("/")[2]) if path.rpartition("/")[2] else ()
    return ()


def _numbers(identities: Sequence[str], first: int) -> tuple[list[int], bool]:
    """Turn ids into unique integers: themselves where all are integers, else numbered from `first`."""
    if all(i.removeprefix("-").isdecimal() and len(i) < 20 and str(int(i)) == i for i in identities):
        numbers = [int(i) for i in identities]
        if all(abs(number) < _INT64 for number in numbers):
            return numbers, True
    return list(range(first, first + len(identities))), False


def _classes(categories: list[Any], annotations: list[Any], problems: Collector) -> list[RawClass]:
    """Take the classes out of COCO's `categories`, without unused placeholders."""
    entries: dict[str, dict[str, Any]] = {}
    for place, category in enumerate(categories):
        own = identity(category.get("id")) if isinstance(category, dict) else None
        if own is None or not is_text(category.get("name")):
            problems.add("category-broken", f"categories[{place}] has no usable 'id' and 'name'")
        elif own in entries and entries[own]["name"] != category["name"]:
            problems.add("category-id-twice", f"id {own} is both {entries[own]['name']!r} and {category['name']!r}")
        else:
            entries.setdefault(own, category)
    used = {identity(row.get("category_id")) for row in annotations if isinstance(row, dict)}
    parents = {name for entry in entries.values() if isinstance(name := entry.get("supercategory"), str)}
    kept = []
    for own, category in entries.items():
        if own not in used and category.get("supercategory") == "none" and category["name"] in parents - {"none"}:
            problems.add("category-placeholder", repr(category["name"]))
        else:
            kept.append(own)
    numbers, integers = _numbers(kept, first=1)
    if not integers:
        problems.add("category-ids-numbered", count=len(kept))
    return [RawClass(own, entries[own]["name"], number) for own, number in zip(kept, numbers, strict=True)]


def write_coco(dataset: Dataset, file_names: Sequence[str], path: Path) -> None:
    """Write the annotations of one split.

    Args:
        dataset: of classes, or with captions.
        file_names: the name of each sample's picture as the file states it.
        path: the file to write.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample, file_name in zip(dataset.samples, file_names, strict=True):
        height, width = sample.size_hw
        image = {"id": sample.image_id, "file_name": file_name, "width": width, "height": height}
        images.append(image)
        if sample.grounding is not None:
            image["caption"] = sample.grounding.caption
            image["tokens_positive_eval"] = [[list(span) for span in spans] for spans in sample.grounding.spans]
        for row in _rows(sample, dataset.category_ids):
            annotations.append({"id": len(annotations) + 1} | row)
    categories = [{"id": i, "name": n} for i, n in zip(dataset.category_ids, dataset.class_names, strict=True)]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": categories or [{"id": 1, "name": "object"}],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def _rows(sample: Sample, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for box, class_id, crowd in zip(sample.boxes_xyxy.tolist(), sample.class_ids.tolist(), sample.crowd, strict=True):
        x0, y0, x1, y1 = box
        row = {
            "image_id": sample.image_id,
            "category_id": 1 if sample.grounding is not None else category_ids[class_id],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": int(crowd),
        }
        if sample.grounding is not None:
            row["tokens_positive"] = [list(span) for span in sample.grounding.spans[class_id]]
        rows.append(row)
    return rows
