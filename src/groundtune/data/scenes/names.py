"""What can be drawn, and how it is called: colors, patterns and shapes; and what pretraining never sees of it.

`nano` is pretrained on generated images. Two things are kept from it so that others can measure what it makes of new
words: about 15 % of the pairs of a color and a shape (each word known, the pair new), and the whole of `DEMO_SHAPES`.
"""

import random
import zlib
from dataclasses import dataclass

from groundtune.data.scenes.shapes import GLYPHS, SYMBOLS
from groundtune.data.scenes.silhouettes import CATEGORIES, SILHOUETTES

DEFAULT_CLASSES = [
    "red circle",
    "blue star",
    "green triangle",
    "yellow square",
    "purple heart",
    "orange ring",
]
DEMO_SHAPES = ("crescent", "gear", "lightning bolt", "key", "umbrella", "mushroom", "guitar", "crown")

COLORS = {
    "red": (212, 40, 46),
    "orange": (244, 134, 28),
    "yellow": (248, 212, 48),
    "green": (52, 162, 74),
    "blue": (44, 104, 216),
    "purple": (134, 66, 178),
    "pink": (246, 140, 182),
    "brown": (122, 74, 40),
    "gray": (134, 136, 140),
    "black": (30, 31, 36),
    "white": (250, 250, 248),
    "turquoise": (52, 204, 196),
    "olive": (124, 124, 36),
    "navy": (24, 36, 104),
}
PATTERNS = ("plain", "striped", "dotted", "checkered", "outlined")
PROGRAMS = SYMBOLS | SILHOUETTES | GLYPHS
SHAPES = tuple(PROGRAMS)
CATEGORY_OF = {shape: category for category, shapes in CATEGORIES.items() for shape in shapes}
CATEGORY_OF |= {shape: shape.split()[0] for shape in GLYPHS}  # "letter", "number"

_HELD_OUT_PERCENT = 15


@dataclass(frozen=True)
class Thing:
    """One object as words describe it; `size` is "" where no caption speaks of it."""

    shape: str
    color: str
    pattern: str = "plain"
    size: str = ""


def held_out(color: str, shape: str) -> bool:
    """Tell whether pretraining never sees this pair: the same 15 % of all pairs on every machine."""
    return zlib.crc32(f"{color} {shape}".encode()) % 100 < _HELD_OUT_PERCENT


def scene_classes() -> list[str]:
    """List every class that can be drawn: each shape, alone or with a color, a pattern or both before it."""
    colors, patterns = (
        ["", *(f"{color} " for color in COLORS)],
        ["", *(f"{pattern} " for pattern in PATTERNS)],
    )
    return [pattern + color + shape for pattern in patterns for color in colors for shape in SHAPES]


def held_out_classes(count: int = 12, seed: int = 0) -> list[str]:
    """Choose pairs that pretraining never saw, of shapes that it saw in other colors; no shape twice before all are used."""
    pairs = [(color, shape) for color in COLORS for shape in SHAPES if held_out(color, shape)]
    pairs = [pair for pair in pairs if pair[1] not in DEMO_SHAPES]
    random.Random(seed).shuffle(pairs)
    times: dict[str, int] = {}
    turns = [times.update({shape: times.get(shape, 0) + 1}) or times[shape] for _, shape in pairs]
    order = sorted(range(len(pairs)), key=turns.__getitem__)
    return [" ".join(pairs[index]) for index in order[:count]]


def thing_of(name: str, rng: random.Random) -> Thing:
    """Read one of `scene_classes()`; a color that it leaves open is chosen, a pattern is plain."""
    pattern, rest = _first_word(name, PATTERNS)
    color, shape = _first_word(rest, tuple(COLORS))
    return Thing(shape, color or rng.choice(list(COLORS)), pattern or "plain")


def _first_word(name: str, words: tuple[str, ...]) -> tuple[str, str]:
    first, _, rest = name.partition(" ")
    return (first, rest) if first in words else ("", name)
