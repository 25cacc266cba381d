"""YAML of files that anybody may have written: plain values, in a text of bounded length, or one sentence of what is wrong.

Deviation: aliases (`*name`) are not read. A few lines of them stand for gigabytes as soon as somebody prints the values.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Any

import yaml

from groundtune.errors import DataError, GroundtuneError


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[BufferedRandom]:
    """A file to write (and read), which takes the place of `path` when it is whole and on the disk.

    Args:
        previous: where the old file goes; None lets it go. For a moment only this one is there.
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
        with suppress(OSError):  # the new name is on the disk too, where the file system can promise that
            os.fsync(folder)
        os.close(folder)


_LONGEST = 2**20  # characters; a file of all options has a fiftieth of it


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias (*name) is not read, write its value out",
                problem_mark=self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """The values of a YAML text; an empty one is None.

    Raises:
        ValueError: it is not YAML, too long, nested too deeply, or has aliases; says where.
    """
    if len(text) > _LONGEST:
        raise ValueError(f": it has over {_LONGEST:,} characters")
    try:
        return _Loader(text).get_single_data()
    except RecursionError:
        raise ValueError(": it is nested too deeply") from None
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # ValueError: days that do not exist, integers of thousands of digits
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{place}: {getattr(error, 'problem', None) or 'unreadable'}") from error


def ensure_empty_output(
    folder: Path, error: type[GroundtuneError] = DataError, fix: str = "Remove it, or choose another folder."
) -> None:
    """Raise `error` unless a folder to write is new or empty; end its message with `fix`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise error(f"{folder} {'is not empty' if folder.is_dir() else 'is a file'}. {fix}")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `path` (new or empty) at the end; an error leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        unfinished = Path(temporary) / "data"
        unfinished.mkdir()
        yield unfinished
        if path.exists():
            path.rmdir()
        unfinished.rename(path)
