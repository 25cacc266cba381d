"""Backbone features of pictures: extracted, and for a frozen backbone kept between epochs.

A frozen backbone gives the same maps for the same pixels in every epoch, so on a small data set each (picture, view) is
computed once; training then skips decoding, augmenting and the backbone. The maps are kept as float16 on the CPU: half the
memory, and a rounding (2⁻¹¹ relative) that is far below what augmentation changes. Every use goes through the rounding, the
first too, so that a resumed run sees the numbers of the uninterrupted one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from groundtune.errors import ConfigError
from groundtune.model.detector import GroundingDINO


def extract(network: GroundingDINO, pictures: Sequence[Tensor], device: torch.device) -> list[list[Tensor]]:
    """Backbone maps of a batch of pictures, without gradient.

    Args:
        pictures: normalised float32 (3, h, w) each, any sizes, anywhere.
        device: where the network is.

    Returns:
        Per picture the maps (C_l, h_l, w_l) on the device.
    """
    sizes_hw = [(picture.shape[1], picture.shape[2]) for picture in pictures]
    height, width = (max(size[axis] for size in sizes_hw) for axis in (0, 1))
    images = torch.zeros(len(pictures), 3, height, width)
    for image, picture, (h, w) in zip(images, pictures, sizes_hw, strict=True):
        image[:, :h, :w] = picture
    with torch.no_grad():
        return [list(maps) for maps in network.extract_features(images.to(device), sizes_hw)]


class FeatureCache:
    """Keeps the backbone maps of pictures by (sample index, view). One cache per data set: indices are its own.

    Args:
        network: a network whose backbone is frozen.
        dtype: what the maps are kept as; float32 keeps them exactly.

    Raises:
        ConfigError: the backbone trains.
    """

    def __init__(self, network: GroundingDINO, dtype: torch.dtype = torch.float16) -> None:
        if any(parameter.requires_grad for parameter in network.backbone.parameters()):
            raise ConfigError(
                "cache_features: the backbone trains, so its features change and cannot be kept. "
                "Give 'backbone' lr_mult 0.0 in param_groups, or set cache_features to false."
            )
        self._network = network
        self._dtype = dtype
        self._maps: dict[tuple[int, int], list[Tensor]] = {}

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._maps

    def needs_pixels(self, index: int, view: int) -> bool:
        """Whether `get` will need the picture itself; a loader need not decode the others."""
        return (index, view) not in self._maps

    def get(
        self, pictures: Sequence[Tensor | None], indices: Sequence[int], views: Sequence[int], device: torch.device
    ) -> list[list[Tensor]]:
        """Maps of a batch, computed now where they are not kept yet.

        Pictures are computed one at a time: convolution kernels may round differently in another batch, and a cached
        map must not depend on which pictures were beside it.

        Args:
            pictures: normalised (3, h, w) each; None is allowed where `needs_pixels` is False.
            indices: sample index of each.
            views: number of the augmented view of each (0 where there is only one).
            device: where the network is.

        Returns:
            Per picture the maps (C_l, h_l, w_l), float32 on the device.
        """
        keys = list(zip(indices, views, strict=True))
        for picture, key in zip(pictures, keys, strict=True):
            if key not in self._maps:
                assert picture is not None, f"picture {key} is neither cached nor decoded"
                maps = extract(self._network, [picture], device)[0]
                self._maps[key] = [level.to("cpu", self._dtype) for level in maps]
        return [[level.to(device, torch.float32) for level in self._maps[key]] for key in keys]

    def estimate_bytes(self, sizes_hw: Sequence[tuple[int, int]], views: int, device: torch.device) -> int:
        """Memory that the cache will take, from the maps of one blank picture scaled by area.

        Args:
            sizes_hw: resized size of every picture in pixels; none gives 0.
            views: views that will be kept of each.
        """
        if not sizes_hw:
            return 0
        height, width = max(sizes_hw, key=lambda size: size[0] * size[1])
        maps = extract(self._network, [torch.zeros(3, height, width)], device)[0]
        per_pixel = sum(level.numel() for level in maps) * self._dtype.itemsize / (height * width)
        return round(per_pixel * sum(h * w for h, w in sizes_hw) * views)
