"""Text files of boxes, one per image: KITTI, VisDrone and DOTA.

    Car 0.00 0 -1.5 40 30 80 60 1.6 1.7 3.9 -1.2 1.8 30.7 -1.6    KITTI: x1 y1 x2 y2 after 4 fields
    40,30,40,30,1,4,0,0                      VisDrone: x,y,w,h,score,category,truncation,occlusion
    40 30 80 30 80 60 40 60 ship 0           DOTA: four corners, class, difficult

- Regions to ignore (KITTI's DontCare, VisDrone's categories 0 and 11) are crowd boxes of every
  class. So are VisDrone's boxes with score 0, and DOTA's difficult ones, of their own class.
- DOTA's rotated boxes become upright ones.

Sources: KITTI's devkit for objects (readme.txt), the VisDrone2018-DET toolkit,
https://captain-whu.github.io/DOTA/dataset.html.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import NamedTuple

from groundtune.data.formats.files import find_name_list, image_folders
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, Source, classes_by_name
from groundtune.data.formats.tree import Tree, join
from groundtune.data.formats.words import split_of
from groundtune.files import MAX_LABELS, read_bytes

_PROBED_FOLDERS, _PROBED_FILES = 1000, 3
_DOTA_HEADER = re.compile(r"\s*(imagesource|gsd|acquisition dates)\s*:", re.IGNORECASE)
_OF_VISDRONE = "pedestrian people bicycle car van truck tricycle awning-tricycle bus motor".split()


class _Row(NamedTuple):
    label: str  # "" is a region where all classes are ignored
    corners: list[float]
    ignored: bool


def _numbers(fields: Sequence[str]) -> list[float]:
    """Return fields as finite numbers; [] if one is none."""
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return []
    return numbers if all(abs(number) < 1e9 for number in numbers) else []


def _kitti(line: str) -> _Row | None:
    fields = line.split()
    end = next((i for i in range(len(fields), 0, -1) if not _numbers(fields[i - 1 : i])), 0)
    label, numbers = " ".join(fields[:end]), _numbers(fields[end:])
    if not label or len(numbers) not in (14, 15):  # detections have a score
        return None
    ignored = label == "DontCare"
    return _Row("" if ignored else label, numbers[3:7], ignored)


def _visdrone(line: str) -> _Row | None:
    numbers = _numbers(line.strip(" \t,").split(","))
    if len(numbers) != 8 or numbers[5] not in range(12):
        return None
    x, y, width, height, score, category, *_ = numbers
    label = _OF_VISDRONE[int(category) - 1] if category not in (0, 11) else ""
    return _Row(label, [x, y, x + width, y + height], score == 0 or not label)


def _dota(line: str) -> _Row | None:
    fields = re.split(r"[,\s]+", line.strip(" \t,"))
    numbers, difficult = _numbers(fields[:8]), _numbers(fields[9:])
    if len(fields) not in (9, 10) or len(numbers) < 8 or _numbers(fields[8:9]):
        return None
    if len(difficult) + 9 != len(fields) or ("," in line and not difficult):  # texts in images (ICDAR)
        return None
    xs, ys = numbers[0::2], numbers[1::2]
    return _Row(fields[8], [min(xs), min(ys), max(xs), max(ys)], difficult > [0])


_PARSERS = {"kitti": _kitti, "visdrone": _visdrone, "dota": _dota}


def _rows(text: str, name: str) -> Iterator[tuple[int, str, _Row | None]]:
    """Yield number, text and parsed row of each line; None if it is not of the format."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not (name == "dota" and _DOTA_HEADER.match(line)):
            yield number, line, _PARSERS[name](line)


def _recognize(tree: Tree, name: str) -> Evidence | None:
    """Recognize folders whose text files begin with a row of the format."""
    folders: dict[str, list[str]] = defaultdict(list)
    for file in tree.declared(".txt") if tree.images else ():
        folders[dirname(file)].append(file)
    groups: dict[str, list[str]] = defaultdict(list)
    for folder, files in [*folders.items()][:_PROBED_FOLDERS]:
        first_rows = (next(_rows(tree.head(file, 2000), name), None) for file in files[:_PROBED_FILES])
        if any(row and row[2] for row in first_rows):
            groups[_split(folder)] += files
    sources = {split: _source(tree, files, name) for split, files in groups.items()}
    return Evidence(name, 2, sources, example=next(iter(groups.values()))[0]) if groups else None


RECOGNIZERS = {name: partial(_recognize, name=name) for name in _PARSERS}
"""The function `recognize` of each format."""


def _split(folder: str) -> str:
    """Return the split of a folder such as "VisDrone2019-DET-test-dev/annotations", or ""."""
    parts = reversed(re.sub(r"test-(dev|challenge)", "test", folder).replace(".", "_").split("/"))
    return next((split for part in parts if (split := split_of(part))), "")


def _source(tree: Tree, files: Sequence[str], name: str) -> Source:
    read = partial(_read, tree=tree, files=files, name=name)
    return Source(tree.root / dirname(files[0]), image_folders(tree, files[0]), read)


def _image_of(tree: Tree, file: str) -> str:
    """Return the image of a label file (with KITTI's two cameras the left one), or its name."""
    stem, above = splitext(basename(file))[0], dirname(dirname(file))
    left = (join(above, f"image_2/{stem}{suffix}") for suffix in (".png", ".jpg"))
    return tree.image_of(file) or next(filter(tree.is_file, left), stem)


def _read(path: Path, *, tree: Tree, files: Sequence[str], name: str) -> RawData:
    raw = RawData(path, "xyxy", states_size=False)
    regions: list[tuple[RawImage, RawBox]] = []
    for file in files:
        image = RawImage((_image_of(tree, file),), basename(file))
        try:
            text = read_bytes(tree.root / file, MAX_LABELS).decode("utf-8-sig", errors="replace")
        except OSError as error:
            raw.problems.add("annotation-file-unreadable", f"{file} ({error.strerror or error})")
            continue
        rows = [*_rows(text, name)]
        if not tree.is_file(image.file_names[0]) and not any(row for *_, row in rows):
            continue  # a file of something else, such as classes.txt
        raw.images.append(image)
        for number, line, row in rows:
            where = f"{image.where} line {number}"
            if row is None:
                raw.problems.add("annotation-broken", f"{where} {line[:40]!r}")
                continue
            if name == "dota":
                raw.problems.add("segments-to-boxes", where)
            box = RawBox(row.corners, row.label, where, row.ignored)
            regions += [] if row.label else [(image, box)]
            image.boxes += [box] if row.label else []
    folder = dirname(files[0])
    listed = _OF_VISDRONE if name == "visdrone" else find_name_list(tree, [dirname(folder), folder, ""])
    raw.classes += classes_by_name(raw.images, listed)
    for image, box in regions:
        image.boxes += [box._replace(label=entry.key) for entry in raw.classes]
    return raw
