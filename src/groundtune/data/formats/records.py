"""What a reader returns: what it recognizes in a folder, and the records of annotation files.

All formats are read into these, and `assemble` alone decides what is usable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from groundtune.data.formats.tree import Tree
from groundtune.data.problems import READING, Collector
from groundtune.data.sample import LvisRules

BoxForm = Literal["xywh", "xyxy", "cxcywh"]
"""Of a box's four numbers: in pixels; "cxcywh" is normalized by the image's width and height."""


class RawBox(NamedTuple):
    """One box."""

    numbers: Any  # four in the file's form; anything else is a problem
    label: str | int | None  # key of its class or None; with a caption the index of its phrase
    where: str  # location in the file for messages, such as "file.txt line 12"
    crowd: bool = False  # a group of objects, or marked as not to be counted
    confidence: Any = (
        None  # score of the model that drew it; anything but a number in (0, 1] is a person's box
    )
    area: Any = None  # of the object in square pixels; anything but a number of at least 0 is none


@dataclass
class RawImage:
    """One image."""

    file_names: tuple[str, ...]  # candidates relative to an image folder, the most likely first
    where: str  # location in the file for messages
    size_hw: tuple[Any, Any] = (None, None)  # as stated, of any type
    image_id: int | None = None  # as stated; None gets a number
    boxes: list[RawBox] = field(default_factory=list)
    caption: str | None = None
    phrases: list[list[Any]] = field(default_factory=list)  # character spans, unchecked
    absent: list[Any] | None = None  # keys of classes known to be absent; None: all without a box
    incomplete: list[Any] = field(default_factory=list)  # keys of classes with objects without a box


class RawClass(NamedTuple):
    """A class of the file: the key that boxes name it by, its name as written, and its id."""

    key: str
    name: str
    number: int


@dataclass
class RawData:
    """One split of a data set.

    Formats that do not state image sizes mean the images as viewers show them (EXIF orientation
    applied), as other tools of such formats do.
    """

    file: Path  # file or folder to name in messages
    form: BoxForm  # of all boxes
    images: list[RawImage] = field(default_factory=list)
    classes: list[RawClass] = field(default_factory=list)  # unique keys; empty for grounding data
    problems: Collector = field(default_factory=lambda: Collector(READING))
    states_size: bool = True
    lvis: LvisRules | None = None
    tree: Tree | None = None  # files to search for the images in; None: those of the data set


class Source(NamedTuple):
    """Annotations of one split that are not yet read."""

    file: Path  # file or folder to name in messages
    image_dirs: Sequence[str]  # folders for its images, relative to the root, the most likely first
    read: Callable[[Path], RawData]


@dataclass
class Evidence:
    """What a reader recognizes in a folder.

    Attributes:
        format: name of the reader, for `--format`.
        rank: 3 if a file declares the data set, such as a data.yaml; 2 if the content of files is
            that of the format; 1 if it only may be; 0 if there is nothing to read but reasons why.
        sources: annotations by split; "" is the split of files that name none.
        refused: reasons why splits that the files name cannot be read.
        example: one of the recognized files.
        unused: worse evidence, with an example each.
    """

    format: str
    rank: int
    sources: dict[str, Source]
    refused: dict[str, str] = field(default_factory=dict)
    example: str = ""
    unused: list[str] = field(default_factory=list)


def classes_by_name(images: Sequence[RawImage], listed: Sequence[str]) -> list[RawClass]:
    """Return classes by name: those of a list in its order, then others of boxes, sorted."""
    names = {box.label for image in images for box in image.boxes if isinstance(box.label, str)}
    order = dict.fromkeys([*listed, *sorted(names)])
    return [RawClass(name, name, number) for number, name in enumerate(order, start=1)]


def centered(corners: Sequence[float]) -> list[float]:
    """Return x1, y1, x2, y2 in the form "cxcywh"."""
    x1, y1, x2, y2 = corners
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
