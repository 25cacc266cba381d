"""Recall of phrases: is the object that a phrase names among the k boxes that score best for it?

The protocol is Flickr30k Entities' "any box" (Plummer et al. 2015; MDETR's `ANY-BOX`): a phrase is found when one of its k
best boxes has an IoU of .5 or more with any of its boxes. A phrase without a box is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from groundtune.boxes import pairwise_iou

RANKS = (1, 5, 10)
_ENOUGH = 0.5


@dataclass
class PhraseAnswer:
    """What was found for one phrase of one picture.

    Attributes:
        found_xyxy: (K, 4) boxes, best first.
        true_xyxy: (G, 4) boxes of the phrase, in the same frame.
    """

    found_xyxy: Tensor
    true_xyxy: np.ndarray


def grounding_metrics(answers: Sequence[PhraseAnswer]) -> dict[str, float | None]:
    """Counts the phrases that are found.

    Args:
        answers: of all pictures together.

    Returns:
        "recall@1", "recall@5" and "recall@10", shares of the phrases that have a box; None where no phrase has one.
    """
    first = [rank for answer in answers if len(answer.true_xyxy) for rank in [_first_hit(answer)]]
    if not first:
        return {f"recall@{k}": None for k in RANKS}
    return {f"recall@{k}": sum(rank < k for rank in first) / len(first) for k in RANKS}


def _first_hit(answer: PhraseAnswer) -> float:
    """Place of the first box that is right, from 0; infinite where none is."""
    truth = torch.as_tensor(answer.true_xyxy, dtype=torch.float32)
    hits = (pairwise_iou(answer.found_xyxy[: max(RANKS)].float(), truth) >= _ENOUGH).any(1).nonzero()
    return float(hits[0]) if len(hits) else float("inf")
