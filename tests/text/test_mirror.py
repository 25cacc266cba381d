"""Mirrored names: the table, pairs of classes, and names without a mirror image."""

import pytest

from groundtune.text.mirror import mirror_caption, mirror_classes

NONE = -1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left arrow", "right arrow"),
        ("Left_Arrow", "right-arrow"),
        ("LeftArrow", "RightArrow"),
        ("leftmost cup", "rightmost cup"),
        ("left-handed glove", "right-handed glove"),
        ("turnleft", "turnright"),
        ("upleft", "upright"),
        ("arrow2_left", "arrow2_right"),
        ("man facing east", "man facing west"),
        ("northeast", "northwest"),
        ("eastbound lane", "westbound lane"),
        ("clockwise arrow", "counterclockwise arrow"),
        ("anticlockwise", "clockwise"),
        ("Counter-clockwise", "clockwise"),
        ("cw", "ccw"),
        ("forward slash", "backslash"),
        ("forward-slash", "Back_slash"),
        ("b", "d"),
        ("letter p", "letter q"),
        ("q", "letter p"),
        ("b letter", "letter d"),
        ("(", ")"),
        ("→", "←"),
        ("hand L", "hand R"),
        ("shoe_l", "shoe_r"),
    ],
)
def test_the_mirrored_class_is_the_other_one(one, other):
    assert mirror_classes([[one], ["dog"], [other]]) == [2, 1, 0]
    if "upright" not in other:
        assert mirror_classes([[other], ["dog"]])[1] == 1


@pytest.mark.parametrize(
    "name",
    [
        "left arrow",
        "Right",
        "facing west",
        "ccw",
        "anticlockwise",
        "backslash",
        "b",
        "digit 2",
        "letter B",
        "7",
    ]
    + ["two", "number seven", "12", "a", "letter_k", "←", "S", "9 digit"],
)
def test_a_name_whose_mirror_image_is_no_class(name):
    assert mirror_classes([["dog"], [name]]) == [0, None]


@pytest.mark.parametrize(
    "name",
    ["dog", "upright piano", "leftover food", "traffic light", "copyright", "beast", "eastern", "size L", "o"]
    + ["A", "letter H", "8", "digit 0", "zero", "808", "number plate", "letter opener", "block", "vitamin c"],
)
def test_a_name_that_a_mirror_does_not_change(name):
    assert mirror_classes([["dog house"], [name]]) == [0, 1]


def test_synonyms_are_names_of_their_class():
    arrows = [["left arrow", "arrow to the left"], ["right arrow"], ["arrow", "left pointer"]]
    assert mirror_classes(arrows) == [1, 0, None]
    assert mirror_classes([["left arrow", "right arrow"]]) == [0]  # any horizontal arrow
    assert mirror_classes([["Cat"], ["cat"], ["left cat"], ["right cat"]]) == [0, 1, 3, 2]
    assert mirror_classes([]) == []


def test_names_that_differ_in_their_spelling_only_are_exchanged_at_most_once():
    classes = mirror_classes([["left arrow"], ["Left-Arrow"], ["right arrow"]])
    assert classes in ([None, 2, 1], [2, None, 0])


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("the clockwise arrow facing East", "the counterclockwise arrow facing West"),
        ("the letter b, right of a cup", "the letter d, left of a cup"),
        ("a letter opener", "a letter opener"),
        ("player number 8", "player number 8"),
        ("player number 7", None),
        ("the digit two", None),
        ("a", "a"),
    ],
)
def test_captions_follow_the_same_table(caption, mirrored):
    result = mirror_caption(caption, ())
    assert (result and result[0]) == mirrored
