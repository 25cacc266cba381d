"""Build prompts from class names and captions, with the character span of every phrase.

Grounding DINO reads class names as one caption, "cat. red blood cell. ". IDEA's `demo/` and
MMDetection's `GroundingDINO.get_tokens_positive_and_prompts` search the finished caption for each
name again, which finds "car" in "carrot". Here spans are recorded while the caption is built
(docs/semantics.md, rules 1 and 2).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from groundtune.errors import CONTROL_CHARS, DataError

_SEPARATOR = ". "

Spans = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Prompt:
    """A caption and the character spans of its phrases.

    Attributes:
        caption: text for the tokenizer; every class name is followed by ". ", the last one too.
        phrases: cleaned class names, or the phrases of a caption.
        spans: character ranges [begin, end) of each phrase, without the separator.
    """

    caption: str
    phrases: tuple[str, ...]
    spans: Spans


def clean_name(name: str) -> str:
    """Return the form of a class name that the model reads; "" if nothing is left.

    "_", "." and "?" become spaces ("." and "?" separate phrases), text in parentheses and control
    characters are dropped, white space is collapsed, letters are lower-cased.
    """
    letters: list[str] = []
    opened: list[int] = []  # index in `letters` of each open parenthesis
    for letter in CONTROL_CHARS.sub(" ", name):
        if letter == "(":
            opened.append(len(letters))
        if letter == ")" and opened:
            del letters[opened.pop() :]
            letter = " "
        letters.append(letter)
    return " ".join(re.sub(r"[_.?]", " ", "".join(letters)).split()).lower()


def unique_names(names: Sequence[str]) -> tuple[list[str], list[int], list[str]]:
    """Clean class names and merge those that become equal.

    Returns:
        The unique cleaned names in order, for each input name its index among them, and one message
        for each merged class. No names give empty lists.

    Raises:
        DataError: names are empty after cleaning; all are listed.
    """
    cleaned = [clean_name(name) for name in names]
    _check_not_empty(names, cleaned)
    written: dict[str, list[str]] = {clean: [] for clean in cleaned}
    for name, clean in zip(names, cleaned, strict=True):
        written[clean].append(name)
    index_of = {clean: index for index, clean in enumerate(written)}
    messages = [
        f"{len(group)} class names ({', '.join(map(repr, group))}) become {unique!r} after cleaning: they "
        "are one class."
        for unique, group in written.items()
        if len(group) > 1
    ]
    return list(written), [index_of[clean] for clean in cleaned], messages


def class_prompt(names: Sequence[str]) -> Prompt:
    """Build the caption "name1. name2. " of class names. Phrase i is `names[i]`, cleaned.

    Raises:
        DataError: a name is empty after cleaning, or two names become equal; all are listed.
    """
    phrases = tuple(clean_name(name) for name in names)
    _check_not_empty(names, phrases)
    if len(set(phrases)) < len(phrases):
        repeated = sorted({phrase for phrase in phrases if phrases.count(phrase) > 1})
        raise DataError(
            f"The prompt contains {', '.join(map(repr, repeated))} more than once (after cleaning), and the "
            "model cannot distinguish equal phrases. Name every class once."
        )
    caption, spans = "", []
    for phrase in phrases:
        spans.append(((len(caption), len(caption) + len(phrase)),))
        caption += phrase + _SEPARATOR
    return Prompt(caption, phrases, tuple(spans))


def caption_prompt(caption: str, spans: Spans) -> Prompt:
    """Make a prompt of an image's caption, and close it with "." if it is open.

    Without a final "." the last phrase would depend on the padding of the batch. Phrase i is the
    text of `spans[i]`, its ranges joined by spaces.
    """
    closed = caption.rstrip()
    cut = tuple(tuple((begin, min(end, len(closed))) for begin, end in ranges) for ranges in spans)
    phrases = tuple(" ".join(closed[begin:end] for begin, end in ranges) for ranges in cut)
    return Prompt(closed if closed.endswith((".", "?")) else f"{closed}.", phrases, cut)


def sentence_prompt(sentence: str) -> Prompt:
    """Make a prompt of a sentence about one object, or of its phrases in [brackets].

    "." and "?" become spaces; the brackets are removed.

    Raises:
        DataError: the sentence or a bracket has no text, or brackets do not match.
    """
    caption, spans = "", []
    text = " ".join(re.sub(r"[.?]", " ", sentence).split())
    for index, piece in enumerate(re.split(r"\[([^][]*)\]", text)):
        if index % 2:  # between brackets
            spans.append(((len(caption), len(caption) + len(piece)),))
        caption += piece
    prompt = caption_prompt(caption, tuple(spans) or (((0, len(caption)),),))
    if set("[]") & set(caption) or not all(any(map(str.isalnum, phrase)) for phrase in prompt.phrases):
        raise DataError(
            f"Invalid phrase {sentence!r}: expected 'the cat on the left' or 'a [cat] on a [sofa]'."
        )
    return prompt


def _check_not_empty(names: Sequence[str], cleaned: Sequence[str]) -> None:
    empty = [repr(name) for name, clean in zip(names, cleaned, strict=True) if not clean]
    if empty:
        raise DataError(
            f"Class names with no text left after cleaning: {', '.join(empty)}. Text in parentheses and '_', "
            "'.' and '?' do not count; rename these classes."
        )


COMMON_NAMES = tuple(
    (
        "person, face, hand, dog, cat, bird, horse, cow, sheep, fish, insect, flower, tree, plant, leaf, "
        "fruit, apple, banana, orange, vegetable, bread, cake, pizza, food, plate, bowl, cup, glass, "
        "bottle, spoon, fork, knife, table, chair, sofa, bed, lamp, door, window, shelf, box, bag, book, "
        "paper, pen, scissors, clock, phone, screen, laptop, keyboard, mouse, remote control, camera, toy, "
        "ball, shoe, hat, shirt, glasses, umbrella, bicycle, motorcycle, car, bus, truck, train, boat, "
        "airplane, wheel, traffic light, sign, building, house, bench, wall, tool, machine, robot, letter, "
        "number"
    ).split(", ")
)
"""Everyday objects that a base model may know."""

_MAX_RECOMBINED = 60


def recombined_names(names: Sequence[str]) -> list[str]:
    """Combine the first words that several class names share with every last word of such names.

    "white king" and "black queen" show the model what white, black, king and queen mean, so it may
    detect a "white queen" without a label.

    Args:
        names: cleaned class names.

    Returns:
        At most 60 combinations that are not class names, in order; none if no words are shared.
    """
    pairs = [name.rsplit(" ", 1) for name in names if " " in name]
    counts = Counter(begin for begin, _ in pairs)
    begins = [begin for begin in counts if counts[begin] > 1]
    ends = dict.fromkeys(end for begin, end in pairs if begin in begins)
    combined = [f"{begin} {end}" for begin in begins for end in ends]
    return [name for name in combined if name not in names][:_MAX_RECOMBINED]
