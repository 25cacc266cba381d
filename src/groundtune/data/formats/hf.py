"""Hugging Face: a `metadata.jsonl` or `metadata.csv` with a column `objects` (ImageFolder).

    {"file_name": "a.jpg", "objects": {"bbox": [[40, 30, 40, 30]], "categories": [0]}}

- Boxes are x, y, width, height. `objects` are columns, or a list with an object per box.
- Splits are folders, of the metadata files or of the images.
- Names of categories that are numbers are those of the ClassLabel in README.md (`dataset_info`) or
  `dataset_info.json`, or those of `classes.txt`.

Sources: https://huggingface.co/docs/datasets/image_dataset (object detection),
https://huggingface.co/docs/autotrain/tasks/object_detection.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from posixpath import basename, dirname
from typing import Any

import yaml

from groundtune.data.formats.files import find_name_list, image_folders, is_text, json_lines
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, Source, classes_by_name
from groundtune.data.formats.tree import Tree
from groundtune.data.formats.words import folder_split, split_of
from groundtune.data.sample import Dataset
from groundtune.errors import DataError
from groundtune.files import parse_yaml, read_json, read_text

_NAMES = ("file_name", "image_file_name", "image", "filename", "path")
_LABELS = ("category", "categories", "label", "labels", "class", "class_name", "name", "category_id")
_BOXES, _CROWD = ("bbox", "bboxes", "boxes"), ("iscrowd", "is_crowd")
_USED = {*_LABELS, *_BOXES, *_CROWD, "area"}
Rows = list[tuple[str, Any]]  # location and content; None is not readable


def recognize(tree: Tree) -> Evidence | None:
    """Recognize JSON lines and CSV files with names of images and `objects` that have boxes."""
    files = [
        file
        for file, (form, keys, _) in tree.signatures.items()
        if form in ("lines", "object")
        and "objects" in keys
        and keys & {*_NAMES}
        and "bbox" in tree.head(file)
    ]
    files += [file for file in tree.declared(".csv") if _is_table(tree.head(file, 2**14))]
    if not files:
        return None
    groups: dict[str, Rows] = {}
    for file in files:
        split, several = split_of(file), len(files) > 1
        rows_of = _table if file.lower().endswith(".csv") else json_lines
        for where, row in rows_of(tree.root / file):
            of_image = folder_split(dirname(_name(row))) if isinstance(row, dict) else None
            own = f"{file} {where}" if several else where
            groups.setdefault(split or of_image or "", []).append((own, row))
    names = find_name_list(tree, [dirname(files[0]), ""]) or _stated_names(tree)
    sources = {}
    for split, rows in groups.items():
        own = next((file for file in files if split_of(file) == split), files[0])
        read = partial(_read, rows=rows, names=names)
        sources[split] = Source(tree.root / own, [dirname(own), *image_folders(tree, own)], read)
    return Evidence("hf", 2, sources, example=files[0])


def _is_table(head: str) -> bool:
    columns = head.partition("\n")[0].replace('"', "").strip().split(",")
    return "objects" in columns and bool({*columns} & {*_NAMES}) and "bbox" in head


def _table(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield location and content of each row of a CSV file."""
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(read_text(path), newline="")), start=2):
            cell = row.get("objects") or "{}"  # JSON, or as Python prints it
            yield f"row {number}", row | {"objects": _json(cell) or _json(cell.replace("'", '"')) or cell}
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}. Export it again.") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _name(row: Mapping[str, Any]) -> str:
    """Return the image of a row, or ""."""
    return next((row[key].replace("\\", "/") for key in _NAMES if is_text(row.get(key))), "").strip()


def _read(path: Path, *, rows: Rows, names: Sequence[str]) -> RawData:
    sizes = all(isinstance(row, dict) and {"height", "width"} <= row.keys() for _, row in rows)
    raw = RawData(path, "xywh", states_size=sizes)
    for where, row in rows:
        name = _name(row) if isinstance(row, dict) else ""
        if not name:
            raw.problems.add("image-broken", f"{where} without a file_name")
            continue
        image = RawImage((name,), where, (row.get("height"), row.get("width")))
        raw.images.append(image)
        add_objects(image, row.get("objects"), names, raw)
    add_classes(raw, names)
    return raw


