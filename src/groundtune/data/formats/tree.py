"""The files of a data set, listed once, and what the words in their paths and names mean.

Hidden files and folders do not count. Symbolic links of the user are followed. File names that
annotations state are resolved by `Tree.find`, for all formats: it returns listed files only, so
that no name leads out of the folder.
"""

import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from posixpath import basename, dirname, normpath, splitext
from typing import Any, NamedTuple
from urllib.parse import unquote

from groundtune.errors import DataError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .bmp .webp .tif .tiff .gif .avif .jp2 .ppm .pgm .pbm".split()
)
_HIDDEN = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})
_MAX_FILES = 5_000_000
_SMALL = 2**22  # bytes; larger JSON files are recognized by their ends
_END = 2**18  # bytes

_SPLIT_WORDS = {
    "train": "train training trn trainval traindata trainset",
    "valid": "val valid validation dev eval evaluation minival valset",
    "test": "test testing testset testdev",
}
_SPLIT_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words.split()}
_GENERIC = frozenset(
    "image images img imgs jpegimages pictures photos data dataset label labels annotation annotations "
    "annots annot xml xmls json jsons txt labeltxt groundtruth gt obj set instances coco od vg".split()
)


def split_of(path: str) -> str | None:
    """Return the split that a file is of, by a word in its name or by the name of a folder."""
    words = [_SPLIT_OF[word] for word in _words(splitext(basename(path))[0]) if word in _SPLIT_OF]
    if words:
        return words[0] if len({*words} - {"train"}) < 2 and "test" not in words[1:] else None
    return folder_split(dirname(path))


def folder_split(folder: str) -> str | None:
    """Return the split of the innermost folder that is named after one, such as "val_images"."""
    for part in reversed(folder.split("/")):
        words = [word for word in _words(part) if word not in _GENERIC]
        if len(words) == 1 and words[0] in _SPLIT_OF:
            return _SPLIT_OF[words[0]]
    return None


@cache
def _words(text: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text))


def pair_key(path: str) -> tuple[str, ...]:
    """Return what an image and its annotation file have in common.

    "train/images/a.jpg" and "Labels/train/a.txt" are a pair.
    """
    stem = splitext(path)[0]
    *folders, name = _fold(stem).split("/")
    return (*sorted(part for part in folders if re.sub(r"[\W\d_]", "", part) not in _GENERIC), name)


def _fold(text: str) -> str:
    """Return a name without regard to letter case and Unicode normal form."""
    return unicodedata.normalize("NFC", text).casefold()


def join(folder: str, name: str) -> str:
    """Return the path of a name in a folder of the tree, "" being the root."""
    return normpath(f"{folder}/{name}" if folder else name)


def inside(path: Path, root: Path) -> bool:
    """Return whether a path is the root or in it, without resolving links."""
    absolute, top = os.path.abspath(path), os.path.abspath(root)
    return absolute == top or absolute.startswith(os.path.join(top, ""))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, such as ".DS_Store", "._a.jpg", "__MACOSX"."""
    return name.startswith(".") or name.lower() in _HIDDEN


class Signature(NamedTuple):
    """Form of a JSON file: "object", "array", "lines" (an object per line) or "" for others.

    `keys` are those of the object; `first` is the first element or line, None if it is no object.
    """

    form: str
    keys: frozenset[str] = frozenset()
    first: dict[str, Any] | None = None


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
        files: paths relative to it with "/", sorted, without hidden ones.
        hidden: files with hidden names; they count only if annotations name them.
    """

    root: Path
    only: str | None = None
    files: list[str] = field(init=False)
    hidden: set[str] = field(init=False)

    def __post_init__(self) -> None:
        every = sorted(_walk(self.root))
        self.files = [file for file in every if not is_hidden(basename(file))]
        self.hidden = {*every} - {*self.files}

    @cached_property
    def images(self) -> list[str]:
        """Paths of the image files, by their suffixes."""
        return [file for file in self.files if splitext(file)[1].lower() in IMAGE_SUFFIXES]

    @cached_property
    def _set(self) -> set[str]:
        return {*self.files} | self.hidden

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
        parts = [part for part in _fold(name).split("/") if part not in ("", ".", "..")]
        key = parts[-1] if parts else ""
        candidates = index.get(key if index is self._by_name else splitext(key)[0], [])
        if index is self._by_stem and not candidates:
            candidates = index.get(key, [])  # a name without a suffix, with a dot in it
        if len(candidates) < 2:
            return candidates[0] if candidates else None

        def likeness(file: str) -> tuple[int, int]:
            own = _fold(file).split("/")
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
            found[_fold(key(file))].append(file)
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
        files = self.declared(".json", ".jsonl", ".ndjson", ".txt")
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
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        prefix = "" if folder == str(root) else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        yield from (prefix + name for name in files)
        count += len(files)
        if count > _MAX_FILES:
            raise DataError(f"{root} has more than {_MAX_FILES:,} files. Give the folder of the data set.")


def _cannot_list(error: OSError) -> None:
    raise error


def signature(path: Path) -> Signature:
    """Return the form of a JSON file; large files are not read whole."""
    try:
        if not path.is_file():  # a pipe would block
            return Signature("")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_SMALL if size <= _SMALL else _END)
            tail = b""
            if size > _SMALL:
                file.seek(-_END, os.SEEK_END)
                tail = file.read()
    except OSError:
        return Signature("")
    text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")
    text = text.lstrip()
    first, end = _decode(text)
    if text.startswith("{"):
        lines = first is not None and text[end:].lstrip().startswith("{")
        if lines:
            return Signature("lines", frozenset(first or ()), first)
        keys = frozenset(first) if first is not None and not tail else _outer_keys(text, False)
        short = first and {key: value for key, value in first.items() if not isinstance(value, str)}
        return Signature("object", keys | _outer_keys(tail.decode(errors="replace"), True), short)
    if text.startswith("["):
        return Signature("array", first=_decode(text[1:].lstrip())[0])
    return Signature("")


def _decode(text: str) -> tuple[dict[str, Any] | None, int]:
    """Return the object that a text begins with, None if it is another value, and its end."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0
    return (value if isinstance(value, dict) else None), end


def _outer_keys(text: str, from_end: bool) -> frozenset[str]:
    """Return the keys of the outermost object, of which the text is the beginning or the end."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]', text)
    opening, closing, keys, depth = "{[", "}]", set(), 0
    previous = ""
    if from_end:
        tokens, opening, closing = tokens[::-1], closing, opening
    for index, token in enumerate(tokens):
        following = previous if from_end else (tokens[index + 1] if index + 1 < len(tokens) else "")
        depth += (token in opening) - (token in closing)
        if depth == 1 and token.startswith('"') and following == ":":
            keys.add(token.strip('"'))
        previous = token
    return frozenset(keys)
