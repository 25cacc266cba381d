"""The errors a user can cause or meet. Each carries the exit code of the command line (design, section 4)."""


class GroundtuneError(Exception):
    """A problem stated in words: what (value and place), what was expected, and the fix."""

    exit_code = 1


class ConfigError(GroundtuneError):
    """An option, a configuration file or a run folder is not usable. Exit code 2."""

    exit_code = 2


class DataError(GroundtuneError):
    """Pictures, annotations or class names are not usable. Exit code 3."""

    exit_code = 3


class CheckpointError(GroundtuneError):
    """A model source cannot be found, read or matched to the network. Exit code 4."""

    exit_code = 4


class TrainingDiverged(GroundtuneError):
    """Training met non-finite losses or gradients several steps in a row. Exit code 5."""

    exit_code = 5
