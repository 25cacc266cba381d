"""Chunks and training prompts, over many draws."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundtune.errors import DataError
from groundtune.text import sampling
from groundtune.text.prompt import class_prompt
from groundtune.text.sampling import chunk_names
from groundtune.text.tokens import count_tokens, tokenize

NAMES = [f"name{i}" for i in range(40)]


def sample_prompt(names, counts, positives, rng, **changed):
    options = {"shuffle": True, "negative_probability": 0.5, "max_text_len": 256}
    return sampling.sample_prompt(names, counts, positives, rng, **options | changed)


counts_of_forty = st.lists(st.integers(2, 9), min_size=40, max_size=40)


@given(counts=st.lists(st.integers(2, 30), max_size=60), limit=st.integers(32, 256))
def test_chunks_are_a_partition_in_order_and_each_fits(counts, limit):
    chunks = chunk_names([f"n{i}" for i in range(len(counts))], counts, limit)
    assert [index for chunk in chunks for index in chunk] == list(range(len(counts)))
    assert all(chunk and sum(counts[i] for i in chunk) + 2 <= limit for chunk in chunks)
    for before, after in itertools.pairwise(chunks):
        assert sum(counts[i] for i in before) + counts[after[0]] + 2 > limit, (
            "a chunk is closed only when it is full"
        )


def test_more_than_256_tokens_are_chunked_and_every_class_keeps_its_tokens(tokenizer):
    names = [f"red blood cell number {i}" for i in range(100)]
    chunks = chunk_names(names, count_tokens(tokenizer, names), 256)
    assert len(chunks) > 1
    text, maps = tokenize(tokenizer, [class_prompt([names[i] for i in chunk]) for chunk in chunks])
    assert text.input_ids.shape[1] <= 256
    assert sum(len(rows) for rows in maps) == 100
    assert all(rows.any(1).all() for rows in maps)


def test_a_name_over_the_budget_is_an_error_that_names_it():
    assert chunk_names(["a", "b"], [8, 8], 10) == [[0], [1]]
    for call in (
        lambda: chunk_names(["cat", "very long", "longer"], [2, 9, 10], 10),
        lambda: sample_prompt(
            ["cat", "very long", "longer"], [2, 9, 10], {0}, random.Random(0), max_text_len=10
        ),
    ):
        with pytest.raises(DataError, match=r"'very long' \(9 tokens\), 'longer' \(10 tokens\)"):
            call()
    with pytest.raises(DataError, match="no classes"):
        sample_prompt([], [], set(), random.Random(0))


@given(
    counts=counts_of_forty,
    positives=st.sets(st.integers(0, 39)),
    seed=st.integers(0, 10**6),
    shuffle=st.booleans(),
    limit=st.integers(11, 256),
)
def test_positives_once_and_never_among_the_negatives(counts, positives, seed, shuffle, limit):
    prompts = sample_prompt(
        NAMES, counts, positives, random.Random(seed), shuffle=shuffle, max_text_len=limit
    )
    for prompt in prompts:
        assert prompt, "never an empty prompt"
        assert len(set(prompt)) == len(prompt)
        assert sum(counts[i] for i in prompt) + 2 <= limit
        assert shuffle or prompt == sorted(prompt)
    shown = [index for prompt in prompts for index in prompt if index in positives]
    assert sorted(shown) == sorted(positives), "each positive in exactly one prompt"
    if sum(counts[i] for i in positives) + 2 <= limit:
        assert len(prompts) == 1
    again = sample_prompt(NAMES, counts, positives, random.Random(seed), shuffle=shuffle, max_text_len=limit)
    assert prompts == again


def test_shares_over_many_draws():
    rng = random.Random(0)
    prompts = [sample_prompt(NAMES, [3] * 40, {5, 7}, rng)[0] for _ in range(4000)]
    complete = sum(len(prompt) == 40 for prompt in prompts) / len(prompts)
    assert complete == pytest.approx(0.5 + 0.5 / 39, abs=0.03)
    sampled = [len(prompt) - 2 for prompt in prompts if len(prompt) < 40]
    assert min(sampled) == 0 and max(sampled) == 37  # uniform over 0..38, 38 is the complete prompt
    assert sum(sampled) / len(sampled) == pytest.approx(18.5, abs=1)
    shown = sum(11 in prompt for prompt in prompts) / len(prompts)
    assert shown == pytest.approx(0.75, abs=0.03), (
        "each negative in all complete prompts and half of the others"
    )
    assert sum(prompt.index(5) for prompt in prompts if len(prompt) == 40) / (
        complete * 4000
    ) == pytest.approx(19.5, abs=1.5), "order is shuffled"


def test_without_sampling_and_shuffling_the_prompt_is_the_class_list():
    assert sample_prompt(NAMES, [2] * 40, {3}, random.Random(1), shuffle=False, negative_probability=0) == [
        list(range(40))
    ]
    without = [
        sample_prompt(NAMES, [2] * 40, set(), random.Random(i), negative_probability=1)[0] for i in range(300)
    ]
    assert min(map(len, without)) == 1
