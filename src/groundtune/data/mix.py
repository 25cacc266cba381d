"""Training on several data sets in one run: class data and captions side by side, each with a weight (`--mix PATH=WEIGHT`).

The training pictures of the other sets join those of DATA, which alone says what "valid" and "test" are. Classes are one by
name. A class that a set does not know is never a negative in its pictures: nobody looked for it there.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from groundtune.data.findings import Finding
from groundtune.data.formats.detect import read_splits
from groundtune.data.sample import Dataset, Sample, unify_classes
from groundtune.errors import ConfigError, DataError


def parse_mix(text: str) -> tuple[Path, float]:
    """Read "PATH" or "PATH=WEIGHT".

    Raises:
        ConfigError: the weight is not a number above 0.
    """
    path, equals, weight = text.rpartition("=")
    if not equals:
        return Path(text), 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not (path and math.isfinite(number) and number > 0):
        raise ConfigError(f"mix: expected PATH or PATH=WEIGHT with a weight above 0, got {text!r}.")
    return Path(path), number


def mix_in(splits: dict[str, Dataset], others: Sequence[tuple[Path, float]]) -> None:
    """Add the training pictures of other data sets to the split "train", in place.

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
    added = []
    for path, weight in others:
        read = read_splits(path)
        if "train" not in read:
            raise DataError(f"{path}: there is no split 'train' to mix in; found: {', '.join(read) or 'none'}.")
        added.append((read["train"], weight))
    known = [set(dataset.class_names) for dataset in (splits["train"], *(dataset for dataset, _ in added))]
    sets = [*splits.values(), *(dataset for dataset, _ in added)]
    findings = [list(dataset.findings) for dataset in sets]
    unify_classes(sets)
    for dataset, before in zip(sets, findings, strict=True):
        dataset.findings = before  # that a set does not list the classes of another is no news here
    train = splits["train"]
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
