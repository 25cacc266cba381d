"""Training on several data sets in one run: class data and captions side by side, each with a weight (`--mix PATH=WEIGHT`).

The training pictures of the other sets join those of DATA, which alone says what "valid" and "test" are. Classes are one by
name. A class that a set does not know is never a negative in its pictures: nobody looked for it there. The classes of a set
that is mixed in become the model's; those of one that is replayed (`--replay PATH=SHARE`) are trained on and no more: the
model is not measured on them and does not look for them unless asked.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from groundtune.data.findings import Finding
from groundtune.data.formats.detect import read_splits
from groundtune.data.sample import Dataset, Sample, unify_classes
from groundtune.errors import ConfigError, DataError


def parse_mix(text: str, option: str = "mix", default: float = 1.0, most: float = math.inf) -> tuple[Path, float]:
    """Read "PATH" or "PATH=NUMBER".

    Args:
        text: as written.
        option: its name, for the message.
        default: of the number.
        most: the number must be below.

    Raises:
        ConfigError: it is no number above 0 and below `most`.
    """
    path, equals, written = text.rpartition("=")
    if not equals:
        return Path(text), default
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not (path and 0 < number < most):
        below = f" and below {most:g}" if math.isfinite(most) else ""
        raise ConfigError(f"{option}: expected PATH or PATH=NUMBER with a number above 0{below}, got {text!r}.")
    return Path(path), number


def mix_in(splits: dict[str, Dataset], others: Sequence[tuple[Path, float]]) -> None:
    """Add the training pictures of other data sets to the split "train", in place; all splits get their classes.

    Args:
        splits: of the main data set, with a split "train".
        others: folders or annotation files, and how often each of their pictures is shown per epoch on average.

    Raises:
        DataError: one of them cannot be read or has no training pictures.
    """
    if not others:
        return
    if "train" not in splits:
        raise DataError("There is no split 'train' that other data sets could be mixed into.")
    _join(list(splits.values()), splits["train"], [(_training_pictures(path), weight) for path, weight in others])


def with_replayed(train: Dataset, others: Sequence[tuple[Path, float]]) -> Dataset:
    """Give the training pictures with those of other data sets, which make up a share of each epoch.

    Args:
        train: of the main data set. It is not changed.
        others: folders or annotation files, and their shares of an epoch's pictures, together below 1.

    Returns:
        Pictures of all; the classes of `train` and after them those of the others.

    Raises:
        ConfigError: the shares leave nothing of an epoch.
        DataError: one of them cannot be read or has no training pictures.
    """
    if not others:
        return train
    rest = 1 - sum(share for _, share in others)
    if rest <= 0:
        raise ConfigError(f"replay: the shares add up to {1 - rest:g}; together they must be below 1.")
    joined = replace(train, findings=[])
    pictures = sum(sample.weight for sample in train.samples) / rest  # of an epoch
    read = [(_training_pictures(path), share) for path, share in others]
    _join([joined], joined, [(dataset, share * pictures / len(dataset.samples)) for dataset, share in read])
    return joined


def _training_pictures(path: Path) -> Dataset:
    read = read_splits(path)
    if "train" not in read or not read["train"].samples:
        raise DataError(f"{path}: there is no split 'train' to mix in; found: {', '.join(read) or 'none'}.")
    return read["train"]


def _join(sets: list[Dataset], train: Dataset, added: Sequence[tuple[Dataset, float]]) -> None:
    """Give all `sets` the classes of what is added, and `train` its pictures."""
    known = [set(dataset.class_names) for dataset in (train, *(dataset for dataset, _ in added))]
    sets = [*sets, *(dataset for dataset, _ in added)]
    findings = [list(dataset.findings) for dataset in sets]
    unify_classes(sets)
    for dataset, before in zip(sets, findings, strict=True):
        dataset.findings = before  # that a set does not list the classes of another is no news here
    names = train.class_names
    annotated = [None if set(names) <= own else frozenset(names.index(name) for name in own) for own in known]
    train.samples = [replace(sample, annotated=annotated[0]) for sample in train.samples]
    free = max((sample.image_id for sample in train.samples), default=0) + 1
    for (dataset, weight), own in zip(added, annotated[1:], strict=True):
        train.samples += [_joined(sample, free + place, weight, own) for place, sample in enumerate(dataset.samples)]
        free += len(dataset.samples)
        shown = max(1, round(weight * len(dataset.samples)))
        message = f"{len(dataset.samples)} pictures of {dataset.root} join in, {shown} of them per epoch."
        train.findings += [*dataset.findings, Finding("data-mixed", "note", message, "Nothing has to be done.")]


def _joined(sample: Sample, image_id: int, weight: float, annotated: frozenset[int] | None) -> Sample:
    return replace(sample, image_id=image_id, weight=weight, annotated=annotated)
