"""Other names for classes: the model reads names, so `rbc` is better called "red blood cell".

Names parted by `|` are synonyms, of which each training prompt draws one; `{}` in a name stands for the name that the class
had ("a {} seen from above"). Only the prompt changes: category ids, and with them every file that is written, stay those of
the data set.

Training on several data sets in one run: class data and captions side by side, each with a weight (`--extra-data PATH=WEIGHT`).

The training images of the other sets join those of DATA, which alone says what "valid" and "test" are. Classes are one by
name. A class that a set does not know is never a negative in its images: nobody looked for it there. The classes of a set
that is mixed in become the model's; those of one that is replayed (`--rehearsal PATH=SHARE`) are trained on and no more: the
model is not measured on them and does not look for them unless asked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from groundtune.data.formats.detect import read_splits
from groundtune.data.problems import Finding
from groundtune.data.sample import Dataset, Sample, match_class_names, unify_classes
from groundtune.errors import ConfigError, DataError
from groundtune.text.prompt import unique_names


def parse_mix(
    text: str, option: str = "extra_data", default: float = 1.0, most: float = math.inf
) -> tuple[Path, float]:
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
        raise ConfigError(
            f"{option}: expected PATH or PATH=NUMBER with a number above 0{below}, got {text!r}."
        )
    return Path(path), number


def mix_in(splits: dict[str, Dataset], others: Sequence[tuple[Path, float]]) -> None:
    """Add the training images of other data sets to the split "train", in place; all splits get their classes.

    Args:
        splits: of the main data set, with a split "train".
        others: folders or annotation files, and how often each of their images is shown per epoch on average.

    Raises:
        DataError: one of them cannot be read or has no training images.
    """
    if not others:
        return
    if "train" not in splits:
        raise DataError("There is no split 'train' that other data sets could be mixed into.")
    _join(
        list(splits.values()), splits["train"], [(_training_images(path), weight) for path, weight in others]
    )


def with_replayed(train: Dataset, others: Sequence[tuple[Path, float]]) -> Dataset:
    """Give the training images with those of other data sets, which make up a share of each epoch.

    Args:
        train: of the main data set. It is not changed.
        others: folders or annotation files, and their shares of an epoch's images, together below 1.

    Returns:
        Images of all; the classes of `train` and after them those of the others.

    Raises:
        ConfigError: the shares leave nothing of an epoch.
        DataError: one of them cannot be read or has no training images.
    """
    if not others:
        return train
    rest = 1 - sum(share for _, share in others)
    if rest <= 0:
        raise ConfigError(f"replay: the shares add up to {1 - rest:g}; together they must be below 1.")
    joined = replace(train, findings=[])
    images = sum(sample.weight for sample in train.samples) / rest  # of an epoch
    read = [(_training_images(path), share) for path, share in others]
    _join([joined], joined, [(dataset, share * images / len(dataset.samples)) for dataset, share in read])
    return joined


def _training_images(path: Path) -> Dataset:
    read = read_splits(path)
    if "train" not in read or not read["train"].samples:
        raise DataError(f"{path}: there is no split 'train' to mix in; found: {', '.join(read) or 'none'}.")
    return read["train"]


def _join(sets: list[Dataset], train: Dataset, added: Sequence[tuple[Dataset, float]]) -> None:
    """Give all `sets` the classes of what is added, and `train` its images."""
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
        train.samples += [
            _joined(sample, free + place, weight, own) for place, sample in enumerate(dataset.samples)
        ]
        free += len(dataset.samples)
        shown = max(1, round(weight * len(dataset.samples)))
        message = f"{len(dataset.samples)} images of {dataset.root} join in, {shown} of them per epoch."
        train.findings += [
            *dataset.findings,
            Finding("data-mixed", "note", message, "Nothing has to be done."),
        ]


def _joined(sample: Sample, image_id: int, weight: float, annotated: frozenset[int] | None) -> Sample:
    return replace(sample, image_id=image_id, weight=weight, annotated=annotated)


def rename_classes(datasets: Sequence[Dataset], renames: Mapping[str, str]) -> None:
    """Rename classes in all splits of a data set, in place; those that get one name become one class, and are told.

    Args:
        datasets: splits with one class list. None changes nothing.
        renames: a class's name, cleaned or as written, to the name that the model reads, its synonyms behind it.

    Raises:
        DataError: classes do not exist (all of them are told), a new name has no text, or a synonym is another's name.
    """
    if not datasets or not renames:
        return
    old = datasets[0].class_names
    new = list(old)
    match_class_names(list(renames), old)  # all that are not there are told at once
    others: dict[int, list[str]] = {}
    for name, other in renames.items():
        index = match_class_names([name], old)[0]
        new[index], *others[index] = [part.replace("{}", old[index]) for part in other.split("|")]
    names, classes, merged = unique_names(new)
    synonyms = {names[classes[index]]: unique_names(group)[0] for index, group in others.items() if group}
    every = [*names, *(name for group in synonyms.values() for name in group)]
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise DataError(
            f"classes: {', '.join(map(repr, twice))} would be names of more than one class, or twice of one."
        )
    first = [classes.index(i) for i in range(len(names))]  # the id of a class is that of the first one in it
    for dataset in datasets:
        written = dataset.written_names or dataset.class_names
        dataset.written_names = [written[i] for i in first]
        dataset.category_ids = [dataset.category_ids[i] for i in first]
        dataset.class_names, dataset.synonyms = list(names), synonyms
        dataset.samples = [_with_classes(sample, np.array(classes, np.int64)) for sample in dataset.samples]
    if merged:
        fix = "Nothing has to be done if they are meant to be one."
        datasets[0].findings.append(Finding("names-merged", "warning", " ".join(merged), fix, len(merged)))


def _with_classes(sample: Sample, to_new: np.ndarray) -> Sample:
    annotated = sample.annotated and frozenset(int(to_new[index]) for index in sample.annotated)
    ids = (
        sample.class_ids if sample.grounding is not None else to_new[sample.class_ids]
    )  # ids of phrases stay
    return replace(sample, class_ids=ids, annotated=annotated)
