"""Generated pictures with exact boxes: coloured shapes on soft backgrounds, for the demonstration and for tests.

A scene is a stand-in for a user's own pictures where none can be shipped: small enough to be made in seconds, and with
names ("red circle") that say what they show, so that the text side has something to learn. Everything follows from the
seed. A box is measured on the drawn pixels, not computed from the outline.
"""

import json
import math
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from groundtune.data.sample import match_class_names
from groundtune.errors import DataError

Point = tuple[float, float]

DEFAULT_CLASSES = ["red circle", "blue star", "green triangle", "yellow square", "purple heart", "orange ring"]

_COLOURS = {
    "red": (214, 58, 62),
    "orange": (240, 140, 46),
    "yellow": (246, 203, 66),
    "green": (70, 160, 88),
    "blue": (58, 112, 205),
    "purple": (138, 82, 178),
    "pink": (238, 128, 168),
    "white": (250, 250, 248),
    "black": (42, 44, 52),
}
_OVERSAMPLING = 3  # shapes are drawn larger and scaled down, for smooth edges
_TALLEST = 0.75  # of the longer side, for the pictures that are not square
_SMALLEST_SIZE = 32
_MOST_SHAPES = 6
_MOST_OVERLAP = 0.12  # of the smaller box


def _regular(corners: int, start: float = -90.0) -> list[Point]:
    angles = [math.radians(start + 360 * i / corners) for i in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    return [
        (radius * x, radius * y) for (x, y), radius in zip(_regular(10), [1.0, 0.45] * 5, strict=True)
    ]  # every second corner is drawn in


def _heart() -> list[Point]:
    turns = [2 * math.pi * i / 72 for i in range(72)]
    xs = [16 * math.sin(t) ** 3 for t in turns]
    ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(x / 17, (-y - 2.5) / 17) for x, y in zip(xs, ys, strict=True)]


def _cross() -> list[Point]:
    arm = 0.34
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    turned = quarter + [(-y, x) for x, y in quarter]
    return turned + [(-x, -y) for x, y in turned]


# Outline, and the outline of a hole, around (0, 0) with a radius of about 1.
_SHAPES: dict[str, tuple[list[Point], list[Point]]] = {
    "circle": (_regular(90), []),
    "square": (_regular(4, 45.0), []),
    "triangle": (_regular(3), []),
    "star": (_star(), []),
    "heart": (_heart(), []),
    "ring": (_regular(90), [(0.55 * x, 0.55 * y) for x, y in _regular(90)]),
    "cross": (_cross(), []),
    "hexagon": (_regular(6), []),
}


def scene_classes() -> list[str]:
    """List every class that can be drawn: each colour with each shape."""
    return [f"{colour} {shape}" for colour in _COLOURS for shape in _SHAPES]


def write_scenes(
    out: Path, *, train: int, valid: int, classes: list[str] | None = None, size: int = 320, seed: int = 0
) -> None:
    """Write a data set of scenes in Roboflow's COCO layout, placeholder category included.

    The folder appears when it is complete; an interrupted run leaves nothing in its place.

    Args:
        out: the folder to make. It must not exist, or be empty.
        train: pictures in `train/`; one in twelve or so has no shape.
        valid: pictures in `valid/`.
        classes: names out of `scene_classes()`; None takes `DEFAULT_CLASSES`.
        size: the longer side of a picture in pixels, at least 32.
        seed: of everything.

    Raises:
        DataError: a class cannot be drawn, the pictures are too small for shapes, or the folder is not empty.
    """
    if size < _SMALLEST_SIZE:
        raise DataError(
            f"size: pictures of {size} pixels are too small for shapes; expected at least {_SMALLEST_SIZE}."
        )
    drawable = scene_classes()
    names = [drawable[index] for index in match_class_names(classes or DEFAULT_CLASSES, drawable)]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty. Remove it, or choose another folder for the generated pictures.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        unfinished = Path(temporary) / "scenes"
        for split, count in (("train", train), ("valid", valid)):
            _write_split(unfinished / split, split, count, names, size, seed)
        if out.exists():
            out.rmdir()
        shutil.move(unfinished, out)


def draw_scene(names: list[str], size: int, rng: random.Random) -> tuple[Image.Image, list[tuple[str, list[int]]]]:
    """Draw one picture.

    Args:
        names: classes to choose from.
        size: the longer side, pixels.
        rng: source of every choice.

    Returns:
        The RGB picture; and for each shape its name and xyxy box in whole pixels, which spans exactly the pixels that
        the shape covers by half or more. Later shapes lie over earlier ones, never by much.
    """
    shorter = round(size * rng.choice([_TALLEST, 1.0]))
    width, height = rng.choice([(size, shorter), (shorter, size)])
    picture = _background(width, height, rng)
    found: list[tuple[str, list[int]]] = []
    for _ in range(0 if rng.random() < 1 / 12 else rng.randint(1, _MOST_SHAPES)):
        name = rng.choice(names)
        mask = _place(name.split()[1], (width, height), [box for _, box in found], rng)
        if mask is not None:
            _paint(picture, mask, name.split()[0], rng)
            found.append((name, _measured(mask)))
    return _grain(picture, rng), found


