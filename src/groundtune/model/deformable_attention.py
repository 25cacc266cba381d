"""Multi-scale deformable attention (Zhu et al., 2021), the plain version on `grid_sample`.

Each query looks at a few learned points of every feature level instead of at all positions. Reference: MMDetection
`MultiScaleDeformableAttention` with `multi_scale_deformable_attn_pytorch`. No deviation in arithmetic; the levels are
accumulated one by one rather than stacked, which keeps only one level's samples alive.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundtune.model.positions import at_least_float32


def sample_levels(value: Tensor, level_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted bilinear samples of all levels.

    Args:
        value: (B, S, heads, D/heads) features, the levels one after another.
        level_shapes: (h, w) of each level; their areas add up to S.
        locations: (B, Q, heads, L, P, 2) xy, [0, 1] is the canvas; outside of it the features are 0.
        weights: (B, Q, heads, L, P), their sum over L and P is 1.

    Returns:
        (B, Q, D).
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


class DeformableAttention(nn.Module):
    """Attention to `num_points` learned points per head and level around a reference.

    Args:
        d_model: width D, divisible by `num_heads`.
        num_heads: number of heads.
        num_levels: number of feature levels L.
        num_points: points P per head and level.
    """

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
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
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        level_shapes: list[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, D), position encoding added.
            references: (B, Q, L, 2) points or (B, Q, L, 4) boxes cxcywh, relative to the canvas of each level.
            memory: (B, S, D), the levels one after another.
            level_shapes: (h, w) of each level.
            padding_mask: (B, S) bool, True = padding, whose values count as 0; None if nothing is padded.

        Returns:
            (B, Q, D).
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
        return self.output_proj(sample_levels(at_least_float32(value), level_shapes, locations, weights))
