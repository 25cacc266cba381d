"""VGG Image Annotator (VIA) 1 and 2: a project, or its annotations as JSON or CSV.

    {"_via_img_metadata": {"a.jpg1234": {"filename": "a.jpg", "regions": [{
        "shape_attributes": {"name": "rect", "x": 40, "y": 30, "width": 40, "height": 30},
        "region_attributes": {"class": "cat"}}]}}}      or the inner object alone
    filename,file_size,…,region_shape_attributes,region_attributes      JSON in the cells

- The class is the region attribute with words. Of several the one named class, label, name, type,
  category or object is, or else the first. Without any attribute, as in the balloon data set of
  Mask R-CNN, it is "object".
- Circles, ellipses and polygons become the boxes around them; lines and points have none.

The form is that of https://gitlab.com/vgg/via.
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from groundtune.data.formats.csv import json_rows
from groundtune.data.formats.files import file_evidence, is_number, is_text, truncated_repr
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, classes_by_name
from groundtune.data.formats.shapes import angle_of, bounds, ellipse, label_of, numbers
from groundtune.data.formats.tree import Tree
from groundtune.data.problems import Collector
from groundtune.data.sample import join_examples
from groundtune.files import read_json

_PROJECT = "_via_img_metadata"
_USUAL = ["class", "label", "name", "type", "category", "object"]
_CELLS = {"shape_attributes": "region_shape_attributes", "region_attributes": "region_attributes"}

Row = tuple[str, Any, list[Any]]
"""Location, file name and regions of an image."""


def recognize(tree: Tree) -> Evidence | None:
    """Recognize projects and annotations by their keys, and CSV files by their columns."""
    files = []
    for file in tree.declared(".json"):
        form, keys, first = tree.signatures[file]
        entry = next(iter(first.values()), None) if first else None
        is_plain = isinstance(entry, dict) and {"filename", "regions"} <= entry.keys()
        is_large = first is None and '"shape_attributes"' in tree.head(file)
        files += [file] if form == "object" and (_PROJECT in keys or is_plain or is_large) else []
    files += [file for file in tree.declared(".csv") if "region_shape_attributes" in tree.head(file, 4096)]
    return file_evidence("via", files, tree, _read)


def _read(path: Path) -> RawData:
    raw = RawData(path, "xyxy", states_size=False)
    rows, options = _rows(path)
    images: dict[str, RawImage] = {}
    drawn: list[tuple[RawImage, RawBox, dict[str, list[str]]]] = []
    for where, name, regions in rows:
        if not is_text(name) or not name.strip():
            raw.problems.add("image-broken", f"{where} has no usable 'filename'")
            continue
        image = images.setdefault(name, RawImage((name.replace("\\", "/"),), where))
        for number, region in enumerate(regions, start=1):
            at = f"{where} region {number}"
            shape = region.get("shape_attributes") if isinstance(region, dict) else None
            if not isinstance(shape, dict):
                raw.problems.add("annotation-broken", at)
            elif box := _box(shape, at, raw.problems):
                drawn.append((image, box, _names(region.get("region_attributes"), options)))
    attribute = _class_attribute([names for *_, names in drawn], raw.problems)
    for image, box, names in drawn:
        labels = names.get(attribute, [None]) if attribute else ["object"]
        image.boxes += [box._replace(label=label) for label in labels]
    raw.images += images.values()
    raw.classes += classes_by_name(raw.images, [])
    return raw


def _rows(path: Path) -> tuple[list[Row], Any]:
    """Return the rows of CSV, or the images of JSON and the attributes of regions of a project."""
    rows: list[Row] = []
    if path.suffix.lower() == ".csv":
        for number, row in enumerate(json_rows(path), start=2):
            region = {key: row.get(cell) for key, cell in _CELLS.items()}
            rows.append(
                (f"row {number}", row.get("filename"), [region] if region["shape_attributes"] != {} else [])
            )
        return rows, None
    content = read_json(path)
    content = content if isinstance(content, dict) else {}
    images, attributes = content.get(_PROJECT, content), content.get("_via_attributes")
    for key, image in images.items() if isinstance(images, dict) else ():
        image = image if isinstance(image, dict) else {}
        regions = image.get("regions")
        listed = [*regions.values()] if isinstance(regions, dict) else regions  # VIA 1 numbers them
        rows.append(
            (truncated_repr(key), image.get("filename"), listed if isinstance(listed, list) else [None])
        )
    return rows, attributes.get("region") if isinstance(attributes, dict) else None


def _names(attributes: Any, options: Any) -> dict[str, list[str]]:
    """Return the values of each attribute; an option whose name is a number has its description."""
    found: dict[str, list[str]] = {}
    for key, value in attributes.items() if isinstance(attributes, dict) else ():
        checked = [name for name, is_set in value.items() if is_set] if isinstance(value, dict) else [value]
        names = [name for each in checked if (name := label_of(each))]
        try:
            described = [label_of(options[key]["options"][name]) or name for name in names]
        except (KeyError, TypeError):
            described = names
        if names and is_text(key):
            found[key] = described if all(map(is_number, names)) else names
    return found


def _class_attribute(boxes: list[dict[str, list[str]]], problems: Collector) -> str | None:
    """Return the region attribute that is the class; None without any."""
    values: dict[str, set[str]] = defaultdict(set)
    for names in boxes:
        for key, own in names.items():
            values[key].update(own)
    worded = [key for key in values if not all(map(is_number, values[key]))] or list(values)
    worded.sort(key=lambda key: _USUAL.index(key.lower()) if key.lower() in _USUAL else len(_USUAL))
    if len(worded) > 1:
        problems.add("class-attribute-chosen", f"{worded[0]!r} is, {join_examples(worded[1:])} are not")
    if boxes and not worded:
        problems.add("class-not-stated", count=len(boxes))
    return worded[0] if worded else None


def _box(shape: dict[str, Any], where: str, problems: Collector) -> RawBox | None:
    """Return the box of a shape; None if it has none."""
    kind = shape.get("name")
    if kind == "rect":
        box = numbers(shape, "x y width height")
        box = box and [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    elif kind in ("circle", "ellipse"):
        radii = numbers(shape, "cx cy r r" if kind == "circle" else "cx cy rx ry")
        box = ellipse(radii, math.degrees(angle_of(shape, "theta")))
    elif kind == "polygon":
        points: list[Any] = [shape.get("all_points_x"), shape.get("all_points_y")]
        box = bounds(zip(*points, strict=True)) if all(isinstance(each, list) for each in points) else None
    else:
        problems.add("shape-without-box", f"{where} ({truncated_repr(kind)})")
        return None
    if kind != "rect":
        problems.add("segments-to-boxes", where)
    return RawBox(box, None, where)
