"""Extract backbone features of images, and cache those of a frozen backbone between epochs.

A frozen backbone computes the same maps for the same pixels in every epoch, so each (image, view)
is computed once; training then skips decoding, augmentation and the backbone. Maps are stored as
float16, on the GPU if it has room for all of them. Every use is rounded, the first one too, so that
a resumed run sees the same numbers.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from groundtune.contracts import ImageFormat
from groundtune.data.batch import move_images, normalize_images, pad_images
from groundtune.device import to_device
from groundtune.errors import ConfigError
from groundtune.model.bundle import Network
from groundtune.model.detector import GroundingDINO

_Image = TypeVar("_Image", Tensor, Tensor | None)


def upload(images: Sequence[_Image], fmt: ImageFormat, device: torch.device) -> list[_Image]:
    """Return images on a device, normalized there if they are uint8; None stays."""
    return normalize_images(move_images(images, device), fmt)


def extract(network: Network, images: Sequence[Tensor], device: torch.device) -> list[list[Tensor]]:
    """Compute the backbone maps (C_l, h_l, w_l) of normalized images (3, h, w), without grad."""
    sizes_hw = [(image.shape[1], image.shape[2]) for image in images]
    canvas = pad_images(to_device(images, device))  # `extract_features` cuts the images out again
    with torch.no_grad():
        return [list(maps) for maps in network.extract_features(canvas, sizes_hw)]


class FeatureCache:
    """Backbone maps by (sample index, view), of one data set; the backbone must be frozen.

    Attributes:
        store: device that keeps the maps.
    """

    def __init__(self, network: GroundingDINO, dtype: torch.dtype = torch.float16) -> None:
        if any(parameter.requires_grad for parameter in network.backbone.parameters()):
            raise ConfigError(
                "cache_features: the backbone is trained, so its features change and cannot be cached. "
                "Give 'backbone' lr_mult 0.0 in param_groups, or set cache_features to false."
            )
        self._network = network
        self._dtype = dtype
        self.store = torch.device("cpu")
        self._maps: dict[tuple[int, int], list[Tensor]] = {}

    def needs_pixels(self, index: int, view: int) -> bool:
        """Return whether `get` needs the image, which otherwise need not be decoded."""
        return (index, view) not in self._maps

    def get(
        self,
        images: Sequence[Tensor | None],
        indices: Sequence[int],
        views: Sequence[int],
        device: torch.device,
    ) -> list[list[Tensor]]:
        """Return the maps of a batch as float32 on the device; compute the missing ones.

        Images are normalized (3, h, w), or None where `needs_pixels` is False; each has a sample
        index and the number of its augmented view.
        """
        batch = []
        for image, key in zip(images, zip(indices, views, strict=True), strict=True):
            maps = self._maps.get(key)
            if maps is None:
                assert image is not None, f"image {key} is neither cached nor decoded"
                # one by one: convolutions may round differently in another batch
                maps = [level.to(self._dtype) for level in extract(self._network, [image], device)[0]]
                if torch.stack([level.isfinite().all() for level in maps]).all():  # else tried in float32
                    self._maps[key] = [level.to(self.store) for level in maps]
            batch.append(maps)
        levels = iter(to_device([level for maps in batch for level in maps], device))
        return [[next(levels).float() for _ in maps] for maps in batch]

    def estimate_bytes(self, sizes_hw: Sequence[tuple[int, int]], views: int, device: torch.device) -> int:
        """Estimate the memory of all resized images' maps from a blank image, scaled by area."""
        if not sizes_hw:
            return 0
        height, width = max(sizes_hw, key=lambda size: size[0] * size[1])
        maps = extract(self._network, [torch.zeros(3, height, width)], device)[0]
        per_pixel = sum(level.numel() for level in maps) * self._dtype.itemsize / (height * width)
        return round(per_pixel * sum(h * w for h, w in sizes_hw) * views)
