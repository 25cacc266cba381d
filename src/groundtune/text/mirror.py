"""What names and captions become when their image is mirrored: left and right, letters, arrows.

The table is that of a horizontal flip. A vertical flip or a rotation needs another one: upside
down, "b" is "p", "up" is "down", and "left" stays.
"""

import re
from collections.abc import Sequence

from groundtune.text.prompt import Spans

_PAIRS = "left right, east west, clockwise counterclockwise, cw ccw, forward_slash backslash"
_WORDS = {
    pair.split()[side].replace("_", ""): pair.split()[1 - side].replace("_", " ")
    for pair in _PAIRS.split(",")
    for side in (0, 1)
}
# Letters, digits and signs that have a mirror image; all others have none.
_SIGNS = "<> () [] {} /\\ ←→ ↖↗ ↙↘ ⬅➡ «» ↺↻"
_GLYPHS = {pair[side]: pair[1 - side] for pair in f"bd pq {_SIGNS}".split() for side in (0, 1)}
_GLYPHS |= dict(zip("AHIMOTUVWXYiovwx08", "AHIMOTUVWXYiovwx08", strict=True))
_DIGITS = dict(zip("zero one two three four five six seven eight nine".split(), "0123456789", strict=True))

# A word ends at a separator, at a digit, and within "LeftArrow".
_BEGIN = r"(?:(?<![^\W\d_])|(?<=[a-z])(?=[A-Z])|(?i:(?<=north)|(?<=south)))"
_END = r"(?=(?i:most|hand(?:ed)?|sided?|wards?|bound|facing)?(?:(?![^\W\d_])|(?<=[a-z])(?=[A-Z])))"
_SPELLINGS = r"left|right|east|west|c?cw|(?:(?:anti|counter)[\W_]?)?clockwise|(?:forward|back)[\W_]?slash"
_WORD = re.compile(f"{_BEGIN}(?i:{_SPELLINGS}){_END}")
_KIND = "(?i:letter|digit|number|numeral|character|symbol)"
_SIGN = f"[{re.escape(_SIGNS.replace(' ', ''))}]"
_NAMED = rf"(\d+|(?i:{'|'.join(_DIGITS)})|[^\W_]|{_SIGN})"
_GLYPH = re.compile(rf"(?<![^\W_]){_KIND}[\W_]+{_NAMED}(?![^\W_])")
_ALONE = re.compile(rf"\A\s*{_NAMED}(?:[\W_]+{_KIND})?\s*\Z")


def mirror_caption(caption: str, spans: Spans) -> tuple[str, Spans] | None:
    """Return the caption of a mirrored image, with its spans moved along.

    Whole words change, and the beginnings of "leftmost" and the like; "upright" and "leftover"
    stay. A span that begins or ends inside a changed word takes all of it. None: the caption names
    a letter or a digit that has no mirror image.
    """
    changes = [(*match.span(), _other_word(match[0])) for match in _WORD.finditer(caption)]
    for match in _GLYPH.finditer(caption):
        glyphs = _DIGITS.get(match[1].lower(), match[1])
        mirrored = "".join(_GLYPHS.get(glyph, "") for glyph in reversed(glyphs))
        if len(mirrored) < len(glyphs):
            return None
        changes += [(*match.span(1), mirrored)] if mirrored != glyphs else []
    text, begins, ends = "", list[int](), [0]  # the new position of each old one, by its use in spans
    for begin, end, new in [*sorted(changes), (len(caption), len(caption), "")]:
        for letter in caption[len(begins) : begin]:
            begins.append(len(text))
            text += letter
            ends.append(len(text))
        begins += [len(text)] * (end - begin)
        text += new
        ends += [len(text)] * (end - begin)
    begins.append(len(text))
    return text, tuple(tuple((begins[begin], ends[end]) for begin, end in ranges) for ranges in spans)


def mirror_classes(groups: Sequence[Sequence[str]]) -> list[int | None]:
    """Return the class that the objects of each class belong to in a mirrored image.

    Args:
        groups: the names of each class; upper case matters for letters ("A" is symmetric).

    Returns:
        By class its own index, for most; the index of another ("left arrow" for "right arrow"); or
        None if the mirrored object is of no class.
    """
    groups = [[_ALONE.sub(r"letter \1", name) for name in names] for names in groups]
    owner = {_normal(name): index for index, names in enumerate(groups) for name in names}
    classes: list[int | None] = []
    for index, names in enumerate(groups):
        others = {_other_class(name, index, owner) for name in names}
        known = others - {None}
        classes.append(known.pop() if len(known) == 1 and (others == known or index not in known) else None)
    return [other if other is not None and classes[other] == i else None for i, other in enumerate(classes)]


def _other_class(name: str, index: int, owner: dict[str, int]) -> int | None:
    """Return the mirrored class of a name of class `index`; `owner` is the class of each name."""
    mirrored, normal = mirror_caption(name, ()), _normal(name)
    if mirrored is None or _normal(mirrored[0]) != normal:
        return None if mirrored is None else owner.get(_normal(mirrored[0]))
    # parts of words, and "hand L", are sides only if there is the other one
    swap = {"left": "right", "right": "left", "l": "r", "r": "l", "L": "R", "R": "L"}
    other = re.sub("left|right|(?<![^ ])[lrLR](?![^ ])", lambda match: swap[match[0]], normal)
    return index if other == normal else owner.get(other, index)


def _other_word(word: str) -> str:
    other = _WORDS[re.sub(r"[\W_]", "", word.lower()).replace("anti", "counter")]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _normal(name: str) -> str:
    """Return the form in which equal names are equal; the case of a single letter matters."""
    standard = _WORD.sub(lambda match: f" {_other_word(_other_word(match[0]))} ", name)
    parts = re.findall(rf"[^\W_]+|{_SIGN}", standard)
    return " ".join(part if len(part) == 1 else part.lower() for part in parts)
