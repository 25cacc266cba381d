"""The neck: backbone maps of different widths → L maps of width D (MMDetection `ChannelMapper`).

1×1 convolutions on the backbone's maps, then 3×3 stride-2 convolutions for the coarser levels, the
first of them on the backbone's last map; a group norm after each. Deviation: the group norm's
statistics ignore padding, which is 0 afterwards, so that an image's features do not depend on its
batch. The reference includes padding; that behavior is `masks=None`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundtune.device import to_device
from groundtune.model.conv import Conv2d


class _ConvNorm(nn.Module):
    """Convolution and group norm of 32 groups, whose statistics ignore padding."""

    def __init__(self, inputs: int, d_model: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, d_model, kernel, stride, padding=kernel // 2)
        self.gn = nn.GroupNorm(32, d_model)
        nn.init.xavier_uniform_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, C, h, w) and (B, h', w') bool of the output, True = padding → (B, D, h', w')."""
        x = self.conv(x)
        return self.gn(x) if padding_mask is None else masked_group_norm(x, padding_mask, self.gn)


def masked_group_norm(x: Tensor, padding_mask: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Apply `norm` to the real positions of each image, (B, D, h, w); padding becomes 0."""
    real = (~padding_mask)[:, None, None].to(x.dtype)  # (B, 1, 1, h, w)
    groups = x.unflatten(1, (norm.num_groups, -1))
    count = real.sum((2, 3, 4), keepdim=True) * groups.shape[2]
    mean = (groups * real).sum((2, 3, 4), keepdim=True) / count
    variance = (((groups - mean) * real) ** 2).sum((2, 3, 4), keepdim=True) / count
    normalized = ((groups - mean) * torch.rsqrt(variance + norm.eps)).flatten(1, 2)
    return (normalized * norm.weight[:, None, None] + norm.bias[:, None, None]) * real[:, 0]


class Neck(nn.Module):
    """`num_levels` maps of width `d_model` from as many or fewer backbone maps."""

    def __init__(self, channels: list[int], d_model: int, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.convs = nn.ModuleList(_ConvNorm(width, d_model, 1, 1) for width in channels)
        inputs = [channels[-1], *[d_model] * num_levels][: num_levels - len(channels)]
        self.extra_convs = nn.ModuleList(_ConvNorm(width, d_model, 3, 2) for width in inputs)

    def forward(self, maps: list[Tensor], masks: list[Tensor] | None) -> list[Tensor]:
        """Backbone maps (B, C_l, h_l, w_l), fine to coarse, 0 on padding → L maps (B, D, h_l, w_l).

        `masks` are L padding masks (B, h_l, w_l), True = padding; None ignores padding.
        """
        level_masks: list[Tensor | None] = list(masks) if masks is not None else [None] * self.num_levels
        outputs = [conv(x, mask) for conv, x, mask in zip(self.convs, maps, level_masks, strict=False)]
        source = maps[-1]
        for conv, mask in zip(self.extra_convs, level_masks[len(self.convs) :], strict=True):
            source = conv(source, mask)
            outputs.append(source)
        return outputs


def pad_features(
    features: list[list[Tensor]], num_levels: int, bucket: int = 1
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Batch the feature maps of single images.

    Args:
        features: for each of the B images its backbone maps (C_l, h_l, w_l).
        num_levels: number L of levels that the neck makes of them.
        bucket: pad the sides of the coarsest backbone map to a multiple of this, and the finer maps
            with it, so that few different shapes occur.

    Returns:
        Zero-padded maps (B, C_l, H_l, W_l), and L masks (B, H_l, W_l) bool, True = padding; None
        if nothing is padded.
    """
    coarsest = features[0][-1].shape[-2:]
    fills = bucket == 1 or all(side % bucket == 0 for side in coarsest)
    if fills and all(maps[0].shape == features[0][0].shape for maps in features):
        return [torch.stack(level) for level in zip(*features, strict=True)], None
    batched: list[Tensor] = []
    sizes: list[list[tuple[int, int]]] = []  # per level those of the images and, last, of the canvas
    for level in zip(*features, strict=True):
        level_sizes = [(x.shape[-2], x.shape[-1]) for x in level]
        step = bucket * 2 ** (len(features[0]) - len(sizes) - 1) if bucket > 1 else 1
        height, width = (-(-max(size[axis] for size in level_sizes) // step) * step for axis in (0, 1))
        sizes.append([*level_sizes, (height, width)])
        padded = [F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in level]
        batched.append(torch.stack(padded))
    while len(sizes) < num_levels:
        sizes.append([((h + 1) // 2, (w + 1) // 2) for h, w in sizes[-1]])
    return batched, [padding_mask_of(level, batched[0].device)[:-1] for level in sizes]


def padding_mask_of(sizes_hw: list[tuple[int, int]], device: torch.device) -> Tensor:
    """Sizes of B images → (B, max h, max w) bool, True = padding right of and below the image."""
    (sizes,) = to_device([torch.tensor(sizes_hw)], device)
    below = torch.arange(max(h for h, _ in sizes_hw), device=device) >= sizes[:, :1]
    right = torch.arange(max(w for _, w in sizes_hw), device=device) >= sizes[:, 1:]
    return below[:, :, None] | right[:, None, :]
