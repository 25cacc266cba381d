"""Find the images of annotations, and their sizes. No image is decoded."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import Any, TypeGuard

from groundtune.data.formats.parts import joined
from groundtune.data.formats.records import Evidence, RawData, RawImage, Source
from groundtune.data.formats.tree import AmbiguousNameError, Tree, join
from groundtune.data.formats.words import folder_split, pair_key, split_of
from groundtune.data.images import MAX_PIXELS, exif_orientation, open_image
from groundtune.data.sample import join_examples
from groundtune.files import read_text

_NAME_LISTS = (
    "classes.txt",
    "obj.names",
    "labels.txt",
    "labelmap.txt",
    "predefined_classes.txt",
    "label_list.txt",
)
_PROBED = 50  # images that decide which folder to try first

Found = tuple[RawImage, Path, tuple[int, int]]
"""An image, its file, and its height and width."""


def find_images(raw: RawData, split: str, tree: Tree, folders: Sequence[str]) -> list[Found]:
    """Return the images that exist and have a size; report the others as problems.

    The folder that has one of the first images is tried first for all images. Sizes are those
    stated, or else read from the files.

    Args:
        raw: records of a reader.
        split: its name; images in folders of other splits count only if they are named exactly.
        tree: files of the data folder.
        folders: folders that file names may be relative to, the most likely first.
    """
    probed = [name for image in raw.images[:_PROBED] for name in image.file_names[:1]]
    likely = [folder for folder in folders if any(tree.is_file(join(folder, name)) for name in probed)]
    ordered = list(dict.fromkeys([*likely[:1], *folders]))
    found = []
    for image in raw.images:
        name = image.file_names[0]
        try:
            match = tree.find(image.file_names, ordered)
        except AmbiguousNameError as error:
            raw.problems.add("image-ambiguous", f"{name!r} ({error.args[0]} or {error.args[1]})")
            continue
        if match is None:
            outside = not any(_stays_inside(folder, name) for folder in ordered)
            raw.problems.add("image-outside" if outside else "image-missing", repr(name))
            continue
        path = tree.root / match.file
        if match.loosely:
            if folder_split(dirname(match.file)) not in (None, split) or not _fits(image, path):
                raw.problems.add("image-missing", f"{name!r} ({match.file} is another image)")
                continue
            raw.problems.add("image-path-resolved", f"{name!r} is {match.file}")
        size_hw = _size(image, path, raw)
        if size_hw is not None:
            found.append((image, path, size_hw))
    return found


def _stays_inside(folder: str, name: str) -> bool:
    name = name.replace("\\", "/")
    if "\0" in name or re.match(r"/|[A-Za-z]:/", name) or basename(name) in ("", ".", ".."):
        return False
    return join(folder, name).split("/")[0] != ".."


def _fits(image: RawImage, path: Path) -> bool:
    """Return whether a file that was not found by its exact name has the stated size, if any."""
    if not all(map(_is_side, image.size_hw)):
        return True
    try:
        stored = stored_size(path, upright=False)
    except Exception:  # of any kind; training reports unreadable images
        return True
    return image.size_hw in (stored, stored[::-1])


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


def find_name_list(tree: Tree, folders: Sequence[str]) -> list[str]:
    """Return the lines of the first file of class names in the folders; [] without such a file."""
    for file in (join(folder, name) for folder in folders for name in _NAME_LISTS):
        if tree.is_file(file):
            lines = [line.strip() for line in read_text(tree.root / file).splitlines()]
            if file.endswith("labelmap.txt"):  # of CVAT: colors follow a colon
                names = [line.partition(":")[0] for line in lines if not line.startswith("#")]
                lines = [name for name in names if name != "background"]
            return [line for line in lines if line]
    return []


def image_folders(tree: Tree, file: str) -> list[str]:
    """Return the usual folders of the images of an annotation file, the most likely first."""
    folder = dirname(file)
    above = dirname(folder)  # of a folder such as "annotations"
    base = above if pair_key(join(folder, "x")) == pair_key(join(above, "x")) else folder
    stem = re.sub(r"^(instances|_annotations|lvis_v\d)_", "", splitext(basename(file))[0])
    split = split_of(file) or ""
    named = [stem, re.sub(r"\d{4}$", "", stem), split, {"valid": "val"}.get(split, split)]
    folders = [join(place, name) for name in named if name for place in (base, join(base, "images"))]
    folders += [join(place, name) for place in (folder, base) for name in ("images", "data")]
    folders += [folder, base, ""]
    return [
        each for each in dict.fromkeys(name.removeprefix(".") for name in folders) if each in tree.folders
    ]


def files_by_split(files: Sequence[str], source: Callable[[str], Source], tree: Tree) -> dict[str, Source]:
    """Return the sources of annotation files by split; several of one split are read as parts."""
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(split_of(file) or "", []).append(file)
    if len(groups.get("train", [])) > 1:  # "trainval" is the union of two others
        groups["train"] = [file for file in groups["train"] if "trainval" not in file] or groups["train"]
    sources = {}
    for split, group in groups.items():
        refusal = (
            f"{tree.root} has {len(group)} annotation files ({join_examples(group)}) for the split "
            f"{split or 'train'!r}, and they do not name different images. Give the path of one of them, or "
            "remove the others."
        )
        parts = [source(file) for file in group]
        sources[split] = joined(tree, parts, refusal) if len(parts) > 1 else parts[0]
    return sources


def file_evidence(
    format: str, files: Sequence[str], tree: Tree, read: Callable[[Path], RawData]
) -> Evidence | None:
    """Return the evidence of annotation files of one format by split; None without any."""
    if not files:
        return None

    def source(file: str) -> Source:
        return Source(tree.root / file, image_folders(tree, file), read)

    return Evidence(format, 2, files_by_split(files, source, tree), example=files[0])


def is_text(value: Any) -> TypeGuard[str]:
    """Return whether a value is valid text: JSON can hold halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield location and value of each line with content; None if it is not JSON."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield f"line {number}", value


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


def is_number(text: str) -> bool:
    """Return whether text is a number."""
    return isinstance(to_number(text.strip()), float)
