"""Phrases of class names, names that users type, and the caption with its spans."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundtune.errors import CONTROL_CHARS, DataError
from groundtune.text.prompt import (
    class_phrases,
    class_prompt,
    clean_name,
    known_phrases,
    match_names,
    sentence_prompt,
    split_names,
    split_sentences,
)


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
        ("(unknown)", "unknown"),  # nothing else is there to read
        ("(a (b)) ", "a b"),
        ("()", ""),
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


@pytest.mark.parametrize(
    ("names", "phrases"),
    [
        (["bolt (M6)", "bolt (M8)", "nut (M6)"], ["bolt m6", "bolt m8", "nut"]),
        (["crane (bird)", "crane"], ["crane bird", "crane"]),
        (["crane (bird)"], ["crane"]),
        (["red_cup", "red cup"], ["red_cup", "red cup"]),
        (["1.0", "1 0", "1?0"], ["1 dot 0", "1 0", "1 question mark 0"]),
        (["bow (tie)", "bow tie", "bow (arrow)"], ["bow (tie)", "bow tie", "bow arrow"]),
        (["Cat", "cat", "dog"], ["Cat", "cat", "dog"]),
        (["cat", "cat ", "c\x1bat"], ["cat", "cat", "c at"]),  # nothing else to read: refused later
        (["_", "?", "cat"], ["", "", "cat"]),
        ([], []),
    ],
)
def test_what_was_dropped_comes_back_where_names_would_be_equal(names, phrases):
    assert class_phrases(names) == phrases


def test_given_phrases_stay_and_others_keep_apart_from_them():
    given_phrases = {"rbc": "red blood cell", "crane (bird)": "crane"}
    names = ["rbc", "crane (bird)", "crane (machine)", "Red_blood (cell)"]
    assert class_phrases(names, given_phrases) == ["red blood cell", "crane", "crane machine", "red blood"]


@given(st.lists(st.text(max_size=6), max_size=60, unique=True))
def test_phrases_hold_no_separator_and_are_those_of_single_names_where_these_differ(names):
    phrases, alone = class_phrases(names), [clean_name(name) for name in names]
    assert not set(".?") & set("".join(phrases))
    assert all(
        phrase == plain for phrase, plain in zip(phrases, alone, strict=True) if alone.count(plain) == 1
    )
    for phrase in {phrase for phrase in phrases if phrases.count(phrase) > 1}:
        same = [name for name, other in zip(names, phrases, strict=True) if other == phrase]
        printed = {" ".join("".join(c if ord(c) > 31 else " " for c in name).split()) for name in same}
        assert not phrase or len(printed) == 1 or CONTROL_CHARS.search("".join(same))


def test_a_name_means_itself_or_the_only_one_of_the_same_words():
    known = ["Cat", "bolt (M6)", "bolt (M8)", "red_cup", "crane (bird)", "A", "a"]
    wanted = ["Cat", "cat", "CAT", "bolt", "Bolt m6", "bolt (M10)", "red cup", "Crane", "a", "A.", "x", "_"]
    assert match_names(wanted, known) == [0, 0, 0, None, 1, None, 3, 4, 6, None, None, None]
    assert match_names(["cat"], []) == [None]


def test_a_model_knows_its_names_and_phrases():
    known = {"rbc": "red blood cell", "Cat": "cat", "old a": "new", "old b": "new"}
    assert known_phrases(["rbc", "x"], known) == {"rbc": "red blood cell"}
    assert known_phrases(["RBC", "CAT"], known) == {"RBC": "red blood cell", "CAT": "cat"}
    assert known_phrases(["Red_Blood cell"], known) == {"Red_Blood cell": "red blood cell"}
    assert known_phrases(["old a", "old b"], known) == {"old a": "new", "old b": "new"}
    assert known_phrases(["rbc", "red blood cell"], known) == {"rbc": "red blood cell"}  # not both
    assert known_phrases(["CAT", "cAt"], known) == {}


TYPED = [
    ("cat . dog .", ["cat", "dog"]),
    ("cat. dog.", ["cat", "dog"]),
    ("cat.dog.", ["cat", "dog"]),
    ("cat .dog", ["cat", "dog"]),
    (" cat, dog ,", ["cat", "dog"]),
    ("cat;dog;", ["cat", "dog"]),
    ("cat\ndog\n", ["cat", "dog"]),
    ("red blood cell. dog", ["red blood cell", "dog"]),
    (["cat", "dog"], ["cat", "dog"]),
    (("cat", "dog", "cat"), ["cat", "dog"]),
    (np.array(["cat", "dog"]), ["cat", "dog"]),
    (iter(["cat", "dog"]), ["cat", "dog"]),
    (["cat . dog ."], ["cat", "dog"]),
    (["cat.", "dog."], ["cat", "dog"]),
    ("1.0, A.B, v1.2", ["1.0", "A.B", "v1.2"]),
    ("1.0", ["1.0"]),
    (["St. Bernard", "box, big", " x "], ["St. Bernard", "box, big", " x "]),
    ("Known. name, x", ["Known. name, x"]),
    ("a; Known, too; b", ["a", "Known, too", "b"]),
    ("", []),
    (" . , ;", []),
]


@pytest.mark.parametrize(("typed", "names"), TYPED)
def test_names_as_people_type_them(typed, names):
    assert split_names(typed, ["Known. name, x", "Known, too"]) == names


@given(st.lists(st.text(min_size=1, max_size=8).filter(str.strip), max_size=20, unique=True))
def test_known_names_are_taken_as_they_are(names):
    assert split_names(names, names) == names
    assert all(split_names(name, names) == [name] for name in names)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("a cat. a dog.", ["a cat", "a dog"]),
        ("a cat . a dog .", ["a cat", "a dog"]),
        ("is it a cat? a dog", ["is it a cat", "a dog"]),
        ("a [cat] on a [sofa]. the [dog]", ["a [cat] on a [sofa]", "the [dog]"]),
        ("a [St. Bernard] there", ["a [St. Bernard] there"]),
        ("version 1.0 of it", ["version 1.0 of it"]),
    ],
)
def test_sentences_are_taken_apart(text, sentences):
    assert [part.strip() for part in split_sentences(text)] == sentences
    of_each = [phrase for part in sentences for phrase in sentence_prompt(part).phrases]
    whole = sentence_prompt(text)
    assert list(whole.phrases) == of_each
    assert [whole.caption[begin:end] for ((begin, end),) in whole.spans] == of_each


def test_prompts_without_text_or_with_equal_phrases_are_refused():
    with pytest.raises(DataError, match="''"):
        class_prompt(["cat", "_"])
    with pytest.raises(DataError, match="'cat'"):
        class_prompt(["cat", "cat "])


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
