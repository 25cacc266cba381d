"""Class names as the model reads them: it was taught with words, so a name that is none teaches it less.

What a name becomes is decided by the tokenizer alone, so the checks look at its pieces: [UNK] for letters that it does
not know, more than one piece for an abbreviation that is no word to it.

How images and classes are spread over the splits: what can be learned, and what can be measured.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from transformers import BertTokenizer

from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset
from groundtune.text.sampling import chunk_names

_NUMBER = re.compile(r"[\d\s/:,-]*\d[\d\s/:,-]*")
_WORDS = "class|label|category|categories|cls|obj|object|objects|item|thing|target|foreground|unknown|unlabeled|none"
_MORE_WORDS = "other|undefined|null|nan|test|tmp|foo|bar|name|default"
_MEANINGLESS = re.compile(rf"(?:{_WORDS}|{_MORE_WORDS})[\s-]*\d*|(?:cat|type|id|c)[\s-]*\d+|[a-z]")
_NO_VOWEL = re.compile(r"[b-df-hj-np-tv-xz]{2,5}")
_ALIKE = 0.85  # of difflib; "contol" and "control" .92, "mouse" and "house" .80, "king" and "knight" .60
_SHORTEST_TYPO = 3  # letters; shorter words that differ by one are other words


def read_tokens(names: Sequence[str], tokenizer: BertTokenizer) -> list[list[str]]:
    """The WordPiece tokens of each name, without the closing separator."""
    ids = tokenizer(list(names), add_special_tokens=False)["input_ids"] if names else []
    return [[str(token) for token in tokenizer.convert_ids_to_tokens(row)] for row in ids]


def check_names(
    names: Sequence[str],
    written: Sequence[str],
    tokenizer: BertTokenizer,
    max_text_len: int,
    found: Collector,
) -> None:
    """Look at every name alone, at all together, and at those that could be confused.

    `names` are cleaned and unique; `written` are as the files have them, or none where that is the same.
    """
    tokens = read_tokens(names, tokenizer)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, original, pieces in zip(names, written or names, tokens, strict=True):
        _check_one(name, original, pieces, found)
        groups[" ".join(pieces)].append(name)
    for read, group in groups.items():
        if len(group) > 1 and read:
            found.add("names-same-tokens", f"{', '.join(map(repr, group))} are read {read!r}")
    _check_budget(names, [len(pieces) + 1 for pieces in tokens], max_text_len, found)
    for first, second in alike_names(names):
        found.add("names-alike", f"{first!r} and {second!r}")


def _check_one(name: str, written: str, tokens: list[str], found: Collector) -> None:
    meaningless = _MEANINGLESS.fullmatch(name)
    in_pieces = any(token.startswith("##") for token in tokens)
    abbreviated = any(_NO_VOWEL.fullmatch(word) for word in name.split())
    faults = {
        "name-number": _NUMBER.fullmatch(name),
        "name-meaningless": meaningless,
        "name-abbreviation": abbreviated and in_pieces and not meaningless,
        "name-separator": re.search(r"[.?]", written),
        "name-parentheses": re.search(r"\(.*\)", written),
        "name-unknown-token": "[UNK]" in tokens,
        "name-without-token": not tokens,
    }
    for check in (check for check, fault in faults.items() if fault):
        found.add(check, f"{written!r} is read {' '.join(tokens)!r}")


def _check_budget(names: Sequence[str], counts: list[int], max_text_len: int, found: Collector) -> None:
    """Compare the names' tokens, each with its closing ".", with the prompt."""
    budget = max_text_len - 2
    fitting = {name: count for name, count in zip(names, counts, strict=True) if count <= budget}
    for name, count in zip(names, counts, strict=True):
        if count > budget:
            shown = name if len(name) <= 40 else name[:37] + "..."
            found.add(
                "name-too-long", f"{shown!r} has {count} tokens with its '.', at most {budget} are read"
            )
    prompts = chunk_names(list(fitting), list(fitting.values()), max_text_len)
    if len(prompts) > 1:
        total = f"{sum(fitting.values())} tokens for {len(fitting)} names"
        found.add("names-over-budget", f"{total}: {len(prompts)} prompts of {budget}")


