"""Build prompts from class names and captions, with the character span of every phrase.

Grounding DINO reads class names as one caption, "cat. red blood cell. ". IDEA's `demo/` and
MMDetection's `GroundingDINO.get_tokens_positive_and_prompts` search the finished caption for each
name again, which finds "car" in "carrot". Here spans are recorded while the caption is built
(docs/semantics.md, rules 1 and 2).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from groundtune.errors import CONTROL_CHARS, DataError

_SEPARATOR = ". "
_UNDERSCORES, _SEPARATORS_AS_WORDS, _PARENTHESES, _CASE = 2, 3, 4, 5  # steps of `_reading`
# What separates names, the strongest first. "." does if it ends a word; in "cat.dog." also inside.
_LISTS = (r"[;\n]", ",", r"\.(?=\s|$)|(?<=\s)\.(?!\d)")
_DOTS, _DOT_IN_WORDS = 2, r"|(?<=[^\W\d_]{2})\.(?=[^\W\d_]{2})"
_SENTENCE_END = re.compile(r"(?:[.?](?=\s|$)|(?<=\s)[.?])(?![^][]*\])")  # not in brackets

Spans = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Prompt:
    """A caption and the character spans of its phrases.

    Attributes:
        caption: text for the tokenizer; every class name is followed by ". ", the last one too.
        phrases: phrases of the classes, or of a caption.
        spans: character ranges [begin, end) of each phrase, without the separator.
    """

    caption: str
    phrases: tuple[str, ...]
    spans: Spans


def clean_name(name: str) -> str:
    """Return the plain form of a class name that the model reads; "" if nothing is left.

    "_", "." and "?" become spaces ("." and "?" separate phrases), text in parentheses is dropped
    unless it is all there is, control characters are dropped, white space is collapsed, letters are
    lower-cased.
    """
    return _reading(name, 0) or words_of(name)


def words_of(name: str) -> str:
    """Return the plain form of a class name with the text in parentheses."""
    return _reading(name, 1)


def _reading(name: str, step: int) -> str:
    """Return the text that is read of a name, one kind of its characters more in each step."""
    letters: list[str] = []
    opened: list[int] = []  # index in `letters` of each open parenthesis
    for letter in CONTROL_CHARS.sub(" ", name):
        if letter == "(" and step < _PARENTHESES:
            opened.append(len(letters))
        if letter == ")" and opened:
            begin, letter = opened.pop(), " "
            if step:
                letters[begin] = " "
            else:
                del letters[begin:]
        letters.append(letter)
    text = "".join(letters) if step >= _UNDERSCORES else "".join(letters).replace("_", " ")
    for separator, word in ((".", " dot "), ("?", " question mark ")):
        text = text.replace(separator, word if step >= _SEPARATORS_AS_WORDS else " ")
    return " ".join((text if step >= _CASE else text.lower()).split())


def class_phrases(names: Sequence[str], given: Mapping[str, str] | None = None) -> list[str]:
    """Return the phrase that the model reads for each of N unique class names.

    It is the plain form (`clean_name`). Where those of several names are equal, more of these names
    is read, step by step: text in parentheses ("bolt m6", "bolt m8"), then "_", "." and "?" as
    words, the parentheses themselves, and upper case. Phrases that are equal to the model even then
    are refused by `tokens.check_phrases`.

    Args:
        names: class names as the data set has them.
        given: phrases of some names, which stay as they are.
    """
    given, steps = given or {}, [0] * len(names)
    while True:
        phrases = [
            given.get(name) or (_reading(name, step) if step else clean_name(name))
            for name, step in zip(names, steps, strict=True)
        ]
        count = Counter(phrases)
        equal = [i for i, phrase in enumerate(phrases) if phrase and count[phrase] > 1 and steps[i] < _CASE]
        if not equal:
            return phrases
        for index in equal:
            steps[index] += 1


def match_names(wanted: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Return the index of each wanted name among unique known ones; None for none or several.

    A name means itself; else the one that differs in case, "_", "." or white space; else the one
    that has text in parentheses where the other has none.
    """
    exact = {name: {index} for index, name in enumerate(known)}
    whole, plain = defaultdict[str, set[int]](set), defaultdict[str, set[int]](set)
    for index, name in enumerate(known):
        whole[words_of(name)].add(index)
        plain[clean_name(name)].add(index)
    matches: list[int | None] = []
    for name in wanted:
        text = words_of(name)
        found = exact.get(name) or (whole[text] or plain[text] | whole[clean_name(name)] if text else ())
        matches.append(next(iter(found)) if len(found) == 1 else None)
    return matches


