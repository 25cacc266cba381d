"""Images and boxes into the frame that the network sees: crop, resize, flip, in this order.

The geometry (`ImageView`) is drawn from sizes and a random generator alone; pixels follow later, or never, when the
features of that view are cached already. Boxes and pixels are moved by the same object, so they cannot part.

The frame of the boxes is the image *as its annotations state it*. `load_image` gives the image in that frame:

- EXIF orientation (pitfall 30). Some tools draw boxes on the stored pixels, others on the image as viewers turn it.
  The stated width × height tells which: the image is turned if that brings its aspect ratio nearer to the stated one.
  Where both fit alike (square images, turns by 180°, mirrors) the stored pixels are kept, as COCO's own tools do.
  Without a stated size (prediction) it is turned as viewers show it.
- An image whose file has been rescaled since is brought to the stated size, and its boxes fit again.

Deviations from the reference (DETR's augmentation): the crop keeps boxes whose center is inside (a sliver of an object is
not called the object), and one crop always contains the center of some box, so that no draw loses all of them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from groundtune.contracts import ImageFormat

_SMALLEST_CROP = 0.5  # of each side


@dataclass(frozen=True)
class ImageView:
    """One way of looking at an image: the part `crop_xyxy` of it, resized to `size_hw`, then mirrored if `flipped`.

    Attributes:
        source_hw: size of the image, pixels.
        crop_xyxy: whole pixels of the image.
        size_hw: size of the result, pixels.
        flipped: left and right are swapped.
    """

    source_hw: tuple[int, int]
    crop_xyxy: tuple[int, int, int, int]
    size_hw: tuple[int, int]
    flipped: bool = False

    def image(self, image: Image.Image) -> Image.Image:
        """Show an image of `source_hw` pixels in this view.

        Resampling is bilinear with antialiasing, as the reference's; pixels outside the crop have no influence.
        """
        height, width = self.size_hw
        shown = image
        if self.crop_xyxy != (0, 0, *image.size) or (width, height) != image.size:
            shown = image.resize((width, height), Image.Resampling.BILINEAR, box=self.crop_xyxy)
        return ImageOps.mirror(shown) if self.flipped else shown

    def boxes(self, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move boxes from the image into this view.

        Args:
            boxes_xyxy: (N, 4) pixels of the image.

        Returns:
            (M, 4) float32 pixels of the result, clipped to it, for the boxes with their center inside the crop; and (N,)
            bool, True for those M boxes. N = 0 gives empty arrays.
        """
        left, top, right, bottom = self.crop_xyxy
        low, high = np.array([left, top]), np.array([right, bottom])
        corners = boxes_xyxy.astype(np.float64).reshape(-1, 2, 2)
        centers = corners.mean(axis=1)
        kept = ((centers >= low) & (centers < high)).all(axis=1)
        scale = np.array([self.size_hw[1], self.size_hw[0]]) / (high - low)
        corners = (np.clip(corners[kept], low, high) - low) * scale
        if self.flipped:
            corners[:, :, 0] = self.size_hw[1] - corners[:, ::-1, 0]
        return corners.reshape(-1, 4).astype(np.float32), kept


def resized_size(size_hw: tuple[int, int], short_side: int, max_side: int) -> tuple[int, int]:
    """Give the size of an image after resizing it with its aspect ratio kept.

    Args:
        size_hw: pixels.
        short_side: what the short side becomes,
        max_side: unless the long side would pass this.

    Returns:
        Height and width in pixels, at least 1. The rounding is that of transformers' Grounding DINO image processor, so
        that published weights see the very same images. (Except narrow strips whose short side needs no change: there
        transformers lets the long side pass `max_side`.)
    """
    short, long = min(size_hw), max(size_hw)
    wanted = float(short_side)
    if long / short * short_side > max_side:
        wanted = max_side * short / long
    new_short = max(1, round(wanted))
    # not from the rounded side: a long side that is cut to max_side must be max_side
    new_long = max(new_short, int((wanted if wanted != short_side else new_short) * long / short))
    return (new_short, new_long) if size_hw[0] <= size_hw[1] else (new_long, new_short)


def resize_keep_ratio(size_hw: tuple[int, int], fmt: ImageFormat, scale: float = 1.0) -> ImageView:
    """View the whole image at the model's size, or at `scale` times that size (multi-scale training)."""
    height, width = size_hw
    resized = resized_size(
        size_hw, max(1, round(fmt.short_side * scale)), max(1, round(fmt.max_side * scale))
    )
    return ImageView(size_hw, (0, 0, width, height), resized)


def flip(view: ImageView) -> ImageView:
    """Swap left and right of a view. Twice is the view itself."""
    return replace(view, flipped=not view.flipped)


def random_crop(
    size_hw: tuple[int, int], boxes_xyxy: np.ndarray, rng: random.Random
) -> tuple[int, int, int, int]:
    """Draw a part of an image with sides of half to all of the image's.

    Args:
        size_hw: pixels.
        boxes_xyxy: (N, 4) boxes inside the image; one of them, by chance, has its center in the crop. N = 0: anywhere.
        rng: source of every choice.

    Returns:
        xyxy in whole pixels, never empty.
    """
    anchor = boxes_xyxy[rng.randrange(len(boxes_xyxy))].astype(np.float64) if len(boxes_xyxy) else None
    begins, ends = [], []
    for axis, side in ((0, size_hw[1]), (1, size_hw[0])):
        length = max(1, round(side * rng.uniform(_SMALLEST_CROP, 1.0)))
        first, last = 0, side - length
        if anchor is not None:  # begin <= center < begin + length
            center = (anchor[axis] + anchor[axis + 2]) / 2
            first, last = (
                max(first, int(center - length) + 1 if center >= length else 0),
                min(last, int(center)),
            )
        begins.append(rng.randint(first, last))
        ends.append(begins[-1] + length)
    return begins[0], begins[1], ends[0], ends[1]


def draw_view(
    size_hw: tuple[int, int],
    boxes_xyxy: np.ndarray,
    fmt: ImageFormat,
    rng: random.Random,
    *,
    flip_probability: float = 0.5,
    crop_probability: float = 0.0,
    scales: Sequence[float] = (),
) -> ImageView:
    """Draw one augmented view of an image.

    Args:
        size_hw: pixels.
        boxes_xyxy: (N, 4), needed by the crop only.
        fmt: the model's image format.
        rng: source of every choice; the same generator state gives the same view.
        flip_probability: how often left and right are swapped.
        crop_probability: how often a part of the image is shown in place of all of it.
        scales: factors on the model's size, one is drawn. None: 1.

    Returns:
        The view, at the model's size times the factor.
    """
    height, width = size_hw
    crop = (0, 0, width, height)
    if rng.random() < crop_probability:
        crop = random_crop(size_hw, boxes_xyxy, rng)
    scale = rng.choice(scales) if scales else 1.0
    cropped = resize_keep_ratio((crop[3] - crop[1], crop[2] - crop[0]), fmt, scale)
    view = ImageView(size_hw, crop, cropped.size_hw)
    return flip(view) if rng.random() < flip_probability else view


def to_tensor(image: Image.Image, fmt: ImageFormat) -> Tensor:
    """Normalize an RGB image.

    Returns:
        (3, h, w) float32: (value / 255 - mean) / std.
    """
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).to(torch.float32)
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (fmt.mean, fmt.std))
    return ((pixels / 255.0 - mean) / std).contiguous()
