"""Boxes by their numbers alone: sizes at the model's image size, shapes, boxes on each other; and the phrases of captions."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset
from groundtune.data.transforms import resized_size

_TINY = 8.0  # pixels, the square root of the area at the model's size; one cell of the finest feature map
_MOSTLY_TINY = 0.2  # of the boxes of a split
_COVERS = 0.95  # of the image's area
_EXTREME_RATIO = 20.0
_SAME_BOX = 0.9  # IoU
_INSIDE = 0.9  # of the smaller box's area; and of the boxes of a class
_FEWEST_INSIDE = 5  # boxes of a class, for "always inside another" to mean something
_MOST_PAIRED = 1000  # boxes of an image that are compared with each other


def check_boxes(dataset: Dataset, short_side: int, max_side: int, num_queries: int, found: Collector) -> None:
    """Look at the boxes of a split, those of crowds left out. Arguments as in `run.Limits`."""
    tiny, counts, nested = (
        [],
        Counter[str](),
        Counter[tuple[str, str]](),
    )  # nested: the first class inside the second
    total = 0
    for sample in dataset.samples:
        numbers = np.flatnonzero(~sample.crowd)
        total += len(numbers)
        xyxy = sample.boxes_xyxy[numbers].astype(np.float64)
        places = [f"{sample.image_path.name}: box {number + 1}" for number in numbers]
        if len(numbers) > num_queries:
            name = sample.image_path.name
            found.add("boxes-many", f"{name}: {len(numbers)} boxes, the model finds at most {num_queries}")
        scale = resized_size(sample.size_hw, short_side, max_side)[0] / max(sample.size_hw[0], 1)
        tiny += _check_shapes(xyxy[:, 2:] - xyxy[:, :2], scale, sample.size_hw, places, found)
        if sample.grounding is None:  # the boxes of phrases may well share a place
            classes = [dataset.class_names[index] for index in sample.class_ids[numbers]]
            counts.update(classes)
            if len(classes) <= _MOST_PAIRED:
                nested.update(
                    (classes[index], outer) for index, outer in _check_pairs(xyxy, classes, places, found)
                )
    for place in tiny:
        found.add("object-tiny", f"{place} at {short_side} px")
    if len(tiny) > _MOSTLY_TINY * total:
        found.add("objects-mostly-tiny", f"{len(tiny)} of {total} at {short_side} px")
    for (small, large), count in sorted(nested.items()):
        if count >= _FEWEST_INSIDE and count >= _INSIDE * counts[small]:
            found.add("class-inside-class", f"{small!r} in {large!r}: {count} of {counts[small]} boxes")


def _check_shapes(
    sides: np.ndarray, scale: float, size_hw: tuple[int, int], places: Sequence[str], found: Collector
) -> list[str]:
    """Look at the (N, 2) sides of one image's boxes, and name those that are tiny once the image is scaled."""
    tiny = []
    for place, (width, height) in zip(places, sides.tolist(), strict=True):
        if (width * height) ** 0.5 * scale < _TINY:
            tiny.append(f"{place} is {width * scale:.1f} × {height * scale:.1f} px")
        if width * height >= _COVERS * size_hw[0] * size_hw[1]:
            found.add("box-covers-image", place)
        if max(width, height) > _EXTREME_RATIO * min(width, height):
            found.add("box-extreme-ratio", f"{place} is {width:.1f} × {height:.1f} px")
    return tiny


def _check_pairs(
    xyxy: np.ndarray, classes: Sequence[str], places: Sequence[str], found: Collector
) -> set[tuple[int, str]]:
    """Look at the boxes of one image that lie on each other, and give the boxes that are inside another class."""
    shared = np.minimum(xyxy[:, None, 2:], xyxy[None, :, 2:]) - np.maximum(
        xyxy[:, None, :2], xyxy[None, :, :2]
    )
    shared = np.clip(shared, 0, None).prod(-1)
    areas = (xyxy[:, 2:] - xyxy[:, :2]).prod(-1)
    same = shared >= _SAME_BOX * np.maximum(areas[:, None] + areas - shared, 1e-9)
    for first, second in np.argwhere(np.triu(same, 1)).tolist():
        place = f"{places[first]} and {places[second].rpartition(' ')[2]}"
        if classes[first] == classes[second]:
            found.add("box-near-duplicate", f"{place} ({classes[first]})")
        else:
            found.add("box-two-classes", f"{place} ({classes[first]}, {classes[second]})")
    inside = np.argwhere((shared >= _INSIDE * areas[:, None]) & ~same).tolist()
    return {(inner, classes[outer]) for inner, outer in inside if classes[inner] != classes[outer]}


def check_grounding(dataset: Dataset, found: Collector) -> None:
    """Look at the phrases of every caption; images without one have nothing to look at."""
    for sample in dataset.samples:
        if sample.grounding is None:
            continue
        name, caption = sample.image_path.name, sample.grounding.caption
        for index, (phrase, spans) in enumerate(
            zip(sample.grounding.phrases, sample.grounding.spans, strict=True)
        ):
            around = [caption[max(0, place - 1) : place + 1] for span in spans for place in span]
            if any(len(letters) == 2 and letters[0].isalnum() and letters[1].isalnum() for letters in around):
                found.add("span-in-word", f"{name}: {phrase!r} in {caption!r}")
            if index not in sample.class_ids:
                found.add("phrase-without-boxes", f"{name}: {phrase!r}")
