"""Crop, resize and mirror images together with their boxes, in this order.

The geometry (`ImageView`) is drawn from sizes alone. The pixels follow later, or never if the
features of the view are cached.

Deviations from DETR's augmentation: a crop keeps the boxes whose center is inside (a sliver of an
object is not trained as the object), and it always contains the center of some box.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from groundtune.contracts import ImageFormat

_SMALLEST_CROP = 0.5  # of each side


@dataclass(frozen=True)
class ImageView:
    """Geometry of one view of an image: crop, then resize, then flip.

    Attributes:
        source_hw: size of the image, pixels.
        crop_xyxy: part of the image, whole pixels.
        size_hw: size of the view, pixels.
        flip: whether left and right are swapped.
    """

    source_hw: tuple[int, int]
    crop_xyxy: tuple[int, int, int, int]
    size_hw: tuple[int, int]
    flip: bool

    def image(self, image: Image.Image) -> Image.Image:
        """Return the view of an image, resampled bilinearly with antialiasing."""
        size = self.size_hw[::-1]
        if self.crop_xyxy != (0, 0, *image.size) or size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR, box=self.crop_xyxy)
        return ImageOps.mirror(image) if self.flip else image

    def boxes(self, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move (N, 4) boxes, pixels, from the image into the view.

        Returns:
            (M, 4) float32 pixels, clipped to the view, of the boxes with their center in the crop;
            and (N,) bool, True for those M boxes.
        """
        left, top, right, bottom = self.crop_xyxy
        low, high = np.array([left, top]), np.array([right, bottom])
        corners = boxes_xyxy.astype(np.float64).reshape(-1, 2, 2)
        centers = corners.mean(axis=1)
        inside = ((centers >= low) & (centers < high)).all(axis=1)
        scale = np.array([self.size_hw[1], self.size_hw[0]]) / (high - low)
        corners = (np.clip(corners[inside], low, high) - low) * scale
        if self.flip:
            corners[:, :, 0] = self.size_hw[1] - corners[:, ::-1, 0]
        return corners.reshape(-1, 4).astype(np.float32), inside


def resized_size(size_hw: tuple[int, int], short_side: int, max_side: int) -> tuple[int, int]:
    """Return the size of an image after resizing its short side, with the aspect ratio kept.

    The long side is limited to `max_side`. Rounding follows transformers' Grounding DINO image
    processor, so published weights get identical images. (Except narrow strips whose short side
    already has the right size: there transformers exceeds `max_side`.)
    """
    short, long = min(size_hw), max(size_hw)
    exact = float(short_side)
    if long / short * short_side > max_side:
        exact = max_side * short / long
    new_short = max(1, round(exact))
    # not from the rounded side: a long side that is limited must become exactly max_side
    new_long = max(new_short, int((exact if exact != short_side else new_short) * long / short))
    return (new_short, new_long) if size_hw[0] <= size_hw[1] else (new_long, new_short)


def resize_keep_ratio(size_hw: tuple[int, int], fmt: ImageFormat, scale: float = 1.0) -> ImageView:
    """Return the view of the whole image at the model's image size, times `scale`."""
    height, width = size_hw
    short_side, max_side = (max(1, round(side * scale)) for side in (fmt.short_side, fmt.max_side))
    return ImageView(size_hw, (0, 0, width, height), resized_size(size_hw, short_side, max_side), flip=False)


def random_crop(
    size_hw: tuple[int, int], boxes_xyxy: np.ndarray, rng: random.Random
) -> tuple[int, int, int, int]:
    """Draw a crop with sides of half to all of the image's, never empty, in whole pixels xyxy.

    It contains the center of a random one of the (N, 4) boxes; N = 0: it can be anywhere.
    """
    anchor = boxes_xyxy[rng.randrange(len(boxes_xyxy))].astype(np.float64) if len(boxes_xyxy) else None
    begins, ends = [], []
    for axis, side in ((0, size_hw[1]), (1, size_hw[0])):
        length = max(1, round(side * rng.uniform(_SMALLEST_CROP, 1.0)))
        first, last = 0, side - length
        if anchor is not None:  # begin <= center < begin + length
            center = (anchor[axis] + anchor[axis + 2]) / 2
            first = max(first, int(center - length) + 1 if center >= length else 0)
            last = min(last, int(center))
        begins.append(rng.randint(first, last))
        ends.append(begins[-1] + length)
    return begins[0], begins[1], ends[0], ends[1]


def draw_view(
    size_hw: tuple[int, int],
    boxes_xyxy: np.ndarray,
    fmt: ImageFormat,
    rng: random.Random,
    *,
    crop: float,
    multi_scale: Sequence[float],
) -> ImageView:
    """Draw an augmented view of an image; the same generator state gives the same view.

    `crop` is a probability, `multi_scale` are factors of the model's image size to choose from
    (empty: 1). A crop contains the center of one of the (N, 4) boxes. Whether to flip is up to the
    caller, who knows whether the labels can be mirrored.
    """
    height, width = size_hw
    part = (0, 0, width, height)
    if rng.random() < crop:
        part = random_crop(size_hw, boxes_xyxy, rng)
    scale = rng.choice(multi_scale) if multi_scale else 1.0
    resized = resize_keep_ratio((part[3] - part[1], part[2] - part[0]), fmt, scale)
    return ImageView(size_hw, part, resized.size_hw, flip=False)


def to_tensor(image: Image.Image, fmt: ImageFormat, raw: bool = False) -> Tensor:
    """Convert an RGB image to (3, h, w): `raw` as uint8, otherwise normalized."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return pixels.contiguous() if raw else normalize(pixels, fmt)


def normalize(pixels: Tensor, fmt: ImageFormat) -> Tensor:
    """Convert uint8 (3, h, w) to float32, (value / 255 - mean) / std, on its device."""
    if pixels.is_floating_point():
        return pixels
    channels = zip(pixels.to(torch.float32) / 255.0, fmt.mean, fmt.std, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in channels])
