"""Class names as the model reads them: it was taught with words, so a name that is none teaches it less.

What a name becomes is decided by the tokenizer alone, so the checks look at its pieces: [UNK] for letters that it does not
know, more than one piece for an abbreviation that is no word to it.
"""

import re
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from string import ascii_lowercase

from transformers import BertTokenizer

from groundtune.data.findings import Collector
from groundtune.text.sampling import chunk_names

_NUMBER = re.compile(r"[\d\s/:,-]*\d[\d\s/:,-]*")
_WORDS_ALONE = (
    "class|label|category|categories|cls|obj|object|objects|item|thing|target|foreground|unknown|unlabeled|none"
)
_MEANINGLESS = re.compile(
    rf"(?:{_WORDS_ALONE}|other|undefined|null|nan|test|tmp|foo|bar|name|default)[\s-]*\d*|(?:cat|type|id|c)[\s-]*\d+|[a-z]"
)
_NO_VOWEL = re.compile(r"[b-df-hj-np-tv-xz]{2,5}")
_LIST = re.compile(r"[/,;|&]")
_ALIKE = 0.85  # of difflib; "contol" and "control" .92, "mouse" and "house" .80, "king" and "knight" .60
_SHORTEST_CHECKED = 6  # letters of a word that is looked up; short ones are near to many
_SHORTEST_TYPO = 3  # letters; shorter words that differ by one are other words


@dataclass
class ClassNames:
    """The classes of a data set and how they are read.

    Attributes:
        names: cleaned, unique.
        written: as the files have them.
        tokens: for each name its WordPiece tokens, without the closing separator.
        max_text_len: most tokens of a prompt with [CLS] and [SEP].
        vocabulary: every token that there is.
    """

    names: list[str]
    written: list[str]
    tokens: list[list[str]]
    max_text_len: int
    vocabulary: Container[str]


def read_names(names: Sequence[str], written: Sequence[str], tokenizer: BertTokenizer, max_text_len: int) -> ClassNames:
    """Tokenise the names. `written` may be empty, where the names are written as they are read."""
    ids = tokenizer(list(names), add_special_tokens=False)["input_ids"] if names else []
    tokens = [[str(token) for token in tokenizer.convert_ids_to_tokens(row)] for row in ids]
    return ClassNames(list(names), list(written or names), tokens, max_text_len, tokenizer.get_vocab())


def check_names(classes: ClassNames, found: Collector) -> None:
    """Look at every name alone, at all together, and at those that could be confused."""
    for name, written, tokens in zip(classes.names, classes.written, classes.tokens, strict=True):
        _check_one(name, written, tokens, found)
        for word, near in misspelt_words(name, tokens, classes.vocabulary):
            found.add("name-misspelt", f"{word!r} in {written!r}, perhaps {' or '.join(map(repr, near))}")
    _check_budget(classes, found)
    _check_same_tokens(classes, found)
    for first, second in alike_names(classes.names):
        found.add("names-alike", f"{first!r} and {second!r}")


def _check_one(name: str, written: str, tokens: list[str], found: Collector) -> None:
    if _NUMBER.fullmatch(name):
        found.add("name-number", repr(written))
    elif _MEANINGLESS.fullmatch(name):
        found.add("name-meaningless", repr(written))
    elif any(_NO_VOWEL.fullmatch(word) for word in name.split()) and any(token.startswith("##") for token in tokens):
        found.add("name-abbreviation", f"{written!r} is read {' '.join(tokens)!r}")
    if re.search(r"[.?]", written):
        found.add("name-separator", f"{written!r} is read {name!r}")
    if re.search(r"\(.*\)", written):
        found.add("name-parentheses", f"{written!r} is read {name!r}")
    if _LIST.search(name) and not _NUMBER.fullmatch(name):
        found.add("name-list", repr(written))
    if "[UNK]" in tokens:
        found.add("name-unknown-token", f"{written!r} is read {' '.join(tokens)!r}")
    if not tokens:
        found.add("name-without-token", repr(written))


def _check_budget(classes: ClassNames, found: Collector) -> None:
    counts = [len(tokens) + 1 for tokens in classes.tokens]  # with the closing "."
    budget = classes.max_text_len - 2
    for name, count in zip(classes.names, counts, strict=True):
        if count > budget:
            shown = name if len(name) <= 40 else name[:37] + "..."
            found.add("name-too-long", f"{shown!r} has {count} tokens with its '.', at most {budget} are read")
    fitting = [index for index, count in enumerate(counts) if count <= budget]
    sizes = [counts[index] for index in fitting]
    prompts = chunk_names([classes.names[index] for index in fitting], sizes, classes.max_text_len)
    if len(prompts) > 1:
        found.add(
            "names-over-budget", f"{sum(sizes)} tokens for {len(sizes)} names: {len(prompts)} prompts of {budget}"
        )


def _check_same_tokens(classes: ClassNames, found: Collector) -> None:
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, tokens in zip(classes.names, classes.tokens, strict=True):
        groups[tuple(tokens)].append(name)
    for tokens_read, group in groups.items():
        if len(group) > 1 and tokens_read:
            found.add("names-same-tokens", f"{', '.join(map(repr, group))} are read {' '.join(tokens_read)!r}")


def misspelt_words(name: str, tokens: Sequence[str], vocabulary: Container[str]) -> list[tuple[str, list[str]]]:
    """Find words that are no token of their own, and are one letter away from one that is.

    Returns:
        Pairs of a word and its likely spellings, at most three. The first letter is taken to be right, and other endings
        ("staple", "stapler") are other words, not misspelt ones.
    """
    if not any(token.startswith("##") for token in tokens):
        return []
    words = [word for word in name.split() if len(word) >= _SHORTEST_CHECKED and word.isascii() and word.isalpha()]
    pairs = []
    for word in words:
        cuts = [(word[:i], word[i:]) for i in range(1, len(word) - 1)]
        near = [begin + end[1] + end[0] + end[2:] for begin, end in cuts]
        near += [begin + letter + end for begin, end in cuts for letter in ascii_lowercase]
        near += [begin + end[1:] for begin, end in cuts]
        near += [begin + letter + end[1:] for begin, end in cuts for letter in ascii_lowercase]
        found = [other for other in dict.fromkeys(near) if other in vocabulary]
        if found and word not in vocabulary:
            pairs.append((word, found[:3]))
    return pairs


def alike_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Find pairs of names that may be one name spelt in two ways.

    Names that are within one letter (or two neighbours swapped) share a form with at most one letter left out; only such
    pairs are compared, so that 10,000 names take about a second.

    Returns:
        Pairs in the order of the names. Names that differ in a number are other classes, not misspelt ones.
    """
    sharing: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        joined = re.sub(r"[\s-]", "", name)
        for form in {joined, *(joined[:i] + joined[i + 1 :] for i in range(len(joined)))}:
            sharing[form].append(index)
    pairs = {(a, b) for group in sharing.values() for place, a in enumerate(group) for b in group[place + 1 :]}
    return [(names[a], names[b]) for a, b in sorted(pairs) if _is_alike(names[a], names[b])]


def _is_alike(first: str, second: str) -> bool:
    words, others = re.split(r"[\s-]+", first), re.split(r"[\s-]+", second)
    if "".join(words) == "".join(others):
        return True
    if len(words) != len(others):
        words, others = ["".join(words)], ["".join(others)]
    for word, other in zip(words, others, strict=True):
        if word == other:
            continue
        if any(map(str.isdigit, word + other)) or min(len(word), len(other)) < _SHORTEST_TYPO:
            return False
        if SequenceMatcher(None, word, other).ratio() < _ALIKE:
            return False
    return True
