"""Turn token logits into scored boxes in pixels (docs/semantics.md, rules 23 and 24).

A query's score for a class is the mean probability of the class's tokens. The 300 best (query,
class) pairs of an image are its detections. `Selection` applies non-maximum suppression (NMS) and a
limit to them, if wanted; the reference does neither.

Reference: MMDetection, `convert_grounding_to_cls_scores` and `_predict_by_feat_single`. Deviations:
fewer than 300 pairs are allowed; a class without tokens scores 0 instead of NaN; classes of several
prompts compete in one ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from groundtune.boxes import cxcywh_to_xyxy, pairwise_iou
from groundtune.device import to_device

MAX_DETECTIONS = 300
ScoreReduction = Literal["mean", "max"]


@dataclass
class ImageDetections:
    """K detections of one image, best first.

    Attributes:
        boxes_xyxy: (K, 4) float32, in pixels of the original image and inside it.
        scores: (K,) float32 in [0, 1], descending.
        class_indices: (K,) int64, index into the list of class names.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    class_indices: Tensor

    def select(self, index: Tensor | slice) -> "ImageDetections":
        """Return the detections that a mask, an index tensor or a slice selects."""
        return ImageDetections(self.boxes_xyxy[index], self.scores[index], self.class_indices[index])


@dataclass(frozen=True)
class Selection:
    """Which detections of an image are kept, after the confidence thresholds.

    Attributes:
        nms: IoU above which the lower score of two detections is dropped; None: no NMS.
        agnostic_nms: whether NMS compares detections of different classes too.
        max_detections: maximum number of detections; None: all.
    """

    nms: float | None
    agnostic_nms: bool
    max_detections: int | None

    def apply(self, detections: ImageDetections) -> ImageDetections:
        """Return the detections of an image to keep, best first as before."""
        if self.nms is None:
            return detections.select(slice(self.max_detections))
        boxes, classes = detections.boxes_xyxy, detections.class_indices
        kept = torch.ones(len(boxes), dtype=torch.bool)
        for index in range(len(boxes)):
            if kept[index]:
                same = pairwise_iou(boxes[index : index + 1], boxes[index + 1 :])[0] > self.nms
                if not self.agnostic_nms:
                    same &= classes[index + 1 :] == classes[index]
                kept[index + 1 :] &= ~same
        return detections.select(kept.nonzero().flatten()[: self.max_detections])


def class_scores(pred_logits: Tensor, phrase_map: Tensor, score_reduction: ScoreReduction = "mean") -> Tensor:
    """Reduce token probabilities to class scores.

    Args:
        pred_logits: (..., Q, 256); -inf outside the prompt counts as probability 0.
        phrase_map: (C, 256) bool, the tokens of each class.
        score_reduction: over the tokens of a class; the reference uses "mean".

    Returns:
        (..., Q, C) float32 in [0, 1]; 0 for a class without tokens.
    """
    used = int(phrase_map.any(0).nonzero().max()) + 1 if phrase_map.any() else 0  # then padding
    probabilities = pred_logits[..., :used].float().sigmoid()
    if score_reduction == "mean":
        (phrase_map,) = to_device([phrase_map[:, :used]], probabilities.device)
        weights = phrase_map / phrase_map.sum(1, keepdim=True).clamp(min=1)
        with torch.autocast(probabilities.device.type, enabled=False):
            return probabilities @ weights.T
    scores = probabilities.new_zeros(*pred_logits.shape[:-1], len(phrase_map))
    for index, tokens in enumerate(phrase_map):
        if tokens.any():  # no index by a mask: a GPU would have to count it first
            columns = [probabilities[..., token] for token in tokens.nonzero().flatten().tolist()]
            scores[..., index] = torch.stack(columns).amax(0)
    return scores


def top_detections(
    scores: Sequence[Tensor],
    boxes_cxcywh: Sequence[Tensor],
    class_indices: Sequence[Sequence[int]],
    size_hw: tuple[int, int],
    limit: int | None = None,
) -> ImageDetections:
    """Select the best (query, class) pairs of one image over all its prompts.

    Args:
        scores: per prompt (Q, C_p).
        boxes_cxcywh: per prompt (Q, 4), relative to the image.
        class_indices: per prompt the indices of its C_p classes.
        size_hw: size of the original image in pixels.
        limit: maximum number of pairs; None: 300.
    """
    pair_scores = torch.cat([part.flatten() for part in scores])
    height, width = size_hw
    size = torch.tensor([width, height, width, height], dtype=pair_scores.dtype)
    indices_of = [torch.tensor(list(indices), dtype=torch.long) for indices in class_indices]
    size, *indices_of = to_device([size, *indices_of], pair_scores.device)
    queries, classes, first = [], [], 0
    for part, indices in zip(scores, indices_of, strict=True):
        rows = torch.arange(first, first + len(part), device=part.device)
        queries.append(rows.repeat_interleave(len(indices)))
        classes.append(indices.repeat(len(part)))
        first += len(part)
    best, order = pair_scores.topk(min(limit or MAX_DETECTIONS, len(pair_scores)))
    boxes = torch.cat([part.float() for part in boxes_cxcywh])[torch.cat(queries)[order]]
    boxes = (cxcywh_to_xyxy(boxes) * size).clamp(min=0).minimum(size)
    return ImageDetections(boxes, best, torch.cat(classes)[order])