def alike_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Find pairs of names, in their order, that may be one name spelt in two ways; a number makes another class.

    Names that are within one letter (or two neighbors swapped) share a form with at most one letter left out; only such
    pairs are compared, so that 10,000 names take about a second.
    """
    sharing: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        joined = re.sub(r"[\s-]", "", name)
        for form in {joined, *(joined[:i] + joined[i + 1 :] for i in range(len(joined)))}:
            sharing[form].append(index)
    pairs = {
        (a, b) for group in sharing.values() for place, a in enumerate(group) for b in group[place + 1 :]
    }
    return [(names[a], names[b]) for a, b in sorted(pairs) if _is_alike(names[a], names[b])]


def _is_alike(first: str, second: str) -> bool:
    words, others = re.split(r"[\s-]+", first), re.split(r"[\s-]+", second)
    if len(words) != len(others) or "".join(words) == "".join(others):
        words, others = ["".join(words)], ["".join(others)]
    for word, other in zip(words, others, strict=True):
        short = any(map(str.isdigit, word + other)) or min(len(word), len(other)) < _SHORTEST_TYPO
        if word != other and (short or SequenceMatcher(None, word, other).ratio() < _ALIKE):
            return False
    return True


_FEWEST_VALID = 5  # images
_IMBALANCE = 100  # times as many boxes


def count_boxes(dataset: Dataset) -> np.ndarray:
    """(C,) int64: the boxes of each class, those of crowds and of phrases left out."""
    ids = [sample.class_ids[~sample.crowd] for sample in dataset.samples if sample.grounding is None]
    return np.bincount(np.concatenate([np.empty(0, np.int64), *ids]), minlength=len(dataset.class_names))


def check_split(dataset: Dataset, found: Collector) -> None:
    """Look at one split: its size, and its empty images."""
    total = len(dataset.samples)
    empty = [sample for sample in dataset.samples if not len(sample.boxes_xyxy)]
    for sample in empty:
        found.add("images-empty", sample.image_path.name)
    if dataset.name != "train" and 0 < total < _FEWEST_VALID:
        found.add("split-small", f"{dataset.name} has {total} images")
    if not any((~sample.crowd).any() for sample in dataset.samples):
        found.add("split-without-boxes", f"{dataset.name} with its {total} images")
    elif len(empty) * 2 > total:
        found.add("images-mostly-empty", f"{len(empty)} of {total}")


def check_splits(splits: Mapping[str, Dataset], found: Collector) -> None:
    """Look at all splits: files in two of them, and what each class has to learn from and to be measured by."""
    if "train" not in splits or not splits["train"].samples:
        found.add("split-missing", f"there is only {', '.join(splits) or 'nothing'}")
    home: dict[Path, str] = {}
    for name, dataset in splits.items():
        for path in dict.fromkeys(sample.image_path for sample in dataset.samples):
            if home.setdefault(path, name) != name:
                found.add("file-in-two-splits", f"{path.name} in {home[path]} and {name}")
    names = next(iter(splits.values())).class_names if splits else []
    counts = {split: count_boxes(dataset) for split, dataset in splits.items()}
    train = counts.get("train", np.zeros(len(names), np.int64))
    for index, name in enumerate(names):
        elsewhere = [split for split, boxes in counts.items() if split != "train" and boxes[index]]
        if not train[index] and not elsewhere:
            found.add("class-without-boxes", repr(name))
        elif not train[index] and "train" in splits:
            found.add("class-only-valid", f"{name!r} only in {' and '.join(elsewhere)}")
        elif train[index] == 1:
            found.add("class-one-box", repr(name))
        elif 0 < train[index] * _IMBALANCE < train.max():
            found.add("class-imbalance", f"{name!r} {train[index]}, {names[train.argmax()]!r} {train.max()}")
        if train[index] and "valid" in splits and "valid" not in elsewhere:
            found.add("class-only-train", repr(name))
