"""LabelMe, AnyLabeling and X-AnyLabeling: one JSON file per image. Splits are folders.

    {"shapes": [{"label": "cat", "shape_type": "rectangle", "points": [[80, 30], [40, 60]]}],
     "imagePath": "..\\images\\a.jpg", "imageData": null, "imageHeight": 120, "imageWidth": 160}

- The image is the one of the same name, or that of `imagePath`; two different ones are an error.
- Outlines and rotated boxes become the upright boxes around them; outlines of one label and
  `group_id` are one object, as in labelme2coco. Lines and points have no box.
- Shapes flagged as difficult, crowd or ignore are not trained on, and not counted in evaluation.

The form is that of https://github.com/wkentaro/labelme.
"""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import Any

from groundtune.data.formats.files import find_name_list, image_folders, is_text, truncated_repr
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, Source, classes_by_name
from groundtune.data.formats.shapes import CROWD, bounds, ellipse, label_of
from groundtune.data.formats.tree import Tree, join
from groundtune.data.formats.words import folder_split
from groundtune.data.problems import Collector
from groundtune.errors import DataError
from groundtune.files import read_bytes, read_json

_KEYS = {"imagePath", "imageData", "imageHeight", "flags"}
_OUTLINES, _ROTATED = ("polygon", "circle", "mask"), ("rotation", "oriented_rectangle")


def recognize(tree: Tree) -> Evidence | None:
    """Recognize JSON files with `shapes`."""
    keys = {file: tree.signatures[file].keys for file in tree.declared(".json")}
    own = next((file for file in keys if "shapes" in keys[file] and keys[file] & _KEYS), None)
    if own is None:
        return None
    groups: dict[str, list[str]] = {}
    for file in keys:
        groups.setdefault(folder_split(dirname(file)) or "", []).append(file)
    return Evidence("labelme", 2, {split: _source(tree, group) for split, group in groups.items()}, {}, own)


def _source(tree: Tree, files: Sequence[str]) -> Source:
    folder = dirname(files[0])
    names = [name for name in find_name_list(tree, [folder, dirname(folder), ""]) if name[:1] != "_"]
    read = partial(_read, tree=tree, files=files, listed=names)
    return Source(tree.root / folder, image_folders(tree, files[0]), read)


def _read(folder: Path, *, tree: Tree, files: Sequence[str], listed: Sequence[str]) -> RawData:
    raw = RawData(folder, "xyxy", states_size=False)
    for file in files:
        image = tree.image_of(file)
        try:
            content = _content(tree.root / file)
        except DataError as error:
            content, reason = None, str(error)
        else:
            reason = "it has no list 'shapes'"
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            raw.images.append(_image(content, file, image, tree, raw.problems))
        elif image:  # other files may be of something else
            raw.problems.add("annotation-file-unreadable", f"{basename(file)} ({reason})")
    raw.classes += classes_by_name(raw.images, listed)
    return raw


def _content(path: Path) -> Any:
    """Return the content of a file; if it is not UTF-8, only with ASCII labels."""
    try:
        return read_json(path)
    except DataError:
        try:
            content = json.loads(read_bytes(path).decode("cp1252", errors="replace"))
            if all(shape["label"].isascii() for shape in content["shapes"]):
                return content
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
            pass
        raise


def _image(
    content: dict[str, Any], file: str, image: str | None, tree: Tree, problems: Collector
) -> RawImage:
    path, name = content.get("imagePath"), basename(file)
    stated = path.replace("\\", "/") if is_text(path) and path.strip() else splitext(name)[0]
    target = join(dirname(file), stated)
    if image and tree.is_file(target) and target != image:
        problems.add("image-ambiguous", f"{file} (its imagePath {stated!r} or {image})")
    names = (image or target, target, stated)
    raw = RawImage(names, name, (content.get("imageHeight"), content.get("imageWidth")))
    first_of: dict[Any, int] = {}
    for number, shape in enumerate(content["shapes"], start=1):
        where = f"{name} shape {number}"
        if not isinstance(shape, dict):
            problems.add("annotation-broken", where)
            continue
        kind, group = shape.get("shape_type") or "polygon", shape.get("group_id")
        box = _box(shape, kind, where, problems)
        if box is None:
            continue
        is_part = type(group) in (int, str) and kind in _OUTLINES and box.numbers
        first = first_of.setdefault((box.label, group) if is_part else where, len(raw.boxes))
        if first < len(raw.boxes):
            (a, b, c, d), (e, f, g, h) = raw.boxes[first].numbers, box.numbers
            raw.boxes[first] = box._replace(numbers=bounds([(a, b), (c, d), (e, f), (g, h)]))
        else:
            raw.boxes.append(box)
    return raw


def _box(shape: dict[str, Any], kind: Any, where: str, problems: Collector) -> RawBox | None:
    """Return the box of a shape; None if it has none."""
    points, flags = shape.get("points"), shape.get("flags")
    box = bounds(points)
    if kind == "circle" and box:  # center and a point of the edge
        (x, y), (u, v) = [[float(number) for number in points[end]] for end in (0, -1)]  # type: ignore[index]
        box = ellipse([x, y, *[math.hypot(u - x, v - y)] * 2], 0)
    elif kind == "mask" and box:  # first and last pixel
        box = [*box[:2], box[2] + 1, box[3] + 1]
    elif kind not in ("rectangle", *_OUTLINES, *_ROTATED):
        problems.add("shape-without-box", f"{where} ({truncated_repr(kind)})")
        return None
    if kind != "rectangle":
        problems.add("rotated-to-boxes" if kind in _ROTATED else "segments-to-boxes", where)
    marks = shape | (flags if isinstance(flags, dict) else {})
    return RawBox(box, label_of(shape.get("label")), where, any(marks.get(mark) is True for mark in CROWD))
