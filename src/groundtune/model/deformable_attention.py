"""Multi-scale deformable attention (Zhu et al., 2021).

Each query looks at a few learned points of every feature level instead of at all positions. Reference: MMDetection
`MultiScaleDeformableAttention` with `multi_scale_deformable_attn_pytorch`. No deviation in arithmetic.

Two forms of the sampling give the same numbers. `sample_levels` runs on `grid_sample`, level by level, which keeps only one
level's samples alive: the default. `gather_levels` reads the four corners of every point by index; it is written for
`torch.compile`, which makes one loop of it (several times faster), and pays where many steps share few picture sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groundtune.model.positions import at_least_float32

Shapes = list[tuple[int, int]]  # (h, w) of each level
_RECOMPUTE_FROM = 4000  # queries from which on the samples are computed again in the backward pass, for memory

Sampling = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]  # (values, shapes, locations, weights) → samples


def sample_levels(value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted bilinear samples of all levels, (B, Q, D).

    Args:
        value: (B, S, heads, D/heads) features, the levels one after another.
        level_shapes: (h, w) of each level; their areas add up to S.
        locations: (B, Q, heads, L, P, 2) xy, [0, 1] is the canvas; outside of it the features are 0.
        weights: (B, Q, heads, L, P), their sum over L and P is 1.
    """
    batch, _, heads, width = value.shape
    # Queries go last: every elementwise operation then runs along a long contiguous axis.
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2).contiguous()  # (L, B·heads, P, Q, 2)
    weights = weights.permute(3, 0, 2, 4, 1).flatten(1, 2).contiguous()  # (L, B·heads, P, Q)
    levels = value.split([h * w for h, w in level_shapes], dim=1)
    output = value.new_zeros(())
    for (h, w), level_value, grid, weight in zip(level_shapes, levels, grids, weights, strict=True):
        maps = level_value.permute(0, 2, 3, 1).reshape(batch * heads, width, h, w)
        samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        output = output + (samples * weight[:, None]).sum(2)  # (B·heads, D/heads, Q)
    return output.view(batch, heads * width, -1).transpose(1, 2)


def gather_levels(value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The same as `sample_levels`, by reading the four corners around every point."""
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


def compile_sampling(network: nn.Module) -> None:
    """Have all deformable attentions of a network sample by a compiled `gather_levels`; weights and results stay.

    Compilation takes half a minute for each new picture size, at its first forward and backward pass; it needs a C++
    compiler on a CPU.
    """
    compiled = torch.compile(gather_levels, dynamic=False)
    for module in network.modules():
        if isinstance(module, DeformableAttention):
            module.sample, module.recompute_from = compiled, math.inf  # its backward keeps little


class DeformableAttention(nn.Module):
    """Attention to `num_points` learned points per head and level around a reference."""

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sample: Sampling = sample_levels
        self.recompute_from: float = _RECOMPUTE_FROM
        self.sampling_offsets = nn.Linear(d_model, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(d_model, num_heads * num_levels * num_points)
        self.value_proj, self.output_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Points start on rays of equal angle, one ray a head, 1 … P cells away; weights start equal."""
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
        self, query: Tensor, references: Tensor, memory: Tensor, level_shapes: Shapes, padding_mask: Tensor | None
    ) -> Tensor:
        """Attend: (B, Q, D) → (B, Q, D).

        Args:
            query: (B, Q, D), position encoding added.
            references: (B, Q, L, 2) points or (B, Q, L, 4) boxes cxcywh, relative to the canvas of each level.
            memory: (B, S, D), the levels one after another.
            level_shapes: (h, w) of each level.
            padding_mask: (B, S) bool, True = padding, whose values count as 0; None if nothing is padded.
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
            cells_wh = torch.tensor([[w, h] for h, w in level_shapes], dtype=offsets.dtype, device=offsets.device)
            locations = points + offsets / cells_wh[:, None]
        else:
            locations = points[..., :2] + offsets * (points[..., 2:] * (0.5 / self.num_points))
        # under autocast the values are bfloat16, in which a coordinate would lose the cell: sampling is in float32
        sampled = (at_least_float32(value), level_shapes, locations, weights)
        if torch.is_grad_enabled() and query.shape[1] >= self.recompute_from:
            return self.output_proj(checkpoint(self.sample, *sampled, use_reentrant=False))
        return self.output_proj(self.sample(*sampled))
