"""Split a large image into overlapping square tiles and merge their detections.

Small objects vanish when an image of 4000 pixels is resized for the network; in a tile they do not.
The whole image is processed too, for objects larger than a tile. Detections are merged in four
steps:

1. A box that touches an inner border of its tile is *cut*. If it lies inside another tile, that
   tile saw more of the object: the cut box is dropped, whatever its class.
2. Two whole boxes of different tiles and one class are one object from an IoU of 0.5; the better
   one stays.
3. A cut box and another tile's box are one object if they agree by the same IoU on the area that
   both tiles see. A whole box replaces it; cut boxes alone (an object longer than the overlap) are
   united.
4. A box that is still cut, and of which 70 % lie inside a larger box of its class from another tile
   or the whole image, is a fragment, such as an arrow's shaft: it is dropped with its score.

Boxes of one tile are never merged. Deviation from SAHI (Akyon et al. 2022), which merges by the
overlap of whole boxes: it drops a small object in front of a large one, and leaves the halves of an
object apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from groundtune.boxes import box_area, pairwise_iou
from groundtune.predict.postprocess import ImageDetections

_SAME_IOU = 0.5
_FRAGMENT_SHARE = 0.7  # of its area inside the larger box
_BORDER = 0.02  # share of a tile's side within which a box touches its border


@dataclass(frozen=True)
class Tiles:
    """Side of a tile in pixels, and the share of it that overlaps with the next tile."""

    side: int
    overlap: float

    def regions(self, size_hw: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """Return xyxy of the whole image and, if a tile is smaller, of its tiles row by row."""
        height, width = size_hw
        whole = (0, 0, width, height)
        if max(size_hw) <= self.side:
            return [whole]
        xs, ys = self._starts(width), self._starts(height)
        side = self.side
        return [whole, *((x, y, min(x + side, width), min(y + side, height)) for y in ys for x in xs)]

    def _starts(self, length: int) -> list[int]:
        """Spread tiles evenly, so that the last one ends with the image."""
        if length <= self.side:
            return [0]
        count = math.ceil((length - self.side) / (self.side * (1 - self.overlap))) + 1
        return [round(index * (length - self.side) / (count - 1)) for index in range(count)]


def merge(
    parts: Sequence[ImageDetections],
    regions_xyxy: Sequence[tuple[int, int, int, int]],
    size_hw: tuple[int, int],
) -> ImageDetections:
    """Merge the detections of an image's regions, in O(N^2) for N detections.

    Each part is in pixels of its region of `Tiles.regions`. The result is in pixels of the image,
    best first; each object has the best score of its boxes, and there may be more than 300.
    """
    owner = torch.cat([torch.full_like(part.class_indices, index) for index, part in enumerate(parts)])
    regions = torch.tensor(regions_xyxy, dtype=torch.float32)
    boxes = torch.cat([part.boxes_xyxy for part in parts]) + regions[owner][:, [0, 1, 0, 1]]
    candidates = _Candidates(
        boxes,
        torch.cat([part.scores for part in parts]),
        torch.cat([part.class_indices for part in parts]),
        owner,
        regions[owner],
        _is_cut(boxes, regions[owner], size_hw),
    )
    candidates = candidates.select(~_inside_another_tile(candidates, regions, size_hw))
    candidates = candidates.select(torch.argsort(candidates.scores, descending=True, stable=True))
    return _unite(candidates.select(torch.argsort(candidates.cut.int(), stable=True)), size_hw)


@dataclass
class _Candidates:
    """N detections of all regions; boxes and their regions are (N, 4) in pixels of the image."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    owner: Tensor
    regions: Tensor
    cut: Tensor

    def select(self, index: Tensor) -> "_Candidates":
        return _Candidates(*(getattr(self, field.name)[index] for field in fields(self)))


