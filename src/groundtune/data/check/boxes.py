"""Boxes by their numbers alone: sizes at the model's picture size, shapes, and boxes on top of each other."""

from dataclasses import dataclass

import numpy as np

from groundtune.data.findings import Collector
from groundtune.data.sample import Dataset
from groundtune.data.transforms import resized_size

_TINY = 8.0  # pixels, the square root of the area at the model's size; one cell of the finest feature map
_MOSTLY_TINY = 0.2  # of the boxes of a split
_COVERS = 0.95  # of the picture's area
_EXTREME_RATIO = 20.0
_SAME_BOX = 0.9  # IoU
_INSIDE = 0.9  # of the smaller box's area; and of the boxes of a class
_FEWEST_INSIDE = 5  # boxes of a class, for "always inside another" to mean something
_MOST_PAIRED = 1000  # boxes of a picture that are compared with each other


@dataclass
class SplitBoxes:
    """The N boxes of a split in one row, those of crowds left out, and the pairs of one picture that overlap much.

    Attributes:
        dataset: the split.
        xyxy: (N, 4) float64 pixels.
        classes: (N,) class ids; -1 for the boxes of phrases, which may well share a place.
        picture: (N,) index into the samples.
        number: (N,) place in its picture, from 0.
        pairs: (P, 2) indices i, j of boxes of one picture where most of i is inside j; both orders may be there.
        iou: (P,) of the pairs.
    """

    dataset: Dataset
    xyxy: np.ndarray
    classes: np.ndarray
    picture: np.ndarray
    number: np.ndarray
    pairs: np.ndarray
    iou: np.ndarray

    def place(self, index: int | np.integer) -> str:
        """Name a box for people: its file and its place in it, from 1."""
        return f"{self.dataset.samples[self.picture[index]].image_path.name}: box {self.number[index] + 1}"


def gather(dataset: Dataset) -> SplitBoxes:
    """Put the boxes of a split in one row, and find the pairs that lie on top of each other."""
    kept = [np.flatnonzero(~sample.crowd) for sample in dataset.samples]
    counts = [len(numbers) for numbers in kept]
    rows = [s.boxes_xyxy[numbers] for s, numbers in zip(dataset.samples, kept, strict=True)]
    ids = [
        s.class_ids[numbers] if s.grounding is None else np.full(len(numbers), -1)
        for s, numbers in zip(dataset.samples, kept, strict=True)
    ]
    xyxy = np.concatenate([np.empty((0, 4)), *rows])
    pairs, iou = [np.empty((0, 2), np.int64)], [np.empty(0)]
    begin = 0
    for sample, count in zip(dataset.samples, counts, strict=True):
        if 1 < count <= _MOST_PAIRED and sample.grounding is None:
            found, overlap = _nested(xyxy[begin : begin + count])
            pairs.append(found + begin)
            iou.append(overlap)
        begin += count
    return SplitBoxes(
        dataset,
        xyxy,
        np.concatenate([np.empty(0, np.int64), *ids]),
        np.repeat(np.arange(len(counts)), counts),
        np.concatenate([np.empty(0, np.int64), *kept]),
        np.concatenate(pairs),
        np.concatenate(iou),
    )


