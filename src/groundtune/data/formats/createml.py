"""Create ML: a JSON array of images, whose boxes are center, width and height in pixels.

    [{"image": "a.jpg", "annotations": [
        {"label": "cat", "coordinates": {"x": 60, "y": 45, "width": 40, "height": 30}}]}]

The form is that of https://developer.apple.com/documentation/createml, with its default units,
origin and anchor; files do not state others.
"""

from pathlib import Path
from typing import Any

from groundtune.data.formats.files import file_evidence, is_text
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, classes_by_name
from groundtune.data.formats.shapes import label_of, numbers
from groundtune.data.formats.tree import Tree
from groundtune.files import read_json

_NAMES, _BOXES = ("image", "imagefilename", "filename"), ("annotations", "annotation")


def recognize(tree: Tree) -> Evidence | None:
    """Recognize arrays of images, whose `annotations` have `coordinates`."""
    files = []
    for file in tree.declared(".json"):
        form, _, first = tree.signatures[file]
        name, rows = _entry(first) if form == "array" and first else (None, None)
        is_own = (
            name and rows is not None and all(isinstance(row, dict) and "coordinates" in row for row in rows)
        )
        files += [file] if is_own else []
    return file_evidence("createml", files, tree, _read)


def _entry(row: dict[str, Any]) -> tuple[str | None, list[Any] | None]:
    """Return the name and the annotations of an image."""
    name = next((row[key] for key in _NAMES if key in row), None)
    rows = next((row[key] for key in _BOXES if key in row), None)
    return name if is_text(name) and name.strip() else None, rows if isinstance(rows, list) else None


def _read(path: Path) -> RawData:
    raw = RawData(path, "xyxy", states_size=False)
    content = read_json(path)
    for index, row in enumerate(content if isinstance(content, list) else []):
        name, rows = _entry(row) if isinstance(row, dict) else (None, None)
        if name is None:
            raw.problems.add("image-broken", f"[{index}] has no usable 'image'")
            continue
        image = RawImage((name.replace("\\", "/"),), f"[{index}]")
        raw.images.append(image)
        for number, box in enumerate(rows or [], start=1):
            where = f"box {number} of [{index}]"
            if not isinstance(box, dict):
                raw.problems.add("annotation-broken", where)
                continue
            center = numbers(box.get("coordinates"), "x y width height")
            image.boxes.append(RawBox(center and _corners(*center), label_of(box.get("label")), where))
    raw.classes += classes_by_name(raw.images, [])
    return raw


def _corners(x: float, y: float, width: float, height: float) -> list[float]:
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