def add_objects(image: RawImage, objects: Any, names: Sequence[str], raw: RawData) -> None:
    """Add the boxes of a value of `objects`: columns, or a list with an object per box."""
    items = objects if isinstance(objects, list) else [objects] if objects else []
    if isinstance(objects, dict):
        columns = {key: value for key, value in objects.items() if isinstance(value, list)}
        boxes = next((columns[key] for key in _BOXES if key in columns), [])
        used = {key: value for key, value in columns.items() if key in _USED and value}
        if len(used.get("area", [])) != len(boxes):
            used.pop("area", None)
        if any(len(value) != len(boxes) for value in used.values()):
            raw.problems.add("annotation-broken", f"{image.where}: columns of different lengths")
            return
        items = [{key: value[index] for key, value in used.items()} for index in range(len(boxes))]
    for index, item in enumerate(items, start=1):
        where = f"{image.where} object {index}"
        if not isinstance(item, dict):
            raw.problems.add("annotation-broken", where)
            continue
        labels = [item[key] for key in _LABELS if type(item.get(key)) is int or is_text(item.get(key))]
        label = next(filter(is_text, labels), labels[0] if labels else None)
        if isinstance(label, int) and 0 <= label < len(names):
            label = names[label]
        box = next((item[key] for key in _BOXES if key in item), None)
        crowd = any(item.get(key) in (1, True) for key in _CROWD)
        image.boxes.append(RawBox(box, label, where, crowd, area=item.get("area")))


def add_classes(raw: RawData, names: Sequence[str]) -> None:
    """Add the classes of the boxes; raise a `DataError` if they are numbers without names."""
    numbers = any(isinstance(box.label, int) for image in raw.images for box in image.boxes)
    if numbers and not names:
        raise DataError(
            f"{raw.file}: the categories are numbers whose names, which the model reads, are not stated. "
            "Add a classes.txt with one name a line, in the order of the numbers, or a README.md whose "
            "dataset_info has the names."
        )
    raw.classes += classes_by_name(raw.images, names)


def _stated_names(tree: Tree) -> list[str]:
    """Return the names of categories in README.md or dataset_info.json, or []."""
    for file in sorted(tree.suffixed(".md", ".json"), key=lambda file: file.count("/")):
        content: Any = None
        if basename(file).lower() == "readme.md":
            front = re.match(r"\s*---[ \t\r]*\n(.*?)\n---", tree.head(file), re.DOTALL)
            try:
                content = parse_yaml(front[1], yaml.BaseLoader) if front else None
            except ValueError:
                continue
        elif basename(file) in ("dataset_info.json", "dataset_infos.json"):
            content = read_json(tree.root / file)
        if names := label_names(content):
            return names
    return []


def label_names(content: Any) -> list[str]:
    """Return the names of the ClassLabel of `objects` in a description of features, or []."""
    found: list[tuple[bool, list[str]]] = []
    todo: list[tuple[Any, bool]] = [(content, False)]  # values, and whether they are below "objects"
    while todo:
        value, below = todo.pop()
        if isinstance(value, list):
            todo += [(each, below) for each in value]
        elif isinstance(value, dict):
            names = value.get("names")
            if isinstance(names, dict):  # {"0": "cat"}
                names = [names.get(str(number), names.get(number)) for number in range(len(names))]
            if isinstance(names, list) and names and all(map(is_text, names)):
                found.append((below, names))
            below = below or value.get("name") == "objects"
            todo += [(each, below or key == "objects") for key, each in value.items()]
    inside = [names for below, names in found if below] or [names for _, names in found]
    return inside[0] if inside and all(names == inside[0] for names in inside) else []


def write_metadata(dataset: Dataset, file_names: Sequence[str], path: Path) -> None:
    """Write one split of an ImageFolder; categories are names."""
    number = 0
    with path.open("w", encoding="utf-8") as file:
        for sample, file_name in zip(dataset.samples, file_names, strict=True):
            height, width = sample.size_hw
            boxes = sample.boxes_xyxy.tolist()
            objects = {
                "id": list(range(number, number + len(boxes))),
                "bbox": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes],
                "category": [dataset.class_names[c] for c in sample.class_ids],
                "area": sample.object_areas().tolist(),
                "iscrowd": sample.crowd.astype(int).tolist(),
            }
            number += len(boxes)
            row = {"file_name": file_name, "image_id": sample.image_id, "width": width, "height": height}
            file.write(json.dumps(row | {"objects": objects}) + "\n")


def write_hf_readme(class_names: Sequence[str], path: Path) -> None:
    """Write the README.md of an ImageFolder, whose `dataset_info` lists the classes in order."""
    label = {"class_label": {"names": {str(number): name for number, name in enumerate(class_names)}}}
    columns: list[dict[str, Any]] = [{"name": "id", "dtype": "int64"}]
    columns += [{"name": "bbox", "sequence": "float64", "length": 4}, {"name": "category", "dtype": label}]
    columns += [{"name": "area", "dtype": "float64"}, {"name": "iscrowd", "dtype": "int64"}]
    features: list[dict[str, Any]] = [{"name": "image", "dtype": "image"}]
    features += [{"name": name, "dtype": "int64"} for name in ("image_id", "width", "height")]
    features += [{"name": "objects", "sequence": columns}]
    info = yaml.safe_dump({"dataset_info": {"features": features}}, sort_keys=False)
    path.write_text(f"---\n{info}---\n", encoding="utf-8")
