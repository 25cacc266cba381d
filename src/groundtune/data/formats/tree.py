"""The files of a data set, listed once, and what the words in their paths and names mean.

Hidden files and folders do not count. Symbolic links of the user are followed. File names that
annotations state are resolved by `Tree.find`, for all formats: it returns listed files only, so
that no name leads out of the folder.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from posixpath import basename, dirname, normpath, splitext
from typing import Any
from urllib.parse import unquote

from groundtune.data.formats.signature import Signature, signature
from groundtune.data.formats.words import fold, pair_key
from groundtune.data.images import IMAGE_SUFFIXES, has_suffix, is_visible
from groundtune.errors import DataError

_MAX_FILES = 5_000_000
_END = 2**18  # bytes


def join(folder: str, name: str) -> str:
    """Return the path of a name in a folder of the tree, "" being the root."""
    return normpath(f"{folder}/{name}" if folder else name)


def inside(path: Path, root: Path) -> bool:
    """Return whether a path is the root or in it, without resolving links."""
    absolute, top = os.path.abspath(path), os.path.abspath(root)
    return absolute == top or absolute.startswith(os.path.join(top, ""))


@dataclass(frozen=True)
class Match:
    """A file that a stated name means; `loosely` if parts of the name had to be ignored."""

    file: str
    loosely: bool


class AmbiguousNameError(Exception):
    """Several files fit a stated name equally well; the arguments are two of them."""


@dataclass
class Tree:
    """The files of a folder.

    Attributes:
        root: the folder.
        only: the only file that may describe the data set; None: any.
        files: paths relative to it with "/", sorted, without those of hidden names, which count
            only if annotations name them.
    """

    root: Path
    only: str | None = None
    files: list[str] = field(init=False)
    _set: set[str] = field(init=False)  # with those of hidden names

    def __post_init__(self) -> None:
        self._set = set(_walk(self.root))
        self.files = sorted(file for file in self._set if is_visible(basename(file)))

    @cached_property
    def images(self) -> list[str]:
        """Paths of the image files, by their suffixes."""
        return [file for file in self.files if has_suffix(basename(file), IMAGE_SUFFIXES)]

    @cached_property
    def folders(self) -> set[str]:
        """Folders that have files, also indirectly; "" is the root."""
        found = {""}
        for folder in {dirname(file) for file in self.files}:
            while folder and folder not in found:
                found.add(folder)
                folder = dirname(folder)
        return found

    def suffixed(self, *suffixes: str) -> list[str]:
        """Return the files with one of the suffixes, in lower case with the dot."""
        return [file for suffix in suffixes for file in self._by_suffix.get(suffix, [])]

    def declared(self, *suffixes: str) -> list[str]:
        """Return the files with one of the suffixes that may describe the data set."""
        return [file for file in self.suffixed(*suffixes) if self.only in (None, file)]

    @cached_property
    def _by_suffix(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            found[splitext(file)[1].lower()].append(file)
        return found

    def is_file(self, file: str) -> bool:
        """Return whether a relative path is that of a file; it may contain "..", but not leave."""
        return normpath(file) in self._set

    def find(self, names: Sequence[str], folders: Sequence[str] = ("",)) -> Match | None:
        """Return the file that an annotation means.

        Names are tried in the given folders first, then there with another suffix or letter case.
        Then the file whose path ends most like the name is taken, which resolves paths of other
        machines (also of Windows, and URL-encoded ones).

        Args:
            names: stated names, the most likely first.
            folders: folders that they may be relative to, the most likely first.

        Raises:
            AmbiguousNameError: several files fit equally well.
        """
        names = [name.replace("\\", "/") for name in names]
        for name in names:
            for folder in folders:
                if (file := join(folder, name)) in self._set:
                    return Match(file, loosely=False)
        variants = [variant for name in names for variant in dict.fromkeys((name, unquote(name)))]
        for index in (self._by_name, self._by_stem):
            for name in variants:
                found = self._ending_like(name, index, folders)
                if found is not None:
                    return Match(found, loosely=True)
        return None

    def _ending_like(self, name: str, index: dict[str, list[str]], folders: Sequence[str]) -> str | None:
        parts = [part for part in fold(name).split("/") if part not in ("", ".", "..")]
        key = parts[-1] if parts else ""
        candidates = index.get(key if index is self._by_name else splitext(key)[0], [])
        if index is self._by_stem and not candidates:
            candidates = index.get(key, [])  # a name without a suffix, with a dot in it
        if len(candidates) < 2:
            return candidates[0] if candidates else None

        def likeness(file: str) -> tuple[int, int]:
            own = fold(file).split("/")
            same = 0
            while same + 1 < min(len(own), len(parts)) and own[-2 - same] == parts[-2 - same]:
                same += 1
            near = [order for order, folder in enumerate(folders) if dirname(file) == folder]
            return same, -near[0] if near else -len(folders)

        best, second = sorted(candidates, key=likeness, reverse=True)[:2]
        if likeness(best) == likeness(second):
            raise AmbiguousNameError(best, second)
        return best

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return self._index(basename)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return self._index(lambda file: splitext(basename(file))[0])

    def _index(self, key: Any) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for file in self.images:
            found[fold(key(file))].append(file)
        return found

    @cached_property
    def pairs(self) -> dict[tuple[str, ...], list[str]]:
        """Images by `pair_key`."""
        found: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for file in self.images:
            found[pair_key(file)].append(file)
        return found

    def image_of(self, annotation: str) -> str | None:
        """Return the only image that an annotation file may be of, by its own name."""
        candidates = self.pairs.get(pair_key(annotation), [])
        beside = [file for file in candidates if dirname(file) == dirname(annotation)]
        best = beside or candidates
        return best[0] if len(best) == 1 else None

    def find_folder(self, name: str, near: str = "") -> str | None:
        """Return the folder that a stated path means: in `near`, or the end of the path that is."""
        parts = [part for part in normpath(name.strip().replace("\\", "/")).split("/") if part]
        for base in dict.fromkeys((near, "")):
            for begin in range(len(parts)):
                path = normpath("/".join([base, *parts[begin:]]).strip("/") or ".")
                if path == "." or path in self.folders:
                    return "" if path == "." else path
        return None

    @cached_property
    def signatures(self) -> dict[str, Signature]:
        """Forms of the JSON files, those of JSON lines included."""
        files = self.declared(".json", ".jsonl", ".ndjson")
        # not the label files of images, of which there may be many
        texts = self.declared(".txt")
        files += [file for file in texts if file == self.only or pair_key(file) not in self.pairs]
        return {file: signature(self.root / file) for file in files}

    def head(self, file: str, size: int = _END) -> str:
        """Return the beginning of a text file; "" if it cannot be read."""
        path = self.root / file
        try:
            if not path.is_file():  # a pipe would block
                return ""
            with path.open("rb") as opened:
                return opened.read(size).decode("utf-8-sig", errors="replace")
        except OSError:
            return ""


def _walk(root: Path) -> Iterator[str]:
    visited: set[str] = set()
    count = 0
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_cannot_list):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder that contains it
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if is_visible(name)]
        prefix = "" if folder == str(root) else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        yield from (prefix + name for name in files)
        count += len(files)
        if count > _MAX_FILES:
            raise DataError(f"{root} has more than {_MAX_FILES:,} files. Give the folder of the data set.")


def _cannot_list(error: OSError) -> None:
    raise error
