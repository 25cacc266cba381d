"""What a reader gives: the records of an annotation file as they stand there, not yet judged.

Every format is read into these, and `assemble` alone decides what is usable. So a box outside its image is found, told
and dropped in one way, whatever file it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from groundtune.data.problems import READING, Collector
from groundtune.data.sample import LvisRules

BoxForm = Literal["xywh", "xyxy", "cxcywh"]
"""Of a box's four numbers: pixels; "cxcywh" alone is in shares of the image's width and height."""


class RawBox(NamedTuple):
    """One box."""

    numbers: Any  # four in the file's form; anything else is a finding
    label: (
        str | int | None
    )  # key of its class, None where it has none; with a caption the place of its phrase
    place: str  # where it stands, such as "file.txt line 12"
    crowd: bool = False  # stands for a group, or is marked as not to be counted
    confidence: Any = None  # how sure a model was of it; anything but a number in (0, 1] is a person's


@dataclass
class RawImage:
    """One image."""

    file_names: tuple[str, ...]  # where its file may be, relative to an image folder, the likeliest first
    place: str  # where it stands in the file
    size_hw: tuple[Any, Any] = (None, None)  # as stated, of any type
    image_id: int | None = None  # as stated; None is numbered
    boxes: list[RawBox] = field(default_factory=list)
    caption: str | None = None  # of grounding data
    phrases: list[list[Any]] = field(
        default_factory=list
    )  # character spans of each in the caption; any numbers


class RawClass(NamedTuple):
    """A class as the file lists it: the key that boxes name it by, its name as written, its id where there is one."""

    key: str
    name: str
    number: int


@dataclass
class RawData:
    """One split of a data set, as it stands in its file or files.

    Where a format does not state the sizes of images, they are those of the images as viewers show them (EXIF
    orientation applied), as other tools of such formats do.
    """

    file: Path  # the file or folder to name in messages
    form: BoxForm  # of all boxes
    images: list[RawImage]
    classes: list[RawClass]  # unique keys; empty for grounding data
    problems: Collector  # what the reader met already
    states_size: bool = True
    lvis: LvisRules | None = None


class Source(NamedTuple):
    """The annotations of one split, found but not yet read."""

    file: Path  # the file or folder to name in messages
    image_dirs: Sequence[Path]  # that its images may be in, the likeliest first
    read: Callable[[Path], RawData]


def collector() -> Collector:
    """A collector of everything that reading can find."""
    return Collector(READING)


def classes_by_name(images: Sequence[RawImage], listed: Sequence[str]) -> list[RawClass]:
    """Classes of boxes that carry names: in the order of a list where there is one, the others sorted after it."""
    names = {box.label for image in images for box in image.boxes if isinstance(box.label, str)}
    order = dict.fromkeys([*listed, *sorted(names)])
    return [RawClass(name, name, number) for number, name in enumerate(order, start=1)]
