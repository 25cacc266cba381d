"""COCO detection JSON, and LVIS, which is COCO with a few more fields.

- Classes are mapped by name, so category ids may be anything. Unused categories stay classes,
  except the root in exports of Roboflow, which other categories name as their supercategory.
- LVIS names images by `coco_url`. Its lists of classes that annotators searched for in an image say
  which classes are background (docs/semantics.md, "Incomplete labels").
- The "score" of a box, in (0, 1], is that of the model that drew it.
- A data set with captions is written as `tokens_positive` JSON (see `odvg`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import basename
from typing import Any
from urllib.parse import urlparse

import numpy as np

from groundtune.data.formats.files import files_by_split, image_folders, is_text, truncated_repr
from groundtune.data.formats.records import Evidence, RawBox, RawClass, RawData, RawImage, Source
from groundtune.data.formats.shapes import outline_box
from groundtune.data.formats.tree import Tree
from groundtune.data.formats.words import split_of
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, LvisRules, Sample, join_examples
from groundtune.errors import DataError
from groundtune.files import read_json

_INT64 = 2**63
_TRUE = (1, True, "1")
_LISTS = {"images", "annotations", "categories"}
_OF_ROBOFLOW = "_annotations.coco.json"
_ABSENT, _INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"  # LVIS, in an image
_EXPECTED = "Expected COCO detection JSON: an object with the lists 'images', 'annotations' and 'categories'"


def recognize(tree: Tree) -> Evidence | None:
    """Recognize COCO and LVIS files by their keys."""
    ranks: dict[str, int] = {}
    for file in tree.declared(".json"):
        keys = tree.signatures[file].keys
        large = tree.signatures[file].first is None
        whole = {"images", "annotations"} <= keys or (large and len(keys & _LISTS) > 1)
        # a test split has no annotations
        part = "images" in keys and ("categories" in keys or basename(file) == _OF_ROBOFLOW)
        if (whole or part) and '"tokens_positive' not in tree.head(file):  # of captions, see `odvg`
            ranks[file] = 2 if whole and ("categories" in keys or large) else 1
    if not ranks and len(tree.declared(".json")) == 1:
        ranks = {tree.declared(".json")[0]: 0}  # reading it explains what is wrong
    if not ranks:
        return None
    best = max(ranks.values())
    chosen = [file for file in ranks if ranks[file] == best or split_of(file)]
    instances = [file for file in chosen if basename(file).startswith("instances")]
    splits = [split_of(file) for file in instances]  # beside key points and captions
    chosen = instances + [file for file in chosen if split_of(file) not in splits]
    sources = files_by_split(chosen, lambda file: coco_source(tree, file), tree)
    refused = {}
    for file in tree.declared(".json"):
        split = split_of(file)
        unread = basename(file) == _OF_ROBOFLOW or not tree.signatures[file].form
        if file not in chosen and split and split not in sources and unread:
            refused[split] = f"{tree.root / file} is not valid JSON. Export the annotations again."
    return Evidence("coco", best, sources, refused, chosen[0])


def coco_source(tree: Tree, file: str) -> Source:
    """Return the split of one annotation file, with the usual folders of its images."""
    return Source(tree.root / file, image_folders(tree, file), _read)


def _read(path: Path) -> RawData:
    return raw_coco(read_json(path, hook=_without_outline), path)


def _without_outline(row: dict[str, Any]) -> dict[str, Any]:
    """Drop the outline of a row with a box: outlines fill gigabytes."""
    if row.get("bbox"):
        row.pop("segmentation", None)
    return row


def raw_coco(content: Any, json_path: Path) -> RawData:
    """Read the records of COCO content; raise a `DataError` for other content."""
    image_rows, annotations, categories = coco_lists(
        content, json_path, ("images", "annotations", "categories")
    )
    raw = RawData(json_path, "xywh")
    raw.classes += _classes(categories, annotations, raw.problems)
    rows, image_of = raw_images(image_rows, raw.problems)
    raw.images += image_of.values()
    for image, row, where, crowd in annotations_of(annotations, image_of, raw.problems):
        key = id_key(row.get("category_id"))
        box = row.get("bbox") or outline_box(row.get("segmentation"), image.size_hw)
        image.boxes.append(RawBox(box, key, where, crowd, row.get("score"), row.get("area")))
    restricted = sum(bool(row.get(_ABSENT) or row.get(_INCOMPLETE)) for row in rows)
    if restricted:
        raw.problems.add("annotation-ignored-field", count=restricted)
    raw.lvis = _lvis_rules(rows, raw, categories)
    if restricted or raw.lvis:
        for row, image in zip(rows, raw.images, strict=True):
            image.absent, image.incomplete = _listed_keys(row, _ABSENT), _listed_keys(row, _INCOMPLETE)
    return raw


def _lvis_rules(rows: list[dict[str, Any]], raw: RawData, categories: list[Any]) -> LvisRules | None:
    """Return the rules of an LVIS file; None unless every class has a frequency."""
    number_of = {entry.key: entry.number for entry in raw.classes}
    frequencies = {}
    for entry in categories:
        key = id_key(entry.get("id")) if isinstance(entry, dict) else None
        if key in number_of and entry.get("frequency") in ("r", "c", "f"):
            frequencies[number_of[key]] = entry["frequency"]
    if not raw.classes or len(frequencies) < len(raw.classes):
        return None

    def numbers(field: str) -> dict[Any, list[int]]:
        ids: dict[Any, list[int]] = {}
        for row, image in zip(rows, raw.images, strict=True):
            ids[image.image_id] = [number_of[key] for key in _listed_keys(row, field) if key in number_of]
        return ids

    return LvisRules(frequencies, numbers(_ABSENT), numbers(_INCOMPLETE))


def _listed_keys(row: dict[str, Any], field: str) -> list[str | None]:
    listed = row.get(field)
    return [*map(id_key, listed if isinstance(listed, list) else [])]


def federated_fields(sample: Sample, category_ids: Sequence[int]) -> dict[str, list[int]]:
    """Return LVIS's fields of an image whose labels are incomplete; {} for others."""
    if sample.exhaustive is None:
        return {}
    boxes = {int(index) for index in sample.class_ids}
    lists = {_ABSENT: sample.exhaustive - boxes, _INCOMPLETE: boxes - sample.exhaustive}
    return {name: [category_ids[index] for index in sorted(indices)] for name, indices in lists.items()}


