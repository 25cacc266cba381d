"""Names beside those of a data set."""

import pytest

from groundtune.text.prompt import COMMON_NAMES, clean_name, recombined_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["cat", "dog"], []),
        (["white king", "white queen", "black king", "black rook"], ["white rook", "black queen"]),
        (["white king", "black queen"], []),  # neither color says that it goes with other pieces
        (["traffic light", "traffic sign", "stop sign"], []),
        (["big red cup", "big red pot", "big blue cup", "big blue jug"], ["big red jug", "big blue pot"]),
    ],
)
def test_words_of_the_names_are_put_together_anew(names: list[str], expected: list[str]) -> None:
    assert recombined_names(names) == expected


def test_at_most_60_names_are_made_up() -> None:
    names = [f"{color} {thing}" for color in "abcdefghij" for thing in (f"{color}1", f"{color}2")]
    made = recombined_names(names)
    assert len(made) == 60 == len(set(made)) and not set(made) & set(names)


def test_common_names_are_clean_and_unique() -> None:
    assert [clean_name(name) for name in COMMON_NAMES] == list(COMMON_NAMES)
    assert len(set(COMMON_NAMES)) == len(COMMON_NAMES)
