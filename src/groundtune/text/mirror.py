"""What names and captions become when their image is mirrored: left and right, letters, arrows.

The table is that of a horizontal flip. A vertical flip or a rotation needs another one: upside
down, "b" is "p", "up" is "down", and "left" stays.
"""

import re
from collections.abc import Sequence

from groundtune.text.prompt import Spans

_WORDS = {
    **{"left": "right", "right": "left", "east": "west", "west": "east", "cw": "ccw", "ccw": "cw"},
    **{"clockwise": "counterclockwise", "counterclockwise": "clockwise"},
    **{"forwardslash": "backslash", "backslash": "forward slash"},
    **{"lessthan": "greater than", "greaterthan": "less than"},
}
# Letters, digits and signs that have a mirror image; all others have none.
_SYMMETRIC, _SIGNS = "AHIMOTUVWXYiovwx08", "<> () [] {} /\\ ←→ ↖↗ ↙↘ ⬅➡ «» ↺↻"
_GLYPHS = {glyph: glyph for glyph in _SYMMETRIC}
_GLYPHS |= {pair[side]: pair[1 - side] for pair in f"bd pq {_SIGNS}".split() for side in (0, 1)}
_DIGITS = dict(zip("zero one two three four five six seven eight nine".split(), "0123456789", strict=True))

# A word ends at a separator, at a digit, and within "LeftArrow".
_BEGIN = r"(?:(?<![^\W\d_])|(?<=[a-z])(?=[A-Z])|(?i:(?<=north)|(?<=south)))"
_END = r"(?=(?i:most|hand(?:ed)?|sided?|wards?|bound|facing)?(?:(?![^\W\d_])|(?<=[a-z])(?=[A-Z])))"
_WORD = re.compile(
    rf"{_BEGIN}((?i:left|right|east|west|c?cw|(?:(?:anti|counter)[\W_]?)?clockwise|forward[\W_]?slash"
    rf"|back[\W_]?slash|less[\W_]?than|greater[\W_]?than)){_END}"
)
_KIND = r"(?i:letter|digit|number|numeral|character|symbol)"
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
    changes = _changes(caption)
    if changes is None:
        return None
    pieces, end = [], 0
    for begin, stop, new in changes:
        pieces += [caption[end:begin], new]
        end = stop

    def moved(position: int, is_end: bool) -> int:
        shift = 0
        for begin, stop, new in changes:
            growth = len(new) - (stop - begin)
            if stop <= position:
                shift += growth
            elif begin < position:
                return (stop + shift + growth) if is_end else begin + shift
        return position + shift

    moved_spans = (tuple((moved(b, False), moved(e, True)) for b, e in ranges) for ranges in spans)
    return "".join([*pieces, caption[end:]]), tuple(moved_spans)


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
    found = [{_other_class(name, index, owner) for name in names} for index, names in enumerate(groups)]
    classes = []
    for index, others in enumerate(found):
        known = others - {None}
        clear = len(known) == 1 and (others == known or index not in known)
        classes.append(known.pop() if clear else None)
    return [c if c is not None and classes[c] == index else None for index, c in enumerate(classes)]


def _other_class(name: str, index: int, owner: dict[str, int]) -> int | None:
    """Return the mirrored class of a name of class `index`; `owner` is the class of each name."""
    mirrored, normal = mirror_caption(name, ()), _normal(name)
    if mirrored is None or _normal(mirrored[0]) != normal:
        return None if mirrored is None else owner.get(_normal(mirrored[0]))
    # parts of words, and "hand L", are sides only if there is the other one
    swap = {"left": "right", "right": "left", "l": "r", "r": "l", "L": "R", "R": "L"}
    other = re.sub("left|right|(?<![^ ])[lrLR](?![^ ])", lambda match: swap[match[0]], normal)
    return index if other == normal else owner.get(other, index)


def _changes(text: str) -> list[tuple[int, int, str]] | None:
    """Return begin, end and new text of each changed word; None if a glyph has no mirror image."""
    changes = [(*match.span(), _other_word(match[0])) for match in _WORD.finditer(text)]
    for match in _GLYPH.finditer(text):
        glyphs = _DIGITS.get(match[1].lower(), match[1])
        mirrored = "".join(_GLYPHS.get(glyph, "") for glyph in reversed(glyphs))
        if len(mirrored) < len(glyphs):
            return None
        if mirrored != glyphs:
            changes.append((*match.span(1), mirrored))
    return sorted(changes)


def _other_word(word: str) -> str:
    other = _WORDS[_squeezed(word)]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _squeezed(word: str) -> str:
    return re.sub(r"[\W_]", "", word.lower()).replace("anti", "counter")


def _normal(name: str) -> str:
    """Return the form in which equal names are equal; the case of a single letter matters."""
    spelled = _WORD.sub(lambda match: f" {_WORDS[_squeezed(_WORDS[_squeezed(match[0])])]} ", name)
    words = re.findall(rf"[^\W_]+|{_SIGN}", spelled)
    return " ".join(word if len(word) == 1 else word.lower() for word in words)
