"""What the formats share of reading files: text and JSON of any content, lists of names, and paths that stay in a folder.

Finding the image files that annotations name, and their sizes where the annotations do not state them.

An image's path must stay inside the data folder: `..` and absolute paths that leave it are refused. A link in the data
folder is the user's own word and is followed, but `..` takes back a name, not what the system makes of a link. Whole folders
are listed once, which is fast for 100,000 files. No image is decoded here.
"""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from groundtune.data.formats.records import RawData, RawImage
from groundtune.data.images import MAX_PIXELS, exif_orientation, open_image
from groundtune.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jfif"})
SPLIT_NAMES = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}
_NAME_LISTS = ("classes.txt", "obj.names", "labels.txt", "labelmap.txt", "predefined_classes.txt")


def split_folders(root: Path) -> list[tuple[str, Path]]:
    """The folders of a folder that are named after a split, each with its split, in the order of their names."""
    named = ((SPLIT_NAMES.get(folder.name.lower()), folder) for folder in sorted(root.iterdir()))
    return [(split, folder) for split, folder in named if split is not None and folder.is_dir()]


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is text that a tokenizer and a terminal take: JSON can carry halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def short(value: Any) -> str:
    """A value of any type for a message, cut after 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, deep nesting
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: it cannot be opened, or is neither UTF-8 nor, by its byte order mark, UTF-16.
    """
    try:
        content = read_bytes(path)
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, ValueError) else error.strerror or str(error)
        raise DataError(
            f"Cannot read {path}: {reason}. Save it as UTF-8, or export the annotations again."
        ) from error


def read_bytes(path: Path) -> bytes:
    """The content of a regular file, an `OSError` otherwise: a pipe or a device would be read for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """Read a JSON file of any content.

    Raises:
        DataError: the file cannot be opened, is not UTF-8, or is not JSON; with line and column where known.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, integers of thousands of digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{path} is not valid JSON: {reason}. Export the annotations again.") from error


def find_name_list(*folders: Path) -> list[str]:
    """The class names, one a line, beside annotations of formats that have no list of their own; no such file is []."""
    for path in (folder / name for folder in folders for name in _NAME_LISTS):
        if path.is_file():
            lines = [line.strip() for line in read_text(path).splitlines()]
            if path.name == "labelmap.txt":  # CVAT's, which has more behind a colon
                names = [line.partition(":")[0] for line in lines if not line.startswith("#")]
                lines = [name for name in names if name != "background"]
            return [line for line in lines if line]
    return []


def inside(path: Path, root: Path) -> bool:
    """Whether a path is the root or in it, by its text: people link folders into a data folder, which is theirs to decide."""
    at, top = os.path.abspath(path), os.path.abspath(root)
    return at == top or at.startswith(os.path.join(top, ""))


_PROBED = 50  # images by which the folder of all is chosen
_LARGEST_SIDE = 2**63

Found = tuple[RawImage, Path, tuple[int, int]]
"""An image, its file, and its height and width."""


class FolderListing:
    """Whether files exist, with one look into each folder."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def has(self, path: Path) -> bool:
        parent = os.path.normpath(path.parent)
        if parent not in self._names:
            try:
                self._names[parent] = set(os.listdir(parent))
            except (OSError, ValueError):  # ValueError: characters that no file name can have
                self._names[parent] = set()
        return path.name in self._names[parent]


def find_images(raw: RawData, root: Path, folders: Sequence[Path]) -> list[Found]:
    """Give the images that exist and have a size, stated or else read from the file; the others go to the problems.

    The first folder (and way of writing the names) that has any of the first images is taken for all of them; single
    images that it lacks are looked for in the others.
    """
    ways = max((len(image.file_names) for image in raw.images), default=0)
    choices = [(folder, way) for way in range(ways) for folder in folders]
    listing = FolderListing()

    def usable(image: RawImage, choice: tuple[Path, int]) -> bool:
        folder, way = choice
        return way < len(image.file_names) and _allowed(folder, image.file_names[way], root)

    def exists(image: RawImage, choice: tuple[Path, int]) -> bool:
        return usable(image, choice) and listing.has(choice[0] / image.file_names[choice[1]])

    likely = [choice for choice in choices if any(exists(p, choice) for p in raw.images[:_PROBED])][:1]
    ordered = likely + choices
    kept = []
    for image in raw.images:
        choice = next((choice for choice in ordered if exists(image, choice)), None)
        if choice is None:
            refused = not any(usable(image, choice) for choice in choices)
            raw.problems.add("image-outside" if refused else "image-missing", repr(image.file_names[0]))
            continue
        path = Path(os.path.normpath(choice[0] / image.file_names[choice[1]]))
        size_hw = _stated_size(image.size_hw)
        if size_hw is None:
            try:
                size_hw = stored_size(path, upright=not raw.states_size)
            except Exception as error:  # Pillow raises many kinds for broken files
                raw.problems.add("image-unreadable", f"{image.file_names[0]} ({error})")
                continue
            if raw.states_size:
                raw.problems.add("image-size-not-stated", image.file_names[0])
        if size_hw[0] * size_hw[1] > MAX_PIXELS:
            raw.problems.add("image-bomb", f"{image.file_names[0]} ({size_hw[1]} × {size_hw[0]})")
            continue
        kept.append((image, path, size_hw))
    return kept


def _stated_size(size_hw: Sequence[Any]) -> tuple[int, int] | None:
    """Two whole numbers above 0, or None."""
    for side in size_hw:
        if isinstance(side, bool) or not isinstance(side, int | float):
            return None
        if not (1 <= side < _LARGEST_SIDE and side == int(side)):
            return None
    return int(size_hw[0]), int(size_hw[1])


def stored_size(path: Path, upright: bool) -> tuple[int, int]:
    """Height and width of an image file: of its stored pixels, or as viewers turn it by its EXIF orientation."""
    with open_image(path) as image:
        turned = upright and exif_orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def _allowed(folder: Path, name: str, root: Path) -> bool:
    if "\0" in name or os.path.basename(name) in (
        "",
        ".",
        "..",
    ):  # of ".", the folder above would be looked into
        return False
    plain = ".." not in name and ":" not in name and not name.startswith("/")  # ":" is of Windows' drives
    return plain or inside(folder / name, root)
