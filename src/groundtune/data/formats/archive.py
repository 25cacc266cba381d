"""Unpack what is read from a folder later: archives of exports, and images inside Parquet files.

An archive is unpacked once, into `.groundtune-cache/` beside it (in the user's cache directory if
that folder is read-only), and again when its size, its time or its ends change. The folder appears
whole or not at all. Archives are untrusted: links, devices, encrypted files and names that lead out
are refused, as are archives that grow beyond all proportion. Hidden files are skipped.
"""

import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from groundtune.data.formats.words import folder_split
from groundtune.data.images import is_visible
from groundtune.data.sample import join_examples
from groundtune.errors import DataError
from groundtune.files import atomic_folder

CACHE = ".groundtune-cache"
_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_KEY = ".key"  # in an unpacked folder: of which files it is
_END = 2**18  # bytes at the ends of a file that belong to its key; a zip has its list of files there
_MAX_FILES = 2_000_000
_MAX_RATIO = 200  # of the unpacked to the packed size; annotations in JSON reach 50
_ALWAYS_ALLOWED = 2**24  # bytes, whatever the ratio
_MAX_READ = 2**26  # bytes that a header of a tar file may have
_FIX = "If you trust it, unpack it with another tool and give the folder."

_Member = tuple[str, int, str, Callable[[], IO[bytes] | None]]
"""Name and size of a file in an archive, why it is refused or "", and a function that opens it."""


class _UnpackedMeanwhileError(Exception):
    """Another process was faster."""


def is_archive(path: Path) -> bool:
    """Return whether a path is a file with the suffix of a zip or tar archive."""
    return path.name.lower().endswith(_SUFFIXES) and path.is_file()


def unpack(archive: Path) -> Path:
    """Return the folder with the files of an archive, or the only folder in it.

    Raises:
        DataError: the archive is damaged, too large, or has links or names that lead out of it.
    """
    try:
        folder = unpacked([archive], partial(_extract, archive))
    except DataError:
        raise
    except Exception as error:  # damaged archives raise many kinds
        system = isinstance(error, OSError) and error.strerror  # such as a full disk
        fix = "Unpack it elsewhere and give the folder." if system else f"Download it again. {_FIX}"
        raise DataError(f"Cannot unpack {archive}: {system or error}. {fix}") from error
    top = [entry for entry in folder.iterdir() if is_visible(entry.name)]
    single = len(top) == 1 and top[0].is_dir() and folder_split(top[0].name) is None
    return top[0] if single else folder


def unpacked(files: Sequence[Path], fill: Callable[[Path], None]) -> Path:
    """Return the cached folder of some files of one folder; `fill` writes it if they changed."""
    home = files[0].parent
    place = home / CACHE
    if not os.access(home, os.W_OK):
        name = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "groundtune", CACHE, name)
    folder, key = place / files[0].name, "\n".join(map(_key, files))
    if not _is_of(folder, key):
        with suppress(_UnpackedMeanwhileError), atomic_folder(folder) as staging:
            fill(staging)
            (staging / _KEY).write_text(key, encoding="utf-8")
            if _is_of(folder, key):
                raise _UnpackedMeanwhileError
    return folder


def _is_of(folder: Path, key: str) -> bool:
    file = folder / _KEY
    return file.is_file() and file.read_text(encoding="utf-8", errors="replace") == key


def _key(path: Path) -> str:
    status = path.stat()
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_END))
        file.seek(max(0, status.st_size - _END))
        digest.update(file.read(_END))
    return f"{status.st_size} {status.st_mtime_ns} {digest.hexdigest()}"


class Budget:
    """Limits what is unpacked from some files; raises a `DataError` beyond it."""

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        size = sum(file.stat().st_size for file in files)
        self._name, self._bytes, self._files = files[0], 0, 0
        self._limit = min(max(_ALWAYS_ALLOWED, _MAX_RATIO * size), shutil.disk_usage(folder).free)

    def spend(self, size: int) -> None:
        """Count one more file."""
        self._files += 1
        self._bytes += size
        self.check(self._bytes)

    def check(self, size: int) -> None:
        """Raise an error if the unpacked size may not be reached."""
        if size > self._limit or self._files > _MAX_FILES:
            raise DataError(
                f"{self._name} is refused, because it unpacks to more than {self._limit / 1e6:,.0f} MB or "
                f"{_MAX_FILES:,} files. The limits are {_MAX_RATIO} times its size, and the free space of "
                f"the disk. {_FIX}"
            )


def _extract(archive: Path, folder: Path) -> None:
    """Write the files of an archive into an empty folder; raise if there is any fault."""
    budget = Budget([archive], folder)
    members = (
        _zip_members(archive) if archive.name.lower().endswith(".zip") else _tar_members(archive, budget)
    )
    faults: dict[str, list[str]] = {}
    for name, size, fault, open_file in members:
        parts = _parts(name)
        if not parts or fault:
            faults.setdefault(fault or "names that lead out of it", []).append(repr(name))
        budget.spend(size)
        if faults or not parts or not all(map(is_visible, parts)):
            continue
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        if (source := open_file()) is not None:
            with source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
    if faults:
        reasons = "; ".join(f"{fault}: {join_examples(names)}" for fault, names in faults.items())
        raise DataError(f"{archive} is refused, because it has {reasons}. {_FIX}")


def _parts(name: str) -> list[str] | None:
    """Return the folders and the file of a name; None if it leads out of the archive."""
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    leads_out = name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\0" in name or ".." in parts
    return None if leads_out or not parts else parts


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if info.is_dir():
                continue
            plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            fault = "encrypted files" if info.flag_bits & 1 else "" if plain else "links or devices"
            name = info.filename
            if not info.flag_bits & 0x800:  # macOS writes UTF-8 without this flag
                with suppress(UnicodeError):
                    name = name.encode("cp437").decode()
            yield (name, info.file_size, fault, partial(opened.open, info))


def _tar_members(archive: Path, budget: Budget) -> Iterator[_Member]:
    packed = not archive.name.lower().endswith(".tar")
    with gzip.open(archive) if packed else archive.open("rb") as file:
        stream = _Bounded(file, budget)
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            while (info := opened.next()) is not None:
                if not info.isdir():
                    fault = "" if info.isreg() else "links or devices"
                    yield (info.name, info.size, fault, partial(opened.extractfile, info))
                opened.members = []  # type: ignore[attr-defined]  # else they fill the memory
            stream.seek(opened.offset)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("a header is damaged")


class _Bounded(io.BufferedReader):
    """Reads an unpacked tar file within a budget, and little at once."""

    def __init__(self, stream: gzip.GzipFile | io.BufferedReader, budget: Budget) -> None:
        super().__init__(stream)
        self._budget = budget

    def read(self, size: int | None = -1, /) -> bytes:
        self._budget.check(self.tell())
        return super().read(size if size is not None and 0 <= size <= _MAX_READ else _MAX_READ)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._budget.check(offset)
        return super().seek(offset, whence)
