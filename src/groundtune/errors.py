"""The errors that a user can cause or meet. Each has the exit code of the command line."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

CONTROL_CHARS = re.compile("[\x00-\t\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters: a terminal obeys them, or they reverse a line. Line breaks are excluded."""

_MAX_LENGTH = 10_000  # characters of a message


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" if a known name is similar, or ""."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def escape_control_chars(text: str) -> str:
    """Return text with control characters spelled out, such as `\\x1b`; it is safe to print."""
    return CONTROL_CHARS.sub(lambda match: ascii(match[0])[1:-1], text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).split("\n")[0] or type(error).__name__


class GroundtuneError(Exception):
    """A problem with a message: what is wrong and where, what was expected, how to fix it."""

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        return escape_control_chars(text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…")


class ConfigError(GroundtuneError):
    """An option, a configuration file or a run directory cannot be used."""

    exit_code = 2


class NotWritten(ConfigError):
    """The results of a finished evaluation cannot be written; `result` has them."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class DataError(GroundtuneError):
    """Images, annotations or class names cannot be used."""

    exit_code = 3


class CheckpointError(GroundtuneError):
    """A model cannot be found, read, written or matched to the network."""

    exit_code = 4


class ExportError(GroundtuneError):
    """A model cannot be exported to a runtime, or an exported file cannot be run."""

    exit_code = 4


class TrainingDiverged(GroundtuneError):
    """The loss or the gradients were not finite in several consecutive steps."""

    exit_code = 5


class OutOfMemory(GroundtuneError):
    """The memory of the machine or of its accelerator is too small."""

    exit_code = 6


class Interrupted(GroundtuneError):
    """A signal interrupted a run, whose state is saved. Exit code 130 for SIGINT, else 143."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
