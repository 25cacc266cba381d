"""What a reader gives: the records of an annotation file as they stand there, not yet judged.

Every format is read into these, and `assemble` alone decides what is usable. So a box outside its picture is found, told
and dropped in one way, whatever file it came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from groundtune.data.findings import Collector
from groundtune.data.formats.reading import READING
from groundtune.errors import DataError

BoxForm = Literal["xywh", "xyxy", "cxcywh"]
"""Of a box's four numbers: pixels; "cxcywh" alone is in shares of the picture's width and height."""

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jfif"})
SPLIT_NAMES = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}

Span = tuple[int, int]


class RawBox(NamedTuple):
    """One box.

    Attributes:
        numbers: four numbers in the file's form; anything else is a finding.
        label: key of its class in `RawData.classes`, None where it has none; in a picture with a caption the place of
            its phrase.
        place: where it stands, such as "file.txt line 12".
        crowd: stands for a group, or is marked as not to be counted.
    """

    numbers: Any
    label: str | int | None
    place: str
    crowd: bool = False


@dataclass
class RawCaption:
    """A caption and the character spans of each of its phrases, in any order; any numbers."""

    text: str
    phrases: list[list[Any]]


@dataclass
class RawPicture:
    """One picture.

    Attributes:
        file_names: where its file may be, relative to a picture folder, the likeliest first.
        place: where it stands in the file.
        size_hw: height and width as stated, of any type.
        image_id: as stated; None is numbered.
        boxes: in the order of the file.
        caption: of grounding data.
    """

    file_names: tuple[str, ...]
    place: str
    size_hw: tuple[Any, Any] = (None, None)
    image_id: int | None = None
    boxes: list[RawBox] = field(default_factory=list)
    caption: RawCaption | None = None


class RawClass(NamedTuple):
    """A class as the file lists it: the key that boxes name it by, its name as written, its id where there is one."""

    key: str
    name: str
    number: int


@dataclass
class RawData:
    """One split of a data set, as it stands in its file or files.

    Attributes:
        file: the file or folder to name in messages.
        form: of all boxes.
        pictures: in the order of the file.
        classes: unique keys; empty for grounding data.
        problems: what the reader met already.
        states_size: whether the format is one that states the sizes of pictures. Where it does not, sizes are those of
            the pictures as viewers show them (EXIF orientation applied), as other tools of such formats do.
    """

    file: Path
    form: BoxForm
    pictures: list[RawPicture]
    classes: list[RawClass]
    problems: Collector
    states_size: bool = True


@dataclass(frozen=True)
class Source:
    """The annotations of one split, found but not yet read.

    Attributes:
        file: the file or folder to name in messages.
        image_dirs: folders that its pictures may be in, the likeliest first.
        read: reads it.
    """

    file: Path
    image_dirs: tuple[Path, ...]
    read: Callable[[Path], RawData]


@dataclass(frozen=True)
class Place:
    """Where a split belongs.

    Attributes:
        name: of the split.
        root: the folder that no picture may lie outside of.
        folders: that file names may be relative to, the likeliest first.
        keep_going: whether a picture that cannot be used costs that picture alone (for `check`, which tells
            everything) instead of ending the reading.
    """

    name: str
    root: Path
    folders: tuple[Path, ...]
    keep_going: bool = False


def collector() -> Collector:
    """A collector of everything that reading can find."""
    return Collector(READING)


def classes_by_name(names: set[str], listed: list[str]) -> list[RawClass]:
    """Classes of a format whose boxes carry names: in the order of a list where there is one, the others sorted after it."""
    order = list(dict.fromkeys([*listed, *sorted(names)]))
    return [RawClass(name, name, number) for number, name in enumerate(order, start=1)]


def is_text(value: Any) -> bool:
    """Whether a value is text that a tokenizer and a terminal take: JSON can carry halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: it cannot be opened, or is neither UTF-8 nor, by its byte order mark, UTF-16.
    """
    try:
        content = path.read_bytes()
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, ValueError) else error.strerror or str(error)
        raise DataError(f"Cannot read {path}: {reason}. Save it as UTF-8, or export the annotations again.") from error


def name_list(path: Path) -> list[str]:
    """Class names in a text file, one a line; CVAT's `labelmap.txt` has more behind a colon."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    if path.name.lower() == "labelmap.txt":
        lines = [re.split(r":", line)[0] for line in lines if not line.startswith("#")]
        lines = [line for line in lines if line != "background"]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def find_name_list(*folders: Path) -> list[str]:
    """The class names that lie beside the annotations of formats that have no list of their own; none is []."""
    for folder in folders:
        for name in ("classes.txt", "obj.names", "labels.txt", "labelmap.txt", "predefined_classes.txt"):
            if (folder / name).is_file():
                return [line for line in name_list(folder / name) if line]
    return []


def inside(path: Path, root: Path) -> bool:
    """Whether a path is the root or in it, by its text: people link folders into a data folder, which is theirs to decide."""
    at, top = os.path.abspath(path), os.path.abspath(root)
    return at == top or at.startswith(os.path.join(top, ""))
