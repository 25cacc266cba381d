"""Pictures and boxes into the frame that the network sees: crop, resize, flip, in this order.

The geometry (`PictureView`) is drawn from sizes and a random generator alone; pixels follow later, or never, when the
features of that view are cached already. Boxes and pixels are moved by the same object, so they cannot part.

The frame of the boxes is the picture *as its annotations state it*. `load_picture` gives the picture in that frame:

- EXIF orientation (pitfall 30). Some tools draw boxes on the stored pixels, others on the picture as viewers turn it.
  The stated width × height tells which: the picture is turned if that brings its aspect ratio nearer to the stated one.
  Where both fit alike (square pictures, turns by 180°, mirrors) the stored pixels are kept, as COCO's own tools do.
  Without a stated size (prediction) it is turned as viewers show it.
- A picture whose file has been rescaled since is brought to the stated size, and its boxes fit again.

Deviations from the reference (DETR's augmentation): the crop keeps boxes whose centre is inside (a sliver of an object is
not called the object), and one crop always contains the centre of some box, so that no draw loses all of them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from groundtune.data.picture_files import exif_orientation, open_picture, refuse_bomb
from groundtune.errors import DataError

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SMALLEST_CROP = 0.5  # of each side


@dataclass
class PictureFormat:
    """How a model wants its pictures; stored with the model.

    Attributes:
        mean: of each RGB channel, in units of 1 (white).
        std: of each RGB channel, in units of 1.
        short_side: pixels that the short side is resized to,
        max_side: unless the long side would become longer than this.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int
    max_side: int


