"""Class names that a user writes."""

import pytest

from groundtune.data.sample import match_class_names
from groundtune.errors import DataError

NAMES = ["red blood cell", "white blood cell", "platelet"]


def test_names_are_found_by_their_cleaned_form_and_once():
    assert match_class_names(["Platelet", "Red_Blood_Cell", "platelet"], NAMES) == [2, 0]
    assert match_class_names([], NAMES) == []


def test_a_misspelled_class_is_an_error_with_a_suggestion():
    with pytest.raises(DataError) as caught:
        match_class_names(["platlet", "platelet", "zebra"], NAMES)
    text = str(caught.value)
    assert (
        "'platlet' (did you mean 'platelet'?)" in text and "'zebra'." in text and "'red blood cell'" in text
    )
