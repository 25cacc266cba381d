"""Other names for classes: the model reads names, so `rbc` is better called "red blood cell".

Names parted by `|` are synonyms, of which each training prompt draws one; `{}` in a name stands for the name that the class
had ("a {} seen from above"). Only the prompt changes: category ids, and with them every file that is written, stay those of
the data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from groundtune.data.findings import Finding
from groundtune.data.sample import Dataset, Sample, match_class_names
from groundtune.errors import DataError
from groundtune.text.prompt import unique_names


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
    ids = sample.class_ids if sample.grounding is not None else to_new[sample.class_ids]  # ids of phrases stay
    return replace(sample, class_ids=ids, annotated=annotated)
