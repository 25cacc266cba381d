"""Generate a data set of colors and shapes that `nano` has seen, but never together.

    python examples/pretrain_nano/held_out.py OUT

Its zero-shot AP shows whether a model binds a color to a shape or has learned pairs by heart:
`groundtune evaluate nano OUT`.
"""

import argparse
import random
from pathlib import Path

from groundtune.data.scenes import write_scenes
from groundtune.data.scenes.captions import UNSEEN_SHAPES, held_out
from groundtune.data.scenes.shapes import COLORS, SHAPES


def held_out_classes(count: int = 12, seed: int = 0) -> list[str]:
    """Choose held-out pairs of seen shapes; no shape occurs twice before all have occurred once."""
    pairs = [(color, shape) for color in COLORS for shape in SHAPES if held_out(color, shape)]
    pairs = [pair for pair in pairs if pair[1] not in UNSEEN_SHAPES]
    random.Random(seed).shuffle(pairs)
    rounds = [sum(shape == other for _, other in pairs[:index]) for index, (_, shape) in enumerate(pairs)]
    order = sorted(range(len(pairs)), key=rounds.__getitem__)
    return [" ".join(pairs[index]) for index in order[:count]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    write_scenes(parser.parse_args().out, train=1, valid=100, classes=held_out_classes(count=24))
