"""One generated image: a background, objects that differ from it, and effects of a camera.

A box spans the pixels that its object covers by half or more, even if another object covers them.
"""

import colorsys
import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from groundtune.data.scenes.shapes import COLORS, DATA, Thing, object_mask, thing_of

Box = tuple[int, int, int, int]  # xyxy, whole pixels

_CHANNEL_WEIGHTS = (1.0, 1.2, 0.5)  # blue counts little: white is hard to see on pale yellow
_OBJECT_CONTRAST = 72.0  # least contrast between an object and the background below it
_PALETTE_CONTRAST = 100.0  # the same between the palette and all objects, if a palette has it
_MAX_OVERLAP = 0.3  # of the smaller box, between two colors; objects of one color do not touch
_MAP_SCALE = 8  # contrast is computed on the background, scaled down by this
_MARGIN = 6  # pixels around an object for its shadow


def draw_scene(
    names: Sequence[str], size: int, rng: random.Random
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """Draw one RGB image of up to six objects, with the name and box of each.

    `names` are the classes to choose from, out of `scene_classes()`; `size` is the longer side in
    pixels. Later objects cover earlier ones.
    """
    count = 0 if rng.random() < 1 / 12 else rng.randint(1, 6)
    chosen = [rng.choice(names) for _ in range(count)]
    things = [(thing_of(name, rng), log_uniform(0.1, 0.5, rng)) for name in chosen]
    image, boxes = draw_image(things, image_size(size, rng), rng)
    return image, [(chosen[index], box) for index, box in boxes]


def log_uniform(low: float, high: float, rng: random.Random) -> float:
    """Draw a number whose logarithm is uniform."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def image_size(size: int, rng: random.Random) -> tuple[int, int]:
    """Choose a width and height whose longer side is `size`: square, landscape or portrait."""
    shorter = round(size * rng.choice([0.75, 1.0]))
    return rng.choice([(size, shorter), (shorter, size)])


def draw_image(
    things: Sequence[tuple[Thing, float]], size_wh: tuple[int, int], rng: random.Random
) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """Draw things, the large ones first; skip those without enough space or contrast.

    A thing has its longer side as a fraction of the image's shorter side. Returns the RGB image,
    and the index in `things` and the box of each drawn thing.
    """
    image = _background(size_wh, [COLORS[thing.color] for thing, _ in things], rng)
    ground = np.asarray(image.reduce(_MAP_SCALE), dtype=np.float32)
    drawn: list[tuple[int, Box]] = []
    for index in sorted(range(len(things)), key=lambda index: -things[index][1]):
        thing, scale = things[index]
        # at most 25 degrees: a square stays no diamond, and letters stay readable
        degrees = rng.uniform(*((0, 360) if thing.shape in DATA["turned_freely"] else (-25.0, 25.0)))
        side = max(8.0, scale * min(size_wh))
        mask = object_mask(thing.shape, thing.pattern, side, degrees, rng)
        others = [(box, _MAX_OVERLAP * (things[other][0].color != thing.color)) for other, box in drawn]
        clear = _contrast(ground, COLORS[thing.color]) >= _OBJECT_CONTRAST
        box = _free_box(mask.shape[1:], size_wh, clear, others, rng) if mask.size else None
        if box is not None:
            _paint(image, mask, thing.color, box[:2], rng)
            drawn.append((index, box))
    return _photograph(image, rng), drawn


def _free_box(
    size_hw: tuple[int, ...],
    size_wh: tuple[int, int],
    clear: NDArray[np.bool_],
    others: list[tuple[Box, float]],
    rng: random.Random,
) -> Box | None:
    """Search a place for an object of `size_hw` in an image of `size_wh`; None after 40 tries.

    `clear` is where the background has contrast. `others` may be covered a little, at times.
    """
    height, width = size_hw
    if width > size_wh[0] or height > size_wh[1]:
        return None
    may_overlap = rng.choice([False, False, True])
    for _ in range(40):
        x, y = rng.randint(0, size_wh[0] - width), rng.randint(0, size_wh[1] - height)
        box = (x, y, x + width, y + height)
        below = clear[y // _MAP_SCALE : box[3] // _MAP_SCALE + 1, x // _MAP_SCALE : box[2] // _MAP_SCALE + 1]
        overlaps = (_overlap(box, other) <= limit * may_overlap for other, limit in others)
        if below.mean() > 0.9 and all(overlaps):
            return box
    return None


def _overlap(a: Box, b: Box) -> float:
    """Return the intersection as a fraction of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0, width) * max(0, height) / smaller


def _paint(
    image: Image.Image, mask: NDArray[np.float32], color: str, corner: tuple[int, int], rng: random.Random
) -> None:
    """Paint an object with a little light from above and, mostly, a soft shadow below it."""
    coverage, detail = mask
    if rng.random() < 0.6:
        opacity = np.pad(coverage, _MARGIN) * 255 * rng.uniform(0.2, 0.4)
        shadow = Image.fromarray(opacity.astype(np.uint8)).filter(ImageFilter.BoxBlur(2))
        x, y = corner
        image.paste((30, 30, 42), (x - _MARGIN + rng.randint(-3, 3), y - _MARGIN + rng.randint(1, 4)), shadow)
    base = np.array(COLORS[color], dtype=np.float32) + [rng.uniform(-10, 10) for _ in range(3)]
    light = np.linspace(rng.uniform(0, 14), -rng.uniform(0, 22), len(coverage), dtype=np.float32)
    share = detail[..., None]
    fill = np.clip(base * (1 - share) + _second_shade(base, color) * share + light[:, None, None], 0, 255)
    alpha = Image.fromarray((coverage * 255).round().astype(np.uint8))
    image.paste(Image.fromarray(fill.astype(np.uint8)), corner, alpha)


