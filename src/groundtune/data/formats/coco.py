"""COCO detection JSON, and LVIS's, which is COCO's with a few fields more.

Category ids may be anything, in any order, with gaps; classes are mapped by name and unused categories stay classes. One
exception: exports (Roboflow's) carry a root, without boxes, which the other categories name as supercategory. LVIS names
images by `coco_url`; its lists of classes that were or were not looked for are kept for evaluation, and training ignores
them, with a note. A box with a "score" in (0, 1] was drawn by a model, which was so sure of it. A data set with captions is
written as `tokens_positive` JSON.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from groundtune.data.formats.files import is_text, short
from groundtune.data.formats.records import RawBox, RawClass, RawData, RawImage, collector
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, LvisRules, listed
from groundtune.errors import DataError

_INT64 = 2**63
_FREQUENCIES = ("r", "c", "f")
_LOOKED_FOR = ("neg_category_ids", "not_exhaustive_category_ids")
_EXPECTED = "Expected COCO detection JSON: an object with the lists 'images', 'annotations' and 'categories'"


def is_grounding(content: Any) -> bool:
    """Whether JSON content is in the `tokens_positive` form."""
    for key, mark in (("annotations", "tokens_positive"), ("images", "tokens_positive_eval")):
        rows = content.get(key) if isinstance(content, dict) else None
        if isinstance(rows, list) and any(isinstance(row, dict) and mark in row for row in rows[:100]):
            return True
    return False


def raw_coco(content: Any, json_path: Path) -> RawData:
    """Take the records out of COCO content.

    Raises:
        DataError: the content is not COCO's, or its list of images is empty.
    """
    image_rows, annotations, categories = coco_lists(
        content, json_path, ("images", "annotations", "categories")
    )
    problems = collector()
    classes = _classes(categories, annotations, problems)
    rows, image_of = raw_images(image_rows, problems)
    for image, row, where, crowd in annotations_of(annotations, image_of, problems):
        box = RawBox(row.get("bbox"), identity(row.get("category_id")), where, crowd, row.get("score"))
        image.boxes.append(box)
    restricted = sum(any(row.get(key) for key in _LOOKED_FOR) for row in rows)
    if restricted:
        problems.add("annotation-ignored-field", count=restricted)
    images = list(image_of.values())
    rules = _lvis_rules(rows, images, categories, classes)
    return RawData(json_path, "xywh", images, classes, problems, lvis=rules)


def _lvis_rules(
    rows: list[dict[str, Any]], images: list[RawImage], categories: list[Any], classes: list[RawClass]
) -> LvisRules | None:
    """What an LVIS file says of the classes that were looked for; None where not every class has a frequency."""
    number_of = {entry.key: entry.number for entry in classes}
    said = [
        (identity(entry.get("id")), entry.get("frequency")) for entry in categories if isinstance(entry, dict)
    ]
    frequencies = {number_of[key]: word for key, word in said if key in number_of and word in _FREQUENCIES}
    if not classes or len(frequencies) < len(classes):
        return None
    lists: tuple[dict[Any, list[int]], ...] = ({}, {})
    for row, image in zip(rows, images, strict=True):
        for ids, field in zip(lists, _LOOKED_FOR, strict=True):
            stated = row.get(field)
            keys = map(identity, stated if isinstance(stated, list) else [])
            ids[image.image_id] = [number_of[key] for key in keys if key in number_of]
    return LvisRules(frequencies, *lists)


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
        raise DataError(f"{json_path} lists no images ('images' is empty).")
    return [content[key] for key in keys]


def identity(value: Any) -> str | None:
    """Give ids one form, so that 7, 7.0 and "7" are the same id; None where the value is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int:  # a truth value is none
        return str(value) if abs(value) < _INT64 else None
    return value if isinstance(value, str) else None


def annotations_of(
    annotations: list[Any], image_of: Mapping[str, RawImage], problems: Collector
) -> Iterator[tuple[RawImage, dict[str, Any], str, bool]]:
    """Give the image, the row, the place and whether it is a crowd of each usable annotation; the others are told."""
    for place, row in enumerate(annotations):
        where = f"annotations[{place}]"
        if not isinstance(row, dict):
            problems.add("annotation-broken", where)
        elif (image := image_of.get(identity(row.get("image_id")) or "")) is None:
            problems.add("annotation-unknown-image", f"{where} (image {short(row.get('image_id'))})")
        else:
            yield image, row, where, row.get("iscrowd") in (1, True, "1")


