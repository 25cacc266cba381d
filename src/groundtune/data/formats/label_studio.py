"""Label Studio: its JSON, JSON_MIN and CSV exports.

    [{"data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"result": [{"value":
        {"x": 25, "y": 25, "width": 25, "height": 25, "rotation": 0, "rectanglelabels": ["cat"]},
        "original_width": 160, "original_height": 120}]}]}]
    [{"image": "…", "id": 1, "annotation_id": 1, "label": [{"x": 25, …}]}]         or as CSV

- Numbers are percentages of the image. A box is rotated about its left upper corner, and becomes
  the upright box around it, as do polygons and ellipses. Points and brush strokes have no box.
- The first annotation of a task that was not skipped is used. Tasks without one are skipped, and
  images that were rotated in the tool, as their frame is not stated. Predictions are not used.
- The random prefix of an uploaded file is ignored if there is no such file.

The form is that of https://labelstud.io/guide/export and https://labelstud.io/tags/rectanglelabels.
"""

import re
from functools import partial
from pathlib import Path
from posixpath import basename, splitext
from typing import Any
from urllib.parse import unquote

from groundtune.data.formats.csv import json_rows
from groundtune.data.formats.files import file_evidence, is_text
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, classes_by_name
from groundtune.data.formats.shapes import angle_of, bounds, ellipse, label_of, numbers, rotated
from groundtune.data.formats.tree import Tree
from groundtune.data.images import IMAGE_SUFFIXES
from groundtune.files import read_json

_MIN = {"id", "annotation_id"}  # columns of JSON_MIN and CSV
_RESULTS = {"annotations", "completions", "predictions"}
_GEOMETRY = {"x", "points", "rle", "vertices"}
_ROOT = re.compile(r"^(\w+:/)?/+(data/upload/\d+/)?")
_UPLOADED = re.compile(r"\b[0-9a-f]{8}-(?=[^/]+$)")  # random prefix of a file name


def recognize(tree: Tree) -> Evidence | None:
    """Recognize arrays of tasks by the keys of the first, and CSV files by their columns."""
    files = []
    for file in tree.declared(".json"):
        first = (tree.signatures[file].form == "array" and tree.signatures[file].first) or {}
        is_task = isinstance(first.get("data"), dict) and first.keys() & _RESULTS
        files += [file] if is_task or first.keys() >= _MIN else []
    for file in tree.declared(".csv", ".tsv"):
        header = tree.head(file, 4096).partition("\n")[0]
        files += [file] if {*re.split(r"[\s,;\"]+", header)} >= _MIN else []
    return file_evidence("label-studio", files, tree, partial(_read, tree=tree))


def _read(path: Path, *, tree: Tree) -> RawData:
    raw = RawData(path, "cxcywh", states_size=False)
    stems = {splitext(basename(file))[0] for file in tree.images}
    read: set[str] = set()
    rows = read_json(path) if path.suffix.lower() == ".json" else json_rows(path)
    for index, row in enumerate(rows if isinstance(rows, list) else [], start=1):
        key = label_of(row.get("id")) or f"number {index}" if isinstance(row, dict) else ""
        where, name = f"task {key}", _image_name(row.get("data", row)) if key else None
        if name is None:
            raw.problems.add("image-broken", f"{where or index} names no image")
        elif key in read:  # JSON_MIN has a row for each annotation
            raw.problems.add("annotation-repeated", where)
        else:
            read.add(key)
            is_stored = splitext(basename(name))[0] in stems
            image = RawImage((name if is_stored else _UPLOADED.sub("", name),), where)
            if reason := _add_boxes(image, _drawn(row, where, raw), raw):
                raw.problems.add("image-skipped", f"{where} ({reason})")
            else:
                raw.images.append(image)
    raw.classes += classes_by_name(raw.images, [])
    return raw


