"""Checks of boxes (size at the model's image size, shape, overlap) and of phrases of captions."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from groundtune.data.check.kinds import ModelLimits
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, Sample
from groundtune.data.transforms import resized_size

_TINY = 8.0  # pixels, square root of the area at the model's size; a cell of the finest feature map
_MOSTLY_TINY = 0.2  # of the boxes of a split
_COVERS = 0.95  # of the image's area
_EXTREME_RATIO = 20.0
_SAME_BOX = 0.9  # IoU
_INSIDE = 0.9  # of the smaller box's area; and of the boxes of a class
_MIN_INSIDE = 5  # boxes of a class
_MAX_COMPARED = 1000  # boxes of an image
_PAIRS = 2**18  # of boxes that are compared at once


_Event = tuple[int, int, int, int, str, str]
"""Image, stage, one or two boxes, check and example, which sort in the order of the images."""


class _Part:
    """Some images and their N boxes, without crowds, which are checked all at once."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        totals = [len(sample.crowd) for sample in samples]
        kept = np.flatnonzero(~np.concatenate([sample.crowd for sample in samples]))
        self.image = np.repeat(np.arange(len(samples)), totals)[kept]  # index of each box's sample
        self.number = kept - (np.cumsum(totals) - totals)[self.image] + 1  # of each box in its image
        self.xyxy = np.concatenate([sample.boxes_xyxy for sample in samples])[kept].astype(np.float64)
        self.class_ids = np.concatenate([sample.class_ids for sample in samples])[kept]
        self.counts = np.bincount(self.image, minlength=len(samples))  # of boxes by image
        self.has_classes = np.array([sample.grounding is None for sample in samples])

    def name(self, box: int) -> str:
        return f"{self.samples[self.image[box]].image_path.name}: box {self.number[box]}"

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each box with each of its image, except boxes of phrases, which may coincide."""
        compared = self.has_classes & (self.counts <= _MAX_COMPARED)
        first = np.flatnonzero(compared[self.image])
        others = self.counts[self.image[first]]
        starts = (np.cumsum(self.counts) - self.counts)[self.image[first]] - (np.cumsum(others) - others)
        return first.repeat(others), np.arange(others.sum()) + starts.repeat(others)


def check_boxes(dataset: Dataset, limits: ModelLimits, problems: Collector) -> None:
    """Check the boxes of a split, except crowds."""
    names = dataset.class_names
    tiny: list[str] = []
    total = 0
    count_of = np.zeros(len(names), np.int64)
    nested = Counter[tuple[int, int]]()  # (class, class around it)
    for part in map(_Part, _parts(dataset.samples)):
        total += len(part.xyxy)
        events: list[_Event] = []
        for image in np.flatnonzero(part.counts > limits.num_queries).tolist():
            many = f"{part.counts[image]} boxes, the model detects at most {limits.num_queries}"
            name = part.samples[image].image_path.name
            events.append((image, 0, 0, 0, "boxes-many", f"{name}: {many}"))
        tiny += _check_shapes(part, limits, events)
        count_of += np.bincount(part.class_ids[part.has_classes[part.image]], minlength=len(names))
        nested.update(_check_pairs(part, names, events))
        for *_, check, example in sorted(events):
            problems.add(check, example)
    for example in tiny:
        problems.add("object-tiny", f"{example} at {limits.short_side} px")
    if len(tiny) > _MOSTLY_TINY * total:
        problems.add("objects-mostly-tiny", f"{len(tiny)} of {total} at {limits.short_side} px")
    for (inner, outer), count in sorted(((names[a], names[b]), n) for (a, b), n in nested.items()):
        of_class = count_of[names.index(inner)]
        if count >= _MIN_INSIDE and count >= _INSIDE * of_class:
            problems.add("class-inside-class", f"{inner!r} in {outer!r}: {count} of {of_class} boxes")


def _parts(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Yield groups of images with few pairs of boxes together, to bound the memory."""
    part: list[Sample] = []
    pairs = 0
    for sample in samples:
        pairs += len(sample.crowd) ** 2 + 1
        part.append(sample)
        if pairs > _PAIRS:
            yield part
            part, pairs = [], 0
    if part:
        yield part


def _check_shapes(part: _Part, limits: ModelLimits, events: list[_Event]) -> list[str]:
    """Check the sides of the boxes; return those that are tiny after scaling."""
    sizes = np.array([sample.size_hw for sample in part.samples], float)
    heights = [resized_size(each.size_hw, limits.short_side, limits.max_side)[0] for each in part.samples]
    scale = (heights / np.maximum(sizes[:, 0], 1))[part.image]
    sides = part.xyxy[:, 2:] - part.xyxy[:, :2]
    areas = sides.prod(axis=1)
    for box in np.flatnonzero(areas >= (_COVERS * sizes[:, 0] * sizes[:, 1])[part.image]).tolist():
        events.append((part.image[box], 1, box, 0, "box-covers-image", part.name(box)))
    for box in np.flatnonzero(sides.max(axis=1) > _EXTREME_RATIO * sides.min(axis=1)).tolist():
        shape = f"{part.name(box)} is {sides[box, 0]:.1f} × {sides[box, 1]:.1f} px"
        events.append((part.image[box], 1, box, 0, "box-extreme-ratio", shape))
    tiny = np.flatnonzero(np.sqrt(areas) * scale < _TINY).tolist()
    scaled = sides * scale[:, None]
    return [f"{part.name(box)} is {scaled[box, 0]:.1f} × {scaled[box, 1]:.1f} px" for box in tiny]


def _check_pairs(part: _Part, names: Sequence[str], events: list[_Event]) -> list[tuple[int, int]]:
    """Compare the boxes of each image; return (class, class around it) of boxes inside others."""
    xyxy, classes = part.xyxy, part.class_ids
    first, second = part.pairs()
    low = np.maximum(xyxy[first, :2], xyxy[second, :2])
    high = np.minimum(xyxy[first, 2:], xyxy[second, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=1)
    areas = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
    same = overlap >= _SAME_BOX * np.maximum(areas[first] + areas[second] - overlap, 1e-9)
    for pair in np.flatnonzero(same & (first < second)).tolist():
        a, b = int(first[pair]), int(second[pair])
        kind = names[classes[a]] + (f", {names[classes[b]]}" if classes[a] != classes[b] else "")
        check = "box-near-duplicate" if classes[a] == classes[b] else "box-two-classes"
        events.append((part.image[a], 2, a, b, check, f"{part.name(a)} and {part.number[b]} ({kind})"))
    inside = (overlap >= _INSIDE * areas[first]) & ~same & (classes[first] != classes[second])
    pairs = set(zip(first[inside].tolist(), classes[second[inside]].tolist(), strict=True))
    return [(int(classes[box]), outer) for box, outer in pairs]


def check_grounding(dataset: Dataset, problems: Collector) -> None:
    """Check the phrases of every caption."""
    for sample in dataset.samples:
        if sample.grounding is None:
            continue
        name, caption = sample.image_path.name, sample.grounding.caption
        for index, phrase in enumerate(sample.grounding.phrases):
            ends = [end for span in sample.grounding.spans[index] for end in span]
            if any(caption[end - 1 : end].isalnum() and caption[end : end + 1].isalnum() for end in ends):
                problems.add("span-in-word", f"{name}: {phrase!r} in {caption!r}")
            if index not in sample.class_ids:
                problems.add("phrase-without-boxes", f"{name}: {phrase!r}")