@dataclass(frozen=True)
class PictureView:
    """One way of looking at a picture: the part `crop_xyxy` of it, resized to `size_hw`, then mirrored if `flipped`.

    Attributes:
        source_hw: size of the picture, pixels.
        crop_xyxy: whole pixels of the picture.
        size_hw: size of the result, pixels.
        flipped: left and right are swapped.
    """

    source_hw: tuple[int, int]
    crop_xyxy: tuple[int, int, int, int]
    size_hw: tuple[int, int]
    flipped: bool = False

    def picture(self, picture: Image.Image) -> Image.Image:
        """Show a picture of `source_hw` pixels in this view.

        Resampling is bilinear with antialiasing, as the reference's; pixels outside the crop have no influence.
        """
        height, width = self.size_hw
        shown = picture
        if self.crop_xyxy != (0, 0, *picture.size) or (width, height) != picture.size:
            shown = picture.resize((width, height), Image.Resampling.BILINEAR, box=self.crop_xyxy)
        return ImageOps.mirror(shown) if self.flipped else shown

    def boxes(self, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move boxes from the picture into this view.

        Args:
            boxes_xyxy: (N, 4) pixels of the picture.

        Returns:
            (M, 4) float32 pixels of the result, clipped to it, for the boxes with their centre inside the crop; and (N,)
            bool, True for those M boxes. N = 0 gives empty arrays.
        """
        left, top, right, bottom = self.crop_xyxy
        low, high = np.array([left, top]), np.array([right, bottom])
        corners = boxes_xyxy.astype(np.float64).reshape(-1, 2, 2)
        centres = corners.mean(axis=1)
        kept = ((centres >= low) & (centres < high)).all(axis=1)
        scale = np.array([self.size_hw[1], self.size_hw[0]]) / (high - low)
        corners = (np.clip(corners[kept], low, high) - low) * scale
        if self.flipped:
            corners[:, :, 0] = self.size_hw[1] - corners[:, ::-1, 0]
        return corners.reshape(-1, 4).astype(np.float32), kept


def resized_size(size_hw: tuple[int, int], short_side: int, max_side: int) -> tuple[int, int]:
    """Give the size of a picture after resizing it with its aspect ratio kept.

    Args:
        size_hw: pixels.
        short_side: what the short side becomes,
        max_side: unless the long side would pass this.

    Returns:
        Height and width in pixels, at least 1. The rounding is that of transformers' Grounding DINO image processor, so
        that published weights see the very same pictures. (Except narrow strips whose short side needs no change: there
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


def resize_keep_ratio(size_hw: tuple[int, int], fmt: PictureFormat, scale: float = 1.0) -> PictureView:
    """View the whole picture at the model's size, or at `scale` times that size (multi-scale training)."""
    height, width = size_hw
    resized = resized_size(size_hw, max(1, round(fmt.short_side * scale)), max(1, round(fmt.max_side * scale)))
    return PictureView(size_hw, (0, 0, width, height), resized)


def flip(view: PictureView) -> PictureView:
    """Swap left and right of a view. Twice is the view itself."""
    return replace(view, flipped=not view.flipped)


def random_crop(size_hw: tuple[int, int], boxes_xyxy: np.ndarray, rng: random.Random) -> tuple[int, int, int, int]:
    """Draw a part of a picture with sides of half to all of the picture's.

    Args:
        size_hw: pixels.
        boxes_xyxy: (N, 4) boxes inside the picture; one of them, by chance, has its centre in the crop. N = 0: anywhere.
        rng: source of every choice.

    Returns:
        xyxy in whole pixels, never empty.
    """
    anchor = boxes_xyxy[rng.randrange(len(boxes_xyxy))].astype(np.float64) if len(boxes_xyxy) else None
    begins, ends = [], []
    for axis, side in ((0, size_hw[1]), (1, size_hw[0])):
        length = max(1, round(side * rng.uniform(_SMALLEST_CROP, 1.0)))
        first, last = 0, side - length
        if anchor is not None:  # begin <= centre < begin + length
            centre = (anchor[axis] + anchor[axis + 2]) / 2
            first, last = max(first, int(centre - length) + 1 if centre >= length else 0), min(last, int(centre))
        begins.append(rng.randint(first, last))
        ends.append(begins[-1] + length)
    return begins[0], begins[1], ends[0], ends[1]


def draw_view(
    size_hw: tuple[int, int],
    boxes_xyxy: np.ndarray,
    fmt: PictureFormat,
    rng: random.Random,
    *,
    flip_probability: float = 0.5,
    crop_probability: float = 0.0,
    scales: Sequence[float] = (),
) -> PictureView:
    """Draw one augmented view of a picture.

    Args:
        size_hw: pixels.
        boxes_xyxy: (N, 4), needed by the crop only.
        fmt: the model's picture format.
        rng: source of every choice; the same generator state gives the same view.
        flip_probability: how often left and right are swapped.
        crop_probability: how often a part of the picture is shown in place of all of it.
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
    view = PictureView(size_hw, crop, cropped.size_hw)
    return flip(view) if rng.random() < flip_probability else view


def load_picture(path: Path, stated_size_hw: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture of any kind into 8-bit RGB, in the frame of its annotations.

    Transparency is laid on white, 16-bit and floating-point pictures are scaled to 8 bits, of an animation the first
    picture is taken.

    Args:
        path: the file.
        stated_size_hw: the size that its annotations state; decides about EXIF orientation (see the module). None: as
            viewers show it.

    Returns:
        An RGB picture of exactly the stated size.

    Raises:
        DataError: the file is missing, broken, cut off, or too large (`picture_files.MAX_PIXELS`).
    """
    try:
        with open_picture(path) as opened:
            opened.load()
            picture = to_rgb(opened)
            orientation = exif_orientation(opened)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind for broken files
        raise DataError(f"Cannot read the picture {path}: {error}. Expected a whole JPEG, PNG or the like.") from error
    if orientation in _UPRIGHT and belongs_upright(picture.size, orientation, stated_size_hw):
        picture = picture.transpose(_UPRIGHT[orientation])
    if stated_size_hw is not None and picture.size != stated_size_hw[::-1]:
        refuse_bomb(path, stated_size_hw[::-1])
        picture = picture.resize(stated_size_hw[::-1], Image.Resampling.BILINEAR)
    return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """Give a copy of a picture of any mode in 8-bit RGB, as `load_picture` says."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture, dtype=np.float64)
        # integers are 16-bit pictures (Pillow's own conversion cuts them at 255); floating point has no agreed white
        white = 65535.0 if picture.mode != "F" else max(float(np.nanmax(values)), 1e-12)
        grey = np.nan_to_num(np.clip(values / white, 0.0, 1.0)) * 255
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        opaque = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(opaque, picture.convert("RGBA")).convert("RGB")
    # a copy even of an RGB picture: the file behind `picture` is about to be closed
    return picture.convert("RGB")


def to_tensor(picture: Image.Image, fmt: PictureFormat) -> Tensor:
    """Normalise an RGB picture.

    Returns:
        (3, h, w) float32: (value / 255 - mean) / std.
    """
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).to(torch.float32)
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (fmt.mean, fmt.std))
    return ((pixels / 255.0 - mean) / std).contiguous()


def belongs_upright(size: tuple[int, int], orientation: int, stated_size_hw: tuple[int, int] | None) -> bool:
    """Say whether a picture of (width, height) `size` is to be turned as its EXIF orientation says."""
    if stated_size_hw is None:
        return True
    if orientation in (2, 3, 4):  # mirrored or turned by 180°: both fit
        return False
    wanted = stated_size_hw[1] / stated_size_hw[0]
    stored, turned = size[0] / size[1], size[1] / size[0]
    return abs(math.log(turned / wanted)) < abs(math.log(stored / wanted))
