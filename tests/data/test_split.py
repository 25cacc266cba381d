"""The validation split that is held out if there is none."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_samples import made_sample

from groundtune.data.formats.detect import load_splits
from groundtune.data.sample import Dataset
from groundtune.data.split import hold_out


def dataset_of(classes: list[list[int]], order=None) -> Dataset:
    """Image i has these classes."""
    samples = [
        made_sample([[0, 0, 5, 5]] * len(labels), labels, path=f"{i:04}.png", image_id=i, size_hw=(10, 10))
        for i, labels in enumerate(classes)
    ]
    samples = [samples[i] for i in order] if order is not None else samples
    count = max((c for labels in classes for c in labels), default=0) + 1
    return Dataset("train", Path(), [f"class {i}" for i in range(count)], samples, list(range(count)))


def held_out(dataset: Dataset, seed: int = 0) -> dict[str, Dataset]:
    return hold_out(dataset, seed)


def names(splits):
    return {name: {str(s.image_path) for s in d.samples} for name, d in splits.items()}


def classes_in(dataset):
    return {int(c) for sample in dataset.samples for c in sample.class_ids}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=2, max_size=40),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_each_image_is_in_one_split_and_only_names_and_seed_decide(classes, seed, rng):
    order = list(range(len(classes)))
    rng.shuffle(order)
    first, again = held_out(dataset_of(classes), seed=seed), held_out(dataset_of(classes, order), seed=seed)
    assert names(first) == names(again)
    assert len(first["train"].samples) + len(first["valid"].samples) == len(classes)
    assert 1 <= len(first["valid"].samples) <= max(1, len(classes) // 2)
    for name in ("train", "valid"):
        for sample in first[name].samples:
            assert sample.class_ids.tolist() == classes[sample.image_id]
    if len(first["valid"].samples) > 1:
        assert classes_in(first["train"]) == {c for labels in classes for c in labels}


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_are_on_both_sides_and_the_share_is_exact(seed):
    """100 images: class 0 in 80, class 1 in 15, class 2 in 3, class 3 in 2; 5 have nothing."""
    classes = [[0]] * 80 + [[1]] * 10 + [[1, 2]] * 3 + [[1, 3]] * 2 + [[]] * 5
    splits = held_out(dataset_of(classes), seed=seed)
    count = {c: sum(c in s.class_ids for s in splits["valid"].samples) for c in range(4)}
    assert len(splits["valid"].samples) == 20 and count == {0: 16, 1: 3, 2: 1, 3: 1}
    assert classes_in(splits["train"]) == classes_in(splits["valid"]) == {0, 1, 2, 3}
    assert sum(not len(s.class_ids) for s in splits["valid"].samples) == 1
    (finding,) = splits["train"].findings
    assert finding.check == "split-made" and f"seed {seed}" in finding.message and finding.count == 20


def test_many_classes_of_two_images_hold_out_more_than_the_share():
    classes = [[i // 2] for i in range(40)]
    splits = held_out(dataset_of(classes))
    assert classes_in(splits["train"]) == classes_in(splits["valid"]) == set(range(20))


def test_other_seeds_choose_others_and_one_image_cannot_be_split():
    classes = [[0]] * 50
    chosen = [names(held_out(dataset_of(classes), seed=seed))["valid"] for seed in range(5)]
    assert len({frozenset(paths) for paths in chosen}) == 5
    splits = held_out(dataset_of([[0]]))
    assert list(splits) == ["train"] and "cannot be split" in splits["train"].messages[0]


def test_real_amenity_keeps_classes_on_both_sides(shared):
    """A long tail of 20 classes: each that two images have is in both splits."""
    whole = load_splits(shared / "data/amenity")["train"]
    images = {c: sum(c in s.class_ids for s in whole.samples) for c in range(20)}
    splits = held_out(whole)
    both = classes_in(splits["train"]) & classes_in(splits["valid"])
    assert both >= {c for c, count in images.items() if count > 1}