def _is_cut(boxes: Tensor, regions: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return which boxes touch a border of their regions that is not the image's."""
    near = _BORDER * (regions[..., 2:] - regions[..., :2]).amin(-1, keepdim=True)
    low = (boxes[..., :2] < regions[..., :2] + near) & (regions[..., :2] > 0)
    high = (boxes[..., 2:] > regions[..., 2:] - near) & (regions[..., 2:] < regions.new_tensor(size_hw[::-1]))
    return (low | high).any(-1)


def _inside_another_tile(candidates: _Candidates, regions: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return which cut boxes are whole in another tile; the whole image does not count."""
    boxes, tiles = candidates.boxes[:, None], regions[None, 1:]
    inside = ((boxes[..., :2] >= tiles[..., :2]) & (boxes[..., 2:] <= tiles[..., 2:])).all(-1)
    return candidates.cut & (inside & ~_is_cut(boxes, tiles, size_hw)).any(1)


def _unite(candidates: _Candidates, size_hw: tuple[int, int]) -> ImageDetections:
    """Return one box per object; candidates are sorted: whole boxes first, each kind best first."""
    left = torch.ones_like(candidates.cut)
    first: list[int] = []  # detection of each object
    for index in range(len(candidates.cut)):
        if not left[index]:
            continue
        group = left & _same_object(candidates, index)
        group[index] = True
        if candidates.cut[index]:  # pieces of pieces
            queue = set(group.nonzero().flatten().tolist()) - {index}
            while queue:
                more = left & ~group & _same_object(candidates, queue.pop())
                queue |= set(more.nonzero().flatten().tolist())
                group |= more
            candidates.boxes[index] = _hull(candidates.boxes[group])
            hull = _hull(candidates.regions[group])
            candidates.cut[index] = _is_cut(candidates.boxes[index], hull, size_hw)
        candidates.scores[index] = candidates.scores[group].max()
        first.append(index)
        left &= ~group
    united = candidates.select(torch.tensor(first, dtype=torch.long))
    united = united.select(~_is_fragment(united))
    united = united.select(torch.argsort(united.scores, descending=True, stable=True))
    return ImageDetections(united.boxes, united.scores, united.classes)


def _hull(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])


def _is_fragment(candidates: _Candidates) -> Tensor:
    """Return which cut boxes lie mostly inside a larger box of their class from another region."""
    fragments, areas = candidates.cut.clone(), box_area(candidates.boxes)
    for index in fragments.nonzero().flatten().tolist():
        inside = box_area(_clip(candidates.boxes, candidates.boxes[index : index + 1]))
        larger = (areas > areas[index]) & (inside >= _FRAGMENT_SHARE * areas[index])
        other = (candidates.owner != candidates.owner[index]) & (
            candidates.classes == candidates.classes[index]
        )
        fragments[index] = (larger & other).any()
    return fragments


def _same_object(candidates: _Candidates, index: int) -> Tensor:
    """Return which detections of other regions show the same object as detection `index`."""
    box, region = candidates.boxes[index], candidates.regions[index]
    other = (candidates.owner != candidates.owner[index]) & (candidates.classes == candidates.classes[index])
    low = torch.maximum(region[:2], candidates.regions[:, :2])
    high = torch.minimum(region[2:], candidates.regions[:, 2:])
    common = torch.cat([low, torch.maximum(low, high)], 1)
    ours, theirs = _clip(box.expand_as(common), common), _clip(candidates.boxes, common)
    shared_iou = pairwise_iou(ours[:, None], theirs[:, None]).flatten() * (box_area(ours) > 0)
    whole_iou = pairwise_iou(box[None], candidates.boxes)[0]
    return other & (torch.where(candidates.cut | candidates.cut[index], shared_iou, whole_iou) >= _SAME_IOU)


def _clip(boxes: Tensor, regions: Tensor) -> Tensor:
    return torch.cat([part.maximum(regions[:, :2]).minimum(regions[:, 2:]) for part in boxes.split(2, 1)], 1)
