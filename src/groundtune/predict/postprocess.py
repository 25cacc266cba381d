"""From the network's token logits to scored boxes in pixels (semantics 23 and 24).

A query's score for a class is the mean of the sigmoid over the class's tokens. There is no non-maximum suppression: the 300
best of all (query, class) pairs of an image are its detections. Reference: MMDetection's `convert_grounding_to_cls_scores`
and `_predict_by_feat_single`, with three deviations: the number of pairs may be below 300 (the reference's topk crashes);
a class without a token scores 0 (the reference's mean of nothing is NaN, which topk ranks first); and the classes of
several prompts compete in ONE ranking per image (the reference concatenates the chunks unranked).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from groundtune.boxes import cxcywh_to_xyxy

MAX_DETECTIONS = 300


@dataclass
class ImageDetections:
    """The K detections of one image, best first.

    Attributes:
        boxes_xyxy: (K, 4) float32 in pixels of the original image, inside it.
        scores: (K,) float32 in [0, 1], falling.
        class_indices: (K,) int64 index into the list of class names that was asked for.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    class_indices: Tensor

    def cpu(self) -> "ImageDetections":
        return ImageDetections(self.boxes_xyxy.cpu(), self.scores.cpu(), self.class_indices.cpu())

    def of(self, index: Tensor) -> "ImageDetections":
        """Those that a mask or an index chooses."""
        return ImageDetections(self.boxes_xyxy[index], self.scores[index], self.class_indices[index])


def class_scores(pred_logits: Tensor, phrase_map: Tensor, how: Literal["mean", "max"] = "mean") -> Tensor:
    """Scores of each query for each class from its scores for the classes' tokens.

    Args:
        pred_logits: (..., Q, 256) logits; -inf outside the prompt's tokens counts as probability 0.
        phrase_map: (C, 256) bool, True on the tokens of each class.
        how: "mean" over the class's tokens, as the reference, or their "max".

    Returns:
        (..., Q, C) float32 in [0, 1]; 0 for a class without a token.
    """
    used = (
        int(phrase_map.any(0).nonzero().max()) + 1 if phrase_map.any() else 0
    )  # the columns after it are padding
    probabilities = pred_logits[..., :used].float().sigmoid()
    phrase_map = phrase_map[:, :used].to(probabilities.device)
    if how == "mean":
        weights = phrase_map / phrase_map.sum(1, keepdim=True).clamp(min=1)
        with torch.autocast(probabilities.device.type, enabled=False):
            return probabilities @ weights.T
    columns = [
        probabilities[..., row].amax(-1) if row.any() else probabilities.new_zeros(()) for row in phrase_map
    ]
    shape = pred_logits.shape[:-1]
    return (
        torch.stack([column.expand(shape) for column in columns], -1)
        if columns
        else probabilities.new_zeros(*shape, 0)
    )


def top_detections(
    scores: Sequence[Tensor],
    boxes_cxcywh: Sequence[Tensor],
    class_indices: Sequence[Sequence[int]],
    size_hw: tuple[int, int],
    limit: int = MAX_DETECTIONS,
) -> ImageDetections:
    """The best (query, class) pairs of one image over all its prompts.

    Args:
        scores: per prompt (Q, C_p), the classes that stand in that prompt.
        boxes_cxcywh: per prompt (Q, 4), relative to the image (any size of it: they are shares).
        class_indices: per prompt the C_p indices of its classes.
        size_hw: height and width of the original image in pixels.
        limit: how many pairs to keep at most; with fewer pairs all are kept.
    """
    flat = torch.cat([part.flatten() for part in scores])
    queries = torch.cat([boxes.float() for boxes in boxes_cxcywh])
    rows, classes, first = [], [], 0
    for part, indices in zip(scores, class_indices, strict=True):
        row = torch.arange(first, first + len(part), device=flat.device)
        rows.append(row.repeat_interleave(len(indices)))
        classes.append(torch.tensor(list(indices), device=flat.device).repeat(len(part)))
        first += len(part)
    best, order = flat.topk(min(limit, len(flat)))
    height, width = size_hw
    boxes = cxcywh_to_xyxy(queries[torch.cat(rows)[order]]) * flat.new_tensor([width, height, width, height])
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    return ImageDetections(boxes, best, torch.cat(classes)[order])
