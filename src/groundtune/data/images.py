"""From an image file to 8-bit RGB pixels in the frame of its annotations.

- Files are untrusted. A few of Pillow's readers start other programs (EPS starts Ghostscript), so
  only common formats are opened, and the header's number of pixels is checked before decoding.
- EXIF orientation: some tools draw boxes on the stored pixels, others on the rotated image that
  viewers show. The image is rotated if that brings its aspect ratio closer to the stated one. If
  both fit (square images, 180° rotations, mirrored images), the stored pixels are used, as COCO's
  tools do. Without a stated size (prediction), the image is rotated as viewers show it.
- An image that was rescaled after the annotation is resized to the stated size.
"""

import base64
import io
import math
import os
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from groundtune.config import PredictorOptions
from groundtune.errors import DataError

MAX_PIXELS = round(PredictorOptions.max_megapixels * 1e6)
"""Maximum number of pixels of an image by default: Pillow's, whose own limit is global and is the
one that counts (`Image.MAX_IMAGE_PIXELS`). Decoding more takes over 1 GB."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
IMAGE_SUFFIXES = frozenset(  # an MPO file is a JPEG with more images after it
    suffix for suffix, kind in Image.registered_extensions().items() if kind in (*_FORMATS, "MPO")
)
"""Suffixes of the images in directories: those of all formats that are read."""

UNREAD_SUFFIXES = frozenset(
    ".heic .heif .jxl .svg .psd .exr .hdr .tga .ico .eps .dcm .dng .cr2 .cr3 .nef .arw .orf .raf .rw2".split()
)
"""Suffixes of images of other formats, which are counted and skipped."""

_METADATA = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})
_EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_visible(name: str) -> bool:
    """Return whether a file or a directory of this name is not hidden, and no system's metadata."""
    return not name.startswith(".") and name.lower() not in _METADATA


def has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    """Return whether a file is visible and has one of these suffixes, in upper or lower case."""
    return is_visible(name) and os.path.splitext(name)[1].lower() in suffixes


class ImageTooLarge(DataError):
    """An image has, or its annotations state, more than `MAX_PIXELS` pixels."""


def load_image(
    source: Path | IO[bytes], stated_size_hw: tuple[int, int] | None = None, *, name: str = ""
) -> Image.Image:
    """Decode an image file to RGB, in the frame of its annotations.

    Transparent areas become white, values of more than 8 bits are scaled (`to_8bit`), and an
    animation gives its first frame. The image has the stated size; without one, it is as viewers
    show it. `name` is that of an open file in messages.

    Raises:
        DataError: the file is missing, corrupted, truncated or too large.
    """
    name = name or str(source)
    try:
        with open_image(source, name) as opened:
            image = decode(opened, stated_size_hw)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type for corrupted files
        expected = "Expected a complete image file, such as JPEG or PNG."
        raise DataError(f"Cannot read the image {name}: {error}. {expected}") from error
    if stated_size_hw is not None and image.size != stated_size_hw[::-1]:
        check_pixel_count(name, stated_size_hw[::-1])
        image = image.resize(stated_size_hw[::-1], Image.Resampling.BILINEAR)
    return image


def open_image(source: Path | IO[bytes], name: str = "") -> Image.Image:
    """Open an image file for a `with` statement, and read its header.

    Raises:
        DataError: the image is too large, or the file is missing or a pipe, which could block.
        Exception: of nearly every type, from Pillow's readers, for corrupted files.
    """
    name = name or str(source)
    if isinstance(source, Path) and not source.is_file():
        problem = "is not a regular file" if source.exists() else "does not exist"
        raise DataError(f"The image {name} {problem}.")
    try:
        opened = Image.open(source, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(name, "over twice as many") from error
    check_pixel_count(name, opened.size)
    return opened


def decode(image: Image.Image, stated_size_hw: tuple[int, int] | None = None) -> Image.Image:
    """Decode an opened image to RGB, rotated by its EXIF data as `load_image` describes."""
    if 0 in image.size:
        raise ValueError(f"expected at least one pixel, got a size of {image.width} × {image.height}")
    if isinstance(image, TiffImageFile):
        # Pillow 12 maps a file with a name into memory, and then rotates it wrongly
        name, image.filename = image.filename, ""
        image.load()
        image.filename = name
    image.load()
    rgb, orientation = to_rgb(image), exif_orientation(image)  # loading a TIFF file rotates it
    if orientation in UPRIGHT and belongs_upright(rgb.size, orientation, stated_size_hw):
        return rgb.transpose(UPRIGHT[orientation])
    return rgb


def check_pixel_count(name: str, size: tuple[int, int]) -> None:
    """Raise `ImageTooLarge` if (width, height) `size` has more pixels than Pillow's limit."""
    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name, f"{size[0]} × {size[1]}")


