"""The folded fusion against the plain form that the reference writes out."""

import pytest
import torch
from torch import Tensor

from groundtune.model.fusion import BiAttention


def plain(module: BiAttention, vision: Tensor, text: Tensor, padding: Tensor | None, real: Tensor) -> tuple:
    """Every projection of every position, one head after another."""
    queries, keys = module.vision_proj(vision) * module.scale, module.text_proj(text)
    vision_values, text_values = module.values_vision_proj(vision), module.values_text_proj(text)
    width = queries.shape[-1] // module.num_heads
    to_vision, to_text = [], []
    for head in range(module.num_heads):
        own = slice(head * width, (head + 1) * width)
        scores = queries[..., own] @ keys[..., own].mT
        weights = scores.masked_fill(~real[:, None], float("-inf")).softmax(-1)
        to_vision.append(weights @ text_values[..., own])
        back = scores.mT
        if padding is not None:
            back = back.masked_fill(padding[:, None], float("-inf"))
        to_text.append(back.softmax(-1) @ vision_values[..., own])
    return module.out_vision_proj(torch.cat(to_vision, -1)), module.out_text_proj(torch.cat(to_text, -1))


@pytest.mark.parametrize("padded", [False, True])
def test_folding_gives_the_numbers_and_the_gradients_of_the_plain_form(padded: bool) -> None:
    torch.manual_seed(0)
    module = BiAttention(16, 24, 4).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases too
    vision, text = torch.randn(2, 30, 16, dtype=torch.double), torch.randn(2, 5, 16, dtype=torch.double)
    vision.requires_grad_(), text.requires_grad_()
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    padding = torch.arange(30) >= torch.tensor([[30], [21]]) if padded else None
    wanted = [vision, text, *module.parameters()]
    results = []
    for form in (lambda *x: plain(module, *x), module):
        outputs = form(vision, text, padding, real)
        weight = [
            torch.linspace(-1, 1, output.numel(), dtype=torch.double).view_as(output) for output in outputs
        ]
        loss = sum((output * w).sum() for output, w in zip(outputs, weight, strict=True))
        # the key bias shifts all scores of a row alike, and its own gradient through the text side
        # is 0
        results.append((*outputs, *torch.autograd.grad(loss, wanted, allow_unused=True)))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padded", [False, True])
def test_scores_past_the_range_of_float16_give_the_numbers_of_float64(padded: bool) -> None:
    """Two scores of 70,000 and 80,000 are both infinite in float16, and equal once they are clamped."""
    torch.manual_seed(0)
    module = BiAttention(16, 24, 4)
    with torch.no_grad():
        for projection in (module.vision_proj, module.text_proj):
            projection.weight.mul_(500)
    vision, text = torch.randn(2, 30, 16), torch.randn(2, 5, 16)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    padding = torch.arange(30) >= torch.tensor([[30], [21]]) if padded else None
    with torch.autocast("cpu", torch.float16):
        ours = module(vision, text, padding, real)
    found = torch.autograd.grad(sum(output.sum() for output in ours), list(module.parameters()))
    module.double()
    scores = (module.vision_proj(vision.double()) * module.scale) @ module.text_proj(text.double()).mT
    assert scores.abs().max() > torch.finfo(torch.float16).max
    theirs = plain(module, vision.double(), text.double(), padding, real)
    expected = torch.autograd.grad(sum(output.sum() for output in theirs), list(module.parameters()))
    for own, reference in zip((*ours, *found), (*theirs, *expected), strict=True):
        scale = reference.abs().max().item() + 1e-6
        torch.testing.assert_close(own.double(), reference, rtol=0, atol=1e-3 * scale)