def raw_images(
    image_rows: list[Any], problems: Collector
) -> tuple[list[dict[str, Any]], dict[str, RawImage]]:
    """Take the images out of COCO's `images`: the usable rows, and in the same order the images by their `identity`."""
    rows: list[dict[str, Any]] = []
    image_of: dict[str, RawImage] = {}
    for place, row in enumerate(image_rows):
        own = identity(row.get("id")) if isinstance(row, dict) else None
        file_names = _file_names(row) if isinstance(row, dict) else ()
        if own is None or not file_names:
            problems.add("image-broken", f"images[{place}] has no usable 'id' and 'file_name'")
        elif own in image_of:
            problems.add(
                "image-id-twice", f"images[{place}] repeats the id {own} of {image_of[own].file_names[0]}"
            )
        else:
            image_of[own] = RawImage(file_names, f"images[{place}]", (row.get("height"), row.get("width")))
            rows.append(row)
    numbers = _numbers(list(image_of), "image-ids-numbered", problems)
    for image, number in zip(image_of.values(), numbers, strict=True):
        image.image_id = number
    return rows, image_of


def _file_names(image: dict[str, Any]) -> tuple[str, ...]:
    name = image.get("file_name")
    if is_text(name) and name.strip():
        return (name.replace("\\", "/"),)
    url = image.get("coco_url")  # LVIS: http://images.cocodataset.org/val2017/000000397133.jpg
    if is_text(url):
        try:
            path = urlparse(url).path.strip("/")
        except ValueError:
            return ()
        return (path, path.rpartition("/")[2]) if path.rpartition("/")[2] else ()
    return ()


def _numbers(identities: Sequence[str], check: str, problems: Collector) -> list[int]:
    """Turn ids into unique integers: themselves where all are integers, else numbered from 1 and told."""
    numbers = [int(i) for i in identities if i.removeprefix("-").isdecimal() and len(i) < 20]
    if list(map(str, numbers)) == list(identities) and all(abs(number) < _INT64 for number in numbers):
        return numbers
    problems.add(check, count=len(identities))
    return list(range(1, 1 + len(identities)))


def _classes(categories: list[Any], annotations: list[Any], problems: Collector) -> list[RawClass]:
    """Take the classes out of COCO's `categories`, without unused placeholders."""
    entries: dict[str, dict[str, Any]] = {}
    for place, category in enumerate(categories):
        own = identity(category.get("id")) if isinstance(category, dict) else None
        if own is None or not is_text(category.get("name")):
            problems.add("category-broken", f"categories[{place}] has no usable 'id' and 'name'")
        elif own in entries and entries[own]["name"] != category["name"]:
            problems.add(
                "category-id-twice", f"id {own} is both {entries[own]['name']!r} and {category['name']!r}"
            )
        else:
            entries.setdefault(own, category)
    used = {identity(row.get("category_id")) for row in annotations if isinstance(row, dict)}
    parents = {name for entry in entries.values() if isinstance(name := entry.get("supercategory"), str)}
    kept = []
    for own, category in entries.items():
        if (
            own not in used
            and category.get("supercategory") == "none"
            and category["name"] in parents - {"none"}
        ):
            problems.add("category-placeholder", repr(category["name"]))
        else:
            kept.append(own)
    numbers = _numbers(kept, "category-ids-numbered", problems)
    return [RawClass(own, entries[own]["name"], number) for own, number in zip(kept, numbers, strict=True)]


def write_coco(dataset: Dataset, file_names: Sequence[str], path: Path) -> None:
    """Write the annotations of one split.

    Args:
        dataset: of classes, or with captions.
        file_names: of each sample's image, as the file states it.
        path: the file to write.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample, file_name in zip(dataset.samples, file_names, strict=True):
        height, width = sample.size_hw
        image: dict[str, Any] = {
            "id": sample.image_id,
            "file_name": file_name,
            "width": width,
            "height": height,
        }
        images.append(image)
        spans = (
            [[list(span) for span in spans] for spans in sample.grounding.spans] if sample.grounding else []
        )
        if sample.grounding:
            image |= {"caption": sample.grounding.caption, "tokens_positive_eval": spans}
        sure = np.ones(len(sample.crowd)) if sample.confidence is None else sample.confidence
        for (x0, y0, x1, y1), c, crowd, score in zip(
            sample.boxes_xyxy.tolist(),
            sample.class_ids.tolist(),
            sample.crowd.tolist(),
            sure.tolist(),
            strict=True,
        ):
            row: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": sample.image_id,
                "iscrowd": int(crowd),
            }
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            row["category_id"] = 1 if spans else dataset.category_ids[c]
            row |= {"score": score} if score < 1 else {}
            if spans:
                row["tokens_positive"] = spans[c]
            annotations.append(row)
    categories = [
        {"id": i, "name": n} for i, n in zip(dataset.category_ids, dataset.class_names, strict=True)
    ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": categories or [{"id": 1, "name": "object"}],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
