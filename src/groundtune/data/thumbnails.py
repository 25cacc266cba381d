"""Small JPEG copies of pictures, for pages."""

import base64
import io

from PIL import Image


def thumbnail(picture: Image.Image, side: int, quality: int) -> bytes:
    """JPEG of an RGB picture whose longer side is at most `side` pixels. The picture itself is made smaller."""
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as the address of a picture inside a page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
