"""What a run writes down, for people, scripts and the report (design, section 4).

config.yaml  env.json  train.log  metrics.jsonl  metrics.json  predictions_valid.json  checkpoints/  model/
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from groundtune.errors import ConfigError


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

    def checkpoint(self, name: str) -> Path:
        """Where the training state "last" or "best" lies."""
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

    def forget_after(self, step: int) -> None:
        """Drops the lines of metrics.jsonl behind a step: those of the time between the last checkpoint and the stop."""
        path = self.path / "metrics.jsonl"
        if self._writes and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            self.text("metrics.jsonl", "".join(kept))

    def json(self, name: str, value: object, indent: int | None = 2) -> None:
        """Writes a whole JSON file."""
        self.text(name, json.dumps(value, indent=indent) + "\n")

    def text(self, name: str, text: str) -> None:
        """Writes a whole file, so that a reader sees the old one or the new one."""
        if self._writes:
            temporary = self.path / f".{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.path / name)
