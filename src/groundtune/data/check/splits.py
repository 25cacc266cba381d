"""How pictures and classes are spread over the splits: what can be learnt, and what can be measured."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from groundtune.data.findings import Collector
from groundtune.data.sample import Dataset

_FEWEST_VALID = 5  # pictures
_IMBALANCE = 100  # times as many boxes


def count_boxes(dataset: Dataset) -> np.ndarray:
    """(C,) int64: the boxes of each class, those of crowds and of phrases left out."""
    ids = [sample.class_ids[~sample.crowd] for sample in dataset.samples if sample.grounding is None]
    return np.bincount(np.concatenate([np.empty(0, np.int64), *ids]), minlength=len(dataset.class_names))


def check_split(dataset: Dataset, found: Collector) -> None:
    """Look at one split: its size, and its empty pictures."""
    total = len(dataset.samples)
    empty = [sample for sample in dataset.samples if not len(sample.boxes_xyxy)]
    for sample in empty:
        found.add("pictures-empty", sample.image_path.name)
    if dataset.name != "train" and 0 < total < _FEWEST_VALID:
        found.add("split-small", f"{dataset.name} has {total} pictures")
    if not any((~sample.crowd).any() for sample in dataset.samples):
        found.add("split-without-boxes", f"{dataset.name} with its {total} pictures")
    elif len(empty) * 2 > total:
        found.add("pictures-mostly-empty", f"{len(empty)} of {total}")


def check_splits(splits: Mapping[str, Dataset], found: Collector) -> None:
    """Look at all splits: files in two of them, and what each class has to learn from and to be measured by."""
    if "train" not in splits or not splits["train"].samples:
        found.add("split-missing", f"there is only {', '.join(splits) or 'nothing'}")
    home: dict[Path, str] = {}
    for name, dataset in splits.items():
        for path in dict.fromkeys(sample.image_path for sample in dataset.samples):
            if home.setdefault(path, name) != name:
                found.add("file-in-two-splits", f"{path.name} in {home[path]} and {name}")
    names = next(iter(splits.values())).class_names if splits else []
    counts = {split: count_boxes(dataset) for split, dataset in splits.items()}
    train = counts.get("train", np.zeros(len(names), np.int64))
    for index, name in enumerate(names):
        elsewhere = [split for split, boxes in counts.items() if split != "train" and boxes[index]]
        if not train[index] and not elsewhere:
            found.add("class-without-boxes", repr(name))
        elif not train[index] and "train" in splits:
            found.add("class-only-valid", f"{name!r} only in {' and '.join(elsewhere)}")
        elif train[index] == 1:
            found.add("class-one-box", repr(name))
        elif 0 < train[index] * _IMBALANCE < train.max():
            found.add("class-imbalance", f"{name!r} {train[index]}, {names[train.argmax()]!r} {train.max()}")
        if train[index] and "valid" in splits and "valid" not in elsewhere:
            found.add("class-only-train", repr(name))