def _too_large(name: str, pixels: str) -> ImageTooLarge:
    limit = f"At most {Image.MAX_IMAGE_PIXELS:,} are read (it may be a decompression bomb)"
    fix = "make it smaller, or predict with --max-megapixels N"
    return ImageTooLarge(f"The image {name} would have {pixels} pixels. {limit}; {fix}.")


def to_8bit(values: np.ndarray) -> np.ndarray:
    """Scale pixel values of any shape to uint8, by a rule that depends on their type and range.

    True is white. uint16 has 16 bits (white is 65535); other integers have 8 bits up to a maximum
    of 255, otherwise 16. Floats reach from 0 to 1 or, if one is above, from 0 to 255; NaN is 0.

    Raises:
        ValueError: the values have another type or range.
    """
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    if kind in "bu" and bits == 8 or values.size == 0:
        return values * np.uint8(255) if kind == "b" else values.astype(np.uint8, copy=False)
    if kind == "f":
        values = np.where(np.isnan(values), 0, values).astype(np.promote_types(values.dtype, np.float32))
    low, high = (values.min(), values.max()) if kind in "iuf" else (-1, -1)
    slack = 0.001 if kind == "f" else 0  # rounding and resizing overshoot
    if kind == "f":
        white = 1 if high <= 1 + slack else 255
    else:
        white = 65535 if (kind, bits) == ("u", 16) or high > 255 else 255
    # floats between 1 and 2 have neither range
    if low < -slack * white or high > (1 + slack) * white or kind == "f" and 1 + slack < high < 2:
        got = f"{values.dtype} from {low:g} to {high:g}" if kind in "iuf" else values.dtype
        raise ValueError(f"expected integers in 0..65535 or floats in 0..1 or 0..255, got {got}; scale them")
    if kind == "f":
        return np.clip(np.round(values * (255 / white)), 0, 255).astype(np.uint8)
    return ((values.astype(np.uint32) + 128) // 257 if white > 255 else values).astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB; one that is RGB already is returned itself."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "I" and image.format == "PPM":  # Pillow scales these to 16 bits
            values = values.astype(np.uint16)
        return Image.fromarray(to_8bit(values)).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = (ImageCms.createProfile(space) for space in ("LAB", "sRGB"))
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        straight = image.convert("LA") if image.mode == "La" else image
        return Image.alpha_composite(opaque, straight.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 (upright) if it has none."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # corrupted EXIF data do not make the image unreadable
        return 1
    return value if isinstance(value, int) else 1


def belongs_upright(size: tuple[int, int], orientation: int, stated_size_hw: tuple[int, int] | None) -> bool:
    """Return whether to rotate an image of stored (width, height) `size` as its EXIF data say."""
    if stated_size_hw is None:
        return True
    if orientation in (2, 3, 4):  # mirrored or rotated by 180°: both fit
        return False
    stated = stated_size_hw[1] / stated_size_hw[0]
    stored, rotated = size[0] / size[1], size[1] / size[0]
    return abs(math.log(rotated / stated)) < abs(math.log(stored / stated))


def thumbnail(image: Image.Image, side: int, quality: int) -> bytes:
    """Shrink an RGB image, in place, to a long side of at most `side` pixels; return it as JPEG."""
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG as a data URI for an HTML page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
