"""What can be drawn, what it is called, and the mask of one object.

A program of `shapes.json` is a list of strokes in a square of 100 × 100 with y downwards: `p` is a
polygon, `s` a smooth closed curve through points, `e` an ellipse (center, radii), `l` a thick round
line (width, points), `g` a glyph of Pillow's own font. "-" before the letter cuts the stroke out,
"~" makes it a detail that is painted in a second shade.
"""

import json
import math
import random
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

DATA: dict[str, Any] = json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8"))
COLORS: dict[str, list[int]] = DATA["colors"]
PATTERNS: list[str] = DATA["patterns"]
_GLYPHS = {f"letter {letter.lower()}": f"g {letter}" for letter in string.ascii_uppercase}
_GLYPHS |= {f"number {digit}": f"g {digit}" for digit in string.digits}
_PROGRAMS: dict[str, str] = DATA["programs"] | _GLYPHS
SHAPES = tuple(_PROGRAMS)
CATEGORY_OF: dict[str, str] = {shape: name for name, shapes in DATA["categories"].items() for shape in shapes}
CATEGORY_OF |= {shape: shape.split()[0] for shape in _GLYPHS}

_MASTER = 384  # side of the square in pixels
_OVERSAMPLING = 2  # masks are rotated at a larger size and scaled down, for smooth edges


@dataclass(frozen=True)
class Thing:
    """One object as words describe it; `size` is "" where no caption mentions it."""

    shape: str
    color: str
    pattern: str = "plain"
    size: str = ""


def scene_classes() -> list[str]:
    """Return all classes that can be drawn: each shape, alone or after a pattern and a color."""
    patterns = ["", *(f"{pattern} " for pattern in PATTERNS)]
    colors = ["", *(f"{color} " for color in COLORS)]
    return [pattern + color + shape for pattern in patterns for color in colors for shape in SHAPES]


def thing_of(name: str, rng: random.Random) -> Thing:
    """Parse one of `scene_classes()`; the default is a random color and no pattern."""
    words = name.split()
    pattern = words.pop(0) if words[0] in PATTERNS else "plain"
    color = words.pop(0) if words[0] in COLORS else rng.choice(list(COLORS))
    return Thing(" ".join(words), color, pattern)


def object_mask(
    shape: str, pattern: str, side: float, degrees: float, rng: random.Random
) -> NDArray[np.float32]:
    """Draw the mask of an object of a longer `side` in pixels, rotated and cropped to its extent.

    Returns (2, H, W) from 0 to 1: coverage, and share of the second shade. H is 0 if no pixel is
    covered by half.
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
    rows, columns = (np.flatnonzero((coverage >= 0.5).any(axis=axis)) for axis in (1, 0))
    mask = np.stack([coverage, detail])
    return mask[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else mask[:, :0]


@cache
def _master(shape: str) -> Image.Image:
    """Draw the upright shape, large: coverage, details and the rim as three channels."""
    body, detail = (Image.new("L", (_MASTER, _MASTER)) for _ in range(2))
    for stroke in _PROGRAMS[shape].split(";"):
        command, *values = stroke.split()
        layer = detail if command[0] == "~" else body
        _stroke(ImageDraw.Draw(layer), command[-1], values, 0 if command[0] == "-" else 255)
    depth = distance_transform_edt(np.pad(np.asarray(body), 1))[1:-1, 1:-1]
    rim = (depth > 0) & (depth <= min(14.0, 0.45 * depth.max()))
    channels = [np.asarray(body), np.asarray(detail), rim * np.uint8(255)]
    return Image.fromarray(np.stack(channels, axis=2)).crop(body.getbbox())


def _stroke(draw: ImageDraw.ImageDraw, command: str, values: list[str], fill: int) -> None:
    if command == "g":
        font = ImageFont.load_default(0.8 * _MASTER)
        draw.text((_MASTER / 2, _MASTER / 2), values[0], fill, font, anchor="mm", stroke_width=7)
        return
    numbers = [float(value) * (_MASTER / 100) for value in values]
    if command == "e":
        x, y, rx, ry = numbers
        draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill)
        return
    width = numbers.pop(0) if command == "l" else 0.0
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    if command == "l":
        draw.line(points, fill, round(width))
        for x, y in points:  # round ends and joints
            draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill)
    else:
        draw.polygon(_smooth(points) if command == "s" else points, fill)


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points of the closed Catmull-Rom curve through `points`."""
    corners = np.array(points)
    before, after, far = (np.roll(corners, -shift, axis=0) for shift in (-1, 1, 2))
    t = np.linspace(0, 1, 10, endpoint=False)[:, None, None]
    curve = 2 * corners + (after - before) * t + (2 * before - 5 * corners + 4 * after - far) * t**2
    curve = (curve + (3 * corners - before - 3 * after + far) * t**3) / 2
    return [(float(x), float(y)) for x, y in curve.transpose(1, 0, 2).reshape(-1, 2)]


def _pattern(pattern: str, size_hw: tuple[int, ...], side: float, rng: random.Random) -> NDArray[np.float32]:
    """Draw stripes, dots or checks with edges about a pixel wide."""
    period = side / rng.uniform(3.5, 5.5) * (1.3 if pattern == "checkered" else 1.0)
    angle = rng.uniform(0, math.pi)
    ys, xs = np.mgrid[0 : size_hw[0], 0 : size_hw[1]].astype(np.float32) * (2 * math.pi / period)
    along = xs * math.cos(angle) + ys * math.sin(angle) + rng.uniform(0, 6)
    across = ys * math.cos(angle) - xs * math.sin(angle) + rng.uniform(0, 6)
    if pattern == "striped":
        height = np.sin(along)
    elif pattern == "dotted":
        height = np.cos(along) + np.cos(across) - 0.75
    else:
        height = np.sin(along) * np.sin(across) * 2
    return np.clip(0.5 + height * period / 5, 0, 1)
