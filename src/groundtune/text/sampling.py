"""Which classes stand in a prompt: a random choice in training, chunks in evaluation.

Training with all classes in a fixed order teaches the model that exact prompt. Here the order is shuffled per image
and, half of the time, only a sample of the absent classes is shown, so that the model stays open to other prompts.

Deviation from the reference (MMDetection `RandomSamplingNegPos`): negatives come from the classes that the image does NOT
have (the reference compares a string with an integer and shows positives a second time, without their boxes), and nothing
is ever cut: positives that do not fit into one prompt are spread over several.
"""

import random
from collections.abc import Sequence

from groundtune.errors import DataError

_CLS_AND_SEP = 2


def chunk_names(
    names: Sequence[str], token_counts: Sequence[int], max_text_len: int = 256
) -> list[list[int]]:
    """Split classes into as few consecutive chunks as fit, each of which is one prompt.

    Args:
        names: Cleaned class names, for the message only.
        token_counts: For each name its tokens with the closing separator (`tokens.count_tokens`).
        max_text_len: Most tokens of a prompt with [CLS] and [SEP].

    Returns:
        Indices into `names`, in order, by chunk. No names give no chunk.

    Raises:
        DataError: A single name does not fit. All such names are listed.
    """
    _refuse_oversized(names, token_counts, max_text_len)
    return _chunk(range(len(names)), token_counts, max_text_len - _CLS_AND_SEP)


def sample_prompt(
    class_names: Sequence[str],
    token_counts: Sequence[int],
    positives: set[int],
    rng: random.Random,
    *,
    shuffle: bool = True,
    negative_probability: float = 0.5,
    max_text_len: int = 256,
) -> list[list[int]]:
    """Choose the classes of one image's training prompt, and their order.

    Args:
        class_names: All class names of the data set, cleaned. At least one.
        token_counts: For each name its tokens with the closing separator.
        positives: Indices of the classes that the image has. May be empty.
        rng: Source of every random choice.
        shuffle: Shuffle the order; otherwise the prompt keeps the data set's order.
        negative_probability: How often only a sample of the other classes is shown, its size uniform from 0 to all;
            otherwise as many of them as fit.
        max_text_len: Most tokens of a prompt with [CLS] and [SEP].

    Returns:
        Class indices by prompt, in prompt order. One prompt, except where the positives alone do not fit: then
        several, each positive in exactly one of them. Without positives the prompt has at least one class.

    Raises:
        DataError: There are no classes, or a single name does not fit. All such names are listed.
    """
    if not class_names:
        raise DataError("The data set has no classes, so there is nothing to write into the prompt.")
    _refuse_oversized(class_names, token_counts, max_text_len)
    budget = max_text_len - _CLS_AND_SEP
    present = sorted(positives)
    absent = [index for index in range(len(class_names)) if index not in positives]
    if shuffle:
        rng.shuffle(present)
    prompts = []
    for chunk in _chunk(present, token_counts, budget) or [[]]:
        wanted = rng.randint(0, len(absent)) if rng.random() < negative_probability else len(absent)
        negatives = rng.sample(
            absent, max(wanted, 0 if chunk else 1)
        )  # in random order, so the cut below is random
        room = budget - sum(token_counts[index] for index in chunk)
        for index in negatives:
            if token_counts[index] <= room:
                chunk.append(index)
                room -= token_counts[index]
        if shuffle:
            rng.shuffle(chunk)
        else:
            chunk.sort()
        prompts.append(chunk)
    return prompts


def _chunk(indices: Sequence[int], token_counts: Sequence[int], budget: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    for index in indices:
        if not chunks or sum(token_counts[i] for i in chunks[-1]) + token_counts[index] > budget:
            chunks.append([])
        chunks[-1].append(index)
    return chunks


def _refuse_oversized(names: Sequence[str], token_counts: Sequence[int], max_text_len: int) -> None:
    budget = max_text_len - _CLS_AND_SEP
    oversized = [f"{name!r} ({n} tokens)" for name, n in zip(names, token_counts, strict=True) if n > budget]
    if oversized:
        told = f"Class names that do not fit into a prompt of {max_text_len} tokens: {', '.join(oversized)}"
        raise DataError(f"{told}. At most {budget} tokens with the closing '.' are possible; shorten them.")
