"""Recall of phrases, and whether exactly the objects that a phrase names are found.

*Recall*: is the object that a phrase names among the k boxes that score best for it? The protocol is Flickr30k Entities' "any
box" (Plummer et al. 2015; MDETR's `ANY-BOX`): a phrase is found when one of its k best boxes has an IoU of .5 or more with
any of its boxes. A phrase without a box is not counted. On RefCOCO, RefCOCO+ and RefCOCOg, where a phrase has one box, this
is the precision@k (P@1, P@5, P@10) of the papers.

*Sets* (GREC, He et al. 2023, for gRefCOCO): a phrase may have no box, one or several, and the answer is all boxes at or above
a threshold. Answer and boxes are paired one to one, the largest IoU first. A phrase without a box counts here as one that
names nothing in the image, which is not so in data that only leave boxes out. Deviations: the reference pairs by GIoU; its
threshold is that of its models, 0.7.

Retention: what fine-tuning left of a model's numbers on data sets that it was not trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from groundtune.boxes import pairwise_iou

RANKS = (1, 5, 10)
THRESHOLD = 0.3  # the default of `predict`
_ENOUGH = 0.5


@dataclass
class PhraseResult:
    """What was found for one phrase of one image.

    Attributes:
        found_xyxy: (K, 4) boxes, best first.
        scores: (K,) in [0, 1], falling.
        true_xyxy: (G, 4) boxes of the phrase, in the same frame.
    """

    found_xyxy: Tensor
    scores: Tensor
    true_xyxy: np.ndarray


def grounding_metrics(answers: Sequence[PhraseResult]) -> dict[str, float | None]:
    """Counts the phrases that are found.

    Args:
        answers: of all images together, each with its 10 best boxes and all at or above `THRESHOLD`.

    Returns:
        "recall@1", "recall@5", "recall@10" and "T-acc" (something is answered): shares of the phrases that have a box.
        "N-acc" (nothing is answered): share of those without. "Pr@F1=1": share of all phrases whose answer is right, none
        too many and none missed. None where there is nothing to count.
    """
    first, answered, silent, exact = [], [], [], []
    for answer in answers:
        count, targets = int((answer.scores >= THRESHOLD).sum()), len(answer.true_xyxy)
        ious = pairwise_iou(answer.found_xyxy.float(), torch.as_tensor(answer.true_xyxy, dtype=torch.float32))
        exact.append(count == targets == _paired(ious[:count]))
        if targets:
            hits = (ious[: max(RANKS)] >= _ENOUGH).any(1).nonzero()
            first.append(float(hits[0]) if len(hits) else float("inf"))
            answered.append(count > 0)
        else:
            silent.append(count == 0)
    recall = {f"recall@{k}": _share([rank < k for rank in first]) for k in RANKS}
    return recall | {"T-acc": _share(answered), "N-acc": _share(silent), "Pr@F1=1": _share(exact)}


def _paired(ious: Tensor) -> int:
    """How many pairs of IoU (K, G) there are, one to one, the largest first."""
    ious = ious.clone()
    count = 0
    while ious.numel() and ious.max() >= _ENOUGH:
        row, column = divmod(int(ious.argmax()), ious.shape[1])
        ious[row], ious[:, column] = 0, 0
        count += 1
    return count


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


_NOTHING = 0.0005  # reads 0.000


class Retention(NamedTuple):
    """What fine-tuning left of the metric of another data set."""

    metric: str
    before: float | None
    after: float | None
    share: float | None


def retention(numbers: Mapping[str, Mapping[str, float | None]]) -> Retention:
    """The number that a retained data set is judged by, AP or recall@1 of captions.

    Args:
        numbers: its metrics "before" and "after" training.

    Returns:
        The number's name, its values before and after, and the share that was kept, above 1 where the model became better;
        None where there was nothing to keep.
    """
    name = "AP" if "AP" in numbers["before"] else "recall@1"
    before, after = numbers["before"][name], numbers["after"][name]
    if before is None or after is None or before < _NOTHING:
        return Retention(name, before, after, None)
    return Retention(name, before, after, after / before)
