"""Other names for classes: the model reads names, so `rbc` is better called "red blood cell".

Only the prompt changes. Category ids, and with them every file that is written, stay those of the data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from groundtune.data.findings import Finding
from groundtune.data.sample import Dataset, Sample, match_class_names
from groundtune.text.prompt import unique_names


def rename_classes(datasets: Sequence[Dataset], renames: Mapping[str, str]) -> None:
    """Rename classes in all splits of a data set, in place; those that get one name become one class, and are told.

    Args:
        datasets: splits with one class list. None changes nothing.
        renames: a class's name, cleaned or as written, to the name that the model reads.

    Raises:
        DataError: classes do not exist (all of them are told), or a new name has no text.
    """
    if not datasets or not renames:
        return
    old = datasets[0].class_names
    new = list(old)
    match_class_names(list(renames), old)  # all that are not there are told at once
    for name, other in renames.items():
        new[match_class_names([name], old)[0]] = other
    names, classes, merged = unique_names(new)
    first = [classes.index(i) for i in range(len(names))]  # the id of a class is that of the first one in it
    for dataset in datasets:
        written = dataset.written_names or dataset.class_names
        dataset.written_names = [written[i] for i in first]
        dataset.category_ids = [dataset.category_ids[i] for i in first]
        dataset.class_names = list(names)
        dataset.samples = [_with_classes(sample, np.array(classes, np.int64)) for sample in dataset.samples]
    if merged:
        fix = "Nothing has to be done if they are meant to be one."
        datasets[0].findings.append(Finding("names-merged", "warning", " ".join(merged), fix, len(merged)))


def _with_classes(sample: Sample, to_new: np.ndarray) -> Sample:
    annotated = sample.annotated and frozenset(int(to_new[index]) for index in sample.annotated)
    ids = sample.class_ids if sample.grounding is not None else to_new[sample.class_ids]  # ids of phrases stay
    return replace(sample, class_ids=ids, annotated=annotated)
