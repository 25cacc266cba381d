"""Turn what a caller holds into RGB images: paths, addresses, bytes, files, PIL images, arrays.

docs/predict.md, "What an image may be", has the rules.
"""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from groundtune.data.images import decode, load_image, to_8bit
from groundtune.errors import DataError
from groundtune.predict.addresses import fetch, is_address

_BYTES = bytes | bytearray | memoryview
ImageInput = str | os.PathLike[str] | _BYTES | BinaryIO | Image.Image | np.ndarray | torch.Tensor
_CHANNELS = (1, 3, 4)


def is_single(images: object) -> bool:
    """Return whether a value is one image, and not a batch or an iterable of images."""
    if (array := _as_array(images)) is not None:
        return array.ndim != 4 and array.dtype.kind not in "OU"
    single = str | dict | os.PathLike | _BYTES | Image.Image
    return isinstance(images, single) or hasattr(images, "read") or not isinstance(images, Iterable)


def read_images(images: Any) -> Iterator[Image.Image]:
    """Yield the RGB images of an image, a batch, or an iterable of these, which is read lazily.

    Raises:
        DataError: an image cannot be read, or a value is something else.
    """
    array = _as_array(images)
    if array is not None and array.dtype.kind not in "OU":
        try:
            pixels = to_8bit(array)  # the range of a batch is that of all its images
            yield from map(_from_array, pixels if pixels.ndim == 4 else [pixels])
        except ValueError as error:
            raise DataError(f"Cannot use the image: {error}") from error
    elif is_single(images):
        yield _open(images)
    else:
        for image in images:
            yield from read_images(image)


def _as_array(image: Any) -> np.ndarray | None:
    """Return an array or a tensor, of any library, as a NumPy array; None for other values."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        return (image.float() if image.is_floating_point() else image).numpy()
    is_array = hasattr(image, "__array__") and not isinstance(image, str | bytes)  # of NumPy
    return np.asarray(image) if is_array else None


def _from_array(pixels: np.ndarray) -> Image.Image:
    """Convert uint8 pixels; (C, H, W) only where the last axis cannot be that of channels."""
    shape = pixels.shape
    if len(shape) == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if 0 in shape or len(shape) != 2 and (len(shape) != 3 or pixels.shape[2] not in _CHANNELS):
        accepted = "(H, W), (H, W, C) or (C, H, W) with C = 1, 3 (RGB) or 4 (RGBA), or a batch (N, …)"
        raise ValueError(f"expected {accepted} of at least one pixel, got {shape}.")
    return decode(Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))


def _open(image: Any) -> Image.Image:
    if isinstance(image, str) and is_address(image):
        if (content := fetch(image)) is None:
            raise DataError(f"{image} is a video or a stream. Give it to groundtune.predict.")
        return load_image(content, name=image)
    if isinstance(image, str | os.PathLike):
        return load_image(Path(image))
    if isinstance(image, _BYTES):
        return load_image(io.BytesIO(image), name=f"of {len(image)} bytes")
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or f"of mode {image.mode}"
        try:
            rgb = decode(image)
        except MemoryError:
            raise
        except Exception as error:  # PIL decodes lazily; its decoders raise nearly every type
            raise DataError(f"Cannot read the image {name}: {error}.") from error
        return rgb.copy() if rgb is image else rgb  # the caller may change it before a batch is complete
    if hasattr(image, "read"):
        return load_image(image, name=str(getattr(image, "name", type(image).__name__)))
    expected = "a path, address, bytes, open file, PIL image, array or tensor, or an iterable of these"
    raise DataError(f"Image: expected {expected}, got {type(image).__name__}.")