def _image_name(data: Any) -> str | None:
    """Return the path of the image of a task, without the parts of a URL."""
    for key in sorted(data, key=lambda key: key != "image") if isinstance(data, dict) else ():
        if is_text(value := data[key]):
            path, _, query = _ROOT.sub("", value.replace("\\", "/")).partition("?")
            if query.startswith("d="):  # /data/local-files/?d=images/a.jpg
                path = query.removeprefix("d=")
            if key == "image" or splitext(unquote(path))[1].lower() in IMAGE_SUFFIXES:
                return path
    return None


def _drawn(row: dict[str, Any], where: str, raw: RawData) -> list[dict[str, Any]] | None:
    """Return the shapes of a task, with their image's size; None without an annotation."""
    if not isinstance(row.get("data"), dict):  # JSON_MIN
        cells = [cell for cell in row.values() if isinstance(cell, list)]
        return [
            value for cell in cells for value in cell if isinstance(value, dict) and _GEOMETRY & value.keys()
        ]
    if row.get("predictions"):
        raw.problems.add("predictions-ignored", where)
    answers = row.get("annotations", row.get("completions"))
    results = [
        each["result"]
        for each in (answers if isinstance(answers, list) else [])
        if isinstance(each, dict) and isinstance(each.get("result"), list) and not each.get("was_cancelled")
    ]
    if len(results) > 1:
        raw.problems.add("annotation-repeated", f"{where} ({len(results)} annotations)")
    items = [item for item in results[0] if isinstance(item, dict)] if results else []
    shapes = [item | item["value"] for item in items if isinstance(item.get("value"), dict)]
    return [shape for shape in shapes if _GEOMETRY & shape.keys()] if results else None


def _add_boxes(image: RawImage, shapes: list[dict[str, Any]] | None, raw: RawData) -> str:
    """Add the boxes of the shapes; return the reason why the image cannot be used, or ""."""
    if shapes is None:
        return "not annotated"
    if any(angle_of(shape, "image_rotation") for shape in shapes):
        return "rotated in the tool"
    if any(shape.get(key) != shapes[0].get(key) for shape in shapes for key in ("to_name", "item_index")):
        return "several images"
    boxes = [_box(shape) for shape in shapes]
    labels_of = [[value for key, value in shape.items() if key.endswith("labels")] for shape in shapes]
    named = [box for box, lists in zip(boxes, labels_of, strict=True) if any(lists)]
    for number, (shape, box, lists) in enumerate(zip(shapes, boxes, labels_of, strict=True), start=1):
        labels = lists[0] if lists and isinstance(lists[0], list) else []
        where = f"{image.where} shape {number}"
        if not labels and box in [*named, None]:
            continue  # more of the same shape, such as its text
        if not shape.keys() & {"height", "radiusX", "points"}:
            raw.problems.add("shape-without-box", where)
            continue
        image.size_hw = shape.get("original_height"), shape.get("original_width")
        if "height" not in shape:
            raw.problems.add("segments-to-boxes", where)
        elif angle_of(shape):
            raw.problems.add("rotated-to-boxes", where)
        image.boxes += [RawBox(box, label_of(label), where) for label in labels or [None]]
    return ""


def _box(shape: dict[str, Any]) -> list[float] | None:
    """Return center, width and height as shares of the image; None without four numbers."""
    angle, size = angle_of(shape), numbers(shape, "original_width original_height")
    if size is None or min(size) <= 0:
        size = [0.0, 0.0] if angle else [1.0, 1.0]  # a rotation is one of pixels
    keys = "x y radiusX radiusY" if "radiusX" in shape else "x y width height"
    row = bounds(shape["points"]) if "points" in shape else numbers(shape, keys)
    if row is None or not all(size):
        return None
    a, b, c, d = (each * side / 100 for each, side in zip(row, size * 2, strict=True))
    box = ellipse([a, b, c, d], angle) if "radiusX" in shape else rotated([a, b, a + c, b + d], angle, (a, b))
    x0, y0, x1, y1 = [a, b, c, d] if "points" in shape or box is None else box
    return [(x0 + x1) / 2 / size[0], (y0 + y1) / 2 / size[1], (x1 - x0) / size[0], (y1 - y0) / size[1]]
