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
from pathlib import Path

import numpy as np
from PIL import Image

from groundtune.errors import DataError

MAX_PIXELS = 89_478_485
"""Maximum number of pixels of an image: Pillow's warning level. Decoding more takes over 1 GB."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageTooLarge(DataError):
    """An image has, or its annotations state, more than `MAX_PIXELS` pixels."""


def load_image(path: Path, stated_size_hw: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file to RGB, in the frame of its annotations.

    Transparent areas become white, values of more than 8 bits are scaled, and an animation gives
    its first frame. The image has the stated size; without one, it is as viewers show it.

    Raises:
        DataError: the file is missing, corrupted, truncated or too large (`MAX_PIXELS`).
    """
    try:
        with open_image(path) as opened:
            opened.load()
            image = to_rgb(opened)
            orientation = exif_orientation(opened)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type for corrupted files
        expected = "Expected a complete image file, such as JPEG or PNG."
        raise DataError(f"Cannot read the image {path}: {error}. {expected}") from error
    if orientation in _UPRIGHT and belongs_upright(image.size, orientation, stated_size_hw):
        image = image.transpose(_UPRIGHT[orientation])
    if stated_size_hw is not None and image.size != stated_size_hw[::-1]:
        check_pixel_count(path, stated_size_hw[::-1])
        image = image.resize(stated_size_hw[::-1], Image.Resampling.BILINEAR)
    return image


def open_image(path: Path) -> Image.Image:
    """Open an image file for a `with` statement, and read its header.

    Raises:
        DataError: the image is too large, or the file is missing or a pipe, which could block.
        Exception: of nearly every type, from Pillow's readers, for corrupted files.
    """
    if not path.is_file():
        raise DataError(f"The image {path} {'is not a regular file' if path.exists() else 'does not exist'}.")
    try:
        opened = Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path, f"over {2 * MAX_PIXELS:,}") from error
    check_pixel_count(path, opened.size)
    return opened


def check_pixel_count(path: Path, size: tuple[int, int]) -> None:
    """Raise `ImageTooLarge` if (width, height) `size` has more than `MAX_PIXELS` pixels."""
    if size[0] * size[1] > MAX_PIXELS:
        raise _too_large(path, f"{size[0]} × {size[1]}")


def _too_large(path: Path, pixels: str) -> ImageTooLarge:
    limit = f"At most {MAX_PIXELS:,} are read (it may be a decompression bomb); make it smaller."
    return ImageTooLarge(f"The image {path} would have {pixels} pixels. {limit}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Copy an image of any mode to 8-bit RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        # integers are 16-bit (Pillow's own conversion clips at 255); floats have no agreed white
        white = 65535.0 if image.mode != "F" else max(float(np.nanmax(values)), 1e-12)
        gray = np.nan_to_num(np.clip(values / white, 0.0, 1.0)) * 255
        return Image.fromarray(gray.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")  # copies an RGB image too, whose file is about to be closed


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
