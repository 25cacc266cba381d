"""Labels of mirrored images: a left arrow becomes a right arrow, with its class.

Where the mirrored object is of no class of the data set, images with such an object are not
mirrored, and mirrored images do not teach that class as absent: they may show it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from groundtune.data.sample import Dataset, Grounding, Sample, join_examples
from groundtune.text.mirror import mirror_caption, mirror_classes
from groundtune.text.prompt import clean_name


def mirrored_classes(dataset: Dataset) -> list[int | None]:
    """Return the class of each class's objects in a mirrored image; see `mirror_classes`."""
    groups = []
    for name, phrase in zip(dataset.class_names, dataset.phrases, strict=True):
        # not renamed: the case of letters is that of the files
        read = name if clean_name(name) == phrase else phrase
        groups.append([read, *dataset.synonyms.get(name, [])])
    return mirror_classes(groups)


def mirror_labels(sample: Sample, classes: Sequence[int | None]) -> Sample | None:
    """Return the record with the classes and the caption that it has when mirrored.

    The boxes stay where they are; a view moves them. None: the image cannot be mirrored.
    """
    if sample.grounding is not None:
        mirrored = mirror_caption(sample.grounding.caption, sample.grounding.spans)
        return None if mirrored is None else replace(sample, grounding=Grounding(*mirrored))
    if all(other == index for index, other in enumerate(classes)):
        return sample
    others = [classes[index] for index in sample.class_ids]
    annotated = frozenset(range(len(classes))) if sample.annotated is None else sample.annotated
    known, exhaustive = (
        indices and frozenset(other for index in indices if (other := classes[index]) is not None)
        for indices in (annotated, sample.exhaustive)
    )
    if None in others or not known:
        return None
    return replace(sample, class_ids=np.array(others, np.int64), annotated=known, exhaustive=exhaustive)


def describe_mirroring(dataset: Dataset) -> list[str]:
    """Return clauses on the classes that are exchanged, and on images that are not mirrored."""
    names, classes = [repr(name) for name in dataset.class_names], mirrored_classes(dataset)
    alone = [name for name, other in zip(names, classes, strict=True) if other is None]
    exchanged = [f"{names[i]} and {names[other]}" for i, other in enumerate(classes) if other and other > i]
    texts = {
        f"mirrored images exchange the classes {join_examples(exchanged)}": exchanged,
        f"images with {join_examples(alone)} are not mirrored, as no class has the mirrored name": alone,
    }
    return [text for text, examples in texts.items() if examples]
