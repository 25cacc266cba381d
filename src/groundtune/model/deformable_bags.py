"""Deformable attention on a CPU: all samples of a query and head are one bag of `embedding_bag`.

A sample is a sum of four weighted rows of the value table, so `embedding_bag` can write only the
sum. The backward pass recomputes rows and weights, and scatters by a second, transposed
`embedding_bag`.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Shapes = list[tuple[int, int]]  # (h, w) of each level


def sample_bags(value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Do the same as `sample_levels` with one bag of value rows for each query and head."""
    batch, queries, heads = locations.shape[:3]
    if not batch * queries:
        return value.new_zeros(batch, queries, heads * value.shape[-1])
    levels = value.split([h * w for h, w in level_shapes], dim=1)
    maps = [level.unflatten(1, shape) for level, shape in zip(levels, level_shapes, strict=True)]
    # A frame of zeros makes the rows of all four corners valid; points outside are moved onto it.
    framed = [F.pad(x, (0, 0, 0, 0, 1, 1, 1, 1)).flatten(1, 2) for x in maps]
    return _Bags.apply(torch.cat(framed, 1), level_shapes, locations, weights).view(batch, queries, -1)


class _Bags(torch.autograd.Function):
    """`embedding_bag` whose rows and weights come from locations, with gradients for all three."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.level_shapes = level_shapes
        _, rows, shares = _corners(value.shape, level_shapes, locations, weights)
        return _sum_bags(rows, value, shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        with torch.enable_grad():
            locations, weights = locations.detach().requires_grad_(), weights.detach().requires_grad_()
            first, rows, shares = _corners(value.shape, ctx.level_shapes, locations, weights)
            samples = _sum_bags(rows, value, shares)
        of_locations, of_weights = torch.autograd.grad(samples, (locations, weights), gradient)
        if not ctx.needs_input_grad[0]:
            return None, None, of_locations, of_weights
        of_value = _scatter(gradient, first, shares.detach(), value.shape, ctx.level_shapes)
        return of_value, None, of_locations, of_weights


def _sum_bags(rows: Tensor, value: Tensor, shares: Tensor) -> Tensor:
    return F.embedding_bag(rows, value.flatten(0, 2), mode="sum", per_sample_weights=shares.flatten(1))


def _scatter(
    gradient: Tensor, first: Tensor, shares: Tensor, shape: torch.Size, level_shapes: Shapes
) -> Tensor:
    """Return the gradient of the framed values. One sort serves the four corners."""
    batch, positions, heads, width = shape
    ordered, order = first.flatten().sort()
    rows = torch.arange(batch * positions * heads, dtype=first.dtype)
    starts, bags = torch.searchsorted(ordered, rows, out_int32=True), (order // first.shape[1]).int()
    shares = shares.flatten(0, 1).index_select(0, order).t().contiguous()  # (4, B·Q·heads·L·P)
    of_value = gradient.new_zeros(batch, positions * heads, width)
    for corner, share in enumerate(shares):
        sums = F.embedding_bag(bags, gradient, starts, mode="sum", per_sample_weights=share).view_as(of_value)
        end = 0
        for h, w in level_shapes:
            start, end = end, end + (h + 2) * (w + 2) * heads
            step = _steps(w)[corner] * heads
            of_value[:, start + step : end] += sums[:, start : end - step]
    return of_value.view(shape)


def _corners(
    shape: torch.Size, level_shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the upper left row of each point, the rows of its four corners, and their weights.

    Shapes, with N = B·Q·heads: (N, L·P), (N, L·P·4), and (N, L·P, 4), bilinear times the point's.
    """
    points = locations.shape[-2]
    h, w = _per_point(level_shapes, points, locations.dtype)
    x, y = locations.flatten(0, 2).flatten(1, 2).unbind(-1)
    # in cells of their level, -1 to w or h; an integer is a cell's center
    x, y = (x * w - 0.5).clamp(min=-1).minimum(w), (y * h - 0.5).clamp(min=-1).minimum(h)
    first, steps = _rows(shape, level_shapes, points, x.detach(), y.detach())
    weights = weights.flatten(3).flatten(0, 2)
    right = x - x.detach().floor().minimum(w - 1)
    bottom = y - y.detach().floor().minimum(h - 1)
    lower = bottom * weights
    upper = weights - lower
    lower_right, upper_right = lower * right, upper * right
    shares = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], -1)
    return first, (first[..., None] + steps).flatten(1), shares


def _rows(
    shape: torch.Size, level_shapes: Shapes, points: int, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each point's upper left row in the framed table, and the steps to its corners.

    Shapes: (B·Q·heads, L·P) int32 in a table of B·S·heads rows, and (L·P, 4).
    """
    batch, positions, heads, _ = shape
    starts = [0, *itertools.accumulate((h + 2) * (w + 2) for h, w in level_shapes[:-1])]
    h, w = _per_point(level_shapes, points, torch.int32)
    # clamped as integers too: an infinite coordinate must not become a row outside of the table
    column = x.floor().int().add_(1).clamp_(min=0).minimum(w)
    line = y.floor().int().add_(1).clamp_(min=0).minimum(h)
    start = torch.tensor(starts, dtype=torch.int32).repeat_interleave(points)
    first = line.mul_(w + 2).add_(column).add_(start)
    first = first.view(batch, -1, heads, first.shape[-1])
    first += torch.arange(batch, dtype=torch.int32)[:, None, None, None] * positions
    first = first.mul_(heads).add_(torch.arange(heads, dtype=torch.int32)[:, None])
    steps = torch.tensor([_steps(w) for _, w in level_shapes], dtype=torch.int32).repeat_interleave(points, 0)
    return first.flatten(0, 2), steps * heads


def _steps(w: int) -> tuple[int, int, int, int]:
    """Return the steps from the upper left of a point's four cells to each, in w + 2 columns."""
    return 0, 1, w + 2, w + 3


def _per_point(level_shapes: Shapes, points: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return h and w of each point's level, (L·P): one long axis, which is fast."""
    h, w = torch.tensor(level_shapes, dtype=dtype).repeat_interleave(points, 0).unbind(1)
    return h, w
