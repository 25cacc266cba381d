"""Captioned scenes: one image, and a list or a sentence that names its objects.

All objects of an image are named in one way, so that each belongs to exactly one phrase. A list
("red ring . blue star") also names things that are not in the image, near misses above all.

No caption or image has a shape of `UNSEEN_SHAPES` or a pair of color and shape that is `held_out`:
these show how a pretrained model generalizes to new words and to new pairs of known words.
"""

import itertools
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from groundtune.data.scenes.draw import Box, draw_image, image_size, log_uniform
from groundtune.data.scenes.shapes import CATEGORY_OF, COLORS, DATA, PATTERNS, SHAPES, Thing

Drawn = tuple[Thing, Box]

UNSEEN_SHAPES = ("crescent", "gear", "lightning bolt", "key", "umbrella", "mushroom", "guitar", "crown")
_SEEN_SHAPES = [shape for shape in SHAPES if shape not in UNSEEN_SHAPES]
_LOOKS_LIKE: dict[str, str] = DATA["looks_like"]  # easily mistaken for
_NO_OUTLINE = ("circle", "oval", "square", "rectangle", "ring", "target")  # would be rings, frames
_NUMBERS = "a two three four five six seven eight nine ten".split()
_NO_PLURAL = ("scissors", "glasses", "trousers")
_DEFINITE = ("left ", "right ", "upper ", "lower ", "larger ", "smaller ", "largest ", "smallest ")
_MAX_WORDS = 42  # of a caption; about 60 tokens


@dataclass
class Caption:
    """A caption with its phrases: characters [begin, end) and boxes, [] if not in the image."""

    text: str = ""
    phrases: list[tuple[tuple[int, int], list[Box]]] = field(default_factory=list)

    def add(self, before: str, words: str, boxes: list[Box]) -> None:
        """Append text and then a phrase."""
        begin = len(self.text) + len(before)
        self.text += before + words
        self.phrases.append(((begin, len(self.text)), boxes))


def held_out(color: str, shape: str) -> bool:
    """Return whether pretraining never sees this pair: about 15 % of all pairs."""
    return zlib.crc32(f"{color} {shape}".encode()) % 100 < 15


def captioned_scene(size: int, rng: random.Random) -> tuple[Image.Image, Caption, list[Drawn]]:
    """Draw one image of the longer side `size`; return it with its caption and all its objects."""
    naming, things = _plan(rng)
    image, boxes = draw_image(things, image_size(size, rng), rng)
    drawn = [(things[index][0], box) for index, box in boxes]
    return image, caption_of(naming, drawn, rng), drawn


def _plan(rng: random.Random) -> tuple[str, list[tuple[Thing, float]]]:
    """Choose a way of naming, and things with their sizes that suit it."""
    naming = rng.choices(list(DATA["namings"]), list(DATA["namings"].values()))[0]
    ranges = {"small": (0.08, 0.13), "large": (0.27, 0.42)}
    if naming == "relation":
        things = _things(rng.randint(1, 4), rng)
        things, ranges[""] = [things[0], *dict.fromkeys(things)], (0.1, 0.35)
    elif "{size}" in naming:
        things = [replace(thing, size=rng.choice(list(ranges))) for thing in _things(rng.randint(1, 6), rng)]
    elif "{pattern}" in naming:
        things = [replace(thing, pattern=rng.choice(PATTERNS)) for thing in _things(rng.randint(1, 5), rng)]
        things, ranges[""] = [_without_rim(thing) for thing in things], (0.17, 0.42)
    elif rng.random() < 0.08:
        things = _things(rng.randint(6, 10), rng, DATA["small_shapes"], kinds=rng.randint(1, 2))
        ranges[""] = (0.05, 0.1)
    else:
        count = rng.choices(range(11), [4, 12, 14, 14, 13, 12, 10, 7, 5, 5, 4])[0]
        ranges[""] = (0.15, 0.6) if count < 3 else (0.1, 0.42) if count < 6 else (0.08, 0.26)
        things = _things(count, rng, [s for s in _SEEN_SHAPES if naming != "{category}" or s in CATEGORY_OF])
    return naming, [(thing, log_uniform(*ranges[thing.size], rng)) for thing in things]


def _things(
    count: int, rng: random.Random, shapes: Sequence[str] = _SEEN_SHAPES, kinds: int = 0
) -> list[Thing]:
    """Choose things of few shapes and colors, so that no word of a name is superfluous."""
    pool = rng.sample(shapes, min(len(shapes), kinds or rng.randint(1, max(1, count))))
    colors = rng.sample(list(COLORS), kinds or rng.randint(1, 5))
    while not (pairs := [(color, shape) for color in colors for shape in pool if not held_out(color, shape)]):
        colors = rng.sample(list(COLORS), 3)
    patterns = PATTERNS if rng.random() < 0.2 and not kinds else PATTERNS[:1]
    chosen = (rng.choice(pairs) for _ in range(count))
    return [_without_rim(Thing(shape, color, rng.choice(patterns))) for color, shape in chosen]


def _without_rim(thing: Thing) -> Thing:
    hollow = thing.pattern == "outlined" and thing.shape in _NO_OUTLINE
    return replace(thing, pattern="plain") if hollow else thing


