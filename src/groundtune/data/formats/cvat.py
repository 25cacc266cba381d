"""CVAT for images 1.1 and CVAT for video 1.1: one XML file of a task or a project.

    annotations.xml
    images/a.jpg, in a project images/SUBSET/a.jpg, of a video images/frame_000000.png

- The subset of an image is its split, unless the file or its folder is named after a split.
- Rotated boxes become the upright boxes around them, as do outlines, ellipses, masks and cuboids.
  Lines, points and skeletons have no box.
- A frame of a video that is between two shapes of a track, without one of its own, is skipped.

The form is that of https://docs.cvat.ai/docs/manual/advanced/xml_format/.
"""

import io
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from functools import cache
from pathlib import Path
from posixpath import dirname
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import iterparse

from groundtune.data.formats.files import file_evidence, image_folders, to_number
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, Source, classes_by_name
from groundtune.data.formats.shapes import CROWD, angle_of, bounds, ellipse, label_of, numbers, rotated
from groundtune.data.formats.tree import Tree
from groundtune.data.formats.words import split_of
from groundtune.data.problems import Collector
from groundtune.errors import DataError
from groundtune.files import read_bytes

_PROBED = 20  # files
_BOXLESS = ("points", "polyline", "skeleton", "tag")
_CUBOID = "tl1 bl1 tr1 br1 tl2 bl2 tr2 br2".split()

_Track = list[tuple[int, RawBox | None]]  # frames with the box, or None if the object is outside


def recognize(tree: Tree) -> Evidence | None:
    """Recognize XML files with the root `annotations`."""
    probed = tree.declared(".xml")[:_PROBED]
    files = [file for file in probed if re.search(r"<annotations[\s/>]", tree.head(file, 4096))]
    if len(files) != 1 or split_of(files[0]):
        return file_evidence("cvat", files, tree, lambda path: _read(path, tree, False)[""])
    text = tree.head(files[0])
    if ' subset="' in text:
        text = read_bytes(tree.root / files[0]).decode(errors="replace")
    named = {split_of(subset) or "" for subset in re.findall(r'(?:\ssubset="|<subset>)([^"<]*)', text)} - {""}
    read = cache(lambda path: _read(path, tree, bool(named)))  # once for all splits

    def source(split: str) -> Source:
        return Source(tree.root / files[0], image_folders(tree, files[0]), lambda path: read(path)[split])

    return Evidence("cvat", 2, {split: source(split) for split in sorted(named) or [""]}, {}, files[0])


def _read(path: Path, tree: Tree, by_subset: bool) -> dict[str, RawData]:
    """Return the images of a file by split, or all as the split ""."""
    splits: dict[str, RawData] = defaultdict(lambda: RawData(path, "xyxy"))
    subset, listed, size = "", [], {}
    tracks: list[_Track] = []
    try:
        for _, element in iterparse(io.BytesIO(read_bytes(path)), forbid_dtd=True):
            if element.tag == "subset":
                subset = element.text or ""
            elif element.tag == "labels":
                kept = [label for label in element if label.findtext("type") not in _BOXLESS]
                listed += [name for label in kept if (name := label_of(label.findtext("name")))]
            elif element.tag == "original_size":
                size = {child.tag: child.text for child in element}
            elif element.tag in ("image", "track"):
                raw = splits[(split_of(element.get("subset", subset)) if by_subset else None) or ""]
                if element.tag == "image":
                    _add_image(element, raw)
                else:
                    tracks.append(_track(element, raw.problems))
                element.clear()
    except (ParseError, ValueError, LookupError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not readable XML: {error}. Export it again.") from error
    if tracks:
        _add_frames(tracks, size, next(iter(splits.values())), tree)
    if len(splits) > 1 and (others := splits.pop("", None)):
        next(iter(splits.values())).problems.add("image-without-split", count=len(others.images))
    for raw in splits.values():
        raw.classes += classes_by_name(raw.images, listed)
    return splits


def _add_image(element: Element, raw: RawData) -> None:
    name, subset = element.get("name", "").replace("\\", "/"), element.get("subset")
    where = f"image {element.get('id')}"
    if not name.strip():
        raw.problems.add("image-broken", f"{where} has no name")
        return
    size_hw = to_number(element.get("height")), to_number(element.get("width"))
    image = RawImage((f"{subset}/{name}", name) if subset else (name,), where, size_hw)
    image.boxes += [box for shape in element if (box := _box(shape, where, raw.problems))]
    raw.images.append(image)


def _box(shape: Element, where: str, problems: Collector) -> RawBox | None:
    """Return the box of a shape; None if it has none."""
    kind, row, angle = shape.tag, shape.attrib, angle_of(shape.attrib)
    box: list[float] | None
    if kind == "box":
        box = numbers(row, "xtl ytl xbr ybr")
        box = box and rotated(box, angle, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    elif kind == "ellipse":
        box = ellipse(numbers(row, "cx cy rx ry"), angle)
    elif kind == "mask":
        box = numbers(row, "left top width height")
        box = box and [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    elif kind == "cuboid":
        box = bounds([[row.get(f"x{corner}"), row.get(f"y{corner}")] for corner in _CUBOID])
    elif kind == "polygon":
        box = bounds([point.split(",") for point in row.get("points", "").split(";")])
    else:
        if kind not in ("tag", "attribute"):  # of the whole image
            problems.add("shape-without-box", f"{kind} in {where}")
        return None
    if kind != "box" or angle:
        problems.add("rotated-to-boxes" if kind == "box" else "segments-to-boxes", where)
    crowd = any(each.get("name") in CROWD and each.text == "true" for each in shape)
    return RawBox(box, label_of(row.get("label")), f"{kind} in {where}", crowd)


def _track(element: Element, problems: Collector) -> _Track:
    track: _Track = []
    for shape in element:
        if frame := numbers(shape.attrib, "frame"):
            shape.set("label", element.get("label", ""))
            box = _box(shape, f"frame {frame[0]:.0f}", problems) if shape.get("outside") != "1" else None
            track.append((int(frame[0]), box))
    return sorted(track, key=lambda shape: shape[0])


def _add_frames(tracks: list[_Track], size: dict[str, Any], raw: RawData, tree: Tree) -> None:
    """Add the frames of a video that are images, with the boxes of its tracks."""
    folders = image_folders(tree, raw.file.relative_to(tree.root).as_posix())
    size_hw = to_number(size.get("height")), to_number(size.get("width"))
    files = [file for file in tree.images if dirname(file) in folders]
    found = [(file, match) for file in files if (match := re.search(r"frame_(\d{6,9})\.\w+$", file))]
    frames = {int(match[1]): RawImage((file,), f"frame {match[1]}", size_hw) for file, match in found}
    if not frames:
        raise DataError(
            f"{raw.file} has tracks of a video, and its frames (frame_000000.png) are missing. Export it "
            "again with images, or as CVAT for images 1.1."
        )
    order, skipped = sorted(frames), set()
    for track in tracks:
        for (frame, box), (following, _) in zip(track, [*track[1:], (0, None)], strict=True):
            if box and frame in frames:
                frames[frame].boxes.append(box)
            if box:
                skipped.update(order[bisect_right(order, frame) : bisect_left(order, following)])
    for frame in sorted(skipped):
        raw.problems.add("image-skipped", f"frame {frame} (between two shapes of a track)")
    raw.images += [frames[frame] for frame in order if frame not in skipped]
