"""Text files of boxes, one per image: KITTI, VisDrone and DOTA.

    Car 0.00 0 -1.5 40 30 80 60 1.6 1.7 3.9 -1.2 1.8 30.7 -1.6    KITTI: x1 y1 x2 y2 after 4 words
    40,30,40,30,1,4,0,0                      VisDrone: x,y,w,h,score,category,truncation,occlusion
    40 30 80 30 80 60 40 60 ship 0           DOTA: four corners, class, difficult

- Regions to ignore (KITTI's DontCare, VisDrone's categories 0 and 11) are crowd boxes of every
  class. So are VisDrone's boxes with score 0, and DOTA's difficult ones, of their own class.
- DOTA's rotated boxes become upright ones.

Sources: KITTI's devkit for objects (readme.txt), the VisDrone2018-DET toolkit,
https://captain-whu.github.io/DOTA/dataset.html.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import NamedTuple

from groundtune.data.formats.files import find_name_list, image_folders, is_text
from groundtune.data.formats.records import (
    BoxForm,
    Evidence,
    RawBox,
    RawClass,
    RawData,
    RawImage,
    Source,
    classes_by_name,
)
from groundtune.data.formats.tree import Tree, join, split_of
from groundtune.files import read_bytes

_PROBED_FOLDERS, _PROBED_FILES = 1000, 3
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".bmp")
_DOTA_HEADER = re.compile(r"\s*(imagesource|gsd|acquisition dates)\s*:|\s*$", re.IGNORECASE)
_OF_VISDRONE = "pedestrian people bicycle car van truck tricycle awning-tricycle bus motor".split()


class _Row(NamedTuple):
    label: str  # "" is a region where all classes are ignored
    numbers: list[float]
    ignored: bool


class _Format(NamedTuple):
    form: BoxForm
    parse: Callable[[str], _Row | None]  # None if the line is not a row of the format
    classes: Sequence[str] = ()  # fixed ones


def _numbers(words: Sequence[str]) -> list[float]:
    """Return words as numbers; [] if one is none."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return []


def _kitti(line: str) -> _Row | None:
    label, *rest = line.split()
    numbers = _numbers(rest)
    if len(numbers) not in (14, 15) or _numbers([label]):  # detections have a score
        return None
    ignored = label == "DontCare"
    return _Row("" if ignored else label, numbers[3:7], ignored)


def _visdrone(line: str) -> _Row | None:
    numbers = _numbers(line.strip(" \t,").split(","))
    if len(numbers) != 8 or numbers[5] not in range(12):
        return None
    score, category = numbers[4], int(numbers[5])
    label = _OF_VISDRONE[category - 1] if 1 <= category <= 10 else ""
    return _Row(label, numbers[:4], score == 0 or not label)


def _dota(line: str) -> _Row | None:
    words = re.split(r"[,\s]+", line.strip().strip(","))
    numbers = _numbers(words[:8])
    if len(words) not in (9, 10) or len(numbers) < 8 or _numbers(words[8:9]):
        return None
    difficult = _numbers(words[9:])
    if len(difficult) + 9 != len(words) or ("," in line and not difficult):  # as in files of words in images
        return None
    xs, ys = numbers[0::2], numbers[1::2]
    return _Row(words[8], [min(xs), min(ys), max(xs), max(ys)], difficult > [0])


_FORMATS = {
    "kitti": _Format("xyxy", _kitti),
    "visdrone": _Format("xywh", _visdrone, _OF_VISDRONE),
    "dota": _Format("xyxy", _dota),
}


def _recognize(tree: Tree, name: str) -> Evidence | None:
    """Recognize folders whose text files begin with a row of the format."""
    folders: dict[str, list[str]] = {}
    for file in tree.declared(".txt") if tree.images else ():
        folders.setdefault(dirname(file), []).append(file)
    groups: dict[str, list[tuple[str, str]]] = {}
    for folder, files in [*folders.items()][:_PROBED_FOLDERS]:
        if any(_fits(tree, file, name) for file in files[:_PROBED_FILES]):
            pairs = ((file, _image_of(tree, file)) for file in files)
            used = [(file, image) for file, image in pairs if tree.is_file(image) or _fits(tree, file, name)]
            groups.setdefault(_split(folder), []).extend(used)
    if not groups:
        return None
    sources = {split: _source(tree, pairs, name) for split, pairs in groups.items()}
    return Evidence(name, 2, sources, example=next(iter(groups.values()))[0][0])


RECOGNIZERS = {name: partial(_recognize, name=name) for name in _FORMATS}
"""The function `recognize` of each format."""


def _split(folder: str) -> str:
    """Return the split of a folder such as "VisDrone2019-DET-test-dev/annotations", or ""."""
    parts = reversed(re.sub(r"test-(dev|challenge)", "test", folder).replace(".", "_").split("/"))
    return next((split for part in parts if (split := split_of(part))), "")


def _fits(tree: Tree, file: str, name: str) -> bool:
    """Return whether the first line with a box is a row of the format."""
    return next((row is not None for *_, row in _rows(tree.head(file, 2000), name)), False)


def _rows(text: str, name: str) -> Iterator[tuple[int, str, _Row | None]]:
    """Yield number, text and parsed row of each line with content."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not (name == "dota" and _DOTA_HEADER.match(line)):
            row = _FORMATS[name].parse(line)
            finite = row is not None and all(map(math.isfinite, row.numbers)) and is_text(row.label)
            yield number, line, row if finite else None


def _image_of(tree: Tree, file: str) -> str:
    """Return the image of a label file (with KITTI's two cameras the left one), or its name."""
    stem, folder = splitext(basename(file))[0], dirname(file)
    left = [join(dirname(folder), f"image_2/{stem}{suffix}") for suffix in _SUFFIXES]
    return tree.image_of(file) or next(filter(tree.is_file, left), stem)


def _source(tree: Tree, pairs: Sequence[tuple[str, str]], name: str) -> Source:
    folder = dirname(pairs[0][0])
    listed = find_name_list(tree, [dirname(folder), folder, ""])
    read = partial(_read, tree=tree, pairs=pairs, name=name, listed=listed)
    return Source(tree.root / folder, image_folders(tree, pairs[0][0]), read)


def _read(
    path: Path, *, tree: Tree, pairs: Sequence[tuple[str, str]], name: str, listed: Sequence[str]
) -> RawData:
    raw = RawData(path, _FORMATS[name].form, states_size=False)
    regions: list[tuple[RawImage, RawBox]] = []
    for file, image_file in pairs:
        image = RawImage((image_file,), basename(file))
        try:
            text = read_bytes(tree.root / file).decode("utf-8-sig", errors="replace")
        except OSError as error:
            raw.problems.add("annotation-file-unreadable", f"{file} ({error.strerror or error})")
            continue
        raw.images.append(image)
        for number, line, row in _rows(text, name):
            where = f"{basename(file)} line {number}"
            if row is None:
                raw.problems.add("annotation-broken", f"{where} {line[:40]!r}")
                continue
            if name == "dota":
                raw.problems.add("segments-to-boxes", where)
            box = RawBox(row.numbers, row.label, where, row.ignored)
            if row.label:
                image.boxes.append(box)
            else:
                regions.append((image, box))
    fixed = _FORMATS[name].classes
    numbered = [RawClass(each, each, number) for number, each in enumerate(fixed, start=1)]
    raw.classes += numbered or classes_by_name(raw.images, listed)
    for image, box in regions:
        image.boxes += [box._replace(label=entry.key) for entry in raw.classes]
    return raw
