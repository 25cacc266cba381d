"""Checks of class names as the model reads them, and of how classes are spread over the splits.

The model was trained with words, so a name that is no word carries less. The tokens of a name show
its tokens: [UNK] for unknown characters, several tokens for an unknown abbreviation.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from transformers import BertTokenizer

from groundtune.data.check.kinds import ModelLimits
from groundtune.data.mirror import describe_mirroring
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset
from groundtune.text.prompt import clean_name, words_of
from groundtune.text.sampling import chunk_names

_NUMBER = re.compile(r"[\d\s/:,-]*\d[\d\s/:,-]*")
_WORDS = (
    "class|label|category|categories|cls|obj|object|objects|item|thing|target|foreground|unknown|unlabeled|"
    "none|other|undefined|null|nan|test|tmp|foo|bar|name|default"
)
_MEANINGLESS = re.compile(rf"(?:{_WORDS})[\s-]*\d*|(?:cat|type|id|c)[\s-]*\d+|[a-z]")
_NO_VOWEL = re.compile(r"[b-df-hj-np-tv-xz]{2,5}")
_ALIKE = 0.85  # of difflib; "contol" and "control" .92, "mouse" and "house" .80, "king" and "knight" .60
_MAX_COMPARED = 200  # letters of a name
_MAX_READ = 10_000  # characters of a name; no prompt has as many tokens
_MIN_TYPO = 3  # letters; shorter words that differ by one are other words
_MIN_VALID = 5  # images
_IMBALANCE = 100  # times as many boxes


def read_tokens(names: Sequence[str], tokenizer: BertTokenizer) -> list[list[str]]:
    """Return the tokens of each name (of a very long one the first) without the separator."""
    ids = (
        tokenizer([name[:_MAX_READ] for name in names], add_special_tokens=False)["input_ids"]
        if names
        else []
    )
    return [[str(token) for token in tokenizer.convert_ids_to_tokens(row)] for row in ids]


def check_names(dataset: Dataset, limits: ModelLimits, problems: Collector) -> None:
    """Check every class name, all of them together, and pairs that are nearly equal."""
    names, phrases = dataset.class_names, dataset.phrases
    tokens = read_tokens(phrases, limits.tokenizer)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, phrase, pieces in zip(names, phrases, tokens, strict=True):
        _check_name(name, phrase, pieces, problems)
        groups[" ".join(pieces)].append(name)
    for read, group in groups.items():
        if len(group) > 1 and read:
            problems.add("names-same-tokens", f"{', '.join(map(repr, group))} are read {read!r}")
    _check_lengths(phrases, [len(pieces) + 1 for pieces in tokens], limits.max_text_len, problems)
    for first, second in alike_names(phrases):
        problems.add("names-alike", f"{first!r} and {second!r}")
    for text in describe_mirroring(dataset):
        problems.add("names-mirrored", text)


def _check_name(name: str, phrase: str, tokens: list[str], problems: Collector) -> None:
    meaningless = _MEANINGLESS.fullmatch(phrase)
    in_pieces = any(token.startswith("##") for token in tokens)
    abbreviated = any(_NO_VOWEL.fullmatch(word) for word in phrase.split())
    is_plain = phrase == clean_name(name)
    faults = {
        "name-number": _NUMBER.fullmatch(phrase),
        "name-meaningless": meaningless,
        "name-abbreviation": abbreviated and in_pieces and not meaningless,
        "name-separator": is_plain and re.search(r"[.?]", name),
        "name-parentheses": is_plain and words_of(name) != phrase,
        "name-unknown-token": "[UNK]" in tokens,
        "name-without-token": not tokens,
    }
    for check in (check for check, fault in faults.items() if fault):
        problems.add(check, f"{name!r} is read {' '.join(tokens)!r}")


def _check_lengths(names: Sequence[str], counts: list[int], max_text_len: int, problems: Collector) -> None:
    """Compare the tokens of each name, with its closing ".", to the length of a prompt."""
    budget = max_text_len - 2  # without [CLS] and [SEP]
    fitting = {name: count for name, count in zip(names, counts, strict=True) if count <= budget}
    for name, count in zip(names, counts, strict=True):
        if count > budget:
            short = name if len(name) <= 40 else name[:37] + "..."
            problems.add(
                "name-too-long", f"{short!r} has {count} tokens with its '.', at most {budget} are read"
            )
    prompts = chunk_names(list(fitting), list(fitting.values()), max_text_len)
    if len(prompts) > 1:
        total = f"{sum(fitting.values())} tokens for {len(fitting)} names"
        problems.add("names-over-budget", f"{total}: {len(prompts)} prompts of {budget}")


def alike_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of names that may be one name in two spellings; other numbers are not.

    Names that differ by one letter, or by two swapped neighbors, become equal when each drops one
    letter or none. Only such pairs are compared: 10,000 names take about a second.
    """
    sharing: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        joined = re.sub(r"[\s-]", "", name)[:_MAX_COMPARED]
        for form in {joined, *(joined[:i] + joined[i + 1 :] for i in range(len(joined)))}:
            sharing[form].append(index)
    pairs = {(a, b) for group in sharing.values() for i, a in enumerate(group) for b in group[i + 1 :]}
    return [(names[a], names[b]) for a, b in sorted(pairs) if _is_alike(names[a], names[b])]


