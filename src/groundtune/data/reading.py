"""Read the data of a run: its splits, the data sets mixed in, and those that measure forgetting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groundtune.data.combine import add_extra_data, parse_weighted_paths, rename_classes
from groundtune.data.formats.detect import Splits, load_splits, read_splits
from groundtune.data.sample import Dataset
from groundtune.errors import DataError


def read_data(
    data: str,
    extra: Sequence[str],
    names: Mapping[str, str],
    limits: Mapping[str, int | None] | None = None,
    *,
    format: str | None = None,
    needed: Sequence[str] = ("train", "valid"),
    incomplete_sets: Sequence[str] | None = (),
) -> Splits:
    """Read the splits of a data set.

    Args:
        data: a directory, or an annotation file.
        extra: other training data, each as "PATH" or "PATH=WEIGHT".
        names: new names of classes, by their names in the data set.
        limits: maximum number of images, by split.
        format: format of the data set; None: recognize it.
        needed: splits that must be readable.
        incomplete_sets: see `add_extra_data`.

    Raises:
        ConfigError: a weight is not a number, or an incomplete set does not exist.
        DataError: the data cannot be read, or a class does not exist.
    """
    others = parse_weighted_paths(extra, "extra_data", 1.0)
    splits = load_splits(Path(data), format=format, needed=needed)
    for split, limit in (limits or {}).items():
        if split in splits:
            splits[split].samples = splits[split].samples[:limit]
    add_extra_data(splits, others, incomplete_sets)
    rename_classes(list(splits.values()), names)
    return splits


def read_run_data(config: Mapping[str, Any], data: str | Path | None = None) -> Splits:
    """Read the data that a run was trained and evaluated on.

    Args:
        config: the options in its config.yaml; any may be missing.
        data: current location of the data set; None means where the run read it.

    Raises:
        DataError: the data cannot be read.
    """
    limits = {split: config.get(f"max_{split}_images") for split in ("train", "valid")}
    data = str(data or config.get("data", ""))
    extra, names = config.get("extra_data") or [], config.get("rename") or {}
    return read_data(data, extra, names, limits, format=config.get("format"))


def read_retention_data(paths: Sequence[str]) -> dict[str, Dataset]:
    """Read the data sets of `retention_data`: split "valid" of each, else "test", else "train".

    Raises:
        DataError: a data set cannot be read, or has no boxes.
    """
    datasets: dict[str, Dataset] = {}
    for path in paths if list(paths) not in (["self"], ["none"]) else ():
        splits = read_splits(Path(path), needed=["valid"])
        dataset = next(splits[split] for split in ("valid", "test", "train") if split in splits)
        if all(sample.crowd.all() for sample in dataset.samples):
            raise DataError(
                f"retention_data: the split {dataset.name!r} of {path} has no boxes, so it cannot be "
                "evaluated. Choose another data set."
            )
        name = Path(path).resolve().name
        datasets[path if name in datasets else name] = dataset
    return datasets
