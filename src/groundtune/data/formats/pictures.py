"""Finding the picture files that annotations name, and their sizes where the annotations do not state them.

A picture's path must stay inside the data folder: `..` and absolute paths that leave it are refused. A link in the data
folder is the user's own word and is followed, but `..` takes back a name, not what the system makes of a link. Whole folders
are listed once, which is fast for 100,000 files. No picture is decoded here.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundtune.data.formats.files import inside
from groundtune.data.formats.raw import RawData, RawPicture
from groundtune.data.picture_files import MAX_PIXELS, exif_orientation, open_picture

_PROBED = 50  # pictures by which the folder of all is chosen
_LARGEST_SIDE = 2**63

Found = tuple[RawPicture, Path, tuple[int, int]]
"""A picture, its file, and its height and width."""


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


def find_pictures(raw: RawData, root: Path, folders: Sequence[Path]) -> list[Found]:
    """Give the pictures that exist and have a size, stated or else read from the file; the others go to the problems.

    The first folder (and way of writing the names) that has any of the first pictures is taken for all of them; single
    pictures that it lacks are looked for in the others.
    """
    ways = max((len(picture.file_names) for picture in raw.pictures), default=0)
    choices = [(folder, way) for way in range(ways) for folder in folders]
    listing = FolderListing()

    def usable(picture: RawPicture, choice: tuple[Path, int]) -> bool:
        folder, way = choice
        return way < len(picture.file_names) and _allowed(folder, picture.file_names[way], root)

    def exists(picture: RawPicture, choice: tuple[Path, int]) -> bool:
        return usable(picture, choice) and listing.has(choice[0] / picture.file_names[choice[1]])

    likely = [choice for choice in choices if any(exists(p, choice) for p in raw.pictures[:_PROBED])][:1]
    ordered = likely + choices
    kept = []
    for picture in raw.pictures:
        choice = next((choice for choice in ordered if exists(picture, choice)), None)
        if choice is None:
            refused = not any(usable(picture, choice) for choice in choices)
            raw.problems.add("picture-outside" if refused else "picture-missing", repr(picture.file_names[0]))
            continue
        path = Path(os.path.normpath(choice[0] / picture.file_names[choice[1]]))
        size_hw = _stated_size(picture.size_hw)
        if size_hw is None:
            try:
                size_hw = stored_size(path, upright=not raw.states_size)
            except Exception as error:  # Pillow raises many kinds for broken files
                raw.problems.add("picture-unreadable", f"{picture.file_names[0]} ({error})")
                continue
            if raw.states_size:
                raw.problems.add("picture-size-not-stated", picture.file_names[0])
        if size_hw[0] * size_hw[1] > MAX_PIXELS:
            raw.problems.add("picture-bomb", f"{picture.file_names[0]} ({size_hw[1]} × {size_hw[0]})")
            continue
        kept.append((picture, path, size_hw))
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
    """Height and width of a picture file: of its stored pixels, or as viewers turn it by its EXIF orientation."""
    with open_picture(path) as picture:
        turned = upright and exif_orientation(picture) in (5, 6, 7, 8)
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def _allowed(folder: Path, name: str, root: Path) -> bool:
    if "\0" in name or os.path.basename(name) in ("", ".", ".."):  # of ".", the folder above would be looked into
        return False
    plain = ".." not in name and ":" not in name and not name.startswith("/")  # ":" is of Windows' drives
    return plain or inside(folder / name, root)
