"""Geometric shapes and signs as short drawing programs.

A program is a list of strokes split by ";", in a square of 100 × 100 with y downwards: `p` a polygon, `s` a smooth closed
curve through points, `e` an ellipse (center, radii), `l` a thick round line (width, points), `g` a glyph of Pillow's own font.
"-" before the letter cuts the stroke out, "~" makes it a detail that is painted in another shade.
"""

import math
from collections.abc import Callable, Iterable

Point = tuple[float, float]


def _numbers(points: Iterable[Point]) -> str:
    return " ".join(f"{50 + 48 * x:.1f} {50 + 48 * y:.1f}" for x, y in points)


def _polar(count: int, radius: Callable[[int], float] = lambda _: 1.0, start: float = -90.0) -> list[Point]:
    """Points around (0, 0); point i lies at `radius(i)`."""
    angles = [math.radians(start + 360 * i / count) for i in range(count)]
    return [(radius(i) * math.cos(angle), radius(i) * math.sin(angle)) for i, angle in enumerate(angles)]


def _heart() -> list[Point]:
    turns = [2 * math.pi * i / 72 for i in range(72)]
    xs = [16 * math.sin(t) ** 3 for t in turns]
    ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(x / 17, (-y - 2.5) / 17) for x, y in zip(xs, ys, strict=True)]


def _rays(count: int, width: float, inner: float = 0.0) -> str:
    ends = zip(_polar(count, lambda _: inner), _polar(count, lambda _: 0.93), strict=True)
    return "; ".join(f"l {width} {_numbers(pair)}" for pair in ends)


def _barbs() -> str:
    """The side needles of a snowflake."""
    stems = _polar(6, lambda _: 0.5)
    return "; ".join(
        f"l 6 {_numbers([stem, (stem[0] + 0.34 * math.cos(a), stem[1] + 0.34 * math.sin(a))])}"
        for i, stem in enumerate(stems)
        for a in (math.radians(-90 + 60 * i + side) for side in (-50, 50))
    )


_SPIRAL = [(t / 44 * math.cos(t * 0.37), t / 44 * math.sin(t * 0.37)) for t in range(4, 42)]
_PETALS = "; ".join(f"e {50 + 48 * x:.1f} {50 + 48 * y:.1f} 18 18" for x, y in _polar(6, lambda _: 0.62))

SYMBOLS = {
    "circle": "e 50 50 48 48",
    "square": "p 5 5 95 5 95 95 5 95",
    "triangle": "p 50 8 96 90 4 90",
    "star": f"p {_numbers(_polar(10, lambda i: 0.42 if i % 2 else 1.0))}",
    "heart": f"p {_numbers(_heart())}",
    "ring": "e 50 50 48 48; -e 50 50 27 27",
    "cross": "p 34 3 66 3 66 34 97 34 97 66 66 66 66 97 34 97 34 66 3 66 3 34 34 34",
    "pentagon": f"p {_numbers(_polar(5))}",
    "hexagon": f"p {_numbers(_polar(6))}",
    "octagon": f"p {_numbers(_polar(8, start=22.5))}",
    "oval": "e 50 50 48 30",
    "rectangle": "p 3 24 97 24 97 76 3 76",
    "diamond": "p 50 3 82 50 50 97 18 50",
    "trapezoid": "p 28 22 72 22 97 78 3 78",
    "parallelogram": "p 30 24 98 24 70 76 2 76",
    "semicircle": "e 50 72 48 48; -p 0 72 100 72 100 100 0 100",
    "quarter circle": "e 5 95 90 90; -p 0 0 5 0 5 100 0 100; -p 0 95 100 95 100 100 0 100",
    "crescent": "e 46 50 44 44; -e 66 44 37 37",
    "arrow": "p 3 37 55 37 55 14 97 50 55 86 55 63 3 63",
    "double arrow": "p 3 50 30 20 30 38 70 38 70 20 97 50 70 80 70 62 30 62 30 80",
    "chevron": "p 15 5 48 5 88 50 48 95 15 95 54 50",
    "gear": f"p {_numbers(_polar(40, lambda i: 1.0 if i % 5 in (0, 1) else 0.76, -94.5))}; -e 50 50 16 16",
    "lightning bolt": "p 56 2 18 56 45 56 34 98 82 38 54 38 72 2",
    "drop": "e 50 66 30 30; p 50 3 76.4 51.7 23.6 51.7",
    "cloud": "e 25 62 21 19; e 46 46 25 25; e 74 58 23 23; p 25 58 74 58 74 81 25 81",
    "spiral": f"l 8 {_numbers(_SPIRAL)}",
    "flower": f"{_PETALS}; e 50 50 20 20; ~e 50 50 14 14",
    "clover": "e 50 26 21 21; e 27 54 21 21; e 73 54 21 21; e 50 46 12 12; p 46 50 54 50 63 97 52 97",
    "shield": "s 10 14 34 10 50 4 66 10 90 14 88 48 74 78 50 97 26 78 12 48",
    "sun": f"e 50 50 26 26; {_rays(10, 7, 0.7)}",
    "snowflake": f"{_rays(6, 7)}; {_barbs()}",
    "hourglass": "p 12 4 88 4 56 50 88 96 12 96 44 50",
    "zigzag": "l 11 5 70 27 30 50 70 73 30 95 70",
    "speech bubble": "e 50 40 47 34; p 20 60 52 70 16 95",
    "check mark": "l 16 10 54 38 82 90 18",
    "square frame": "p 4 4 96 4 96 96 4 96; -p 22 22 78 22 78 78 22 78",
    "target": "e 50 50 48 48; -e 50 50 35 35; e 50 50 22 22",
    "puzzle piece": "p 6 28 72 28 72 94 6 94; e 39 20 13 13; e 80 61 13 13; -e 13 61 12 12; -e 39 87 12 12",
    "music note": "e 28 80 20 15; p 39 80 48 80 48 8 39 8; p 48 8 84 24 84 44 48 28",
    "question mark": "g ?",
    "dollar sign": "g $",
    "percent sign": "g %",
    "hash sign": "g #",
}
GLYPHS = {f"letter {letter}": f"g {letter.upper()}" for letter in "abcdefghijklmnopqrstuvwxyz"}
GLYPHS |= {f"number {digit}": f"g {digit}" for digit in range(10)}
