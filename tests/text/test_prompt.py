"""Cleaning of names, merging, and the caption with its spans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundtune.errors import DataError
from groundtune.text.prompt import class_prompt, clean_name, unique_names


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("cat", "cat"),
        ("Red_Blood__Cell", "red blood cell"),
        ("  remote \t control\n", "remote control"),
        ("crane (bird)", "crane"),
        ("bow (weapon (old)) tie", "bow tie"),
        ("(left) shoe (right) sole", "shoe sole"),
        ("open (bracket", "open (bracket"),
        ("St. Bernard", "st bernard"),
        ("what?", "what"),
        ("U.S. mail", "u s mail"),
        ("and/or", "and/or"),
        ("T-shirt, men's", "t-shirt, men's"),
        ("日本　犬", "日本 犬"),
        ("🙂", "🙂"),
        ("_._?", ""),
        ("(unknown)", ""),
        ("", ""),
    ],
)
def test_clean_name_table(written, cleaned):
    assert clean_name(written) == cleaned


@given(st.text())
def test_clean_name_is_idempotent_and_has_no_separator(name):
    cleaned = clean_name(name)
    assert not set("._?") & set(cleaned)
    assert cleaned == " ".join(cleaned.split())
    # lower() of a few letters (İ) is not a fixed point of itself for casing rules, but cleaning
    # twice changes nothing
    assert clean_name(cleaned) == cleaned


def test_capitals_and_duplicates_are_one_class_with_a_message():
    names, index, messages = unique_names(["Cat", "dog", "cat", "CAT (tabby)", "bird"])
    assert names == ["cat", "dog", "bird"]
    assert index == [0, 1, 0, 0, 2]
    assert len(messages) == 1
    assert all(part in messages[0] for part in ["'Cat'", "'cat'", "'CAT (tabby)'", "one class"])
    with pytest.raises(DataError, match="'cat'"):
        class_prompt(["cat", "dog", "Cat"])


def test_unique_names_of_nothing_and_of_names_that_clean_to_nothing():
    assert unique_names([]) == ([], [], [])
    with pytest.raises(DataError) as error:
        unique_names(["cat", "(x)", "dog", "?"])
    assert "'(x)'" in str(error.value) and "'?'" in str(error.value) and "'cat'" not in str(error.value)
    with pytest.raises(DataError, match="'_'"):
        class_prompt(["cat", "_"])


def test_class_prompt_by_hand():
    prompt = class_prompt(["cat", "red blood cell"])
    assert prompt.caption == "cat. red blood cell. "
    assert prompt.spans == (((0, 3),), ((5, 19),))
    assert class_prompt([]).caption == ""


def test_car_does_not_land_in_carrot():
    prompt = class_prompt(["carrot", "car", "oscar", "race car"])
    assert prompt.spans[1] == ((8, 11),)
    assert [prompt.caption[b:e] for ((b, e),) in prompt.spans] == ["carrot", "car", "oscar", "race car"]


@given(st.lists(st.text(min_size=1, max_size=12), max_size=12))
def test_spans_cut_the_names_out_of_the_caption(written):
    names = list(dict.fromkeys(name for name in map(clean_name, written) if name))
    prompt = class_prompt(names)
    assert [prompt.caption[b:e] for ((b, e),) in prompt.spans] == names
    assert all(prompt.caption[e : e + 2] == ". " for ((_, e),) in prompt.spans)
    assert prompt.caption == "".join(name + ". " for name in names)
