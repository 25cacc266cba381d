"""What a run writes down, for people, scripts and the report (design, section 4).

config.yaml  env.json  train.log  metrics.jsonl  metrics.json  predictions_valid.json  checkpoints/  model/

Whole files are written aside and renamed when they are on the disk: whatever kills a run, a reader sees the old file or the
new one. metrics.json is the last one; with it a run is finished.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Any

from groundtune.errors import CheckpointError, ConfigError


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


@contextmanager
def disk_faults(folder: Path, go_on: str) -> Iterator[None]:
    """Turns what a full disk, a read-only or a vanished run folder raises into one message.

    Args:
        go_on: the command that resumes the run.

    Raises:
        CheckpointError: in place of such an OSError. Those of networks, which have classes of their own, are let through.
    """
    try:
        yield
    except OSError as error:
        if type(error) not in (OSError, PermissionError, FileNotFoundError):
            raise
        raise CheckpointError(
            f"The run folder {folder} cannot be written to: {error}. Its checkpoints are whole; when there is room, go on "
            f"with: {go_on}"
        ) from error


class RunFolder:
    """Writes the files of one run; processes other than the main one write nothing.

    Args:
        path: created where it does not exist.
        resume: whether a run in this folder goes on; otherwise the folder must be new or empty.
        writes: whether this process is the one that writes.

    Raises:
        ConfigError: the folder holds something and `resume` is off, or it cannot be written to.
    """

    def __init__(self, path: Path, resume: bool, writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        if not writes:
            return
        if path.exists() and not path.is_dir():
            raise ConfigError(f"out: {path} is a file; name a folder.")
        if not resume and path.is_dir() and any(path.iterdir()):
            raise ConfigError(
                f"out: the run folder {path} is not empty. Name another, or continue that run with --resume."
            )
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: the run folder {path} cannot be created: {error.strerror}.") from error
        for left in (*path.glob(".model.*"), *path.glob(".*.tmp"), *path.glob("checkpoints/.*.tmp")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # by a run that was killed

    def checkpoint(self, name: str) -> Path:
        """Where the training state "last", the one before it ("previous"), or "best" lies."""
        return self.path / "checkpoints" / f"{name}.pt"

    def log(self, text: str) -> None:
        """Adds a line with the time to train.log."""
        if self._writes:
            with (self.path / "train.log").open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def metrics(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        if self._writes:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that is on the disk must not be ahead of its lines

    def forget_after(self, epoch: int, step: int) -> None:
        """Drops the lines of metrics.jsonl behind a place: those of the time between the last checkpoint and the stop.

        The evaluation after an epoch has the step of the epoch's last line and the number of the next epoch.
        """
        path = self.path / "metrics.jsonl"
        if self._writes and path.is_file():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            places = [(line["epoch"], line["step"]) for line in map(json.loads, lines)]
            kept = [line for line, place in zip(lines, places, strict=True) if place <= (epoch, step)]
            self.text("metrics.jsonl", "".join(kept))

    def finished(self) -> dict[str, Any] | None:
        """What metrics.json holds, the last file that a run writes; None before."""
        path = self.path / "metrics.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def reopen(self) -> None:
        """The run is not finished (any more)."""
        if self._writes:
            (self.path / "metrics.json").unlink(missing_ok=True)

    def json(self, name: str, value: object, indent: int | None = 2) -> None:
        """Writes a whole JSON file."""
        self.text(name, json.dumps(value, indent=indent) + "\n")

    def text(self, name: str, text: str) -> None:
        """Writes a whole text file."""
        if self._writes:
            with replacing(self.path / name) as file:
                file.write(text.encode())
