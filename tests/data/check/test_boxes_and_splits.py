"""Overlapping boxes, by hand; splits and captions without content."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_samples import made_sample

from groundtune.data.check.boxes import check_boxes, check_grounding
from groundtune.data.check.kinds import CHECKING, ModelLimits
from groundtune.data.check.names import check_split, check_splits, count_boxes
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, Grounding, Sample


def sample(boxes=(), classes=(), *, name="a.jpg", crowd=None, grounding=None, size_hw=(100, 100)) -> Sample:
    return replace(made_sample(boxes, classes, crowd, path=name, size_hw=size_hw), grounding=grounding)


def dataset(*samples: Sample, name="train", names=("cat", "dog", "ear")) -> Dataset:
    return Dataset(name, Path("."), list(names), list(samples), [1, 2, 3])


def boxes_of(*samples: Sample, queries=100) -> dict[str, list[str]]:
    problems = Collector(CHECKING)
    check_boxes(dataset(*samples), ModelLimits(None, 256, queries, 100, 100), problems)
    return {finding.check: finding.examples for finding in problems.findings()}


@pytest.mark.parametrize(
    ("other", "its_class", "expected"),
    [
        ((10, 10, 50, 46), 0, {"box-near-duplicate": ["a.jpg: box 1 and 2 (cat)"]}),  # IoU 36/40 = .9
        ((10, 10, 50, 46), 1, {"box-two-classes": ["a.jpg: box 1 and 2 (cat, dog)"]}),
        ((10, 10, 50, 45), 0, {}),  # 35/40
        ((10, 10, 50, 55), 0, {}),  # 40/45
        ((60, 60, 90, 90), 0, {}),
    ],
)
def test_boxes_that_nearly_repeat_another(other, its_class, expected):
    assert boxes_of(sample([(10, 10, 50, 50), other], [0, its_class])) == expected


def test_crowds_and_boxes_of_phrases_may_overlap_others():
    two = [(10, 10, 50, 50), (10, 10, 50, 50)]
    assert boxes_of(sample(two, [0, 1], crowd=[False, True])) == {}
    assert boxes_of(sample(two, [0, 1], grounding=Grounding("a cat", (((0, 5),), ((2, 5),))))) == {}


def test_a_class_that_is_always_inside_another():
    images = [sample([(10, 10, 90, 90), (20, 20, 40, 40)], [0, 2], name=f"{i}.jpg") for i in range(5)]
    outside = sample([(60, 60, 80, 80)], [2], name="x.jpg")
    expected = {"class-inside-class": ["'ear' in 'cat': 5 of 5 boxes"]}
    assert boxes_of(*images) == expected
    assert "class-inside-class" not in boxes_of(*images[:4])
    assert "class-inside-class" not in boxes_of(*images, outside)


def test_sizes_are_those_of_the_resized_image():
    large = sample([(0, 0, 70, 70), (0, 0, 90, 90)], [0, 0], size_hw=(1000, 1000))  # 7 and 9 px at 100
    assert boxes_of(large)["object-tiny"] == ["a.jpg: box 1 is 7.0 × 7.0 px at 100 px"]
    wide = sample([(0, 0, 400, 100)], [0], size_hw=(200, 1000))  # max_side rules: 40 × 10
    assert boxes_of(wide) == {}


def test_more_boxes_than_queries():
    many = sample([(x, 0, x + 9, 9) for x in range(0, 90, 10)], [0] * 9)
    assert boxes_of(many, queries=8) == {"boxes-many": ["a.jpg: 9 boxes, the model detects at most 8"]}
    assert boxes_of(many, queries=9) == {}


def test_no_boxes_and_no_splits():
    assert boxes_of() == {}
    assert boxes_of(sample()) == {}
    assert count_boxes(dataset()).tolist() == [0, 0, 0]
    problems = Collector(CHECKING)
    check_split(dataset(), problems)
    check_grounding(dataset(sample()), problems)
    check_splits({}, problems)
    assert [finding.check for finding in problems.findings()] == ["split-without-boxes", "split-missing"]


def test_spans_that_cut_words_and_phrases_without_boxes():
    caption = "two cats, a dog"
    phrases = (((0, 8),), ((4, 7),), ((10, 15),), ((0, 3), (10, 15)))
    problems = Collector(CHECKING)
    check_grounding(dataset(sample([(1, 1, 9, 9)], [0], grounding=Grounding(caption, phrases))), problems)
    assert {finding.check: finding.examples for finding in problems.findings()} == {
        "span-in-word": ["a.jpg: 'cat' in 'two cats, a dog'"],
        "phrase-without-boxes": ["a.jpg: 'cat'", "a.jpg: 'a dog'", "a.jpg: 'two a dog'"],
    }
