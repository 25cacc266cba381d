"""The one record that every annotation format becomes, and class names as the one identity of a class.

Boxes are in pixels of the image *as its annotation file states it* (`Sample.size_hw`). `transforms.load_image` gives
the image in exactly that frame, so that nothing later has to think about EXIF orientation or rescaled files.

Deviation from the peers: original category ids stay outside. A class is its cleaned name; `Dataset.category_ids` exists
only so that prediction files can be written with the ids that the user's other tools know.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from groundtune.data.problems import Finding
from groundtune.errors import DataError
from groundtune.text.prompt import clean_name

_LISTED = 5  # examples in a message; the count says how many there are


@dataclass(frozen=True)
class Grounding:
    """What is said about an image, and where in it the phrases stand whose boxes it has.

    Attributes:
        caption: as written.
        spans: for each of P phrases its character ranges [begin, end) in the caption, at least one; a phrase may have no
            box at all.
    """

    caption: str
    spans: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def phrases(self) -> list[str]:
        """The words of each phrase; those of several ranges are joined by a space."""
        return [" ".join(self.caption[begin:end] for begin, end in spans) for spans in self.spans]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its N boxes; N = 0 is an image without objects, and a valid training image.

    Attributes:
        image_path: the image's file. It existed when the annotations were read; it has not been opened.
        image_id: unique in its data set.
        size_hw: height and width in pixels as the annotations state them; the frame of the boxes.
        boxes_xyxy: (N, 4) float32 pixels, inside the image, every box with an area above 0.
        class_ids: (N,) int64 index into `Dataset.class_names`; of grounding data into the image's own phrases.
        crowd: (N,) bool, True where the box stands for a group: left out of training, ignored in evaluation.
        grounding: caption and phrases, in place of the data set's classes.
        weight: how often the image is shown per epoch, on average over its source (`--extra-data`).
        annotated: classes that its source looked for, where that are not all (`--extra-data`): others are never negatives.
        confidence: (N,) float32 in (0, 1], how sure each box is (`--self-distillation`, labeled images); None where people
            drew all of them.
    """

    image_path: Path
    image_id: int
    size_hw: tuple[int, int]
    boxes_xyxy: np.ndarray
    class_ids: np.ndarray
    crowd: np.ndarray
    grounding: Grounding | None = None
    weight: float = 1.0
    annotated: frozenset[int] | None = None
    confidence: np.ndarray | None = None


@dataclass(frozen=True)
class LvisRules:
    """Which classes LVIS's annotators looked for in which images; by the ids of categories and images.

    Attributes:
        frequencies: of each category "r" (rare), "c" (common) or "f" (frequent), by its training images.
        absent: the categories that are known not to be in an image.
        incomplete: the categories of which an image may have more objects than boxes.
    """

    frequencies: dict[int, str]
    absent: dict[int, list[int]]
    incomplete: dict[int, list[int]]


@dataclass
class Dataset:
    """One split of a data set.

    Attributes:
        name: "train", "valid", "test", or the name that the reader was given.
        root: the folder that the image files lie in, directly or deeper.
        class_names: C cleaned, unique names; the same list in every split of a data set. Empty for grounding data.
        samples: the images in the order of the file.
        category_ids: for each class the id that the file gives it (a free one where this split does not list it).
        findings: what was dropped, clipped, merged or decided while reading.
        written_names: for each class its name as the files write it; empty where that is `class_names`.
        synonyms: other cleaned names of a class by its name, one of which may stand in a training prompt instead.
        lvis: where it is measured by LVIS's rules.
    """

    name: str
    root: Path
    class_names: list[str]
    samples: list[Sample]
    category_ids: list[int]
    findings: list[Finding] = field(default_factory=list)
    written_names: list[str] = field(default_factory=list)
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    lvis: LvisRules | None = None

    @property
    def messages(self) -> list[str]:
        """The findings as lines for people."""
        return [f"{self.name}: {finding}" for finding in self.findings]

    @property
    def is_grounding(self) -> bool:
        """Whether every image has a caption; training data mixed of both kinds is not."""
        return bool(self.samples) and all(sample.grounding is not None for sample in self.samples)


def join_examples(examples: Sequence[str], limit: int = _LISTED) -> str:
    """Join the first few of many examples and say how many there are beyond them."""
    more = f", … ({len(examples)} in all)" if len(examples) > limit else ""
    return ", ".join(examples[:limit]) + more


def match_class_names(wanted: Sequence[str], available: Sequence[str]) -> list[int]:
    """Find classes by name.

    Args:
        wanted: names as a user wrote them; they are cleaned as all class names are.
        available: the data set's cleaned names.

    Returns:
        For each wanted name its index in `available`, without repeats. No names give an empty list.

    Raises:
        DataError: names that do not exist. All are listed, each with the nearest one that does.
    """
    index_of = {name: index for index, name in enumerate(available)}
    cleaned = [clean_name(name) for name in wanted]
    unknown = []
    for name, clean in zip(wanted, cleaned, strict=True):
        if clean not in index_of:
            near = difflib.get_close_matches(clean, available, n=1)
            unknown.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if unknown:
        raise DataError(
            f"Unknown class {join_examples(unknown, 20)}. The data set has: {join_examples([repr(n) for n in available], 30)}."
        )
    return list(dict.fromkeys(index_of[name] for name in cleaned))


def unify_classes(datasets: Sequence[Dataset]) -> None:
    """Give all splits one class list, by name, in place: the first split's classes, then what later ones add.

    COCO files number their categories on their own, so the same id may be another class in the next split. A class that
    a split's file does not list gets the id it has in another split, or the next free one where that id is taken.

    Args:
        datasets: the splits, the training split first. None changes nothing.
    """
    names = list(dict.fromkeys(name for dataset in datasets for name in dataset.class_names))
    known_ids: dict[str, int] = {}
    written: dict[str, str] = {}
    for dataset in datasets:
        as_written = dataset.written_names or dataset.class_names
        for name, category_id, in_file in zip(
            dataset.class_names, dataset.category_ids, as_written, strict=True
        ):
            known_ids.setdefault(name, category_id)
            written.setdefault(name, in_file)
    for dataset in datasets:
        dataset.written_names = [written[name] for name in names]
        if dataset.class_names == names:
            continue
        index = np.array([names.index(name) for name in dataset.class_names], dtype=np.int64)
        own = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
        taken = set(own.values())
        for name in names:
            if name not in own:
                own[name] = known_ids[name] if known_ids[name] not in taken else max(taken) + 1
                taken.add(own[name])
        absent = [repr(name) for name in names if name not in dataset.class_names]
        if absent:
            message = f"its file does not list {len(absent)} classes of the other splits."
            fix = "Nothing has to be done if they do not occur in it."
            dataset.findings.append(
                Finding("category-not-listed", "note", message, fix, len(absent), absent[:_LISTED])
            )
        dataset.samples = [
            sample if sample.grounding is not None else replace(sample, class_ids=index[sample.class_ids])
            for sample in dataset.samples
        ]
        dataset.class_names = list(names)
        dataset.category_ids = [own[name] for name in names]
