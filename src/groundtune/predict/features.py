"""Backbone features of images: extracted, and for a frozen backbone kept between epochs.

A frozen backbone gives the same maps for the same pixels in every epoch, so on a small data set each (image, view) is
computed once; training then skips decoding, augmenting and the backbone. The maps are kept as float16 on the CPU: half the
memory, and a rounding (2⁻¹¹ relative) that is far below what augmentation changes. Every use goes through the rounding, the
first too, so that a resumed run sees the numbers of the uninterrupted one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from groundtune.errors import ConfigError
from groundtune.model.bundle import Network
from groundtune.model.detector import GroundingDINO


def extract(network: Network, images: Sequence[Tensor], device: torch.device) -> list[list[Tensor]]:
    """Backbone maps of a batch of images, without gradient.

    Args:
        images: normalized float32 (3, h, w) each, any sizes, anywhere.
        device: where the network is.

    Returns:
        Per image the maps (C_l, h_l, w_l) on the device.
    """
    sizes_hw = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (max(size[axis] for size in sizes_hw) for axis in (0, 1))
    canvas = torch.zeros(len(images), 3, height, width)
    for place, image, (h, w) in zip(canvas, images, sizes_hw, strict=True):
        place[:, :h, :w] = image
    with torch.no_grad():
        return [list(maps) for maps in network.extract_features(canvas.to(device), sizes_hw)]


class FeatureCache:
    """Keeps the backbone maps of images by (sample index, view). One cache per data set: indices are its own.

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
        """Whether `get` will need the image itself; a loader need not decode the others."""
        return (index, view) not in self._maps

    def get(
        self,
        images: Sequence[Tensor | None],
        indices: Sequence[int],
        views: Sequence[int],
        device: torch.device,
    ) -> list[list[Tensor]]:
        """Maps of a batch, computed now where they are not kept yet.

        Images are computed one at a time: convolution kernels may round differently in another batch, and a cached
        map must not depend on which images were beside it.

        Args:
            images: normalized (3, h, w) each; None is allowed where `needs_pixels` is False.
            indices: sample index of each.
            views: number of the augmented view of each (0 where there is only one).
            device: where the network is.

        Returns:
            Per image the maps (C_l, h_l, w_l), float32 on the device.
        """
        keys = list(zip(indices, views, strict=True))
        for image, key in zip(images, keys, strict=True):
            if key not in self._maps:
                assert image is not None, f"image {key} is neither cached nor decoded"
                maps = extract(self._network, [image], device)[0]
                self._maps[key] = [level.to("cpu", self._dtype) for level in maps]
        return [[level.to(device, torch.float32) for level in self._maps[key]] for key in keys]

    def estimate_bytes(self, sizes_hw: Sequence[tuple[int, int]], views: int, device: torch.device) -> int:
        """Memory that the cache will take, from the maps of one blank image scaled by area.

        Args:
            sizes_hw: resized size of every image in pixels; none gives 0.
            views: views that will be kept of each.
        """
        if not sizes_hw:
            return 0
        height, width = max(sizes_hw, key=lambda size: size[0] * size[1])
        maps = extract(self._network, [torch.zeros(3, height, width)], device)[0]
        per_pixel = sum(level.numel() for level in maps) * self._dtype.itemsize / (height * width)
        return round(per_pixel * sum(h * w for h, w in sizes_hw) * views)
