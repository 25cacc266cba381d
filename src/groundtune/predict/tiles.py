"""Looking at a large image in overlapping square tiles, and making one answer of theirs.

Small objects vanish when an image of 4000 pixels is brought to the network's size; in a tile they do not. All of the image
is looked at too, for what is larger than a tile. What tiles say about one object is brought together class by class:

1. A box that touches an inner border of its tile is *cut*. Where it lies wholly inside another tile, that tile saw more of
   the object, and its word counts: the cut box goes, whatever it was taken for.
2. Two whole boxes of different tiles are one object from an IoU of 0.5 on; the better one stays.
3. A cut box is the same object as another tile's box if the two agree, by the same IoU, about the area that both tiles see. A
   whole box replaces it; cut boxes alone (an object longer than the overlap) become the box around them.

Boxes of one tile are never merged with each other: as without tiles, the network's word that they are two stands.
Deviation from SAHI (Akyon et al. 2022), which merges by the overlap of the boxes themselves: a small object in front of a
large one of its class would be swallowed, and the halves of an object, which hardly overlap, stay two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groundtune.boxes import box_area, pairwise_iou
from groundtune.predict.postprocess import ImageDetections

_SAME = 0.5  # IoU
_TOUCHES = 0.02  # share of a tile's side within which a box touches its border


@dataclass(frozen=True)
class Tiles:
    """How an image is divided: pixels of a tile's side, and the share of it that the next one shows again."""

    side: int
    overlap: float = 0.2

    def regions(self, size_hw: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """All of an image, then its tiles row by row, xyxy in whole pixels; only all of it where it fits in one tile."""
        height, width = size_hw
        whole = (0, 0, width, height)
        if max(size_hw) <= self.side:
            return [whole]
        xs, ys = self._starts(width), self._starts(height)
        return [
            whole,
            *((x, y, min(x + self.side, width), min(y + self.side, height)) for y in ys for x in xs),
        ]

    def _starts(self, length: int) -> list[int]:
        """Evenly spread, so that the last tile ends with the image and no overlap is smaller than asked for."""
        if length <= self.side:
            return [0]
        count = math.ceil((length - self.side) / (self.side * (1 - self.overlap))) + 1
        return [round(place * (length - self.side) / (count - 1)) for place in range(count)]


def merge(
    parts: Sequence[ImageDetections],
    regions_xyxy: Sequence[tuple[int, int, int, int]],
    size_hw: tuple[int, int],
) -> ImageDetections:
    """Make one answer of those to the regions of an image.

    Args:
        parts: of each region its detections in pixels of the region, those below the threshold left out before: the work
            grows with their square.
        regions_xyxy: from `Tiles.regions`; the first one is all of the image.
        size_hw: of the image in pixels.

    Returns:
        The objects, best first, in pixels of the image; there may be more than 300. One that several tiles saw has the
        best of their scores.
    """
    owner = torch.cat([torch.full_like(part.class_indices, place) for place, part in enumerate(parts)])
    regions = torch.tensor(regions_xyxy, dtype=torch.float32)
    boxes = torch.cat([part.boxes_xyxy for part in parts]) + regions[owner][:, [0, 1, 0, 1]]
    found = _Found(
        boxes,
        torch.cat([part.scores for part in parts]),
        torch.cat([part.class_indices for part in parts]),
        owner,
        regions[owner],
        _cut(boxes, regions[owner], size_hw),
    )
    found = found.of(~_seen_elsewhere(found, regions, size_hw))
    found = found.of(torch.argsort(found.scores, descending=True, stable=True))
    return _objects(
        found.of(torch.argsort(found.cut.int(), stable=True))
    )  # whole boxes first, each kind best first


@dataclass
class _Found:
    """N detections of all regions: boxes and regions (N, 4) in pixels of the image, and which of them are cut (N,)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    owner: Tensor
    regions: Tensor
    cut: Tensor

    def of(self, index: Tensor) -> "_Found":
        return _Found(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def _cut(boxes: Tensor, regions: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Which boxes (N, 4) touch a border of their regions (…, 4) that is not the image's; (N,) or as they broadcast."""
    near = _TOUCHES * (regions[..., 2:] - regions[..., :2]).amin(-1, keepdim=True)
    low = (boxes[..., :2] < regions[..., :2] + near) & (regions[..., :2] > 0)
    high = (boxes[..., 2:] > regions[..., 2:] - near) & (regions[..., 2:] < regions.new_tensor(size_hw[::-1]))
    return (low | high).any(-1)


def _seen_elsewhere(found: _Found, regions: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Which cut boxes lie wholly inside a tile other than their own; all of the image, at its scale, does not count."""
    boxes, tiles = found.boxes[:, None], regions[None, 1:]
    inside = ((boxes[..., :2] >= tiles[..., :2]) & (boxes[..., 2:] <= tiles[..., 2:])).all(-1)
    return found.cut & (inside & ~_cut(boxes, tiles, size_hw)).any(1)


def _objects(found: _Found) -> ImageDetections:
    """One box for each object; `found` has whole boxes first, each kind best first."""
    left = torch.ones_like(found.cut)
    boxes, scores, classes = [], [], []
    for place in range(len(found.cut)):
        if not left[place]:
            continue
        group = left & _same(found, place)
        group[place] = True
        if found.cut[place]:  # pieces of pieces
            waiting = set(group.nonzero().flatten().tolist()) - {place}
            while waiting:
                more = left & ~group & _same(found, waiting.pop())
                waiting |= set(more.nonzero().flatten().tolist())
                group |= more
            pieces = found.boxes[group]
            boxes.append(torch.cat([pieces[:, :2].amin(0), pieces[:, 2:].amax(0)]))
        else:
            boxes.append(found.boxes[place])
        scores.append(found.scores[group].max())
        classes.append(found.classes[place])
        left &= ~group
    if not boxes:
        return ImageDetections(found.boxes, found.scores, found.classes)
    order = torch.argsort(torch.stack(scores), descending=True, stable=True)
    return ImageDetections(torch.stack(boxes)[order], torch.stack(scores)[order], torch.stack(classes)[order])


def _same(found: _Found, place: int) -> Tensor:
    """(N,) which detections of other regions show the object of the one at `place`."""
    box, region = found.boxes[place], found.regions[place]
    other = (found.owner != found.owner[place]) & (found.classes == found.classes[place])
    low, high = (
        torch.maximum(region[:2], found.regions[:, :2]),
        torch.minimum(region[2:], found.regions[:, 2:]),
    )
    common = torch.cat([low, torch.maximum(low, high)], 1)
    ours, theirs = _clipped(box.expand_as(common), common), _clipped(found.boxes, common)
    shared = pairwise_iou(ours[:, None], theirs[:, None]).flatten() * (box_area(ours) > 0)
    plain = pairwise_iou(box[None], found.boxes)[0]
    return other & (torch.where(found.cut | found.cut[place], shared, plain) >= _SAME)


def _clipped(boxes: Tensor, regions: Tensor) -> Tensor:
    return torch.cat([part.maximum(regions[:, :2]).minimum(regions[:, 2:]) for part in boxes.split(2, 1)], 1)
