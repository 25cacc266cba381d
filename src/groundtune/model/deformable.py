"""Multi-scale deformable attention (Zhu et al., 2021): a query reads a few points of every level.

Reference: MMDetection `MultiScaleDeformableAttention`. The weighted samples at fractional
positions are computed in four equivalent forms:

- `sample_levels` runs on `grid_sample`, as MMDetection's `multi_scale_deformable_attn_pytorch`.
  Tests compare the others with it, exporters trace it, and a GPU without Triton runs it.
- `deformable_triton.sample_fused` is the default on NVIDIA GPUs: one kernel, nothing in between.
- `deformable_bags.sample_bags` is the default on a CPU.
- `gather_levels` reads the four corners by index, which `torch.compile` makes one loop of.
"""

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groundtune.model.attention import at_least_float32, sides_wh
from groundtune.model.deformable_bags import sample_bags
from groundtune.model.deformable_triton import kernel_problem, sample_fused

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
            locations = points + offsets / sides_wh(level_shapes, references)[:, None]
        else:
            locations = points[..., :2] + offsets * (points[..., 2:] * (0.5 / self.num_points))
        return self.output_proj(self.sample(value, level_shapes, locations, weights))


def use_sampling(network: nn.Module, sample: Sampling) -> None:
    """Choose the form by which all deformable attentions of a network sample."""
    for module in network.modules():
        if isinstance(module, DeformableAttention):
            module.sample = sample


def compile_sampling(network: nn.Module) -> None:
    """Make all deformable attentions of a network sample by a compiled `gather_levels`.

    It compiles once for all image sizes, in about a minute; on a CPU it needs a C++ compiler.
    """
    use_sampling(network, torch.compile(_sample_compiled, dynamic=True))


def _sample_compiled(value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return gather_levels(at_least_float32(value), level_shapes, locations, weights)
    # torch runs this function uncompiled once it has compiled it as often as its limit allows.
    return sample_by_device(value, level_shapes, locations, weights)


def sample_by_device(value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample by the fastest form: bags on a CPU, the fused kernel or `sample_levels` on a GPU.

    With torch's deterministic algorithms a GPU gathers, the only form that has them.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    narrow = value.dtype != torch.float64
    if value.is_cuda and narrow and not deterministic and not kernel_problem(value.device):
        return sample_fused(value, level_shapes, locations, weights)
    # Sample in float32: in the bfloat16 of autocast a coordinate would lose its cell.
    inputs = at_least_float32(value), level_shapes, locations, weights
    if value.device.type == "cpu":
        return sample_bags(*inputs)
    if deterministic:
        return gather_levels(*inputs)
    if torch.is_grad_enabled() and locations.shape[1] >= _RECOMPUTE_FROM:
        recomputed: Tensor = checkpoint(sample_levels, *inputs, use_reentrant=False)
        return recomputed
    return sample_levels(*inputs)


def describe_sampling(device: torch.device) -> str:
    """Return the form that `sample_by_device` takes, and what prevents a faster one."""
    if device.type == "cpu":
        return "embedding_bag"
    problem = kernel_problem(device) if device.type == "cuda" else "the Triton kernel needs CUDA"
    return f"grid_sample: {problem}" if problem else "Triton kernel"


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
