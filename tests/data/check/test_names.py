"""Class names, one by one and in pairs."""

from pathlib import Path

import pytest

from groundtune.data.check.kinds import CHECKING, ModelLimits
from groundtune.data.check.names import alike_names, check_names
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset


def problems_of(tokenizer, *written: str, max_text_len: int = 256) -> dict[str, list[str]]:
    collector = Collector(CHECKING)
    dataset = Dataset("train", Path(), list(written), [], [])
    check_names(dataset, ModelLimits(tokenizer, max_text_len, 100, 100, 100), collector)
    return {finding.check: finding.examples for finding in collector.findings()}


@pytest.mark.parametrize(
    ("written", "check"),
    [
        ("7", "name-number"),
        ("12/3", "name-number"),
        ("label0", "name-meaningless"),
        ("class_1", "name-meaningless"),
        ("Object", "name-meaningless"),
        ("obj", "name-meaningless"),
        ("q", "name-meaningless"),
        ("WBC", "name-abbreviation"),
        ("St. Bernard", "name-separator"),
        ("what?", "name-separator"),
        ("cup (empty)", "name-parentheses"),
        ("\u13e3\u13b3\u13a9", "name-unknown-token"),
        ("\u200b", "name-without-token"),
        ("_", "name-without-token"),
    ],
)
def test_names_that_the_model_cannot_read_well(tokenizer, written, check):
    assert set(problems_of(tokenizer, written)) - {"names-mirrored"} == {check}


@pytest.mark.parametrize(
    "name",
    ["cat", "red blood cell", "tv", "t-shirt", "number 7 bus", "objective", "classroom", "cats", "orange"],
)
def test_names_that_the_model_can_read(tokenizer, name):
    assert set(problems_of(tokenizer, name)) <= {"names-mirrored"}


def test_names_are_counted_with_their_separator(tokenizer):
    assert problems_of(tokenizer, "cat dog", max_text_len=5) == {}  # [CLS] cat dog . [SEP]
    assert problems_of(tokenizer, "cat dog", max_text_len=4) == {
        "name-too-long": ["'cat dog' has 3 tokens with its '.', at most 2 are read"]
    }
    assert problems_of(tokenizer, "cat", "dog", max_text_len=5) == {
        "names-over-budget": ["4 tokens for 2 names: 2 prompts of 3"]
    }


def test_names_with_the_same_tokens(tokenizer):
    assert problems_of(tokenizer, "café", "cafe")["names-same-tokens"] == ["'café', 'cafe' are read 'cafe'"]
    assert problems_of(tokenizer, "Cat", "cat")["names-same-tokens"] == ["'Cat', 'cat' are read 'cat'"]


def test_parentheses_and_separators_that_are_read_are_no_problem(tokenizer):
    assert problems_of(tokenizer, "cup (red)", "cup (blue)", "(dog)") == {}
    assert problems_of(tokenizer, "big.cat", "big cat") == {}  # "big dot cat"


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["remote control", "remote contol"], True),
        (["remote control", "remote contorl"], True),
        (["tea pot", "teapot"], True),
        (["t-shirt", "t shirt"], True),
        (["wine glass", "wine glasses"], False),  # two letters
        (["car", "cars"], True),
        (["mouse", "house"], False),
        (["white king", "white knight"], False),
        (["type 1", "type 2"], False),
        (["red cup", "red cap"], False),
        (["big cat", "big bat"], False),
    ],
)
def test_names_that_may_be_one_name_in_two_spellings(names, alike):
    assert alike_names(names) == ([tuple(names)] if alike else [])


def test_no_names(tokenizer):
    assert problems_of(tokenizer) == {}
    assert alike_names([]) == []
