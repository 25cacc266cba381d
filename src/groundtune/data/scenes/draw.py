"""One image: a background, objects that stand out from it, and what a camera adds.

A box is measured on the pixels that the object covers by half or more, whether something lies over them or not.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from groundtune.data.scenes.backgrounds import background, contrast
from groundtune.data.scenes.masks import object_tile
from groundtune.data.scenes.names import COLORS, Thing, thing_of

Box = tuple[int, int, int, int]  # xyxy, whole pixels

_FREELY_TURNED = {"circle", "triangle", "star", "ring", "pentagon", "hexagon", "octagon", "oval", "rectangle"}
_FREELY_TURNED |= {
    "parallelogram",
    "semicircle",
    "quarter circle",
    "crescent",
    "arrow",
    "double arrow",
    "gear",
    "spiral",
}
_FREELY_TURNED |= {"flower", "sun", "snowflake", "target"}
_MOST_DEGREES = 25.0  # of all others, so that a square is no diamond and letters stay readable
_TALLEST = 0.75  # of the longer side, for the images that are not square
_MOST_SHAPES = 6
_MOST_OVERLAP = 0.3  # of the smaller box, between two colors; objects of one color do not touch
_LEAST_CONTRAST = 72.0  # between an object and what is below it
_SMALLEST_SIDE = 8.0  # pixels
_MAP_SCALE = 8  # contrast is judged on the background scaled down by this
_MARGIN = 6  # pixels around a tile for its shadow


def draw_scene(
    names: Sequence[str], size: int, rng: random.Random
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """Draw one image of a few classes.

    Args:
        names: classes to choose from, out of `scene_classes()`.
        size: the longer side, pixels.
        rng: source of every choice.

    Returns:
        The RGB image; and for each object its name and xyxy box in whole pixels, which spans exactly the pixels that
        the object covers by half or more. Later objects lie over earlier ones, never by much.
    """
    count = 0 if rng.random() < 1 / 12 else rng.randint(1, _MOST_SHAPES)
    chosen = [rng.choice(names) for _ in range(count)]
    wanted = [(thing_of(name, rng), math.exp(rng.uniform(math.log(0.1), math.log(0.5)))) for name in chosen]
    image, found = draw_image(wanted, image_size(size, rng), rng)
    return image, [(chosen[number], box) for number, box in found]


def image_size(size: int, rng: random.Random) -> tuple[int, int]:
    """Choose width and height with a longer side of `size`: square, lying or standing."""
    shorter = round(size * rng.choice([_TALLEST, 1.0]))
    return rng.choice([(size, shorter), (shorter, size)])


def draw_image(
    wanted: Sequence[tuple[Thing, float]], size_wh: tuple[int, int], rng: random.Random
) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """Draw things, the large ones first; one that finds no place or no contrast is left out.

    Args:
        wanted: what to draw, and its longer side as a part of the image's shorter side.
        size_wh: of the image.
        rng: source of every choice.

    Returns:
        The RGB image; and for each drawn thing its index in `wanted` and its box.
    """
    image = background(size_wh, [COLORS[thing.color] for thing, _ in wanted], rng)
    ground = np.asarray(image.reduce(_MAP_SCALE), dtype=np.float32)
    found: list[tuple[int, Box]] = []
    for number in sorted(range(len(wanted)), key=lambda index: -wanted[index][1]):
        thing, scale = wanted[number]
        degrees = (
            rng.uniform(0, 360)
            if thing.shape in _FREELY_TURNED
            else rng.uniform(-_MOST_DEGREES, _MOST_DEGREES)
        )
        side = max(_SMALLEST_SIDE, scale * min(size_wh))
        coverage, detail = object_tile(thing.shape, thing.pattern, side, degrees, rng)
        others = [(wanted[other][0].color, box) for other, box in found]
        place = _place(coverage.shape, thing.color, ground, others, size_wh, rng) if coverage.size else None
        if place is not None:
            _paint(image, coverage, detail, thing.color, place, rng)
            found.append((number, (*place, place[0] + coverage.shape[1], place[1] + coverage.shape[0])))
    return _photograph(image, rng), found


def _place(
    size_hw: tuple[int, ...],
    color: str,
    ground: NDArray[np.float32],
    others: list[tuple[str, Box]],
    size_wh: tuple[int, int],
    rng: random.Random,
) -> tuple[int, int] | None:
    """Find x and y where the object stands out and covers little of the others; None where a few tries find none."""
    clear = contrast(ground, COLORS[color]) >= _LEAST_CONTRAST
    height, width = size_hw
    if width > size_wh[0] or height > size_wh[1]:
        return None
    most_overlap = rng.choice([0.0, 0.0, _MOST_OVERLAP])
    for _ in range(40):
        x, y = rng.randint(0, size_wh[0] - width), rng.randint(0, size_wh[1] - height)
        box = (x, y, x + width, y + height)
        below = clear[y // _MAP_SCALE : box[3] // _MAP_SCALE + 1, x // _MAP_SCALE : box[2] // _MAP_SCALE + 1]
        if below.mean() > 0.9 and all(
            _overlap(box, b) <= (most_overlap if c != color else 0.0) for c, b in others
        ):
            return x, y
    return None


def _paint(
    image: Image.Image,
    coverage: NDArray[np.float32],
    detail: NDArray[np.float32],
    color: str,
    place: tuple[int, int],
    rng: random.Random,
) -> None:
    """Paint an object with a little light from above and, mostly, a soft shadow below it."""
    padded = np.pad(coverage, _MARGIN) * 255
    x, y = place
    if rng.random() < 0.6:
        shadow = Image.fromarray((padded * rng.uniform(0.2, 0.4)).astype(np.uint8)).filter(
            ImageFilter.BoxBlur(2)
        )
        image.paste((30, 30, 42), (x - _MARGIN + rng.randint(-3, 3), y - _MARGIN + rng.randint(1, 4)), shadow)
    base = np.array(COLORS[color], dtype=np.float32) + [rng.uniform(-10, 10) for _ in range(3)]
    share = detail[..., None]
    light = np.linspace(rng.uniform(0, 14), -rng.uniform(0, 22), len(coverage), dtype=np.float32)[
        :, None, None
    ]
    fill = np.clip(base * (1 - share) + _second_shade(base, color) * share + light, 0, 255)
    image.paste(
        Image.fromarray(fill.astype(np.uint8)),
        place,
        Image.fromarray((coverage * 255).round().astype(np.uint8)),
    )


def _second_shade(base: NDArray[np.floating], color: str) -> NDArray[np.floating]:
    """The shade of details and patterns: pale on strong colors, dark on pale ones."""
    return base * 0.45 if color in ("white", "yellow") else base * 0.28 + 255 * 0.72


def _photograph(image: Image.Image, rng: random.Random) -> Image.Image:
    """Blur, brightness and noise, each within what leaves a color its name."""
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    pixels = np.asarray(image, dtype=np.float32) * rng.uniform(0.86, 1.1) + rng.uniform(-8, 8)
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(
        (*pixels.shape[:2], 1), dtype=np.float32
    )
    return Image.fromarray(np.clip(pixels + noise * rng.uniform(0.5, 7), 0, 255).astype(np.uint8))


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0, width) * max(0, height) / smaller
