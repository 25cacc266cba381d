"""Checks of boxes (size at the model's image size, shape, overlap) and of phrases of captions."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from groundtune.data.check.kinds import ModelLimits
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset
from groundtune.data.transforms import resized_size

_TINY = 8.0  # pixels, square root of the area at the model's size; a cell of the finest feature map
_MOSTLY_TINY = 0.2  # of the boxes of a split
_COVERS = 0.95  # of the image's area
_EXTREME_RATIO = 20.0
_SAME_BOX = 0.9  # IoU
_INSIDE = 0.9  # of the smaller box's area; and of the boxes of a class
_MIN_INSIDE = 5  # boxes of a class
_MAX_COMPARED = 1000  # boxes of an image


def check_boxes(dataset: Dataset, limits: ModelLimits, problems: Collector) -> None:
    """Check the boxes of a split, except crowds."""
    tiny: list[str] = []
    total = 0
    count_of = Counter[str]()
    nested = Counter[tuple[str, str]]()  # (class, class around it)
    for sample in dataset.samples:
        numbers = np.flatnonzero(~sample.crowd)
        total += len(numbers)
        xyxy = sample.boxes_xyxy[numbers].astype(np.float64)
        file = sample.image_path.name
        names = [f"{file}: box {number + 1}" for number in numbers]
        if len(numbers) > limits.num_queries:
            many = f"{file}: {len(numbers)} boxes, the model detects at most {limits.num_queries}"
            problems.add("boxes-many", many)
        height = resized_size(sample.size_hw, limits.short_side, limits.max_side)[0]
        scale = height / max(sample.size_hw[0], 1)
        tiny += _check_shapes(xyxy[:, 2:] - xyxy[:, :2], scale, sample.size_hw, names, problems)
        if sample.grounding is None:  # boxes of phrases may coincide
            classes = [dataset.class_names[index] for index in sample.class_ids[numbers]]
            count_of.update(classes)
            if len(classes) <= _MAX_COMPARED:
                nested.update(_check_pairs(xyxy, classes, names, problems))
    for example in tiny:
        problems.add("object-tiny", f"{example} at {limits.short_side} px")
    if len(tiny) > _MOSTLY_TINY * total:
        problems.add("objects-mostly-tiny", f"{len(tiny)} of {total} at {limits.short_side} px")
    for (inner, outer), count in sorted(nested.items()):
        if count >= _MIN_INSIDE and count >= _INSIDE * count_of[inner]:
            problems.add("class-inside-class", f"{inner!r} in {outer!r}: {count} of {count_of[inner]} boxes")


def _check_shapes(
    sides: np.ndarray, scale: float, size_hw: tuple[int, int], names: Sequence[str], problems: Collector
) -> list[str]:
    """Check the (N, 2) sides of an image's boxes; return those that are tiny after scaling."""
    tiny = []
    for name, (width, height) in zip(names, sides.tolist(), strict=True):
        if (width * height) ** 0.5 * scale < _TINY:
            tiny.append(f"{name} is {width * scale:.1f} × {height * scale:.1f} px")
        if width * height >= _COVERS * size_hw[0] * size_hw[1]:
            problems.add("box-covers-image", name)
        if max(width, height) > _EXTREME_RATIO * min(width, height):
            problems.add("box-extreme-ratio", f"{name} is {width:.1f} × {height:.1f} px")
    return tiny


def _check_pairs(
    xyxy: np.ndarray, classes: Sequence[str], names: Sequence[str], problems: Collector
) -> list[tuple[str, str]]:
    """Compare the boxes of an image; return (class, class around it) of boxes inside others."""
    low = np.maximum(xyxy[:, None, :2], xyxy[None, :, :2])
    high = np.minimum(xyxy[:, None, 2:], xyxy[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    areas = (xyxy[:, 2:] - xyxy[:, :2]).prod(-1)
    same = overlap >= _SAME_BOX * np.maximum(areas[:, None] + areas - overlap, 1e-9)
    for first, second in np.argwhere(np.triu(same, 1)).tolist():
        pair = f"{names[first]} and {names[second].rpartition(' ')[2]}"
        if classes[first] == classes[second]:
            problems.add("box-near-duplicate", f"{pair} ({classes[first]})")
        else:
            problems.add("box-two-classes", f"{pair} ({classes[first]}, {classes[second]})")
    inside = np.argwhere((overlap >= _INSIDE * areas[:, None]) & ~same).tolist()
    outer_classes = {(inner, classes[outer]) for inner, outer in inside if classes[inner] != classes[outer]}
    return [(classes[inner], outer) for inner, outer in outer_classes]


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
