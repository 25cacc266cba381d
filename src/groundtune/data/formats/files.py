"""Find the images of annotations: their files, which must be in the data folder, and their sizes.

`..` and absolute paths that leave the data folder are rejected. Symbolic links of the user are
followed, but `..` removes a name of the path and does not go to the parent of a link's target.
Folders are listed once, which is fast for 100,000 files. No image is decoded.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from groundtune.data.formats.records import RawData, RawImage
from groundtune.data.images import MAX_PIXELS, exif_orientation, open_image
from groundtune.files import read_text

SPLIT_NAMES = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}
_NAME_LISTS = ("classes.txt", "obj.names", "labels.txt", "labelmap.txt", "predefined_classes.txt")
_PROBED = 50  # images that decide which folder to try first

Found = tuple[RawImage, Path, tuple[int, int]]
"""An image, its file, and its height and width."""


def find_images(raw: RawData, root: Path, folders: Sequence[Path]) -> list[Found]:
    """Return the images that exist and have a size; report the others as problems.

    The first pair of a folder and a candidate name that exists for one of the first images is tried
    first for all images. Sizes are those stated, or else read from the files.

    Args:
        raw: records of a reader.
        root: data folder that no image may be outside of.
        folders: folders that file names may be relative to, the most likely first.
    """
    candidates = range(max((len(image.file_names) for image in raw.images), default=0))
    choices = [(folder, candidate) for candidate in candidates for folder in folders]
    is_file = listed_folders()

    def allowed(image: RawImage, choice: tuple[Path, int]) -> bool:
        folder, candidate = choice
        return candidate < len(image.file_names) and _is_inside(folder, image.file_names[candidate], root)

    def exists(image: RawImage, choice: tuple[Path, int]) -> bool:
        return allowed(image, choice) and is_file(choice[0] / image.file_names[choice[1]])

    probed = raw.images[:_PROBED]
    likely = next((choice for choice in choices if any(exists(image, choice) for image in probed)), None)
    ordered = choices if likely is None else [likely, *choices]
    found = []
    for image in raw.images:
        choice = next((choice for choice in ordered if exists(image, choice)), None)
        if choice is None:
            outside = not any(allowed(image, choice) for choice in choices)
            raw.problems.add("image-outside" if outside else "image-missing", repr(image.file_names[0]))
            continue
        path = Path(os.path.normpath(choice[0] / image.file_names[choice[1]]))
        size_hw = _size(image, path, raw)
        if size_hw is not None:
            found.append((image, path, size_hw))
    return found


def _size(image: RawImage, path: Path, raw: RawData) -> tuple[int, int] | None:
    """Return the stated size or that of the file; report problems of both."""
    if all(map(_is_side, image.size_hw)):
        size_hw = int(image.size_hw[0]), int(image.size_hw[1])
    else:
        try:
            size_hw = stored_size(path, upright=not raw.states_size)
        except Exception as error:  # Pillow raises many kinds for broken files
            raw.problems.add("image-unreadable", f"{image.file_names[0]} ({error})")
            return None
        if raw.states_size:
            raw.problems.add("image-size-not-stated", image.file_names[0])
    if size_hw[0] * size_hw[1] > MAX_PIXELS:
        raw.problems.add("image-bomb", f"{image.file_names[0]} ({size_hw[1]} × {size_hw[0]})")
        return None
    return size_hw


def _is_side(side: Any) -> bool:
    number = isinstance(side, int | float) and not isinstance(side, bool)
    return number and 1 <= side < 2**63 and side == int(side)


def stored_size(path: Path, upright: bool) -> tuple[int, int]:
    """Return height and width of an image file: as stored, or after EXIF rotation."""
    with open_image(path) as image:
        turned = upright and exif_orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def _is_inside(folder: Path, name: str, root: Path) -> bool:
    """Return whether a file name is one and stays in the root; fast for plain names."""
    if "\0" in name or os.path.basename(name) in ("", ".", ".."):
        return False
    # ":" follows a drive on Windows
    plain = ".." not in name and ":" not in name and not name.startswith("/")
    return plain or inside(folder / name, root)


def inside(path: Path, root: Path) -> bool:
    """Return whether a path is the root or in it, without resolving links."""
    absolute, top = os.path.abspath(path), os.path.abspath(root)
    return absolute == top or absolute.startswith(os.path.join(top, ""))


def listed_folders() -> Callable[[Path], bool]:
    """Return a function that checks whether a file exists; it lists each folder only once."""

    @cache
    def names(folder: str) -> set[str]:
        try:
            return set(os.listdir(folder))
        except (OSError, ValueError):  # ValueError: characters that no file name can have
            return set()

    return lambda path: path.name in names(os.path.normpath(path.parent))


def split_folders(root: Path) -> list[tuple[str, Path]]:
    """Return the subfolders that are named after a split, each with its split, sorted by name."""
    named = ((SPLIT_NAMES.get(folder.name.lower()), folder) for folder in sorted(root.iterdir()))
    return [(split, folder) for split, folder in named if split is not None and folder.is_dir()]


def find_name_list(*folders: Path) -> list[str]:
    """Return the lines of the first file of class names in the folders; [] without such a file."""
    for path in (folder / name for folder in folders for name in _NAME_LISTS):
        if path.is_file():
            lines = [line.strip() for line in read_text(path).splitlines()]
            if path.name == "labelmap.txt":  # of CVAT: colors follow a colon
                names = [line.partition(":")[0] for line in lines if not line.startswith("#")]
                lines = [name for name in names if name != "background"]
            return [line for line in lines if line]
    return []


def is_text(value: Any) -> TypeGuard[str]:
    """Return whether a value is valid text: JSON can hold halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def truncated_repr(value: Any) -> str:
    """Return a value of any type for a message, cut after 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, deep nesting
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def to_number(text: str | None) -> float | str | None:
    """Return text as a number if it is one, otherwise unchanged."""
    try:
        return float(text or "")
    except ValueError:
        return text
