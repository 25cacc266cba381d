"""Choose the classes of a prompt: at random in training, in chunks in evaluation.

See docs/semantics.md, rules 6 and 21.

Training with all classes in a fixed order teaches the model that one prompt. So the order is
shuffled, and half of the time only a sample of the absent classes is in the prompt.

Deviation from MMDetection's `RandomSamplingNegPos`: negatives come only from classes that the image
does not have, and nothing is cut: positives that do not fit into one prompt are divided among
several.
"""

import random
from collections.abc import Sequence

from groundtune.errors import DataError

_CLS_AND_SEP = 2


def chunk_names(names: Sequence[str], token_counts: Sequence[int], max_text_len: int) -> list[list[int]]:
    """Split cleaned class names into consecutive chunks that fit into one prompt each.

    `token_counts` are the tokens of each name with its separator (`tokens.count_tokens`);
    `max_text_len` includes [CLS] and [SEP]. Returns indices into `names` by chunk, in order.

    Raises:
        DataError: a single name does not fit; all such names are listed.
    """
    _check_lengths(names, token_counts, max_text_len)
    return _chunk(range(len(names)), token_counts, max_text_len - _CLS_AND_SEP)


def sample_prompt(
    class_names: Sequence[str],
    token_counts: Sequence[int],
    positives: set[int],
    rng: random.Random,
    *,
    shuffle: bool,
    negative_probability: float,
    max_text_len: int,
) -> list[list[int]]:
    """Choose the classes of one image's training prompt, and their order.

    Args:
        class_names, token_counts, max_text_len: as in `chunk_names`; at least one class.
        positives: indices of the classes in the image; may be empty.
        rng: source of all random choices.
        shuffle: whether to shuffle the classes.
        negative_probability: probability that only a sample of the absent classes is in the prompt,
            its size uniform from 0 to all; otherwise as many as fit.

    Returns:
        Class indices by prompt: one prompt, or several that share out the positives if these do not
        fit into one. Every prompt has at least one class.

    Raises:
        DataError: there are no classes, or a single name does not fit; all such names are listed.
    """
    if not class_names:
        raise DataError("The data set has no classes, so the prompt would be empty.")
    _check_lengths(class_names, token_counts, max_text_len)
    budget = max_text_len - _CLS_AND_SEP
    present = sorted(positives)
    absent = [index for index in range(len(class_names)) if index not in positives]
    if shuffle:
        rng.shuffle(present)
    prompts = []
    for chunk in _chunk(present, token_counts, budget) or [[]]:
        wanted = rng.randint(0, len(absent)) if rng.random() < negative_probability else len(absent)
        # in random order, so that the cut below is random; an empty chunk needs one
        negatives = rng.sample(absent, max(wanted, 0 if chunk else 1))
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


def _check_lengths(names: Sequence[str], token_counts: Sequence[int], max_text_len: int) -> None:
    budget = max_text_len - _CLS_AND_SEP
    oversized = [f"{name!r} ({n} tokens)" for name, n in zip(names, token_counts, strict=True) if n > budget]
    if oversized:
        raise DataError(
            f"Class names that do not fit into a prompt of {max_text_len} tokens: {', '.join(oversized)}. "
            f"Expected at most {budget} tokens with the closing '.'; shorten them."
        )
