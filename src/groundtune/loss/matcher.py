"""Match queries with boxes one-to-one (DETR, section 3.1; docs/semantics.md, rule 14).

A head is one set of predictions: a decoder layer or the encoder's proposals. The costs of all heads
and images are computed together on the device and copied to the host once, where scipy solves the
assignment.

Cost of a query and a box: `cls * focal cost + bbox * L1(cxcywh) - giou * GIoU`. The focal cost sums
over all valid tokens: the box's own tokens ask for a high probability and all others for a low one,
so that a query which fires on everything is expensive.

Deviations from MMDetection's `HungarianAssigner`: a cost that is not finite is an error (others set
it to 0, which makes the broken row the cheapest), and GIoU's eps is relative to the image (see
`boxes`). The 1e-12 inside the logarithms is MMDetection's: it bounds the cost of a token at 27.6.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from groundtune.boxes import cxcywh_to_xyxy, pairwise_giou, pairwise_iou
from groundtune.contracts import Target
from groundtune.device import to_device
from groundtune.errors import GroundtuneError

_SAME_OBJECT_IOU = 0.5
_LOG_EPS = 1e-12
_THREADED_FROM = 50  # boxes of an image; fewer are assigned before a thread has started


class NonFiniteCost(GroundtuneError, FloatingPointError):
    """A matching cost is not finite, for the images `image_indices` of the batch."""

    exit_code = 5

    def __init__(self, image_indices: Sequence[int]) -> None:
        self.image_indices = tuple(image_indices)
        super().__init__(
            f"The matching cost is not finite for image {', '.join(map(str, image_indices))} of the batch: "
            "its predictions or its boxes contain NaN or infinite values."
        )


@dataclass(frozen=True)
class MatchingCost:
    """Weights of the three costs, and the parameters of the focal cost."""

    cls: float
    bbox: float
    giou: float
    alpha: float
    gamma: float


class Head(NamedTuple):
    """One set of predictions: logits (B, Q, 256 or T), boxes (B, Q, 4) cxcywh in [0, 1]."""

    logits: Tensor
    boxes_cxcywh: Tensor


class Match(NamedTuple):
    """Matched pairs of one head: three long tensors (K,) on the device of the predictions."""

    image: Tensor  # index of the image in the batch
    query: Tensor  # index of the query in its head
    box: Tensor  # index into the boxes of all images, concatenated


@torch.no_grad()
def match(
    heads: Sequence[Head], text_token_mask: Tensor, targets: Sequence[Target], cost: MatchingCost
) -> list[Match]:
    """Assign boxes to queries, for each head and each image on its own.

    Args:
        heads: predictions; the number of queries may differ between heads.
        text_token_mask: (B, T) bool, True = real token.
        targets: one per image. Boxes beyond the number of queries stay unmatched.

    Returns:
        For each head its pairs, ordered by image; empty if there are no boxes.

    Raises:
        NonFiniteCost: a cost is NaN or infinite.
    """
    counts = [len(target.boxes_cxcywh) for target in targets]
    sizes = [head.boxes_cxcywh.shape[1] for head in heads]
    device = text_token_mask.device
    if sum(counts) == 0:
        nothing = torch.zeros(3, 0, dtype=torch.long, device=device)
        return [Match(*nothing) for _ in heads]
    length = text_token_mask.shape[1]
    logits = torch.cat([head.logits[..., :length] for head in heads], dim=1).float()
    boxes = torch.cat([head.boxes_cxcywh for head in heads], dim=1).float()
    host = cost_matrix(logits, boxes, text_token_mask, targets, cost).cpu().numpy()  # the one copy
    broken = [i for i, count in enumerate(counts) if not np.isfinite(host[i, :, :count]).all()]
    if broken:
        raise NonFiniteCost(broken)
    ends, first_boxes = np.cumsum(sizes), np.cumsum([0, *counts])
    parts = [
        host[image, end - size : end, :count]
        for end, size in zip(ends, sizes, strict=True)
        for image, count in enumerate(counts)
    ]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # scipy releases the GIL
        solve = pool.map if max(counts) >= _THREADED_FROM else map
        solved = list(solve(linear_sum_assignment, parts))
    pairs = []
    for number, (query, box) in enumerate(solved):
        image = number % len(counts)
        pairs.append(np.stack([np.full_like(query, image), query, box + first_boxes[image]]))
    (joined,) = to_device([torch.from_numpy(np.concatenate(pairs, axis=1))], device)
    matched = [sum(min(size, count) for count in counts) for size in sizes]
    return [Match(*part) for part in joined.split(matched, dim=1)]


def cost_matrix(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    text_token_mask: Tensor,
    targets: Sequence[Target],
    cost: MatchingCost,
) -> Tensor:
    """Compute the cost of every query with every box of its image, in float32 even under autocast.

    Args:
        logits: (B, Q, T) float32; values outside the text mask are ignored.
        boxes_cxcywh: (B, Q, 4) float32, predicted, in [0, 1].
        text_token_mask: (B, T) bool.
        targets: one per image, with at least one box in the batch.

    Returns:
        (B, Q, M) float32, with the largest number M of boxes of an image. Columns past an image's
        own number of boxes have no meaning.
    """
    length = text_token_mask.shape[1]
    # zero padding costs a few columns and saves a loop of small kernels over images
    true_boxes = pad_sequence([target.boxes_cxcywh.float() for target in targets], batch_first=True)
    maps = [(target.positive_map[:, :length] > 0).float() for target in targets]
    positive = pad_sequence(maps, batch_first=True)
    with torch.autocast(logits.device.type, enabled=False):
        classes = _focal_cost(logits, text_token_mask, positive, cost)
        if logits.device.type == "cpu":
            distance = torch.cdist(boxes_cxcywh, true_boxes, p=1)
        else:  # cdist would start a block of threads for each pair
            distance = (boxes_cxcywh[:, :, None] - true_boxes[:, None]).abs().sum(-1)
        giou = pairwise_giou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(true_boxes))
        return cost.cls * classes + cost.bbox * distance - cost.giou * giou


def _focal_cost(logits: Tensor, text_token_mask: Tensor, positive: Tensor, cost: MatchingCost) -> Tensor:
    """Sum the focal cost of (B, Q, T) logits and (B, M, T) maps over valid tokens: (B, Q, M)."""
    invalid = ~text_token_mask.unsqueeze(1)
    p = logits.sigmoid()
    if_positive = cost.alpha * (1 - p) ** cost.gamma * -(p + _LOG_EPS).log()
    if_negative = (1 - cost.alpha) * p**cost.gamma * -(1 - p + _LOG_EPS).log()
    if_positive, if_negative = (x.masked_fill(invalid, 0) for x in (if_positive, if_negative))
    return if_positive @ positive.mT + if_negative @ (1 - positive).mT


@torch.no_grad()
def on_labeled_objects(head: Head, matched: Match, true_boxes: Tensor, counts: Sequence[int]) -> Tensor:
    """Return (B, Q) bool, True for queries that match a box or whose box overlaps with one."""
    boxes, labeled = cxcywh_to_xyxy(head.boxes_cxcywh.float()), cxcywh_to_xyxy(true_boxes)
    image = torch.repeat_interleave(torch.tensor(counts)).to(boxes.device)  # (N,)
    iou = pairwise_iou(boxes[image], labeled.unsqueeze(1)).squeeze(2)  # (N, Q)
    box, query = (iou >= _SAME_OBJECT_IOU).nonzero(as_tuple=True)
    known = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    known[image[box], query] = True
    known[matched.image, matched.query] = True
    return known
