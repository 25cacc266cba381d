"""Combine data sets in one run, and rename classes.

- `--extra-data PATH=WEIGHT` adds the training images of other data sets, and their classes, to the
  run. `--rehearsal PATH=SHARE` adds only images: the model is not evaluated on their classes.
  Classes are matched by name. The classes that a data set does not list are no background in its
  images: they are masked in the loss, and those of a rehearsal are not in the prompt.
- `--rename` gives the model better words, such as "red blood cell" for "rbc". Synonyms follow
  after `|`, and each training prompt draws one; `{}` is the plain phrase ("a {} from above"). Only
  prompts change: names, category ids, and every file that is written, stay those of the data set.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from groundtune.data.formats.detect import Splits, read_splits
from groundtune.data.formats.tree import inside
from groundtune.data.problems import Finding
from groundtune.data.sample import Dataset, Sample, match_class_names, unify_classes
from groundtune.errors import ConfigError, DataError
from groundtune.text.prompt import class_phrases, clean_name, known_phrases, words_of


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


def add_extra_data(
    splits: Splits, extra: Sequence[tuple[Path, float]], incomplete_sets: Sequence[str] | None = ()
) -> None:
    """Add the training images of other data sets to "train", and their classes to all splits.

    Args:
        splits: those of the data set.
        extra: the others, and how often an image of each is shown per epoch, on average.
        incomplete_sets: data sets or folders of which not all objects have a box; None: all.

    Raises:
        ConfigError: there is no such data set or folder with training images.
        DataError: a data set cannot be read or has no training images.
    """
    if "train" not in splits and extra:
        raise DataError("There is no split 'train' to add extra data to.")
    if "train" not in splits or (not extra and incomplete_sets == ()):
        return
    added = [(_training_images(path), weight) for path, weight in extra]
    paths, datasets = [path for path, _ in extra], [dataset for dataset, _ in added]
    if incomplete_sets != ():
        mark_incomplete([splits.source, *paths], [splits["train"], *datasets], incomplete_sets)
    if added:
        _join(list(splits.values()), splits["train"], added, in_prompt=True)


def mark_incomplete(paths: Sequence[Path], datasets: Sequence[Dataset], names: Sequence[str] | None) -> None:
    """Mark images as labeled for the classes of their boxes only.

    Images with verified labels (LVIS, Open Images) stay as they are.

    Args:
        paths: path of each data set.
        datasets: its training images.
        names: paths or names of data sets, or of folders in them; None: all data sets.

    Raises:
        ConfigError: a name fits no training image.
    """
    missing = set(names or ())
    for path, dataset in zip(paths, datasets, strict=True):
        for index, sample in enumerate(dataset.samples):
            fitting = {name for name in names or () if _is_of(sample, name, path, dataset.root)}
            missing -= fitting
            if (fitting or names is None) and sample.exhaustive is None:
                dataset.samples[index] = replace(sample, exhaustive=frozenset(sample.class_ids.tolist()))
    if missing:
        raise ConfigError(
            f"incomplete: no training image is in {', '.join(map(repr, sorted(missing)))}. Expected a "
            f"data set ({', '.join(map(str, paths))}) or a folder in one."
        )


def _is_of(sample: Sample, name: str, path: Path, root: Path) -> bool:
    """Return whether an image is of the data set or in the folder of a name."""
    whole = Path(name) == path or name == path.name
    return whole or any(inside(sample.image_path, folder) for folder in (Path(name), root / name))


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
    phrases = dict(zip(train.class_names, train.phrases, strict=True))  # whatever other names come
    joined = replace(train, findings=[], renamed=train.renamed | phrases)
    images = sum(sample.weight for sample in train.samples) / rest  # of an epoch
    added = [(_training_images(path), share) for path, share in rehearsal]
    weighted = [(dataset, share * images / len(dataset.samples)) for dataset, share in added]
    _join([joined], joined, weighted, in_prompt=False)
    return joined


def _training_images(path: Path) -> Dataset:
    splits = read_splits(path, needed=["train"])
    if "train" not in splits or not splits["train"].samples:
        raise DataError(f"{path}: there is no split 'train' to add; found: {', '.join(splits) or 'none'}.")
    return splits["train"]


def _limited(sample: Sample, listed: frozenset[int] | None, in_prompt: bool) -> Sample:
    """Limit what is background in an image to the classes that its data set lists; None: all."""
    if not in_prompt:
        return replace(sample, annotated=listed)
    return sample if sample.exhaustive is not None else replace(sample, exhaustive=listed)


def _join(
    splits: list[Dataset], train: Dataset, added: Sequence[tuple[Dataset, float]], in_prompt: bool
) -> None:
    """Give all `splits` the classes of the added data sets, and `train` their images.

    `in_prompt`: classes that a data set does not list are in the prompts of its images.
    """
    all_sets = [*splits, *(dataset for dataset, _ in added)]
    before = [list(dataset.findings) for dataset in all_sets]
    listed = unify_classes(all_sets)
    for dataset, old in zip(all_sets, before, strict=True):
        # classes that only another data set lists are not worth a finding
        dataset.findings = [each for each in dataset.findings if each in old or each.check == "names-matched"]
    annotated, count = [listed[0], *listed[len(splits) :]], len(train.class_names)
    ids = [None if len(known) == count else known for known in annotated]
    train.samples = [_limited(sample, ids[0], in_prompt) for sample in train.samples]
    next_id = max((sample.image_id for sample in train.samples), default=0) + 1
    for (dataset, weight), class_ids in zip(added, ids[1:], strict=True):
        train.samples += [
            replace(_limited(sample, class_ids, in_prompt), image_id=next_id + index, weight=weight)
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
    """Set the phrases of classes in all splits of a data set. Classes of equal words are merged.

    Raises:
        DataError: classes are unknown (all are listed), or new words are empty or ambiguous.
    """
    if not datasets or not renames:
        return
    names, plain, renamed = datasets[0].class_names, datasets[0].phrases, datasets[0].renamed
    match_class_names(list(renames), names, plain)  # lists all unknown names at once
    texts: dict[int, list[str]] = {}
    for name, text in renames.items():
        index = match_class_names([name], names, plain)[0]
        texts[index] = [part.replace("{}", plain[index]) for part in text.split("|")]
    if empty := [repr(names[index]) for index, group in texts.items() if not all(map(clean_name, group))]:
        raise DataError(f"rename: no text is left for {', '.join(empty)}. Expected NAME=PHRASE.")
    first = {words_of(group[0]): group[0] for group in texts.values()}
    phrase_of = dict(zip(first, class_phrases(list(first.values())), strict=True))
    all_words = [words_of(texts[index][0] if index in texts else name) for index, name in enumerate(names)]
    phrases = {index: phrase_of[text] for index, text in enumerate(all_words) if text in phrase_of}
    synonyms = {index: [clean_name(text) for text in group[1:]] for index, group in texts.items()}
    listed = [*set(class_phrases(names, renamed | {names[i]: phrase for i, phrase in phrases.items()}))]
    listed += [text for group in synonyms.values() for text in dict.fromkeys(group)]
    if repeated := sorted({text for text in listed if listed.count(text) > 1}):
        raise DataError(
            f"rename: {', '.join(map(repr, repeated))} would name more than one class, or a class twice."
        )
    _set_phrases(datasets, phrases, synonyms)


def recall_phrases(datasets: Sequence[Dataset], known: Mapping[str, str]) -> None:
    """Give classes without a new phrase those that a model has learned, by name.

    Classes that were merged for the model are merged.
    """
    if datasets and known:
        names, renamed = datasets[0].class_names, datasets[0].renamed
        learned = known_phrases([name for name in names if name not in renamed], known)
        _set_phrases(datasets, {names.index(name): phrase for name, phrase in learned.items()}, {})


def _set_phrases(
    datasets: Sequence[Dataset], phrases: Mapping[int, str], synonyms: Mapping[int, list[str]]
) -> None:
    """Give classes phrases and synonyms; those with the same phrase become one class."""
    old, groups = datasets[0].class_names, dict[str | int, list[int]]()
    for index in range(len(old)):
        groups.setdefault(phrases.get(index, index), []).append(index)
    names, merged, others = [], [], dict[str, list[str]]()
    renamed = {old[index]: phrase for index, phrase in phrases.items()}
    for phrase, group in groups.items():
        together, name = [old[i] for i in group], old[group[0]]
        if len(group) > 1:
            name = str(phrase) if phrase not in old or phrase in together else name
            merged.append(f"{' and '.join(map(repr, together))} are one class, {name!r}.")
            renamed[name] = str(phrase)
        names.append(name)
        if texts := [text for i in group for text in synonyms.get(i, [])]:
            others[name] = list(dict.fromkeys(texts))
    classes = {index: new for new, group in enumerate(groups.values()) for index in group}
    new_ids = np.array([classes[index] for index in range(len(old))], np.int64)
    for dataset in datasets:
        dataset.renamed = dataset.renamed | renamed
        dataset.category_ids = [dataset.category_ids[group[0]] for group in groups.values()]
        dataset.class_names, dataset.synonyms = list(names), dataset.synonyms | others
        dataset.samples = [_with_classes(sample, new_ids) for sample in dataset.samples]
    if merged:
        fix = "Nothing has to be done if they are meant to be one class."
        datasets[0].findings.append(Finding("names-merged", "warning", " ".join(merged), fix, len(merged)))


def _with_classes(sample: Sample, new_ids: np.ndarray) -> Sample:
    annotated = sample.annotated and frozenset(int(new_ids[index]) for index in sample.annotated)
    exhaustive = sample.exhaustive
    if exhaustive is not None:  # of a merged class all parts must be
        parts, count = np.bincount(new_ids), Counter(new_ids[[*exhaustive]].tolist())
        exhaustive = frozenset(index for index in count if count[index] == parts[index])
    # in a caption, class ids are those of its phrases
    class_ids = sample.class_ids if sample.grounding is not None else new_ids[sample.class_ids]
    return replace(sample, class_ids=class_ids, annotated=annotated, exhaustive=exhaustive)