def _write_split(folder: Path, split: str, count: int, names: list[str], size: int, seed: int) -> None:
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        # a generator of its own per picture: a data set of more pictures begins with the same ones
        picture, found = draw_scene(names, size, random.Random(f"{seed}/{split}/{number}"))
        file_name = f"{split}_{number:05d}.jpg"
        picture.save(folder / file_name, quality=92)
        images.append({"id": number, "file_name": file_name, "width": picture.width, "height": picture.height})
        for name, (x0, y0, x1, y1) in found:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(name) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories: list[dict[str, Any]] = [{"id": 0, "name": "shapes", "supercategory": "none"}]
    categories += [{"id": i, "name": name, "supercategory": "shapes"} for i, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")


def _background(width: int, height: int, rng: random.Random) -> Image.Image:
    """A soft gradient between two pale or two dusky colours, with a few blurred patches of light and shade."""
    base = rng.uniform(0.45, 0.92)
    ends = [[255 * min(1.0, max(0.0, base + rng.uniform(-0.1, 0.1))) for _ in range(3)] for _ in range(2)]
    angle = rng.uniform(0, 2 * math.pi)
    ys, xs = np.mgrid[0:height, 0:width]
    along = xs / width * math.cos(angle) + ys / height * math.sin(angle)
    along = (along - along.min()) / max(float(np.ptp(along)), 1e-9)
    pixels = np.array(ends[0]) * (1 - along[..., None]) + np.array(ends[1]) * along[..., None]
    picture = Image.fromarray(pixels.astype(np.uint8))
    for _ in range(rng.randint(2, 5)):
        patch = Image.new("L", (width, height), 0)
        radius = rng.uniform(0.1, 0.3) * max(width, height)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        ImageDraw.Draw(patch).ellipse([x - radius, y - radius, x + radius, y + radius], fill=rng.randint(25, 70))
        patch = patch.filter(ImageFilter.GaussianBlur(radius / 3))
        picture.paste(rng.choice([(255, 255, 255), (90, 95, 110)]), (0, 0), patch)
    return picture


def _place(shape: str, size: tuple[int, int], boxes: list[list[int]], rng: random.Random) -> Image.Image | None:
    """Draw the mask of a shape where it covers little of the others; None where a few tries find no place."""
    width, height = size
    for _ in range(20):
        radius = min(width, height) * math.exp(rng.uniform(math.log(0.07), math.log(0.24)))
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        near = [x - radius, y - radius, x + radius, y + radius]
        if all(_overlap(near, box) <= _MOST_OVERLAP for box in boxes):
            return _mask(shape, size, (x, y), radius, rng.uniform(0, 360))
    return None


def _mask(shape: str, size: tuple[int, int], centre: Point, radius: float, degrees: float) -> Image.Image:
    cos, sin = math.cos(math.radians(degrees)) * radius, math.sin(math.radians(degrees)) * radius
    mask = Image.new("L", (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING), 0)
    for outline, fill in zip(_SHAPES[shape], (255, 0), strict=True):
        points = [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in outline]
        if points:
            ImageDraw.Draw(mask).polygon([(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points], fill=fill)
    return mask.resize(size, Image.Resampling.BOX)


def _paint(picture: Image.Image, mask: Image.Image, colour: str, rng: random.Random) -> None:
    """Paint a shape with a soft shadow below it and a little light from above."""
    shadow = Image.new("L", mask.size, 0)
    shadow.paste(mask.point(lambda value: value * 0.35), (3, 4))
    picture.paste((40, 40, 55), (0, 0), shadow.filter(ImageFilter.GaussianBlur(4)))
    tint = np.array(_COLOURS[colour]) + np.array([rng.uniform(-12, 12) for _ in range(3)])
    _, top, _, bottom = _measured(mask)
    light = np.interp(np.arange(picture.height), [top, bottom], [14, -22])
    rows = np.clip(tint[None, :] + light[:, None], 0, 255).astype(np.uint8)
    fill = np.repeat(rows[:, None, :], picture.width, axis=1)
    picture.paste(Image.fromarray(fill), (0, 0), mask)


def _grain(picture: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(1, 5), (picture.height, picture.width, 1))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _measured(mask: Image.Image) -> list[int]:
    covered = np.asarray(mask) >= 128
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _overlap(a: list[float], b: list[int]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0.0, width) * max(0.0, height) / smaller