def _is_alike(first: str, second: str) -> bool:
    words, others = re.split(r"[\s-]+", first), re.split(r"[\s-]+", second)
    if len(words) != len(others) or "".join(words) == "".join(others):
        words, others = ["".join(words)], ["".join(others)]
    for word, other in zip(words, others, strict=True):
        short = any(map(str.isdigit, word + other)) or min(len(word), len(other)) < _MIN_TYPO
        if word != other and (short or SequenceMatcher(None, word, other).ratio() < _ALIKE):
            return False
    return True


def count_boxes(dataset: Dataset) -> np.ndarray:
    """Return the (C,) int64 number of boxes of each class, without crowds and phrases."""
    ids = [sample.class_ids[~sample.crowd] for sample in dataset.samples if sample.grounding is None]
    return np.bincount(np.concatenate([np.empty(0, np.int64), *ids]), minlength=len(dataset.class_names))


def check_split(dataset: Dataset, problems: Collector) -> None:
    """Check the size of a split and its images without boxes."""
    total = len(dataset.samples)
    empty = [sample for sample in dataset.samples if not len(sample.boxes_xyxy)]
    for sample in empty:
        problems.add("images-empty", sample.image_path.name)
    if dataset.name != "train" and 0 < total < _MIN_VALID:
        problems.add("split-small", f"{dataset.name} has {total} images")
    if not any((~sample.crowd).any() for sample in dataset.samples):
        problems.add("split-without-boxes", f"{dataset.name} with its {total} images")
    elif len(empty) * 2 > total:
        problems.add("images-mostly-empty", f"{len(empty)} of {total}")


def check_splits(splits: Mapping[str, Dataset], problems: Collector) -> None:
    """Check all splits together: files in two of them, and where each class has boxes."""
    if "train" not in splits or not splits["train"].samples:
        problems.add("split-missing", f"there is only {', '.join(splits) or 'nothing'}")
    split_of: dict[Path, str] = {}
    for split, dataset in splits.items():
        for path in dict.fromkeys(sample.image_path for sample in dataset.samples):
            if split_of.setdefault(path, split) != split:
                problems.add("file-in-two-splits", f"{path.name} in {split_of[path]} and {split}")
    names = next(iter(splits.values())).class_names if splits else []
    counts = {split: count_boxes(dataset) for split, dataset in splits.items()}
    train = counts.get("train", np.zeros(len(names), np.int64))
    for index, name in enumerate(names):
        elsewhere = [split for split, boxes in counts.items() if split != "train" and boxes[index]]
        if not train[index] and not elsewhere:
            problems.add("class-without-boxes", repr(name))
        elif not train[index] and "train" in splits:
            problems.add("class-only-valid", f"{name!r} only in {' and '.join(elsewhere)}")
        elif train[index] == 1:
            problems.add("class-one-box", repr(name))
        elif 0 < train[index] * _IMBALANCE < train.max():
            problems.add(
                "class-imbalance", f"{name!r} {train[index]}, {names[train.argmax()]!r} {train.max()}"
            )
        if train[index] and "valid" in splits and "valid" not in elsewhere:
            problems.add("class-only-train", repr(name))
