"""Class names become one caption, and the caption knows where each name stands; or an image's own caption is the prompt.

Grounding DINO reads its classes as one sentence, `"cat. red blood cell. "`. The reference (IDEA `demo/`, MMDetection
`GroundingDINO.get_tokens_positive_and_prompts`) cleans names in several places and searches the finished caption for
them again. Two deviations:

- Spans are recorded while the caption is built. `caption.find("car")` lands in "carrot".
- `.` and `?` inside a name become spaces: they separate phrases in the model and would cut the name in two.

A caption of grounding data stays as it is written. Only its end is closed by "." (open, the last phrase would be read with
[SEP] or without it, by the padding of its batch), and left and right change places where the image is mirrored.

Names of things that a data set does not name but a model may know: what must stay findable while it is fine-tuned.

Two sources: a fixed list of common things, and the words of the data set's own names put together anew. Who labels "white
king" and "black queen" shows the model what white, black, king and queen mean, and a "white queen" in the image that
nobody labeled would be taught as background.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from groundtune.errors import COMMANDS, DataError

COMMON_NAMES = tuple(
    """person, face, hand, dog, cat, bird, horse, cow, sheep, fish, insect, flower, tree, plant, leaf, fruit, apple, banana,
    orange, vegetable, bread, cake, pizza, food, plate, bowl, cup, glass, bottle, spoon, fork, knife, table, chair, sofa,
    bed, lamp, door, window, shelf, box, bag, book, paper, pen, scissors, clock, phone, screen, laptop, keyboard, mouse,
    remote control, camera, toy, ball, shoe, hat, shirt, glasses, umbrella, bicycle, motorcycle, car, bus, truck, train,
    boat, airplane, wheel, traffic light, sign, building, house, bench, wall, tool, machine, robot, letter, number""".replace(
        "\n   ", ""
    ).split(", ")
)
"""Common things, from people to letters; a mixture of everyday objects that no one data set was made for."""

_MOST_RECOMBINED = 60


def recombined_names(names: Sequence[str]) -> list[str]:
    """Put words that several names begin with before every word that ends such a name.

    Args:
        names: cleaned class names. None give none.

    Returns:
        The combinations that are no class yet, in the order of their words: nothing for names without words in common, and at
        most 60 (the first).
    """
    pairs = [name.rsplit(" ", 1) for name in names if " " in name]
    times = Counter(begin for begin, _ in pairs)
    begins = [begin for begin in times if times[begin] > 1]
    ends = dict.fromkeys(end for begin, end in pairs if begin in begins)
    made = [f"{begin} {end}" for begin in begins for end in ends]
    return [name for name in made if name not in names][:_MOST_RECOMBINED]


_SEPARATOR = ". "
_SIDE = re.compile(r"\b(left|right)(?=(?:most|hand|side|ward|wards)?\b)", re.IGNORECASE)

Spans = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Prompt:
    """A caption and the place of every phrase in it."""

    caption: (
        str  # the text for the tokenizer; every phrase of class names is closed by ". ", the last one too
    )
    phrases: tuple[str, ...]  # the cleaned names in the order of the prompt
    spans: Spans  # for each phrase its character ranges [begin, end) in the caption, without the closing separator


def clean_name(name: str) -> str:
    """Give the one form in which a class name is used everywhere; "" when nothing is left, which the callers report.

    `_`, `.` and `?` become spaces, text in parentheses (nested ones too) is dropped, white space is collapsed and
    trimmed, letters are lower-cased. So do characters that command a terminal or turn a line around, which no tokenizer
    reads. Nothing else changes: "/", "-", "," and "'" stay.
    """
    kept: list[str] = []
    opened: list[int] = []  # where in `kept` each open parenthesis stands
    for letter in COMMANDS.sub(" ", name):
        if letter == "(":
            opened.append(len(kept))
        if letter == ")" and opened:
            del kept[opened.pop() :]
            letter = " "
        kept.append(letter)
    return " ".join(re.sub(r"[_.?]", " ", "".join(kept)).split()).lower()


def unique_names(names: Sequence[str]) -> tuple[list[str], list[int], list[str]]:
    """Clean names and make those that clean to the same text one class. No names are legal.

    Returns:
        The cleaned unique names in the order in which they were first seen; for each input name the index of its
        class among them; and one message for every class that several names were merged into.

    Raises:
        DataError: Names are empty after cleaning. All of them are listed.
    """
    cleaned = [clean_name(name) for name in names]
    _refuse_empty(names, cleaned)
    written: dict[str, list[str]] = {clean: [] for clean in cleaned}
    for name, clean in zip(names, cleaned, strict=True):
        written[clean].append(name)
    index_of = {clean: index for index, clean in enumerate(written)}
    messages = [
        f"{len(group)} class names ({', '.join(map(repr, group))}) read {unique!r} after cleaning: they are one class."
        for unique, group in written.items()
        if len(group) > 1
    ]
    return list(written), [index_of[clean] for clean in cleaned], messages


def class_prompt(names: Sequence[str]) -> Prompt:
    """Build the caption `"name1. name2. "` of some classes together with the character spans.

    The names are cleaned here (which changes nothing when they are clean already). Phrase i of the prompt is `names[i]`;
    no names give an empty caption.

    Raises:
        DataError: A name is empty after cleaning, or two names clean to the same text. All are listed.
    """
    phrases = tuple(clean_name(name) for name in names)
    _refuse_empty(names, phrases)
    if len(set(phrases)) < len(phrases):
        twice = sorted({phrase for phrase in phrases if phrases.count(phrase) > 1})
        told = f"The prompt has {', '.join(map(repr, twice))} more than once (after cleaning)"
        raise DataError(f"{told}, and the model cannot tell equal phrases apart. Name every class once.")
    caption, spans = "", []
    for phrase in phrases:
        spans.append(((len(caption), len(caption) + len(phrase)),))
        caption += phrase + _SEPARATOR
    return Prompt(caption, phrases, tuple(spans))


def caption_prompt(caption: str, spans: Spans) -> Prompt:
    """Make a prompt of an image's caption, closed by a final "." where it is open.

    Phrase i is what the character ranges [begin, end) of `spans[i]` cover, joined by spaces. No phrases are legal.
    """
    closed = caption.rstrip()
    cut = tuple(tuple((begin, min(end, len(closed))) for begin, end in own) for own in spans)
    phrases = tuple(" ".join(closed[begin:end] for begin, end in own) for own in cut)
    return Prompt(closed if closed.endswith((".", "?")) else f"{closed}.", phrases, cut)


def sentence_prompt(sentence: str) -> Prompt:
    """Make a prompt of a sentence that describes an object as a whole, or of what it has in brackets: `a [cat] on [the sofa]`.

    `.` and `?` become spaces, as they would cut the sentence in two; brackets go. Everything else stays as it is written.

    Raises:
        DataError: there is no text, in it or between brackets, or a bracket has no other.
    """
    caption, spans = "", []
    for place, piece in enumerate(
        re.split(r"\[([^][]*)\]", " ".join(re.sub(r"[.?]", " ", sentence).split()))
    ):
        if place % 2:
            spans.append(((len(caption), len(caption) + len(piece)),))
        caption += piece
    prompt = caption_prompt(caption, tuple(spans) or (((0, len(caption)),),))
    if set("[]") & set(caption) or not all(any(map(str.isalnum, phrase)) for phrase in prompt.phrases):
        expected = "write 'the cat on the left', or 'a [cat] on a [sofa]'"
        raise DataError(f"The sentence {sentence!r} cannot be looked for; {expected}.")
    return prompt


def mirror_caption(caption: str, spans: Spans) -> tuple[str, Spans]:
    """Say of the mirrored image what a caption says of the image: left and right change places, spans move along.

    Whole words, and the beginnings of leftmost, left-hand, leftside, leftward; "upright" and "leftover" stay. Twice gives
    back the caption itself.
    """
    words = [match.span() for match in _SIDE.finditer(caption)]
    grown = {
        span: (1 if span[1] - span[0] == 4 else -1) for span in words
    }  # left has four letters, right has five
    mirrored = _SIDE.sub(lambda match: _other_side(match[0]), caption)

    def moved(position: int, is_end: bool) -> int:
        shift = 0
        for (begin, end), letters in grown.items():
            if end <= position:
                shift += letters
            elif begin < position:  # a span that begins or ends within the word takes all of it
                return (end + shift + letters) if is_end else begin + shift
        return position + shift

    return mirrored, tuple(
        tuple((moved(begin, False), moved(end, True)) for begin, end in own) for own in spans
    )


def _other_side(word: str) -> str:
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.title() if word[0].isupper() else other


def _refuse_empty(names: Sequence[str], cleaned: Sequence[str]) -> None:
    empty = [name for name, clean in zip(names, cleaned, strict=True) if not clean]
    if empty:
        told = f"Class names with no text left after cleaning: {', '.join(map(repr, empty))}"
        raise DataError(
            f"{told}. Text in parentheses and '_', '.' and '?' do not count; rename these classes."
        )
