"""Multi-scale deformable attention (Zhu et al., 2021).

Each query looks at a few learned points of every feature level instead of at all positions. Reference: MMDetection
`MultiScaleDeformableAttention` with `multi_scale_deformable_attn_pytorch`. No deviation in arithmetic; how the points are
read is in `deformable_sampling`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from groundtune.model.deformable_sampling import Sampling, Shapes, gather_levels, sample_by_device
from groundtune.model.positions import at_least_float32, sides_wh


def use_sampling(network: nn.Module, sample: Sampling) -> None:
    """Have all deformable attentions of a network read their points by one form of the sampling; weights and results stay."""
    for module in network.modules():
        if isinstance(module, DeformableAttention):
            module.sample = sample


def compile_sampling(network: nn.Module) -> None:
    """Have all deformable attentions of a network sample by a compiled `gather_levels`.

    Compilation takes half a minute for each new picture size, at its first forward and backward pass; it needs a C++
    compiler on a CPU.
    """
    use_sampling(network, torch.compile(gather_levels, dynamic=False))


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
            cells_wh = torch.stack([sides_wh(h, w, offsets) for h, w in level_shapes])
            locations = points + offsets / cells_wh[:, None]
        else:
            locations = points[..., :2] + offsets * (points[..., 2:] * (0.5 / self.num_points))
        # under autocast the values are bfloat16, in which a coordinate would lose the cell: sampling is in float32
        return self.output_proj(self.sample(at_least_float32(value), level_shapes, locations, weights))