def coco_lists(content: Any, json_path: Path, keys: Sequence[str]) -> list[list[Any]]:
    """Return the named lists of COCO content; raise a `DataError` for other content."""
    if not isinstance(content, dict):
        raise DataError(f"{json_path} holds a JSON {type(content).__name__}. {_EXPECTED}.")
    wrong = [
        f"'{key}' is " + (f"a {type(content[key]).__name__}" if key in content else "missing")
        for key in keys
        if not isinstance(content.get(key), list)
    ]
    if wrong:
        found = join_examples([truncated_repr(key) for key in content], 8) or "nothing"
        raise DataError(f"{json_path}: {', '.join(wrong)}. {_EXPECTED}; found {found}.")
    if not content["images"]:
        raise DataError(f"{json_path} lists no images ('images' is empty).")
    return [content[key] for key in keys]


def id_key(value: Any) -> str | None:
    """Return an id as text, so that 7, 7.0 and "7" are the same id; None if the value is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int:  # not a bool
        return str(value) if abs(value) < _INT64 else None
    return value if isinstance(value, str) else None


def annotations_of(
    annotations: list[Any], image_of: Mapping[str, RawImage], problems: Collector
) -> Iterator[tuple[RawImage, dict[str, Any], str, bool]]:
    """Yield image, row, location and crowd flag of each usable annotation, and free its memory."""
    for index, row in enumerate(annotations):
        annotations[index] = None
        where = f"annotations[{index}]"
        if not isinstance(row, dict):
            problems.add("annotation-broken", where)
        elif (image := image_of.get(id_key(row.get("image_id")) or "")) is None:
            example = f"{where} (image {truncated_repr(row.get('image_id'))})"
            problems.add("annotation-unknown-image", example)
        else:
            yield image, row, where, row.get("iscrowd") in _TRUE or row.get("ignore") in _TRUE


def raw_images(
    image_rows: list[Any], problems: Collector
) -> tuple[list[dict[str, Any]], dict[str, RawImage]]:
    """Return the usable rows of `images`, and in the same order the images by `id_key`."""
    rows: list[dict[str, Any]] = []
    image_of: dict[str, RawImage] = {}
    for index, row in enumerate(image_rows):
        where = f"images[{index}]"
        key = id_key(row.get("id")) if isinstance(row, dict) else None
        file_names = _file_names(row) if isinstance(row, dict) else ()
        if key is None or not file_names:
            problems.add("image-broken", f"{where} has no usable 'id' and 'file_name'")
        elif key in image_of:
            problems.add("image-id-twice", f"{where} repeats the id {key} of {image_of[key].file_names[0]}")
        else:
            image_of[key] = RawImage(file_names, where, (row.get("height"), row.get("width")))
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
    if not is_text(url):
        return ()
    try:
        path = urlparse(url).path.strip("/")
    except ValueError:
        return ()
    name = path.rpartition("/")[2]
    return (path, name) if name else ()


def _numbers(keys: Sequence[str], check: str, problems: Collector) -> list[int]:
    """Return ids as unique integers: themselves if all are integers, otherwise numbered from 1."""
    numbers = [int(key) for key in keys if key.removeprefix("-").isdecimal() and len(key) < 20]
    if list(map(str, numbers)) == list(keys) and all(abs(number) < _INT64 for number in numbers):
        return numbers
    problems.add(check, count=len(keys))
    return list(range(1, 1 + len(keys)))


def _classes(categories: list[Any], annotations: list[Any], problems: Collector) -> list[RawClass]:
    """Return the classes of `categories`, without unused placeholders."""
    entries: dict[str, dict[str, Any]] = {}
    for index, category in enumerate(categories):
        key = id_key(category.get("id")) if isinstance(category, dict) else None
        if key is None or not is_text(category.get("name")):
            problems.add("category-broken", f"categories[{index}] has no usable 'id' and 'name'")
        elif entries.setdefault(key, category)["name"] != category["name"]:
            example = f"id {key} is both {entries[key]['name']!r} and {category['name']!r}"
            problems.add("category-id-twice", example)
    used = {id_key(row.get("category_id")) for row in annotations if isinstance(row, dict)}
    parents = {name for entry in entries.values() if isinstance(name := entry.get("supercategory"), str)}
    kept = []
    for key, category in entries.items():
        is_root = category.get("supercategory") == "none" and category["name"] in parents - {"none"}
        if key not in used and is_root:
            problems.add("category-placeholder", repr(category["name"]))
        else:
            kept.append(key)
    numbers = _numbers(kept, "category-ids-numbered", problems)
    return [RawClass(key, entries[key]["name"], number) for key, number in zip(kept, numbers, strict=True)]


def write_coco(dataset: Dataset, file_names: Sequence[str], path: Path) -> None:
    """Write one split; `file_names` are those of the samples' images."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample, file_name in zip(dataset.samples, file_names, strict=True):
        height, width = sample.size_hw
        image = {"id": sample.image_id, "file_name": file_name, "width": width, "height": height}
        if sample.grounding:
            image |= {"caption": sample.grounding.caption, "tokens_positive_eval": sample.grounding.spans}
        images.append(image | federated_fields(sample, dataset.category_ids))
        for row in annotation_rows(sample, dataset.category_ids):
            annotations.append({"id": len(annotations) + 1} | row)
    names = zip(dataset.category_ids, dataset.class_names, strict=True)
    categories = [{"id": i, "name": name} for i, name in names] or [{"id": 1, "name": "object"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")


def annotation_rows(sample: Sample, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the boxes of an image as rows of a COCO file, without ids."""
    spans = sample.grounding.spans if sample.grounding else ()
    scores = np.ones(len(sample.crowd)) if sample.confidence is None else sample.confidence
    columns = (sample.boxes_xyxy, sample.class_ids, sample.crowd, scores, sample.object_areas())
    for (x0, y0, x1, y1), c, crowd, score, area in zip(*(part.tolist() for part in columns), strict=True):
        row: dict[str, Any] = {"image_id": sample.image_id, "iscrowd": int(crowd)}
        row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": area}
        row["category_id"] = 1 if spans else category_ids[c]
        if score < 1:
            row["score"] = score
        if spans:
            row["tokens_positive"] = spans[c]
        yield row
