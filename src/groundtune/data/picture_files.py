"""Opening picture files that anybody may have made: only known formats, and judged by their header before they are decoded.

Pillow goes by a file's content, whatever it is called, and a few of its forty readers start other programs (EPS starts
Ghostscript). Those of photographs and screenshots are let in.
"""

from pathlib import Path

from PIL import Image

from groundtune.errors import DataError

MAX_PIXELS = 89_478_485
"""Above Pillow's own warning level a picture is refused: decoding and converting it takes over 1 GB."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
_EXIF_ORIENTATION = 0x0112


class PictureTooLarge(DataError):
    """A picture has, or is stated to have, more than `MAX_PIXELS` pixels."""


def open_picture(path: Path) -> Image.Image:
    """Open a picture file and read its header; close it by `with`.

    Raises:
        PictureTooLarge: it has more than `MAX_PIXELS` pixels.
        DataError: there is no such file, or it is none (reading a pipe would wait for ever).
        Exception: whatever Pillow's readers raise for broken files, which is nearly every kind.
    """
    if not path.is_file():
        raise DataError(f"The picture {path} {'is not a regular file' if path.exists() else 'does not exist'}.")
    try:
        opened = Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureTooLarge(_too_large(path, f"over {2 * MAX_PIXELS:,}")) from error
    refuse_bomb(path, opened.size)
    return opened


def refuse_bomb(path: Path, size: tuple[int, int]) -> None:
    """Refuse a picture of this (width, height), its file's or the stated one; a `PictureTooLarge`."""
    if size[0] * size[1] > MAX_PIXELS:
        raise PictureTooLarge(_too_large(path, f"{size[0]} × {size[1]}"))


def exif_orientation(picture: Image.Image) -> int:
    """Give the EXIF orientation of an opened picture, 1 where it has none."""
    try:
        value = picture.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # broken EXIF data do not make a broken picture
        return 1
    return value if isinstance(value, int) else 1


def _too_large(path: Path, pixels: str) -> str:
    limit = f"At most {MAX_PIXELS:,} are read (it may be a decompression bomb); make it smaller."
    return f"The picture {path} would have {pixels} pixels. {limit}"
