"""Query selection: the best positions of the encoder, from which the decoder starts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from groundtune.boxes import cxcywh_to_xyxy, pairwise_iou
from groundtune.contracts import LayerOutput
from groundtune.model.attention import at_least_float32

_CANDIDATES = 3  # positions per query, out of which distinct ones are chosen
_OVERLAPPED = 1000.0  # is subtracted from their logits


@dataclass
class Selection:
    """The Q best positions, from which the decoder starts."""

    queries: Tensor  # (B, Q, D) content
    boxes_cxcywh: Tensor  # (B, Q, 4) in [0, 1], detached
    output: LayerOutput  # the encoder's prediction, with gradient
    absent: Tensor | None  # (B, Q) bool, queries that no position fills; None if there are none
    terms: Tensor | None  # (B, Q, T, 2) evidence, if the network has towers that detect


def best_positions(
    scores: Tensor, count: int, max_iou: float, boxes_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Select positions by their scores (B, S).

    With a `max_iou` below 1, positions whose box overlaps a better one by more come last (distinct
    queries, Zhang et al. 2023; the suppression is one parallel step, as in YOLACT's fast NMS).

    Args:
        boxes_of: returns the boxes (B, K, 4) cxcywh at K positions (B, K).

    Returns:
        Scores and positions (B, Q) of the Q ≤ `count` best, and 1 where they are distinct, else 0.
    """
    if max_iou >= 1:
        best_scores, best = _topk(scores, count)
        return best_scores, best, torch.ones_like(best_scores)
    best_scores, best = _topk(scores, count * _CANDIDATES)
    with torch.no_grad():
        corners = cxcywh_to_xyxy(at_least_float32(boxes_of(best)))
        overlapped = (pairwise_iou(corners, corners) > max_iou).float().triu(1).amax(1)
        order = _topk(best_scores - overlapped * _OVERLAPPED, count)[1]
    return best_scores.gather(1, order), best.gather(1, order), 1 - overlapped.gather(1, order)


def _topk(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    limit: int | Tensor = min(count, scores.shape[1])
    if torch.jit.is_tracing():  # both branches
        limit = torch.as_tensor(scores.shape[1]).clamp(max=count)
    best = scores.topk(limit, dim=1)  # type: ignore[arg-type]
    return best.values, best.indices