def _second_shade(base: NDArray[np.floating], color: str) -> NDArray[np.floating]:
    """Return the shade of details and patterns: pale on strong colors, dark on pale ones."""
    return base * 0.45 if color in ("white", "yellow") else base * 0.28 + 255 * 0.72


def _photograph(image: Image.Image, rng: random.Random) -> Image.Image:
    """Add blur, brightness and noise, each so little that colors keep their names."""
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    pixels = np.asarray(image, dtype=np.float32) * rng.uniform(0.86, 1.1) + rng.uniform(-8, 8)
    generator = np.random.default_rng(rng.getrandbits(64))
    noise = generator.standard_normal((*pixels.shape[:2], 1), dtype=np.float32)
    return Image.fromarray(np.clip(pixels + noise * rng.uniform(0.5, 7), 0, 255).astype(np.uint8))


def _background(
    size_wh: tuple[int, int], avoid: Sequence[Sequence[float]], rng: random.Random
) -> Image.Image:
    """Draw a background, a few random numbers scaled up, in colors unlike those to avoid."""
    palette = _palette(avoid, rng)
    noise = np.random.default_rng(rng.getrandbits(64))
    kind = rng.choice(["gradient", "blobs", "blobs", "tiles", "wood", "planks", "grid", "clouds", "clouds"])
    cells, strips = rng.randint(3, 7), rng.randint(20, 60)
    shapes = {"wood": (1, strips), "planks": (strips, 1), "blobs": (cells, cells), "tiles": (cells, cells)}
    position = _clouds(noise) if kind == "clouds" else noise.random(shapes.get(kind, (2, 2)))
    steps = np.linspace(0, 1, len(palette))
    pixels = np.stack([np.interp(position, steps, channel) for channel in np.transpose(palette)], axis=2)
    image = _resized(pixels, size_wh, "NEAREST" if kind == "tiles" else "BICUBIC")
    if kind == "grid":
        draw, step = ImageDraw.Draw(image), max(4, round(image.width / rng.uniform(7, 20)))
        ink = tuple(round(0.82 * channel) for channel in palette[-1])
        for x in range(rng.randrange(step), image.width, step):
            draw.line([x, 0, x, image.height], ink)
        for y in range(rng.randrange(step), image.height, step):
            draw.line([0, y, image.width, y], ink)
    if rng.random() < 0.4:  # light and shade of a rough or of a brushed surface
        columns, rows = (max(2, round(side / rng.choice([2, 3, 5, 40]))) for side in image.size)
        grain = _resized(noise.random((rows, columns)) * 255, image.size, "BILINEAR")
        shade = 1 + rng.uniform(0.04, 0.22) * (np.asarray(grain, dtype=np.float32)[..., None] / 255 - 0.6)
        image = Image.fromarray(np.clip(np.asarray(image) * shade, 0, 255).astype(np.uint8))
    return image


def _palette(avoid: Sequence[Sequence[float]], rng: random.Random) -> list[tuple[float, ...]]:
    """Return three related colors, the best of a few tries to differ from those to avoid."""
    best: tuple[float, list[tuple[float, ...]]] = (-1.0, [])
    for _ in range(12):
        hue, saturation = rng.random(), rng.choice([0.04, 0.12, 0.25, 0.5]) * rng.uniform(0.5, 1.2)
        low, high = rng.choice([(0.78, 1.0), (0.78, 1.0), (0.55, 1.0), (0.4, 0.75), (0.1, 0.35)])
        spread = rng.choice([0.05, 0.1, 0.5])
        palette = []
        for _ in range(3):
            turned = hue + rng.uniform(-spread, spread)
            rgb = colorsys.hsv_to_rgb(turned, saturation, rng.uniform(low, high))
            palette.append(tuple(255 * channel for channel in rgb))
        least = min((float(_contrast(np.array(palette), color).min()) for color in avoid), default=255.0)
        best = max(best, (least, palette))
        if least >= _PALETTE_CONTRAST:
            break
    return best[1]


def _contrast(colors: NDArray[np.floating], other: Sequence[float]) -> NDArray[np.floating]:
    """Return the weighted RGB distance [...] of colors [..., 3] from another color."""
    return np.linalg.norm((colors - np.array(other)) * _CHANNEL_WEIGHTS, axis=-1)


def _clouds(noise: np.random.Generator) -> NDArray[np.float64]:
    """Return positions [64, 64] along the palette that vary at three scales."""
    total = np.zeros((64, 64))
    for cells in (3, 7, 15):
        layer = _resized(noise.random((cells, cells)) * 255, (64, 64), "BICUBIC")
        total = total + np.asarray(layer) / 255 / cells
    return np.clip(3 * total - 0.3, 0, 1)


def _resized(pixels: NDArray[np.float64], size_wh: tuple[int, int], filter: str) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8)).resize(size_wh, Image.Resampling[filter])
