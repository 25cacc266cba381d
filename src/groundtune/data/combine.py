"""Combine data sets in one run, and rename classes.

- `--extra-data PATH=WEIGHT` adds the training images of other data sets, and their classes, to the
  run. `--rehearsal PATH=SHARE` adds only images: the model is not evaluated on their classes.
  Classes are matched by name. The classes that a data set does not annotate are never negatives in
  its images.
- `--rename` gives the model better names, such as "red blood cell" for "rbc". Synonyms follow
  after `|`, and each training prompt draws one; `{}` is the old name ("a {} from above"). Only
  prompts change: category ids, and every file that is written, stay those of the data set.
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


def parse_weighted_paths(
    texts: Sequence[str], option: str, default: float, below: float = math.inf
) -> list[tuple[Path, float]]:
    """Parse the values PATH or PATH=NUMBER of an option, with 0 < NUMBER < `below`.

    Raises:
        ConfigError: a number is invalid or out of range.
    """
    parsed = []
    for text in texts:
        path, equals, written = text.rpartition("=")
        try:
            number = float(written) if equals else default
        except ValueError:
            number = math.nan
        if equals and not (path and 0 < number < below):
            limits = "above 0" if math.isinf(below) else f"above 0 and below {below:g}"
            raise ConfigError(f"{option}: expected PATH or PATH=NUMBER with a number {limits}, got {text!r}.")
        parsed.append((Path(path if equals else text), number))
    return parsed


def add_extra_data(splits: dict[str, Dataset], extra: Sequence[tuple[Path, float]]) -> None:
    """Add the training images of other data sets to "train", and their classes to all splits.

    The numbers are how often an image of a data set is shown per epoch, on average.

    Raises:
        DataError: a data set cannot be read or has no training images.
    """
    if not extra:
        return
    if "train" not in splits:
        raise DataError("There is no split 'train' to add extra data to.")
    added = [(_training_images(path), weight) for path, weight in extra]
    _join(list(splits.values()), splits["train"], added)


def with_rehearsal(train: Dataset, rehearsal: Sequence[tuple[Path, float]]) -> Dataset:
    """Return the training images together with those of data sets to rehearse.

    The numbers are the shares of these data sets in an epoch. `train` does not change.

    Raises:
        ConfigError: the shares add up to 1 or more.
        DataError: a data set cannot be read or has no training images.
    """
    if not rehearsal:
        return train
    rest = 1 - sum(share for _, share in rehearsal)
    if rest <= 0:
        raise ConfigError(f"rehearsal: expected shares that add up to below 1, got {1 - rest:g}.")
    joined = replace(train, findings=[])
    images = sum(sample.weight for sample in train.samples) / rest  # of an epoch
    added = [(_training_images(path), share) for path, share in rehearsal]
    _join([joined], joined, [(dataset, share * images / len(dataset.samples)) for dataset, share in added])
    return joined


def _training_images(path: Path) -> Dataset:
    splits = read_splits(path, needed=["train"])
    if "train" not in splits or not splits["train"].samples:
        raise DataError(f"{path}: there is no split 'train' to add; found: {', '.join(splits) or 'none'}.")
    return splits["train"]


def _join(splits: list[Dataset], train: Dataset, added: Sequence[tuple[Dataset, float]]) -> None:
    """Give all `splits` the classes of the added data sets, and `train` their images."""
    annotated = [set(dataset.class_names) for dataset in (train, *(dataset for dataset, _ in added))]
    all_sets = [*splits, *(dataset for dataset, _ in added)]
    findings = [list(dataset.findings) for dataset in all_sets]
    unify_classes(all_sets)
    for dataset, before in zip(all_sets, findings, strict=True):
        dataset.findings = before  # classes that only another data set lists are not worth a finding
    names = train.class_names
    ids = [
        None if set(names) <= known else frozenset(names.index(name) for name in known) for known in annotated
    ]
    train.samples = [replace(sample, annotated=ids[0]) for sample in train.samples]
    next_id = max((sample.image_id for sample in train.samples), default=0) + 1
    for (dataset, weight), class_ids in zip(added, ids[1:], strict=True):
        train.samples += [
            replace(sample, image_id=next_id + index, weight=weight, annotated=class_ids)
            for index, sample in enumerate(dataset.samples)
        ]
        count = len(dataset.samples)
        next_id += count
        message = f"{count} images of {dataset.root} are added, {max(1, round(weight * count))} per epoch."
        train.findings += [
            *dataset.findings,
            Finding("data-mixed", "note", message, "Nothing has to be done."),
        ]


def rename_classes(datasets: Sequence[Dataset], renames: Mapping[str, str]) -> None:
    """Rename classes in all splits of a data set. Classes that get equal names are merged.

    Raises:
        DataError: classes are unknown (all are listed), or new names are empty or ambiguous.
    """
    if not datasets or not renames:
        return
    old = datasets[0].class_names
    new = list(old)
    match_class_names(list(renames), old)  # lists all unknown names at once
    others: dict[int, list[str]] = {}
    for name, renamed in renames.items():
        index = match_class_names([name], old)[0]
        new[index], *others[index] = [part.replace("{}", old[index]) for part in renamed.split("|")]
    names, classes, merged = unique_names(new)
    synonyms = {names[classes[index]]: unique_names(group)[0] for index, group in others.items() if group}
    all_names = [*names, *(name for group in synonyms.values() for name in group)]
    repeated = sorted({name for name in all_names if all_names.count(name) > 1})
    if repeated:
        raise DataError(
            f"rename: {', '.join(map(repr, repeated))} would name more than one class, or a class twice."
        )
    first = [classes.index(i) for i in range(len(names))]  # a merged class has the id of its first class
    for dataset in datasets:
        written = dataset.written_names or dataset.class_names
        dataset.written_names = [written[i] for i in first]
        dataset.category_ids = [dataset.category_ids[i] for i in first]
        dataset.class_names, dataset.synonyms = list(names), synonyms
        dataset.samples = [_with_classes(sample, np.array(classes, np.int64)) for sample in dataset.samples]
    if merged:
        fix = "Nothing has to be done if they are meant to be one class."
        datasets[0].findings.append(Finding("names-merged", "warning", " ".join(merged), fix, len(merged)))


def _with_classes(sample: Sample, new_ids: np.ndarray) -> Sample:
    annotated = sample.annotated and frozenset(int(new_ids[index]) for index in sample.annotated)
    # in a caption, class ids are those of its phrases
    class_ids = sample.class_ids if sample.grounding is not None else new_ids[sample.class_ids]
    return replace(sample, class_ids=class_ids, annotated=annotated)
