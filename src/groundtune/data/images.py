"""Small JPEG copies of images, for pages.

Opening image files that anybody may have made: only known formats, and judged by their header before they are decoded.

Pillow goes by a file's content, whatever it is called, and a few of its forty readers start other programs (EPS starts
Ghostscript). Those of photographs and screenshots are let in.
"""

import base64
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

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


def load_image(path: Path, stated_size_hw: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image of any kind into 8-bit RGB, in the frame of its annotations.

    Transparency is laid on white, 16-bit and floating-point images are scaled to 8 bits, of an animation the first
    image is taken.

    Args:
        path: the file.
        stated_size_hw: the size that its annotations state; decides about EXIF orientation (see the module). None: as
            viewers show it.

    Returns:
        An RGB image of exactly the stated size.

    Raises:
        DataError: the file is missing, broken, cut off, or too large (`image_files.MAX_PIXELS`).
    """
    try:
        with open_image(path) as opened:
            opened.load()
            image = to_rgb(opened)
            orientation = exif_orientation(opened)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind for broken files
        raise DataError(
            f"Cannot read the image {path}: {error}. Expected a whole JPEG, PNG or the like."
        ) from error
    if orientation in _UPRIGHT and belongs_upright(image.size, orientation, stated_size_hw):
        image = image.transpose(_UPRIGHT[orientation])
    if stated_size_hw is not None and image.size != stated_size_hw[::-1]:
        check_pixel_count(path, stated_size_hw[::-1])
        image = image.resize(stated_size_hw[::-1], Image.Resampling.BILINEAR)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Give a copy of an image of any mode in 8-bit RGB, as `load_image` says."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        # integers are 16-bit images (Pillow's own conversion cuts them at 255); floating point has no agreed white
        white = 65535.0 if image.mode != "F" else max(float(np.nanmax(values)), 1e-12)
        grey = np.nan_to_num(np.clip(values / white, 0.0, 1.0)) * 255
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    # a copy even of an RGB image: the file behind `image` is about to be closed
    return image.convert("RGB")


def belongs_upright(size: tuple[int, int], orientation: int, stated_size_hw: tuple[int, int] | None) -> bool:
    """Say whether an image of (width, height) `size` is to be turned as its EXIF orientation says."""
    if stated_size_hw is None:
        return True
    if orientation in (2, 3, 4):  # mirrored or turned by 180°: both fit
        return False
    wanted = stated_size_hw[1] / stated_size_hw[0]
    stored, turned = size[0] / size[1], size[1] / size[0]
    return abs(math.log(turned / wanted)) < abs(math.log(stored / wanted))


MAX_PIXELS = 89_478_485
"""Above Pillow's own warning level an image is refused: decoding and converting it takes over 1 GB."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
_EXIF_ORIENTATION = 0x0112


class ImageTooLarge(DataError):
    """An image has, or is stated to have, more than `MAX_PIXELS` pixels."""


def open_image(path: Path) -> Image.Image:
    """Open an image file and read its header; close it by `with`.

    Raises:
        ImageTooLarge: it has more than `MAX_PIXELS` pixels.
        DataError: there is no such file, or it is none (reading a pipe would wait for ever).
        Exception: whatever Pillow's readers raise for broken files, which is nearly every kind.
    """
    if not path.is_file():
        raise DataError(f"The image {path} {'is not a regular file' if path.exists() else 'does not exist'}.")
    try:
        opened = Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(_too_large(path, f"over {2 * MAX_PIXELS:,}")) from error
    check_pixel_count(path, opened.size)
    return opened


def check_pixel_count(path: Path, size: tuple[int, int]) -> None:
    """Refuse an image of this (width, height), its file's or the stated one; a `ImageTooLarge`."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageTooLarge(_too_large(path, f"{size[0]} × {size[1]}"))


def exif_orientation(image: Image.Image) -> int:
    """Give the EXIF orientation of an opened image, 1 where it has none."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # broken EXIF data do not make a broken image
        return 1
    return value if isinstance(value, int) else 1


def _too_large(path: Path, pixels: str) -> str:
    limit = f"At most {MAX_PIXELS:,} are read (it may be a decompression bomb); make it smaller."
    return f"The image {path} would have {pixels} pixels. {limit}"


def thumbnail(image: Image.Image, side: int, quality: int) -> bytes:
    """JPEG of an RGB image whose longer side is at most `side` pixels. The image itself is made smaller."""
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as the address of an image inside a page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
