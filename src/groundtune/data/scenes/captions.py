"""What is in a captioned image, and the sentence that says so.

An image has one way of naming, so each of its objects has exactly one name and belongs to one phrase. A caption is a list
("red ring . blue star"), in which names of things that are not there stand too, near misses above all, or a sentence.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from groundtune.data.scenes.draw import Box
from groundtune.data.scenes.names import CATEGORY_OF, COLORS, DEMO_SHAPES, PATTERNS, SHAPES, Thing, held_out

Drawn = tuple[Thing, Box]

# Ways of naming, with their weights. "relation" names by color and shape, or by shape, what it does not tell apart.
NAMINGS = {
    "{color} {shape}": 40,
    "{shape}": 14,
    "{pattern} {shape}": 5,
    "{pattern} {color} {shape}": 7,
    "{size} {shape}": 4,
    "{size} {color} {shape}": 3,
    "{color} thing": 4,
    "{color} object": 4,
    "{category}": 6,
    "relation": 13,
}
# Words for what is easily mistaken: no caption denies the one where the other is.
_ALIKE = {
    "navy": "blue",
    "olive": "green",
    "letter o": "ring",
    "number 0": "ring",
    "square frame": "ring",
    "target": "ring",
}
_ALIKE |= {
    "letter i": "number 1",
    "letter l": "number 1",
    "letter s": "number 5",
    "letter z": "number 2",
    "oval": "circle",
}
_ALIKE |= {"letter b": "number 8", "boot": "shoe", "bird": "duck", "pine tree": "tree", "rectangle": "square"}
_ALIKE |= {
    "parallelogram": "square",
    "trapezoid": "square",
    "octagon": "circle",
    "hexagon": "circle",
    "pentagon": "circle",
}
_ALIKE |= {
    "letter t": "cross",
    "letter x": "cross",
    "wine glass": "cup",
    "letter g": "letter c",
    "sun": "flower",
}
_SEEN_SHAPES = [shape for shape in SHAPES if shape not in DEMO_SHAPES]
_SMALL_SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "ring",
    "cross",
    "diamond",
    "drop",
    "flower",
    "leaf",
    "fish",
)
_NUMBERS = ["a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NO_PLURAL = ("scissors", "glasses", "trousers")
_PLACES = ["", "", "", " in the image", " on a plain ground", " in front of a wall", " on the floor"]
_DEFINITE = ("left ", "right ", "upper ", "lower ", "larger ", "smaller ", "largest ", "smallest ")
_MOST_WORDS = 42  # of a caption; about 60 tokens


@dataclass
class Caption:
    """A caption, and for each phrase its characters [begin, end) and its boxes, none where it is not in the image."""

    text: str
    phrases: list[tuple[tuple[int, int], list[Box]]]


def plan(rng: random.Random) -> tuple[str, list[tuple[Thing, float]]]:
    """Choose a way of naming, and things with their sizes that suit it."""
    naming = rng.choices(list(NAMINGS), list(NAMINGS.values()))[0]
    if naming == "relation":
        things = _things(rng.randint(1, 4), rng)
        return naming, [(thing, _scale(0.1, 0.35, rng)) for thing in [things[0], *dict.fromkeys(things)]]
    if "{size}" in naming:
        sizes = {"small": (0.08, 0.13), "large": (0.27, 0.42)}
        things = [replace(thing, size=rng.choice(list(sizes))) for thing in _things(rng.randint(1, 6), rng)]
        return naming, [(thing, _scale(*sizes[thing.size], rng)) for thing in things]
    if "{pattern}" in naming:
        things = [replace(thing, pattern=rng.choice(PATTERNS)) for thing in _things(rng.randint(1, 5), rng)]
        return naming, [(_without_rim(thing), _scale(0.17, 0.42, rng)) for thing in things]
    if rng.random() < 0.08:
        crowd = _things(rng.randint(6, 10), rng, _SMALL_SHAPES, kinds=rng.randint(1, 2))
        return naming, [(thing, _scale(0.05, 0.1, rng)) for thing in crowd]
    count = rng.choices(range(11), [4, 12, 14, 14, 13, 12, 10, 7, 5, 5, 4])[0]
    low, high = (0.15, 0.6) if count < 3 else (0.1, 0.42) if count < 6 else (0.08, 0.26)
    category = naming == "{category}"
    things = _things(
        count, rng, [shape for shape in _SEEN_SHAPES if shape in CATEGORY_OF] if category else _SEEN_SHAPES
    )
    return naming, [(thing, _scale(low, high, rng)) for thing in things]


def caption_of(naming: str, drawn: Sequence[Drawn], rng: random.Random) -> Caption:
    """Say what was drawn, in a list or in a sentence."""
    if naming == "relation":
        naming, groups = _relations(drawn, rng)
    else:
        groups = {}
        for thing, box in drawn:
            groups.setdefault(_name(thing, naming), []).append(box)
    if (
        groups
        and rng.random() < 0.3
        and all(_countable(name) or len(boxes) == 1 for name, boxes in groups.items())
    ):
        return _sentence(groups, rng)
    if rng.random() < 0.06:
        groups = {}  # all that the caption names is missing
    absent = _absent(naming, [thing for thing, _ in drawn], rng.randint(0 if groups else 1, 12), rng)
    return _list(groups | {name: [] for name in absent}, rng)


def _things(
    count: int, rng: random.Random, shapes: Sequence[str] = _SEEN_SHAPES, kinds: int = 0
) -> list[Thing]:
    """Things of few shapes and colors, so that each word is needed to tell them apart; patterns on some."""
    pool = rng.sample(shapes, min(len(shapes), kinds or rng.randint(1, max(1, count))))
    colors = rng.sample(list(COLORS), kinds or rng.randint(1, 5))
    pairs = [(color, shape) for color in colors for shape in pool if not held_out(color, shape)]
    while not pairs:
        pairs = [
            (color, shape)
            for color in rng.sample(list(COLORS), 3)
            for shape in pool
            if not held_out(color, shape)
        ]
    patterns = PATTERNS if rng.random() < 0.2 and not kinds else PATTERNS[:1]
    chosen = (rng.choice(pairs) for _ in range(count))
    return [_without_rim(Thing(shape, color, rng.choice(patterns))) for color, shape in chosen]


def _without_rim(thing: Thing) -> Thing:
    """An outlined circle would be a ring; an outlined square, a frame."""
    hollow = thing.pattern == "outlined" and thing.shape in (
        "circle",
        "oval",
        "square",
        "rectangle",
        "ring",
        "target",
    )
    return replace(thing, pattern="plain") if hollow else thing


def _scale(low: float, high: float, rng: random.Random) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _name(thing: Thing, naming: str) -> str:
    category = CATEGORY_OF.get(thing.shape, thing.shape)
    return naming.format(
        shape=thing.shape, color=thing.color, pattern=thing.pattern, size=thing.size, category=category
    )


def _relations(drawn: Sequence[Drawn], rng: random.Random) -> tuple[str, dict[str, list[Box]]]:
    """Tell two objects of one name apart by where they are or by their size; others keep the name."""
    naming = rng.choice(["{color} {shape}", "{shape}"])
    groups: dict[str, list[Box]] = {}
    for thing, box in drawn:
        groups.setdefault(_name(thing, naming), []).append(box)
    told: dict[str, list[Box]] = {}
    for name, boxes in groups.items():
        single = {other: its[0] for other, its in groups.items() if len(its) == 1}
        pair = _told_apart(boxes, single, rng) if len(boxes) == 2 else {}
        told |= {form.format(name): [box] for form, box in pair.items()} or {name: boxes}
    return naming, told


def _told_apart(boxes: list[Box], single: dict[str, Box], rng: random.Random) -> dict[str, Box]:
    """Forms of words that tell two boxes apart, or none; at times only one of the two is spoken of."""
    left, right = sorted(boxes, key=lambda box: box[0] + box[2])
    upper, lower = sorted(boxes, key=lambda box: box[1] + box[3])
    small, large = sorted(boxes, key=_extent)
    choices: list[dict[str, Box]] = []
    if left[2] <= right[0]:
        choices.append({"left {}": left, "right {}": right})
    if upper[3] <= lower[1]:
        choices.append({"upper {}": upper, "lower {}": lower})
    if _extent(large) > 1.5 * _extent(small):
        choices += [{"larger {}": large, "smaller {}": small}, {"largest {}": large, "smallest {}": small}]
    for name, box in single.items():
        if upper[3] <= (box[1] + box[3]) / 2 <= lower[1]:
            choices += [{f"{{}} above the {name}": upper, f"{{}} below the {name}": lower}] * 2
    if not choices:
        return {}
    pair = list(rng.choice(choices).items())
    return dict(pair if rng.random() < 0.6 else [rng.choice(pair)])


def _extent(box: Box) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def _absent(naming: str, things: Sequence[Thing], count: int, rng: random.Random) -> list[str]:
    """Names of what is not in the image: mixed from what is there, or random; never of something alike, or held out."""
    taken = {_name(_plainly(thing, naming), naming) for thing in things}
    sizes = ("small", "large")
    found: dict[str, None] = {}
    for _ in range(4 * count):
        near = list(things) if things and rng.random() < 0.7 else []
        shape = rng.choice(near).shape if near and rng.random() < 0.6 else rng.choice(_SEEN_SHAPES)
        color = rng.choice(near).color if near and rng.random() < 0.6 else rng.choice(list(COLORS))
        thing = _without_rim(Thing(shape, color, rng.choice(PATTERNS), rng.choice(sizes)))
        if (
            not held_out(color, shape)
            and _name(_plainly(thing, naming), naming) not in taken
            and len(found) < count
        ):
            found[_name(thing, naming)] = None
    return list(found)


def _plainly(thing: Thing, naming: str) -> Thing:
    """The thing with one word for all that looks alike; a category needs the shape itself."""
    shape = thing.shape if "{category}" in naming else _ALIKE.get(thing.shape, thing.shape)
    return replace(thing, shape=shape, color=_ALIKE.get(thing.color, thing.color))


def _list(groups: dict[str, list[Box]], rng: random.Random) -> Caption:
    caption, kept, words = Caption("", []), [], 0
    for name in groups:  # what is there comes first, so that only missing things do not fit in
        words += len(name.split()) + 1
        if words <= _MOST_WORDS:
            kept.append(name)
    for name in rng.sample(kept, len(kept)):
        caption.text += " . " if caption.text else ""
        _say(caption, name, groups[name])
    return caption


def _sentence(groups: dict[str, list[Box]], rng: random.Random) -> Caption:
    """ "A red ring, two blue stars and a green cup": the phrases are the names without article or number."""
    caption = Caption("", [])
    names = rng.sample(list(groups), len(groups))
    while sum(len(name.split()) + 2 for name in names) > _MOST_WORDS:
        names.pop()
    for place, name in enumerate(names):
        last = place == len(names) - 1
        caption.text += "" if not place else " and " if last else ", "
        caption.text += _article(name, len(groups[name]))
        _say(caption, name if len(groups[name]) == 1 else _plural(name), groups[name])
    caption.text += rng.choice(_PLACES)
    return caption


def _say(caption: Caption, words: str, boxes: list[Box]) -> None:
    begin = len(caption.text)
    caption.text += words
    caption.phrases.append(((begin, len(caption.text)), boxes))


def _countable(name: str) -> bool:
    return not name.endswith(_NO_PLURAL) and not name[:-1].endswith(("letter ", "number "))


def _article(name: str, count: int) -> str:
    if name.startswith(_DEFINITE) or " the " in name:
        return "the "
    if name.endswith(_NO_PLURAL):
        return ""
    number = _NUMBERS[count - 1] if count <= len(_NUMBERS) else "many"
    return "an " if number == "a" and name[0] in "aeiou" else f"{number} "


def _plural(name: str) -> str:
    if name.endswith("fish"):
        return name
    if name.endswith("leaf"):
        return f"{name[:-1]}ves"
    if name.endswith(("s", "x", "ch", "sh")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("y") and name[-2] not in "aeou" else f"{name}s"