def known_phrases(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return the phrases of those names that a model knows, by name.

    Args:
        names: class names to detect.
        known: phrases that the model has learned, by name. A name or a phrase may be written
            differently (`match_names`), unless that would give two names one phrase.
    """
    exact = {name: known[name] for name in names if name in known}
    others, similar = [name for name in names if name not in exact], dict[str, str]()
    for table in ({phrase: phrase for phrase in known.values()}, known):
        phrases = list(table.values())
        matches = zip(others, match_names(others, list(table)), strict=True)
        similar |= {name: phrases[index] for name, index in matches if index is not None}
    claims = Counter([*set(exact.values()), *similar.values()])
    return exact | {name: phrase for name, phrase in similar.items() if claims[phrase] == 1}


def split_names(given: str | Iterable[str] | None, known: Collection[str] = ()) -> list[str]:
    """Return the class names that a user gave, each once.

    A text is split at ",", ";", line breaks, and at "." as in "cat . dog ." and "cat. dog.", but
    not in "1.0". The items of a list are names, unless they have the form "cat . dog" or end with
    ".". What is a known name is never split. None gives no names.
    """
    if isinstance(given, str):
        names = _split(given, known, 0)
    else:
        names = []
        for item in map(str, () if given is None else given):
            is_list = item not in known and re.search(r"\s\.(\s|$)|\.\s*$", item)
            names += _split(item, known, _DOTS) if is_list else [item]
    return list(dict.fromkeys(name for name in names if name.strip()))


def _split(text: str, known: Collection[str], level: int) -> list[str]:
    text = text if text in known else text.strip()
    if text in known or level == len(_LISTS):
        return [text]
    pattern = _LISTS[level]
    if level == _DOTS and text.endswith("."):
        pattern += _DOT_IN_WORDS
    return [name for part in re.split(pattern, text) for name in _split(part, known, level + 1)]


def class_prompt(names: Sequence[str]) -> Prompt:
    """Build the caption "name1. name2. " of class names; phrase i is that of `names[i]`.

    Raises:
        DataError: a name has no text, or two names have equal phrases; all are listed.
    """
    return phrase_prompt(class_phrases(names))


def phrase_prompt(phrases: Sequence[str]) -> Prompt:
    """Build the caption "phrase1. phrase2. "; errors are those of `class_prompt`."""
    if len(set(phrases)) < len(phrases) or "" in phrases:
        wrong = sorted({phrase for phrase in phrases if not phrase or phrases.count(phrase) > 1})
        raise DataError(
            f"The prompt contains {', '.join(map(repr, wrong))} more than once or without text (after "
            "cleaning), and the model cannot distinguish equal phrases. Name every class once, with letters."
        )
    caption, spans = "", []
    for phrase in phrases:
        spans.append(((len(caption), len(caption) + len(phrase)),))
        caption += phrase + _SEPARATOR
    return Prompt(caption, tuple(phrases), tuple(spans))


def caption_prompt(caption: str, spans: Spans) -> Prompt:
    """Make a prompt of an image's caption, and close it with "." if it is open.

    Without a final "." the last phrase would depend on the padding of the batch. Phrase i is the
    text of `spans[i]`, its ranges joined by spaces.
    """
    closed = caption.rstrip()
    cut = tuple(tuple((begin, min(end, len(closed))) for begin, end in ranges) for ranges in spans)
    phrases = tuple(" ".join(closed[begin:end] for begin, end in ranges) for ranges in cut)
    return Prompt(closed if closed.endswith((".", "?")) else f"{closed}.", phrases, cut)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, without the "." or "?" that closes each."""
    return [part for part in _SENTENCE_END.split(text) if part.strip()] or [text]


def sentence_prompt(text: str) -> Prompt:
    """Make a prompt of sentences about one object each, or of their phrases in [brackets].

    "." and "?" inside a sentence become spaces; the brackets are removed.

    Raises:
        DataError: a sentence or a bracket has no text, or brackets do not match.
    """
    caption, spans = "", []
    for sentence in split_sentences(text):
        begin = caption = f"{caption}. " if caption else ""
        words, phrases = " ".join(re.sub(r"[.?]", " ", sentence).split()), []
        for index, piece in enumerate(re.split(r"\[([^][]*)\]", words)):
            if index % 2:  # between brackets
                phrases.append(((len(caption), len(caption) + len(piece)),))
            caption += piece
        spans += phrases or [((len(begin), len(caption)),)]
    prompt = caption_prompt(caption, tuple(spans))
    if set("[]") & set(caption) or not all(any(map(str.isalnum, phrase)) for phrase in prompt.phrases):
        raise DataError(f"Invalid phrase {text!r}: expected 'the cat on the left' or 'a [cat] on a [sofa]'.")
    return prompt


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
