"""The record that every annotation format becomes, and class names as the identity of a class.

Boxes are in pixels of the image as its annotation file states it, and `images.load_image` returns
the image in exactly that frame. Category ids are not used in training, unlike in MMDetection and
transformers: a class is its name, as the file writes it. What the model reads is its phrase.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from groundtune.data.problems import Finding
from groundtune.errors import DataError
from groundtune.text.prompt import Spans, class_phrases, clean_name, match_names

_EXAMPLES = 5  # in a message


@dataclass(frozen=True)
class Grounding:
    """Caption of an image, and its phrases.

    Attributes:
        caption: text as written.
        spans: character ranges [begin, end) of each phrase, at least one. It may have no box.
    """

    caption: str
    spans: Spans

    @property
    def phrases(self) -> list[str]:
        """Text of each phrase; several ranges are joined by a space."""
        return [" ".join(self.caption[begin:end] for begin, end in spans) for spans in self.spans]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its N boxes. N = 0 is a valid training image without objects.

    Attributes:
        image_path: image file, which has not been opened yet.
        image_id: unique in its data set.
        size_hw: height and width in pixels as the annotations state them; the frame of the boxes.
        boxes_xyxy: (N, 4) float32 pixels, inside the image, each with an area above 0.
        class_ids: (N,) int64 index into `Dataset.class_names`, or into the image's own phrases.
        crowd: (N,) bool, True for a group of objects: not trained on, ignored in evaluation.
        grounding: caption and phrases, which replace the data set's classes.
        weight: how often the image is shown per epoch, on average over its source.
        annotated: classes that its source annotates; only these can be negatives. None: all.
        exhaustive: classes of which every object has a box; the others may be background nowhere
            but at a labeled object. None: all.
        confidence: (N,) float32 in (0, 1], scores of boxes that a model made. None: made by people.
        areas: (N,) float64 square pixels of the objects as the file states them (of masks), which
            evaluation uses; NaN where it has none. None: it has none.
        file_name: the image's name in the annotation file.
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
    exhaustive: frozenset[int] | None = None
    confidence: np.ndarray | None = None
    areas: np.ndarray | None = None
    file_name: str = ""

    def object_areas(self) -> np.ndarray:
        """Return (N,) float64 areas in square pixels: those of the file, or else of the boxes."""
        x0, y0, x1, y1 = self.boxes_xyxy.astype(np.float64).T
        of_boxes = (x1 - x0) * (y1 - y0)
        return of_boxes if self.areas is None else np.where(np.isnan(self.areas), of_boxes, self.areas)


@dataclass(frozen=True)
class LvisRules:
    """Which classes LVIS annotated in which images, by category id and image id.

    Attributes:
        frequencies: "r" (rare), "c" (common) or "f" (frequent) of each category.
        absent: for each image the categories that are known to be absent.
        incomplete: for each image the categories of which not all objects have a box.
    """

    frequencies: dict[int, str]
    absent: dict[int, list[int]]
    incomplete: dict[int, list[int]]


@dataclass
class Dataset:
    """One split of a data set.

    Attributes:
        name: "train", "valid" or "test", or the name that the reader was given.
        root: folder of the image files; they may be in folders inside it.
        class_names: C unique names as the file writes them, equal in all splits. Empty for
            grounding data.
        samples: images in the order of the file.
        category_ids: id of each class in files that are written.
        findings: what was dropped, clipped, merged or decided while reading.
        renamed: phrases by class name, where they are not those of `class_phrases`; also by the
            names of merged classes.
        synonyms: by class name, other phrases that training prompts may use.
        lvis: rules of an LVIS evaluation.
    """

    name: str
    root: Path
    class_names: list[str]
    samples: list[Sample]
    category_ids: list[int]
    findings: list[Finding] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    lvis: LvisRules | None = None

    @property
    def phrases(self) -> list[str]:
        """The phrase that a model reads for each class."""
        return class_phrases(self.class_names, self.renamed)

    @property
    def messages(self) -> list[str]:
        """Findings as lines of text, without the unused parent category of exports of Roboflow."""
        shown = [finding for finding in self.findings if finding.check != "category-placeholder"]
        return [f"{self.name}: {finding}" for finding in shown]

    @property
    def is_grounding(self) -> bool:
        """Whether every image has a caption. False for a mix of captions and classes."""
        return bool(self.samples) and all(sample.grounding is not None for sample in self.samples)


def join_examples(examples: Sequence[str], limit: int = _EXAMPLES) -> str:
    """Join the first `limit` examples, and append the total number if there are more."""
    more = f", … ({len(examples)} in all)" if len(examples) > limit else ""
    return ", ".join(examples[:limit]) + more


def match_class_names(
    wanted: Sequence[str], available: Sequence[str], phrases: Sequence[str] = ()
) -> list[int]:
    """Return the index in `available` of each wanted class, without repeats.

    A class is wanted by its name, by one of the same words, or by its phrase.

    Raises:
        DataError: names are unknown or ambiguous. All are listed, each with the nearest known name.
    """
    by_name, by_phrase = match_names(wanted, available), match_names(wanted, phrases)
    indices = [i if i is not None else j for i, j in zip(by_name, by_phrase, strict=True)]
    unknown = []
    for name, index in zip(wanted, indices, strict=True):
        if index is None:
            near = difflib.get_close_matches(clean_name(name), map(clean_name, available), n=1)
            unknown.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if unknown:
        known = join_examples([repr(name) for name in available], 30)
        raise DataError(f"Unknown class {join_examples(unknown, 20)}. The data set has: {known}.")
    return list(dict.fromkeys(index for index in indices if index is not None))


def unify_classes(datasets: Sequence[Dataset]) -> list[frozenset[int]]:
    """Give all splits one class list: the classes of the first split, then those that others add.

    Classes are matched by name, because COCO files can number their categories differently. Names
    of the same words ("Cat", "cat") are one class if each split has one of them, with a finding. A
    class that a split does not list gets its id of another split, or the next free id.

    Returns:
        The indices of the classes that each split lists.
    """
    names: list[str] = []
    known_ids: dict[str, int] = {}
    for dataset in datasets:
        _adopt_spelling(dataset, names)
        names = list(dict.fromkeys([*names, *dataset.class_names]))
        known_ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True)) | known_ids
    index_of = {name: index for index, name in enumerate(names)}
    listed = [frozenset(index_of[name] for name in dataset.class_names) for dataset in datasets]
    for dataset in datasets:
        if dataset.class_names != names:
            _adopt_classes(dataset, names, known_ids)
    return listed


def _adopt_spelling(dataset: Dataset, names: Sequence[str]) -> None:
    """Call classes as in earlier splits if only one spelling of each is in either."""
    own = dataset.class_names
    there, back = match_names(own, names), match_names(names, own)
    changed = {
        own[index]: names[match]
        for index, match in enumerate(there)
        if match is not None and back[match] == index and own[index] != names[match]
    }
    if changed:
        dataset.class_names = [changed.get(name, name) for name in own]
        examples = [f"{name!r} is {first!r}" for name, first in changed.items()]
        message = f"{len(changed)} classes are called otherwise in another split, and are taken as the same."
        fix = "Nothing has to be done if they are; otherwise give one of them a name of other words."
        dataset.findings.append(
            Finding("names-matched", "warning", message, fix, len(changed), examples[:_EXAMPLES])
        )


def _adopt_classes(dataset: Dataset, names: list[str], known_ids: dict[str, int]) -> None:
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    missing = [name for name in names if name not in ids]
    taken = set(ids.values())
    for name in missing:
        ids[name] = known_ids[name] if known_ids[name] not in taken else max(taken) + 1
        taken.add(ids[name])
    if missing:
        message = f"the file does not list {len(missing)} classes of the other splits."
        fix = "Nothing has to be done if they do not occur in it."
        examples = [repr(name) for name in missing[:_EXAMPLES]]
        dataset.findings.append(Finding("category-not-listed", "note", message, fix, len(missing), examples))
    index = np.array([names.index(name) for name in dataset.class_names], dtype=np.int64)
    dataset.samples = [
        sample
        if sample.grounding is not None
        else replace(
            sample,
            class_ids=index[sample.class_ids],
            exhaustive=sample.exhaustive and frozenset(index[[*sample.exhaustive]].tolist()),
        )
        for sample in dataset.samples
    ]
    dataset.class_names = list(names)
    dataset.category_ids = [ids[name] for name in names]
