"""Sigmoid focal loss (Lin et al. 2017), plain, and its form for soft targets (quality focal loss, Li et al. 2020).

The two are one formula: |target - p| is 1 - p for a target of 1 and p for a target of 0.

There is no special case for infinite logits, no clamp and no `nan_to_num`: the criterion selects the valid positions
before it calls this. BCE(-inf, 0) is NaN, and NaN x 0 is NaN, so masking afterwards would be too late.
"""

import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Compute the focal loss of each element.

    Args:
        logits: Any shape, float, finite.
        targets: Same shape and dtype, in [0, 1].
        alpha: Weight of positive elements; negative ones weigh 1 - alpha, soft ones in between.
        gamma: How strongly elements that are right already are played down.

    Returns:
        The loss of every element, same shape, not reduced. No elements give an empty tensor.
    """
    probability = logits.sigmoid()
    miss = (targets - probability).abs()
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weight * miss**gamma
