"""Write files and directories atomically, and read JSON and YAML from untrusted sources.

YAML aliases (`*name`) are rejected: a few lines of them can expand to gigabytes.
"""

import ctypes
import errno
import gc
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Any

import yaml

from groundtune.errors import ConfigError, DataError, GroundtuneError

_FIX = "Save it as UTF-8, or export it again."
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's fcntl.h and fs.h
_MAX_YAML_LENGTH = 2**20  # characters; a file of all options has a fiftieth of it
MAX_LABELS = 2**26
"""Maximum number of bytes of a label file that is of one image."""


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[BufferedRandom]:
    """Yield a file to write (and read). It replaces `path` when it is complete and on the disk.

    `previous` is a new path for the old file; for a moment only this one exists.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # not every file system can flush a directory
            os.fsync(folder)
        os.close(folder)


def check_writable(path: Path, option: str) -> None:
    """Raise a `ConfigError` if a file cannot be written, and leave no trace."""
    try:
        if path.is_file() or path.is_dir():
            path.open("ab").close()
        if path.is_file() or not path.exists():  # neither a pipe nor a device
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        fix = "expected a file in an existing directory"
        raise ConfigError(f"{option}: cannot write {path} ({error.strerror}); {fix}.") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears when it is complete; a pipe or a device is written in place."""
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    with atomic_write(path.resolve()) as file:
        file.write(content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty directory that replaces `path` when complete; errors leave the old one.

    On Linux a reader always finds one of them, elsewhere none for a moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    previous = staging.with_name(f"{staging.name}.previous")
    try:
        yield staging
        staging.chmod(0o755)
        if path.exists() and _exchange(staging, path):
            return
        if path.exists():
            os.replace(path, previous)
        try:
            os.replace(staging, path)
        except OSError:
            if previous.exists():
                os.replace(previous, path)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _exchange(path: Path, other: Path) -> bool:
    """Exchange two paths in one step; return whether the system could."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    names = os.fsencode(path), os.fsencode(other)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def ensure_empty_output(
    folder: Path,
    error: type[GroundtuneError] = DataError,
    fix: str = "Remove it, or choose another one.",
    place: str = "",
) -> None:
    """Raise an `error` that ends with `fix`, unless a directory to write is new or empty.

    `place` begins the message, such as the name of an option.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise error(f"{place}{folder} {'is not empty' if folder.is_dir() else 'is a file'}. {fix}")


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the search for cyclic garbage, which takes a third of the time of reading."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_text(path: Path, error: type[GroundtuneError] = DataError, fix: str = _FIX) -> str:
    """Read a text file: a regular file in UTF-8, or in UTF-16 with a byte order mark.

    Raises an `error`, whose message ends with `fix`, if it cannot be read.
    """
    try:
        content = read_bytes(path)
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except OSError as problem:
        raise error(f"Cannot read {path}: {problem.strerror or problem}. {fix}") from problem
    except ValueError as problem:
        raise error(f"Cannot read {path}: it is not UTF-8 text. {fix}") from problem


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Read a regular file; raise an `OSError` for others: a pipe or a device may never end.

    A file of more than `limit` bytes is an `OSError`, too.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    if limit is not None and path.stat().st_size > limit:
        raise OSError(errno.EFBIG, f"it has over {limit:,} bytes")
    return path.read_bytes()


def read_json(
    path: Path,
    error: type[GroundtuneError] = DataError,
    fix: str = _FIX,
    hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Read a JSON file; the arguments are those of `read_text`. `hook` gets each object at once."""
    text = read_text(path, error, fix)
    try:
        return json.loads(text, object_hook=hook)
    except (ValueError, RecursionError) as problem:  # bad JSON, or integers of thousands of digits
        reason = "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"{path} is not valid JSON: {reason}. {fix}") from problem


def parse_yaml(text: str, loader: type[yaml.BaseLoader] | None = None) -> Any:
    """Parse YAML to plain values; an empty text is None. `yaml.BaseLoader` leaves all values text.

    Raises:
        ValueError: the text is not YAML, too long, nested too deeply or has aliases; says where.
    """
    if len(text) > _MAX_YAML_LENGTH:
        raise ValueError(f": it has over {_MAX_YAML_LENGTH:,} characters")
    try:
        return (loader or _Loader)(text).get_single_data()
    except RecursionError:
        raise ValueError(": it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, a number of 5000 digits
        mark = getattr(error, "problem_mark", None)
        position = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{position}: {getattr(error, 'problem', None) or 'unreadable'}") from error


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            problem, mark = "an alias (*name) is not read, write its value out", self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return super().compose_node(parent, index)
