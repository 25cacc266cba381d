"""Backgrounds, each a few random numbers that are scaled up: soft, patchy, striped, ruled or cloudy, pale or dark."""

import colorsys
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Color = tuple[float, float, float]  # RGB, 0 to 255

_PALETTES_TRIED = 12
_ENOUGH_CONTRAST = 100.0  # between the palette and the objects
_CHANNEL_WEIGHTS = (1.0, 1.2, 0.5)  # the eye sees little of blue alone: white is hard to find on pale yellow


def contrast(a: NDArray[np.floating], b: Color) -> NDArray[np.floating]:
    """How well colors [..., 3] stand out from another: their weighted RGB distance [...]."""
    return np.linalg.norm((a - np.array(b)) * _CHANNEL_WEIGHTS, axis=-1)


def background(size_wh: tuple[int, int], avoid: Sequence[Color], rng: random.Random) -> Image.Image:
    """Draw a background whose colors keep away from those of the objects to come, as far as they can."""
    palette = _palette(avoid, rng)
    noise = np.random.default_rng(rng.getrandbits(64))
    kind = rng.choice(["gradient", "blobs", "blobs", "tiles", "wood", "planks", "grid", "clouds", "clouds"])
    cells = rng.randint(3, 7)
    strips = rng.randint(20, 60)
    rows, columns = {
        "wood": (1, strips),
        "planks": (strips, 1),
        "blobs": (cells, cells),
        "tiles": (cells, cells),
    }.get(kind, (2, 2))
    share = _clouds(noise) if kind == "clouds" else noise.random((rows, columns))
    how = Image.Resampling.NEAREST if kind == "tiles" else Image.Resampling.BICUBIC
    image = _scaled(_blend(palette, share), size_wh, how)
    if kind == "grid":
        _rule(image, palette[-1], rng)
    return _textured(image, noise, rng) if rng.random() < 0.4 else image


def _palette(avoid: Sequence[Color], rng: random.Random) -> list[Color]:
    """Three related colors, the best of a few tries."""
    best: tuple[float, list[Color]] = (-1.0, [])
    for _ in range(_PALETTES_TRIED):
        hue, saturation = rng.random(), rng.choice([0.04, 0.12, 0.25, 0.5]) * rng.uniform(0.5, 1.2)
        low, high = rng.choice([(0.78, 1.0), (0.78, 1.0), (0.55, 1.0), (0.4, 0.75), (0.1, 0.35)])
        spread = rng.choice([0.05, 0.1, 0.5])
        palette = []
        for _ in range(3):
            red, green, blue = colorsys.hsv_to_rgb(
                hue + rng.uniform(-spread, spread), saturation, rng.uniform(low, high)
            )
            palette.append((255 * red, 255 * green, 255 * blue))
        least = min((float(contrast(np.array(palette), other).min()) for other in avoid), default=255.0)
        best = max(best, (least, palette))
        if least >= _ENOUGH_CONTRAST:
            break
    return best[1]


def _blend(palette: list[Color], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colors [H, W, 3] along the palette for shares [H, W] from 0 to 1."""
    steps = np.linspace(0, 1, len(palette))
    return np.stack([np.interp(share, steps, channel) for channel in np.transpose(palette)], axis=2)


def _clouds(noise: np.random.Generator) -> NDArray[np.float64]:
    """Shares [64, 64] that vary at three scales, the coarse one most."""
    layers = [
        (_scaled(noise.random((cells, cells)) * 255, (64, 64), Image.Resampling.BICUBIC), cells)
        for cells in (3, 7, 15)
    ]
    share = sum((np.asarray(layer) / 255 / cells for layer, cells in layers), start=np.zeros((64, 64)))
    return np.clip(3 * share - 0.3, 0, 1)


def _scaled(pixels: NDArray[np.float64], size_wh: tuple[int, int], how: Image.Resampling) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8)).resize(size_wh, how)


def _textured(image: Image.Image, noise: np.random.Generator, rng: random.Random) -> Image.Image:
    """Light and shade of a rough surface, or of a brushed one."""
    columns, rows = (max(2, round(side / rng.choice([2, 3, 5, 40]))) for side in image.size)
    grain = _scaled(noise.random((rows, columns)) * 255, image.size, Image.Resampling.BILINEAR)
    shade = 1 + rng.uniform(0.04, 0.22) * (np.asarray(grain, dtype=np.float32)[..., None] / 255 - 0.6)
    return Image.fromarray(np.clip(np.asarray(image) * shade, 0, 255).astype(np.uint8))


def _rule(image: Image.Image, ink: Color, rng: random.Random) -> None:
    """Lines as on squared paper, in a darker ink."""
    draw, step = ImageDraw.Draw(image), max(4, round(image.width / rng.uniform(7, 20)))
    fill = tuple(round(0.82 * channel) for channel in ink)
    for x in range(rng.randrange(step), image.width, step):
        draw.line([(x, 0), (x, image.height)], fill)
    for y in range(rng.randrange(step), image.height, step):
        draw.line([(0, y), (image.width, y)], fill)
