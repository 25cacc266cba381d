"""Multi-scale deformable attention (Zhu et al., 2021): a query reads a few points of every level.

Reference: MMDetection `MultiScaleDeformableAttention`. The weighted samples at fractional
positions are computed in three equivalent forms:

- `sample_levels` runs on `grid_sample`, as MMDetection's `multi_scale_deformable_attn_pytorch`.
  Tests compare the others with it, exporters trace it, and a GPU runs it.
- `sample_bags` is the default on a CPU. A sample is a sum of four weighted rows of the value table,
  so all samples of a query and head are one bag of `embedding_bag`, which writes only the sum. The
  backward pass recomputes rows and weights, and scatters by a second, transposed `embedding_bag`.
- `gather_levels` reads the four corners by index, which `torch.compile` makes one loop of. This
  pays where many steps share few image sizes.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from groundtune.model.attention import at_least_float32, sides_wh

Shapes = list[tuple[int, int]]  # (h, w) of each level
Sampling = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]  # (value, shapes, locations, weights) → samples
_RECOMPUTE_FROM = 4000  # queries; `sample_by_device` then recomputes samples to save memory


class DeformableAttention(nn.Module):
    """Attention to `num_points` learned points per head and level around a reference."""

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sample: Sampling = sample_by_device
        self.sampling_offsets = nn.Linear(d_model, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(d_model, num_heads * num_levels * num_points)
        self.value_proj, self.output_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Start with points on one ray per head, 1 … P cells away, and equal weights."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2.0 * math.pi / self.num_heads)
        rays = torch.stack((angles.cos(), angles.sin()), -1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)[:, None]
        bias = (rays[:, None, None] * steps).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        level_shapes: Shapes,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Attend: (B, Q, D) → (B, Q, D).

        Args:
            query: (B, Q, D), position encoding added.
            references: (B, Q, L, 2) points or (B, Q, L, 4) boxes cxcywh, on each level's canvas.
            memory: (B, S, D), the levels one after another.
            padding_mask: (B, S) bool, True = padding, which counts as 0; None if nothing is padded.
        """
        value = self.value_proj(memory)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))
        shape = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, shape[1:])
        points = references[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        if references.shape[-1] == 2:
            cells_wh = torch.stack([sides_wh(h, w, offsets) for h, w in level_shapes])
            locations = points + offsets / cells_wh[:, None]
        else:
            locations = points[..., :2] + offsets * (points[..., 2:] * (0.5 / self.num_points))
        # Sample in float32: in the bfloat16 of autocast a coordinate would lose its cell.
        return self.output_proj(self.sample(at_least_float32(value), level_shapes, locations, weights))


def use_sampling(network: nn.Module, sample: Sampling) -> None:
    """Choose the form by which all deformable attentions of a network sample."""
    for module in network.modules():
        if isinstance(module, DeformableAttention):
            module.sample = sample


def compile_sampling(network: nn.Module) -> None:
    """Make all deformable attentions of a network sample by a compiled `gather_levels`.

    Each new image size compiles for half a minute; on a CPU this needs a C++ compiler.
    """
    use_sampling(network, torch.compile(gather_levels, dynamic=False))


def sample_by_device(value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample by the fastest form in our benchmarks: bags on a CPU, elsewhere `sample_levels`."""
    if value.device.type == "cpu":
        return sample_bags(value, level_shapes, locations, weights)
    inputs = value, level_shapes, locations, weights
    if torch.is_grad_enabled() and locations.shape[1] >= _RECOMPUTE_FROM:
        recomputed: Tensor = checkpoint(sample_levels, *inputs, use_reentrant=False)
        return recomputed
    return sample_levels(*inputs)


def sample_levels(value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum the weighted bilinear samples of all levels, (B, Q, D).

    Args:
        value: (B, S, heads, D/heads) features, the levels one after another.
        level_shapes: (h, w) of each level; their areas add up to S.
        locations: (B, Q, heads, L, P, 2) xy, [0, 1] is the canvas; features outside of it are 0.
        weights: (B, Q, heads, L, P), with a sum of 1 over L and P.
    """
    heads, width = value.shape[2:]
    # Queries go last: every elementwise operation then runs along a long contiguous axis.
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2).contiguous()  # (L, B·heads, P, Q, 2)
    weights = weights.permute(3, 0, 2, 4, 1).flatten(1, 2).contiguous()  # (L, B·heads, P, Q)
    levels = value.split([h * w for h, w in level_shapes], dim=1)
    output = value.new_zeros(())
    for (h, w), level_value, grid, weight in zip(level_shapes, levels, grids, weights, strict=True):
        maps = level_value.permute(0, 2, 3, 1).reshape(-1, width, h, w)  # the tracer fixes a product
        samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        output = output + (samples * weight[:, None]).sum(2)  # (B·heads, D/heads, Q)
    return output.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)


def gather_levels(value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Do the same as `sample_levels` by reading the four corners around every point."""
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    sizes_wh = locations.new_tensor([[w, h] for h, w in level_shapes])[:, None]  # (L, 1, 2)
    starts = [0, *itertools.accumulate(h * w for h, w in level_shapes[:-1])]
    level_start = torch.tensor(starts, device=value.device)[:, None]  # (L, 1)
    points = locations * sizes_wh - 0.5
    corner = points.floor()
    share = points - corner
    values = value.transpose(1, 2)  # (B, heads, S, D/heads)
    output = value.new_zeros(batch, heads, queries, width)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        at = corner + corner.new_tensor([dx, dy])
        inside = ((at >= 0) & (at < sizes_wh)).all(-1)
        x_share, y_share = share.unbind(-1)
        weight = weights * (x_share if dx else 1 - x_share) * (y_share if dy else 1 - y_share) * inside
        at = at.clamp(min=0).minimum(sizes_wh - 1).long()
        index = level_start + at[..., 1] * sizes_wh[..., 0].long() + at[..., 0]  # (B, Q, heads, L, P)
        index = index.transpose(1, 2).flatten(2)[..., None].expand(-1, -1, -1, width)
        samples = values.gather(2, index).unflatten(2, (queries, -1))  # (B, heads, Q, L·P, D/heads)
        output = output + (samples * weight.transpose(1, 2).flatten(3)[..., None]).sum(3)
    return output.transpose(1, 2).flatten(2)


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
