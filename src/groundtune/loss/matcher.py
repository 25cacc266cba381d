"""Bipartite matching of queries and boxes (DETR, section 3.1; Grounding DINO, section 3.5), for all heads at once.

A "head" is one set of predictions: a decoder layer or the encoder's proposals. The costs of all heads and images are
computed together on the device and copied to the host once; the assignment itself is scipy's.

Cost of a query and a box: `cls * sum over valid tokens of the focal cost + bbox * L1(cxcywh) - giou * GIoU`. The focal
cost counts every valid token: the box's own tokens ask for a high probability, all others for a low one, so that a
query which fires on everything is expensive.

Deviations from the reference (MMDetection `HungarianAssigner`): a cost that is not finite raises and names the image
(others set it to 0, which makes the broken row the cheapest one); GIoU's eps is in shares of the image (see `boxes`).
The 1e-12 inside the logarithms is MMDetection's: it bounds the cost of a token at 27.6, also where p rounds to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from groundtune.boxes import cxcywh_to_xyxy, pairwise_giou
from groundtune.errors import GroundtuneError

_LOG_EPS = 1e-12


class NonFiniteCost(GroundtuneError, FloatingPointError):
    """A matching cost is NaN or infinite; the predictions or targets of an image are broken.

    Attributes:
        image_index: The first such image's index in the batch.
        image_indices: All of them.
    """

    exit_code = 5

    def __init__(self, image_indices: Sequence[int]) -> None:
        self.image_index = image_indices[0]
        self.image_indices = tuple(image_indices)
        super().__init__(
            f"The matching cost is not finite for image {', '.join(map(str, image_indices))} of the batch: its "
            "predictions or its boxes hold NaN or infinite values."
        )


class Target(Protocol):
    """The part of a training target that the loss reads, for one image with N boxes (`data.loader.Target`).

    Attributes:
        boxes_cxcywh: (N, 4) float in [0, 1], relative to the resized, unpadded image.
        positive_map: (N, 256) bool, True on the tokens of the box's phrase in the image's own prompt.
        confidence: (N,) float in (0, 1], or None where all are 1.
    """

    boxes_cxcywh: Tensor
    positive_map: Tensor
    confidence: Tensor | None


@dataclass(frozen=True)
class MatchingCost:
    """Weights of the three costs, and the parameters of the focal cost."""

    cls: float = 2.0
    bbox: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


class Head(NamedTuple):
    """One set of predictions: logits (B, Q, 256 or T) with anything outside the text mask, boxes (B, Q, 4) cxcywh."""

    logits: Tensor
    boxes_cxcywh: Tensor


class Match(NamedTuple):
    """Matched pairs of one head, three long tensors (K,) on the device of the predictions.

    Attributes:
        image: Index of the image in the batch.
        query: Index of the query in its head.
        box: Index into the boxes of all images, concatenated.
    """

    image: Tensor
    query: Tensor
    box: Tensor


@torch.no_grad()
def match(
    heads: Sequence[Head], text_token_mask: Tensor, targets: Sequence[Target], cost: MatchingCost
) -> list[Match]:
    """Assign boxes to queries one-to-one, for each head and each image on its own.

    Args:
        heads: Predictions of the decoder layers and of the encoder. Numbers of queries may differ.
        text_token_mask: (B, T) bool, True = real token.
        targets: One per image. Images without boxes are left out; more boxes than queries leave boxes unmatched.
        cost: Weights.

    Returns:
        For each head its pairs, ordered by image. No boxes at all give empty pairs.

    Raises:
        NonFiniteCost: A cost is NaN or infinite. The error names the images.
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
    pairs: list[list[np.ndarray]] = [[] for _ in heads]
    first_box = 0
    for image, count in enumerate(counts):
        first_query = 0
        for head, size in enumerate(sizes):
            query, box = linear_sum_assignment(host[image, first_query : first_query + size, :count])
            pairs[head].append(np.stack([np.full_like(query, image), query, box + first_box]))
            first_query += size
        first_box += count
    ends = np.cumsum([sum(part.shape[1] for part in parts) for parts in pairs])
    together = torch.from_numpy(np.concatenate([part for parts in pairs for part in parts], axis=1)).to(
        device
    )
    return [Match(*part) for part in together.tensor_split(ends[:-1].tolist(), dim=1)]


def cost_matrix(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    text_token_mask: Tensor,
    targets: Sequence[Target],
    cost: MatchingCost,
) -> Tensor:
    """Compute the cost of every query with every box of its image, in float32 even under autocast.

    Args:
        logits: (B, Q, T) float32; values outside the text mask are not read.
        boxes_cxcywh: (B, Q, 4) float32, predicted, in [0, 1].
        text_token_mask: (B, T) bool.
        targets: One per image; at least one box in the batch, M is the most of one image.
        cost: Weights.

    Returns:
        (B, Q, M) float32. Columns past an image's own number of boxes mean nothing.
    """
    length = text_token_mask.shape[1]
    # padding target boxes with zeros costs a few columns and saves a loop of small kernels over images
    true_boxes = pad_sequence([target.boxes_cxcywh.float() for target in targets], batch_first=True)
    positive = pad_sequence(
        [(target.positive_map[:, :length] > 0).float() for target in targets], batch_first=True
    )
    with torch.autocast(logits.device.type, enabled=False):
        classes = _focal_cost(logits, text_token_mask, positive, cost)
        distance = torch.cdist(boxes_cxcywh, true_boxes, p=1)
        giou = pairwise_giou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(true_boxes))
        return cost.cls * classes + cost.bbox * distance - cost.giou * giou


def _focal_cost(logits: Tensor, text_token_mask: Tensor, positive: Tensor, cost: MatchingCost) -> Tensor:
    """Sum the focal cost over valid tokens: (B, Q, T) logits and (B, M, T) binary maps give (B, Q, M)."""
    valid = text_token_mask.unsqueeze(1)
    p = logits.sigmoid()
    if_positive = cost.alpha * (1 - p) ** cost.gamma * -(p + _LOG_EPS).log()
    if_negative = (1 - cost.alpha) * p**cost.gamma * -(1 - p + _LOG_EPS).log()
    if_positive = if_positive.masked_fill(~valid, 0)
    if_negative = if_negative.masked_fill(~valid, 0)
    return if_positive @ positive.mT + if_negative @ (1 - positive).mT
