"""What the formats share of reading files: text and JSON of any content, lists of names, and paths that stay in a folder."""

import errno
import json
import os
from pathlib import Path
from typing import Any, TypeGuard

from groundtune.errors import DataError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jfif"})
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
        raise DataError(f"Cannot read {path}: {reason}. Save it as UTF-8, or export the annotations again.") from error


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
