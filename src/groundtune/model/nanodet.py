"""NanoDet-g, a small detector of COCO's 80 classes, which `nano-everyday` reads.

RangiLyu, 2021, https://github.com/RangiLyu/nanodet (Apache-2.0): a CSP network of 3×3 convolutions,
a path aggregation network whose levels are added, and one head per level that predicts class scores
and the distances from the cell's center to the four sides. Batch norms are folded into the
convolutions. Where the published network runs on squares of 416 pixels, here any size is valid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundtune.model.conv import Conv2d

STRIDES = (8, 16, 32)
NUM_NAMES = 80
_BINS = 11  # of the distribution of each distance, in strides: 0 to 10
WIDTH = 128


class _Conv(nn.Module):
    """3×3 convolution and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), 0.1, inplace=True)


class _Stage(nn.Module):
    """A convolution and a cross-stage partial block: (B, C, h, w) → (B, 2C, ⌈h/s⌉, ⌈w/s⌉)."""

    def __init__(self, width: int, stride: int, blocks: int) -> None:
        super().__init__()
        half = width // 2
        self.entry, self.exit = _Conv(width, width, stride), _Conv(width, width)
        self.firsts = nn.ModuleList(_Conv(width, half) for _ in range(blocks))
        self.seconds = nn.ModuleList(_Conv(half, half) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = entry = self.entry(x)
        for first, second in zip(self.firsts, self.seconds, strict=True):
            half = first(x)
            x = torch.cat((second(half), half), 1)
        return torch.cat((self.exit(x), entry), 1)


class NanoDet(nn.Module):
    """The network up to the maps of its heads, from which `detect` reads scores and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, 2)
        sizes = ((32, 1, 1), (64, 2, 2), (128, 2, 2), (256, 2, 3))
        self.stages = nn.ModuleList(_Stage(*size) for size in sizes)
        self.lateral = nn.ModuleList(Conv2d(width, WIDTH, 1) for width in (128, 256, 512))
        self.towers = nn.ModuleList(_Conv(WIDTH, WIDTH) for _ in STRIDES)
        self.heads = nn.ModuleList(Conv2d(WIDTH, NUM_NAMES + 4 * _BINS, 1) for _ in STRIDES)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized RGB → (B, 128, ⌈H/s⌉, ⌈W/s⌉) for strides 8, 16, 32."""
        x = F.max_pool2d(self.stem(images), 3, 2, 1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        fine, middle, coarse = (conv(x) for conv, x in zip(self.lateral, maps[1:], strict=True))
        middle = middle + _resize(coarse, middle)
        fine = fine + _resize(middle, fine)
        middle = middle + _resize(fine, middle)
        coarse = coarse + _resize(middle, coarse)
        return [tower(x) for tower, x in zip(self.towers, (fine, middle, coarse), strict=True)]

    def detect(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the scores (B, 80, h, w) in [0, 1] and the distances (B, 4, h, w) of each map.

        The distances are those of the cell's center to left, top, right and bottom, in cells.
        """
        found = []
        for head, x in zip(self.heads, maps, strict=True):
            scores, bins = head(x).split((NUM_NAMES, 4 * _BINS), dim=1)
            steps = torch.arange(_BINS, dtype=x.dtype, device=x.device)[:, None, None]
            distances = (bins.unflatten(1, (4, _BINS)).softmax(2) * steps).sum(2)
            found.append((scores.sigmoid(), distances))
        return found


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
