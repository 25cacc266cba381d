"""Compute recall and set metrics of phrases, and the retention of earlier numbers.

*Recall* follows Flickr30k Entities' "any box" protocol (Plummer et al. 2015; MDETR's `ANY-BOX`): a
phrase is found if one of its k best boxes has an IoU of .5 or more with any of its boxes. Phrases
without a box do not count. On RefCOCO, RefCOCO+ and RefCOCOg, where a phrase has one box, this is
the papers' P@1, P@5, P@10.

*Sets* (GREC, He et al. 2023, for gRefCOCO): a phrase may have no box, one or several, and the
prediction is all boxes at or above a threshold, paired one to one, the largest IoU first.
Deviations: the reference pairs by GIoU, and its threshold is 0.7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from groundtune.boxes import pairwise_iou

RANKS = (1, 5, 10)
THRESHOLD = 0.3  # confidence threshold of the set metrics
_MIN_IOU = 0.5
_ZERO = 0.0005  # printed as 0.000


@dataclass
class PhraseResult:
    """Detections of one phrase in one image."""

    found_xyxy: Tensor  # (K, 4) boxes, best first
    scores: Tensor  # (K,) in [0, 1], descending
    true_xyxy: np.ndarray  # (G, 4) boxes of the phrase, in the same frame


def grounding_metrics(results: Sequence[PhraseResult]) -> dict[str, float | None]:
    """Compute the metrics of phrases; a metric without phrases to count is None.

    Args:
        results: phrases of all images, each with its 10 best boxes and all at or above `THRESHOLD`.

    Returns:
        Of phrases with boxes "recall@1", "recall@5", "recall@10" and "T-acc" (something is
        detected); of those without "N-acc" (nothing is detected); of all "Pr@F1=1" (exactly the
        right boxes are detected).
    """
    first, detected, silent, exact = [], [], [], []
    for result in results:
        count, targets = int((result.scores >= THRESHOLD).sum()), len(result.true_xyxy)
        ious = pairwise_iou(result.found_xyxy.float(), torch.as_tensor(result.true_xyxy, dtype=torch.float32))
        exact.append(count == targets == _count_pairs(ious[:count]))
        if targets:
            hits = (ious[: max(RANKS)] >= _MIN_IOU).any(1).nonzero()
            first.append(float(hits[0]) if len(hits) else float("inf"))
            detected.append(count > 0)
        else:
            silent.append(count == 0)
    recall = {f"recall@{k}": _mean([rank < k for rank in first]) for k in RANKS}
    return recall | {"T-acc": _mean(detected), "N-acc": _mean(silent), "Pr@F1=1": _mean(exact)}


def _count_pairs(ious: Tensor) -> int:
    """Count the one-to-one pairs of an IoU matrix (K, G), the largest IoU first."""
    ious = ious.clone()
    count = 0
    while ious.numel() and ious.max() >= _MIN_IOU:
        row, column = divmod(int(ious.argmax()), ious.shape[1])
        ious[row], ious[:, column] = 0, 0
        count += 1
    return count


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


class Retention(NamedTuple):
    """What fine-tuning left of a model's number on a data set that it was not trained on."""

    metric: str  # AP, or recall@1 of captions
    before: float | None
    after: float | None
    share: float | None  # after / before, above 1 if the model improved; None: nothing to retain


def retention(numbers: Mapping[str, Mapping[str, float | None]]) -> Retention:
    """Return the retention of a data set from its metrics "before" and "after" training."""
    name = "AP" if "AP" in numbers["before"] else "recall@1"
    before, after = numbers["before"][name], numbers["after"][name]
    if before is None or after is None or before < _ZERO:
        return Retention(name, before, after, None)
    return Retention(name, before, after, after / before)
