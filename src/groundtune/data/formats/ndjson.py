"""Ultralytics NDJSON: a line about the data set, then a line per image.

    {"type": "dataset", "task": "detect", "class_names": {"0": "cat"}}
    {"type": "image", "file": "a.jpg", "split": "train", "width": 160, "height": 120,
     "annotations": {"boxes": [[0, 0.375, 0.375, 0.25, 0.25]]}}

Rows of `boxes` and `pose` begin with class, cx, cy, w, h, normalized; those of `segments` and `obb`
are a class and corners, which become boxes unless the image has that box already. The images must
be in the folder: their URLs are not opened. Source: https://docs.ultralytics.com/datasets/detect/.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from groundtune.data.formats.files import image_folders, is_text, json_lines, truncated_repr
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, Source, centered
from groundtune.data.formats.tree import Tree
from groundtune.data.formats.words import folder_split, split_of
from groundtune.data.formats.yolo import numbered_classes

_SAME = 0.01  # of the image: an outline of this box
_CENTERED, _CORNERS = ("boxes", "pose"), ("segments", "obb")

Rows = list[tuple[str, dict[str, Any]]]  # with their locations


def recognize(tree: Tree) -> Evidence | None:
    """Recognize JSON lines of which the first is of the type "dataset"."""
    files = [
        file
        for file, (_, keys, first) in tree.signatures.items()
        if "class_names" in keys and first and first.get("type") == "dataset"
    ]
    if not files:
        return None
    if len(files) > 1:
        reason = f"{tree.root} has {len(files)} NDJSON data sets, such as {files[0]}. Give the path of one."
        return Evidence("ndjson", 3, {}, {"": reason}, files[0])
    names = (tree.signatures[files[0]].first or {}).get("class_names")
    groups: dict[str, Rows] = {}
    broken = []
    for where, row in json_lines(tree.root / files[0]):
        if isinstance(row, dict) and row.get("type") == "image":
            stated = row.get("split") or split_of(files[0]) or "train"
            if split := split_of(stated) if is_text(stated) else None:
                groups.setdefault(split, []).append((where, row))
            else:
                broken.append(f"{where} with the split {truncated_repr(stated)}")
        elif not isinstance(row, dict) or row.get("type") != "dataset":
            broken.append(where)
    folders = [folder for folder in sorted(tree.folders) if folder]
    sources = {}
    for split, rows in groups.items():
        of_split = [folder for folder in folders if folder_split(folder) == split]
        read = partial(_read, rows=rows, names=names, broken=broken)
        sources[split] = Source(tree.root / files[0], [*of_split, *image_folders(tree, files[0])], read)
    refused = {} if groups else {"": f"{tree.root / files[0]} has no lines of the type 'image'."}
    return Evidence("ndjson", 3, sources, refused, files[0])


def _read(path: Path, *, rows: Rows, names: Any, broken: Sequence[str]) -> RawData:
    raw = RawData(path, "cxcywh", classes=numbered_classes(names, path))
    for where in broken:
        raw.problems.add("annotation-broken", where)
    for where, row in rows:
        file = row.get("file")
        if not is_text(file) or not file.strip():
            raw.problems.add("image-broken", where)
            continue
        image = RawImage((file.replace("\\", "/"),), where, (row.get("height"), row.get("width")))
        raw.images.append(image)
        annotations = row.get("annotations")
        if isinstance(annotations, dict):
            _add_boxes(image, annotations, raw)
    return raw


def _add_boxes(image: RawImage, annotations: dict[str, Any], raw: RawData) -> None:
    """Add the boxes of an image, then those of outlines of other objects."""
    for key in (*_CENTERED, *_CORNERS):
        rows, earlier = annotations.get(key), list(image.boxes)
        for index, row in enumerate(rows if isinstance(rows, list) else []):
            where = f"{image.where} {key}[{index}]"
            numbers = row if isinstance(row, list) and all(map(_is_number, row)) else []
            if len(numbers) < 5 or (key in _CORNERS and len(numbers) % 2 == 0):
                raw.problems.add("annotation-broken", f"{where} {truncated_repr(row)}")
                continue
            box, label = list(numbers[1:5]), str(numbers[0]).removesuffix(".0")
            if key in _CORNERS:
                xs, ys = numbers[1::2], numbers[2::2]
                box = centered([min(xs), min(ys), max(xs), max(ys)])
            if any(_is_same(box, each) for each in earlier if each.label == label):
                continue
            if key in _CORNERS:
                raw.problems.add("segments-to-boxes", where)
            image.boxes.append(RawBox(box, label, where))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**31


def _is_same(box: Sequence[float], other: RawBox) -> bool:
    return all(abs(a - b) < _SAME for a, b in zip(box, other.numbers, strict=True))
