"""The focal loss by hand."""

import math

import pytest
import torch

from groundtune.loss.criterion import sigmoid_focal_loss


def test_focal_loss_by_hand():
    p = 0.9
    logit = math.log(p / (1 - p))
    loss = sigmoid_focal_loss(torch.tensor([logit, logit]), torch.tensor([1.0, 0.0]))
    assert loss.tolist() == pytest.approx(
        [0.25 * 0.1**2 * -math.log(0.9), 0.75 * 0.9**2 * -math.log(0.1)], rel=1e-5
    )


def test_focal_loss_is_cross_entropy_without_focus_and_plain_at_infinity():
    logits, targets = torch.randn(50), (torch.rand(50) < 0.5).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(2 * sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=0), expected)
    # no repair inside the loss: filtering is the criterion's duty, and a NaN here shows that it was
    # forgotten
    assert sigmoid_focal_loss(torch.tensor([-math.inf]), torch.tensor([0.0])).isnan()
    assert sigmoid_focal_loss(torch.zeros(0), torch.zeros(0)).shape == (0,)


def test_soft_targets_by_hand_and_no_pull_where_the_model_agrees():
    """Quality focal loss: |t - p|^gamma times the cross-entropy, here with the weight between those
    of 0 and 1.
    """
    p, t = 0.7, 0.4
    logit = torch.tensor(math.log(p / (1 - p)), requires_grad=True)
    loss = sigmoid_focal_loss(logit, torch.tensor(t))
    entropy = -(t * math.log(p) + (1 - t) * math.log(1 - p))
    assert loss.item() == pytest.approx((0.25 * t + 0.75 * (1 - t)) * 0.3**2 * entropy, rel=1e-5)
    loss.backward()
    assert logit.grad > 0
    agreed = torch.tensor(math.log(t / (1 - t)), requires_grad=True)
    sigmoid_focal_loss(agreed, torch.tensor(t)).backward()
    assert abs(agreed.grad.item()) < 1e-7
