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
    return np.bincount(np.concatenate(ids) if ids else np.empty(0, np.int64), minlength=len(dataset.class_names))


def check_split(dataset: Dataset, found: Collector) -> None:
    """Look at one split: its size, and its empty pictures."""
    samples = dataset.samples
    empty = [sample for sample in samples if not len(sample.boxes_xyxy)]
    for sample in empty:
        found.add("pictures-empty", sample.image_path.name)
    if dataset.name != "train" and 0 < len(samples) < _FEWEST_VALID:
        found.add("split-small", f"{dataset.name} has {len(samples)} pictures")
    if not any((~sample.crowd).any() for sample in samples):
        found.add("split-without-boxes", f"{dataset.name} with its {len(samples)} pictures")
    elif len(empty) * 2 > len(samples):
        found.add("pictures-mostly-empty", f"{len(empty)} of {len(samples)}")


def check_splits(splits: Mapping[str, Dataset], found: Collector) -> None:
    """Look at all splits: files in two of them, and what each class has to learn from and to be measured by."""
    if "train" not in splits or not splits["train"].samples:
        found.add("split-missing", f"there is only {', '.join(splits) or 'nothing'}")
    home: dict[Path, str] = {}
    for name, dataset in splits.items():
        for path in dict.fromkeys(sample.image_path for sample in dataset.samples):
            if home.setdefault(path, name) != name:
                found.add("file-in-two-splits", f"{path.name} in {home[path]} and {name}")
    if splits:
        _check_classes({name: count_boxes(dataset) for name, dataset in splits.items()}, splits, found)


def _check_classes(counts: Mapping[str, np.ndarray], splits: Mapping[str, Dataset], found: Collector) -> None:
    names = next(iter(splits.values())).class_names
    everywhere = np.sum(list(counts.values()), axis=0)
    train = counts.get("train", np.zeros_like(everywhere))
    most = int(train.max(initial=0))
    for index, name in enumerate(names):
        elsewhere = [split for split in counts if split != "train" and counts[split][index]]
        if not everywhere[index]:
            found.add("class-without-boxes", repr(name))
        elif not train[index]:
            if "train" in counts:
                found.add("class-only-valid", f"{name!r} only in {' and '.join(elsewhere)}")
        else:
            if train[index] == 1:
                found.add("class-one-box", repr(name))
            elif train[index] * _IMBALANCE < most:
                found.add("class-imbalance", f"{name!r} {train[index]}, {names[int(train.argmax())]!r} {most}")
            if "valid" in counts and not counts["valid"][index]:
                found.add("class-only-train", repr(name))