def _nested(xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sides = np.minimum(xyxy[:, None, 2:], xyxy[None, :, 2:]) - np.maximum(xyxy[:, None, :2], xyxy[None, :, :2])
    shared = np.clip(sides, 0, None).prod(-1)
    areas = (xyxy[:, 2:] - xyxy[:, :2]).prod(-1)
    inside = shared >= _INSIDE * areas[:, None]
    np.fill_diagonal(inside, False)
    first, second = np.nonzero(inside)
    union = areas[first] + areas[second] - shared[first, second]
    return np.stack([first, second], axis=1), shared[first, second] / np.maximum(union, 1e-9)


def check_boxes(boxes: SplitBoxes, short_side: int, max_side: int, num_queries: int, found: Collector) -> None:
    """Look at the boxes of a split.

    Args:
        boxes: of the split.
        short_side: of the model's pictures, pixels.
        max_side: of the model's pictures, pixels.
        num_queries: most objects that the model finds in a picture.
        found: gets what was found.
    """
    _check_sizes(boxes, short_side, max_side, found)
    _check_shapes(boxes, found)
    _check_pairs(boxes, found)
    _check_inside(boxes, found)
    _check_copied(boxes.dataset, found)
    for index in np.flatnonzero(np.bincount(boxes.picture) > num_queries):
        count = int((boxes.picture == index).sum())
        name = boxes.dataset.samples[index].image_path.name
        found.add("boxes-many", f"{name}: {count} boxes, the model finds at most {num_queries}")


def _check_sizes(boxes: SplitBoxes, short_side: int, max_side: int, found: Collector) -> None:
    heights = np.array([s.size_hw[0] for s in boxes.dataset.samples], dtype=np.float64)
    resized = [resized_size(s.size_hw, short_side, max_side)[0] for s in boxes.dataset.samples]
    scale = np.array(resized) / np.maximum(heights, 1)
    sides = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]) * scale[boxes.picture, None]
    tiny = np.flatnonzero(np.sqrt(sides.prod(-1)) < _TINY)
    for index in tiny:
        width, height = sides[index]
        found.add("object-tiny", f"{boxes.place(index)} is {width:.1f} × {height:.1f} px at {short_side} px")
    if len(tiny) > _MOSTLY_TINY * len(sides):
        found.add("objects-mostly-tiny", f"{len(tiny)} of {len(sides)} at {short_side} px")


def _check_shapes(boxes: SplitBoxes, found: Collector) -> None:
    sides = boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]
    pictures = np.array([s.size_hw for s in boxes.dataset.samples], dtype=np.float64).reshape(-1, 2).prod(-1)
    for index in np.flatnonzero(sides.prod(-1) >= _COVERS * pictures[boxes.picture]):
        found.add("box-covers-picture", boxes.place(index))
    for index in np.flatnonzero(sides.max(-1, initial=0) > _EXTREME_RATIO * sides.min(-1, initial=np.inf)):
        found.add("box-extreme-ratio", f"{boxes.place(index)} is {sides[index, 0]:.1f} × {sides[index, 1]:.1f} px")


def _check_pairs(boxes: SplitBoxes, found: Collector) -> None:
    names = boxes.dataset.class_names
    same = boxes.pairs[(boxes.iou >= _SAME_BOX) & (boxes.pairs[:, 0] < boxes.pairs[:, 1])]
    for first, second in same:
        one, other = names[boxes.classes[first]], names[boxes.classes[second]]
        place = f"{boxes.place(first)} and {boxes.number[second] + 1}"
        if one == other:
            found.add("box-near-duplicate", f"{place} ({one})")
        else:
            found.add("box-two-classes", f"{place} ({one}, {other})")


def _check_inside(boxes: SplitBoxes, found: Collector) -> None:
    names = boxes.dataset.class_names
    inner, outer = boxes.pairs[boxes.iou < _SAME_BOX].T
    outer_class = boxes.classes[outer]
    nested = np.unique(np.stack([inner, outer_class], axis=1)[boxes.classes[inner] != outer_class], axis=0)
    totals = np.bincount(boxes.classes[boxes.classes >= 0], minlength=len(names))
    table, counts = np.unique(np.stack([boxes.classes[nested[:, 0]], nested[:, 1]], axis=1), axis=0, return_counts=True)
    for (small, large), count in zip(table, counts, strict=True):
        if count >= _FEWEST_INSIDE and count >= _INSIDE * totals[small]:
            found.add("class-inside-class", f"{names[small]!r} in {names[large]!r}: {count} of {totals[small]} boxes")


def _check_copied(dataset: Dataset, found: Collector) -> None:
    seen: dict[bytes, str] = {}
    for sample in dataset.samples:
        if len(sample.boxes_xyxy) < 2:  # a single one may well be the same by chance
            continue
        order = np.lexsort((sample.class_ids, *sample.boxes_xyxy.T))
        key = sample.boxes_xyxy[order].tobytes() + sample.class_ids[order].tobytes()
        first = seen.setdefault(key, sample.image_path.name)
        if first != sample.image_path.name:
            found.add("boxes-copied", f"{sample.image_path.name} has those of {first}")
