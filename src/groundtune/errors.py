"""The errors a user can cause or meet. Each carries the exit code of the command line (design, section 4)."""

import difflib
import re
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """ " Did you mean X?" where one of the known names is near, otherwise ""."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


COMMANDS = re.compile("[\x00-\t\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys, or that turn a line around; a line break is none of them."""

_LONGEST = 10_000  # characters of a message, whatever it quotes


def escape_control_chars(text: str) -> str:
    """Text out of a file for the terminal: what would move its cursor, rename its window or turn its lines is spelt out."""
    return COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


class GroundtuneError(Exception):
    """A problem stated in words: what (value and place), what was expected, and the fix."""

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        return escape_control_chars(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


class ConfigError(GroundtuneError):
    """An option, a configuration file or a run folder is not usable. Exit code 2."""

    exit_code = 2


class DataError(GroundtuneError):
    """Images, annotations or class names are not usable. Exit code 3."""

    exit_code = 3


class CheckpointError(GroundtuneError):
    """A model source cannot be found, read or matched to the network. Exit code 4."""

    exit_code = 4


class ExportError(GroundtuneError):
    """A model cannot be written for a runtime, or an exported file cannot be run. Exit code 4."""

    exit_code = 4


class Interrupted(GroundtuneError):
    """A signal asked a run to stop, and it did, with its state saved. Exit code 130 for SIGINT, 143 for the others."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class OutOfMemory(GroundtuneError):
    """The memory of the machine or of its accelerator is too small. Exit code 6."""

    exit_code = 6


class TrainingDiverged(GroundtuneError):
    """Training met non-finite losses or gradients several steps in a row. Exit code 5."""

    exit_code = 5
