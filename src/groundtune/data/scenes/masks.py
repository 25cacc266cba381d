"""The mask of one object in a tile of its own: which pixels it covers, and which of them have the second shade."""

import math
import random
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from groundtune.data.scenes.names import PROGRAMS

_MASTER = 384  # pixels of the side of the 100 × 100 square
_PER_UNIT = _MASTER / 100
_OVERSAMPLING = 2  # tiles are turned at a larger size and scaled down, for smooth edges


def object_tile(
    shape: str, pattern: str, side: float, degrees: float, rng: random.Random
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw the mask of an object, cut to its extent.

    Args:
        shape: a key of `PROGRAMS`.
        pattern: one of `PATTERNS`.
        side: the longer side of the shape before it is turned, pixels.
        degrees: the turn, counter-clockwise.
        rng: of the pattern's place.

    Returns:
        Coverage and share of the second shade, both [H, W] from 0 to 1; [0, 0] where no pixel is covered by half.
    """
    master = _master(shape)
    scale = side * _OVERSAMPLING / max(master.size)
    tile = master.resize((max(1, round(master.width * scale)), max(1, round(master.height * scale))))
    tile = tile.rotate(degrees, Image.Resampling.BILINEAR, expand=True).reduce(_OVERSAMPLING)
    coverage, detail, outline = np.moveaxis(np.asarray(tile, dtype=np.float32) / 255, 2, 0)
    if pattern == "outlined":
        coverage, detail = np.maximum(outline, np.minimum(detail, coverage)), np.zeros_like(detail)
    elif pattern != "plain":
        detail = _pattern(pattern, coverage.shape, side, rng)
    inside = coverage >= 0.5
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return coverage[:0, :0], detail[:0, :0]
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return coverage[cut], detail[cut]


@cache
def _master(shape: str) -> Image.Image:
    """The upright shape, large: coverage, details and the rim as the three channels."""
    layers = {sign: Image.new("L", (_MASTER, _MASTER)) for sign in ("", "~")}
    for stroke in PROGRAMS[shape].split(";"):
        command, *values = stroke.split()
        _stroke(
            layers["~" if command[0] == "~" else ""], command[-1], values, 0 if command[0] == "-" else 255
        )
    box = layers[""].getbbox()
    depth = distance_transform_edt(np.pad(np.asarray(layers[""]), 1))[1:-1, 1:-1]
    rim = (depth > 0) & (depth <= min(14.0, 0.45 * depth.max()))
    channels = [np.asarray(layers[""]), np.asarray(layers["~"]), rim * np.uint8(255)]
    return Image.fromarray(np.stack(channels, axis=2)).crop(box)


def _stroke(layer: Image.Image, command: str, values: list[str], fill: int) -> None:
    draw = ImageDraw.Draw(layer)
    if command == "g":
        font = ImageFont.load_default(0.8 * _MASTER)
        draw.text((_MASTER / 2, _MASTER / 2), values[0], fill, font, anchor="mm", stroke_width=7)
        return
    numbers = [float(value) * _PER_UNIT for value in values]
    if command == "e":
        x, y, rx, ry = numbers
        draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill)
        return
    width = numbers.pop(0) if command == "l" else 0.0
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    if command == "l":
        draw.line(points, fill, round(width))
        for x, y in points:
            draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill)
    else:
        draw.polygon(_smooth(points) if command == "s" else points, fill)


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The closed Catmull-Rom curve through the points."""
    corners = np.array(points)
    before, after, far = (np.roll(corners, -shift, axis=0) for shift in (-1, 1, 2))
    t = np.linspace(0, 1, 10, endpoint=False)[:, None, None]
    curve = 2 * corners + (after - before) * t + (2 * before - 5 * corners + 4 * after - far) * t**2
    curve = (curve + (3 * corners - before - 3 * after + far) * t**3) / 2
    return [(float(x), float(y)) for x, y in curve.transpose(1, 0, 2).reshape(-1, 2)]


def _pattern(pattern: str, size_hw: tuple[int, ...], side: float, rng: random.Random) -> NDArray[np.float32]:
    """Stripes, dots or checks over a tile, soft over about a pixel."""
    period = side / rng.uniform(3.5, 5.5) * (1.3 if pattern == "checkered" else 1.0)
    angle = rng.uniform(0, math.pi)
    ys, xs = np.mgrid[0 : size_hw[0], 0 : size_hw[1]].astype(np.float32) * (2 * math.pi / period)
    along = xs * math.cos(angle) + ys * math.sin(angle) + rng.uniform(0, 6)
    across = ys * math.cos(angle) - xs * math.sin(angle) + rng.uniform(0, 6)
    height = {
        "striped": lambda: np.sin(along),
        "dotted": lambda: np.cos(along) + np.cos(across) - 0.75,
        "checkered": lambda: np.sin(along) * np.sin(across) * 2,
    }[pattern]()
    return np.clip(0.5 + height * period / 5, 0, 1)
