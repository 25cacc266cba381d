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


def recognize(tree: Tree) -> Evidence | None:
    """Recognize arrays of images, whose `annotations` have `coordinates`."""
    files = []
    for file in tree.declared(".json"):
        first = (tree.signatures[file].form == "array" and tree.signatures[file].first) or {}
        name, rows = _entry(first)
        is_own = is_text(name) and isinstance(rows, list)
        if is_own and all(isinstance(row, dict) and "coordinates" in row for row in rows):
            files.append(file)
    return file_evidence("createml", files, tree, _read)


def _entry(image: dict[str, Any]) -> tuple[Any, Any]:
    """Return the name and the annotations of an image, which were once called otherwise."""
    name = image.get("image", image.get("imagefilename"))
    return name, image.get("annotations", image.get("annotation"))


def _read(path: Path) -> RawData:
    raw = RawData(path, "xyxy", states_size=False)
    content = read_json(path)
    for index, entry in enumerate(content if isinstance(content, list) else []):
        name, rows = _entry(entry) if isinstance(entry, dict) else (None, None)
        if not is_text(name) or not name.strip():
            raw.problems.add("image-broken", f"[{index}] has no usable 'image'")
            continue
        image = RawImage((name.replace("\\", "/"),), f"[{index}]")
        raw.images.append(image)
        for number, row in enumerate(rows if isinstance(rows, list) else [], start=1):
            where = f"box {number} of [{index}]"
            if isinstance(row, dict):
                box = numbers(row.get("coordinates"), "x y width height")
                if box:
                    x, y, width, height = box
                    box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                image.boxes.append(RawBox(box, label_of(row.get("label")), where))
            else:
                raw.problems.add("annotation-broken", where)
    raw.classes += classes_by_name(raw.images, [])
    return raw