def caption_of(naming: str, drawn: Sequence[Drawn], rng: random.Random) -> Caption:
    """Name what was drawn, in a list or in a sentence."""
    relation = naming == "relation"
    if relation:
        naming = rng.choice(["{color} {shape}", "{shape}"])
    groups: dict[str, list[Box]] = {}
    for thing, box in drawn:
        groups.setdefault(_name(thing, naming), []).append(box)
    if relation:
        groups = _related(groups, rng)
    if groups and rng.random() < 0.3 and all(len(b) == 1 or _has_plural(name) for name, b in groups.items()):
        return _sentence(groups, rng)
    if rng.random() < 0.06:
        groups = {}  # a list of absent things only
    absent = _absent(naming, [thing for thing, _ in drawn], rng.randint(0 if groups else 1, 12), rng)
    return _list(groups | {name: [] for name in absent}, rng)


def _name(thing: Thing, naming: str) -> str:
    return naming.format(**vars(thing), category=CATEGORY_OF.get(thing.shape, thing.shape))


def _related(groups: dict[str, list[Box]], rng: random.Random) -> dict[str, list[Box]]:
    """Rename pairs of one name by their position or size, such as "left cup" and "right cup"."""
    single = {name: boxes[0] for name, boxes in groups.items() if len(boxes) == 1}
    renamed: dict[str, list[Box]] = {}
    for name, boxes in groups.items():
        pair = _relation(boxes, single, rng) if len(boxes) == 2 else {}
        renamed |= {form.format(name): [box] for form, box in pair.items()} or {name: boxes}
    return renamed


def _relation(boxes: list[Box], single: dict[str, Box], rng: random.Random) -> dict[str, Box]:
    """Choose words that distinguish two boxes, if possible; at times for only one of them."""

    def extent(box: Box) -> int:
        return max(box[2] - box[0], box[3] - box[1])

    left, right = sorted(boxes, key=lambda box: box[0] + box[2])
    upper, lower = sorted(boxes, key=lambda box: box[1] + box[3])
    small, large = sorted(boxes, key=extent)
    choices: list[dict[str, Box]] = []
    if left[2] <= right[0]:
        choices.append({"left {}": left, "right {}": right})
    if upper[3] <= lower[1]:
        choices.append({"upper {}": upper, "lower {}": lower})
    if extent(large) > 1.5 * extent(small):
        choices += [{"larger {}": large, "smaller {}": small}, {"largest {}": large, "smallest {}": small}]
    for name, box in single.items():
        if upper[3] <= (box[1] + box[3]) / 2 <= lower[1]:
            choices += [{f"{{}} above the {name}": upper, f"{{}} below the {name}": lower}] * 2
    if not choices:
        return {}
    pair = list(rng.choice(choices).items())
    return dict(pair if rng.random() < 0.6 else [rng.choice(pair)])


def _absent(naming: str, things: Sequence[Thing], count: int, rng: random.Random) -> list[str]:
    """Choose names of things that are not in the image and do not look like one that is."""

    def lookalike(thing: Thing) -> str:
        shape = thing.shape if naming == "{category}" else _LOOKS_LIKE.get(thing.shape, thing.shape)
        return _name(replace(thing, shape=shape, color=_LOOKS_LIKE.get(thing.color, thing.color)), naming)

    taken = {lookalike(thing) for thing in things}
    names: dict[str, None] = {}
    for _ in range(4 * count):
        near = list(things) if things and rng.random() < 0.7 else []
        shape = rng.choice(near).shape if near and rng.random() < 0.6 else rng.choice(_SEEN_SHAPES)
        color = rng.choice(near).color if near and rng.random() < 0.6 else rng.choice(list(COLORS))
        thing = _without_rim(Thing(shape, color, rng.choice(PATTERNS), rng.choice(("small", "large"))))
        if not held_out(color, shape) and lookalike(thing) not in taken and len(names) < count:
            names[_name(thing, naming)] = None
    return list(names)


def _list(groups: dict[str, list[Box]], rng: random.Random) -> Caption:
    """Join names by " . ", those of absent things as long as there is room."""
    caption = Caption()
    words = itertools.accumulate(len(name.split()) + 1 for name in groups)
    names = [name for name, total in zip(groups, words, strict=True) if total <= _MAX_WORDS]
    for name in rng.sample(names, len(names)):
        caption.add(" . " if caption.text else "", name, groups[name])
    return caption


def _sentence(groups: dict[str, list[Box]], rng: random.Random) -> Caption:
    """Write "a red ring, two blue stars and a green cup"; phrases have no articles or numbers."""
    caption = Caption()
    names = rng.sample(list(groups), len(groups))
    while sum(len(name.split()) + 2 for name in names) > _MAX_WORDS:
        names.pop()
    for index, name in enumerate(names):
        joint = "" if not index else " and " if name == names[-1] else ", "
        plural = next(re.sub(end, plural, name) for end, plural in DATA["plurals"] if re.search(end, name))
        count = len(groups[name])
        caption.add(joint + _article(name, count), name if count == 1 else plural, groups[name])
    caption.text += rng.choice(DATA["endings"])
    return caption


def _article(name: str, count: int) -> str:
    if name.startswith(_DEFINITE) or " the " in name:
        return "the "
    if name.endswith(_NO_PLURAL):
        return ""
    return "an " if count == 1 and name[0] in "aeiou" else f"{_NUMBERS[count - 1]} "


def _has_plural(name: str) -> bool:
    return not name.endswith(_NO_PLURAL) and not name[:-1].endswith(("letter ", "number "))
