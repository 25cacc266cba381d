"""Prepare a training run: everything that can fail before anything is written."""

import itertools
from pathlib import Path
from typing import NamedTuple

from groundtune.config import TrainConfig
from groundtune.data.check.kinds import ModelLimits
from groundtune.data.check.run import raise_for_errors
from groundtune.data.combine import parse_weighted_paths, recall_phrases, with_rehearsal
from groundtune.data.reading import read_data, read_retention_data
from groundtune.data.sample import Dataset
from groundtune.engine.run_folder import check_usable
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.load import load_bundle
from groundtune.predict.detect import class_prompts


class Prepared(NamedTuple):
    """What a training run starts from."""

    folder: Path  # new, empty, or of the run to resume
    bundle: ModelBundle
    splits: dict[str, Dataset]  # of the data set
    training_splits: dict[str, Dataset]  # the same with the images to rehearse
    retention_data: dict[str, Dataset]  # the data sets that measure forgetting
    warnings: list[str]  # names of the checks of the data that warn
    unread: list[str]  # warnings about letters of class names


def prepare(config: TrainConfig, bundle: ModelBundle | None) -> Prepared:
    """Choose the run directory, read and check the data, and load the model unless it is given.

    Raises:
        ConfigError: the run directory or an option cannot be used.
        DataError: the data has errors, or a class name has no token.
        CheckpointError: the model cannot be loaded.
    """
    folder = run_directory(config)
    limits = {"train": config.max_train_images, "valid": config.max_valid_images}
    incomplete = tuple(config.incomplete) if config.exhaustive else None
    extra, rename = config.extra_data, config.rename
    splits = read_data(config.data, extra, rename, limits, format=config.format, incomplete_sets=incomplete)
    retention_data = read_retention_data(config.retention_data)
    bundle = bundle or load_bundle(config.model, seed=config.seed)
    recall_phrases(list(splits.values()), bundle.phrases)
    warnings = raise_for_errors(splits, limits_of(bundle, config.short_side, config.max_side))
    unread = []
    for dataset in (next(iter(splits.values())), *retention_data.values()):
        if dataset.class_names:
            names, phrases = dataset.class_names, dataset.phrases
            prompts = class_prompts(bundle.tokenizer, phrases, bundle.config.max_text_len, None, names)
            unread += [prompts.warning] if prompts.warning else []
    others = parse_weighted_paths(config.rehearsal, "rehearsal", 0.2, 1.0)
    train = {"train": with_rehearsal(splits["train"], others)} if "train" in splits else {}
    return Prepared(folder, bundle, splits, splits | train, retention_data, warnings, unread)


def limits_of(bundle: ModelBundle, short_side: int | None, max_side: int | None) -> ModelLimits:
    """Return the limits of a model, with other sizes of images if these are given."""
    image, sizes = bundle.image_format, bundle.config
    sides = short_side or image.short_side, max_side or image.max_side
    return ModelLimits(bundle.tokenizer, sizes.max_text_len, sizes.num_queries, *sides)


def run_directory(config: TrainConfig) -> Path:
    """Return the run directory: the given one, or the first free runs/DATA-MODEL.

    Raises:
        ConfigError: it is a file, or it is neither empty nor the run to resume.
    """
    if config.output_dir is None:
        source, data = Path(config.model), Path(config.data).resolve()
        model = source.parent.name if source.name == "model" else source.name
        base = f"{data.stem if data.is_file() else data.name}-{model}"
        names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        return next(path for path in (Path("runs") / name for name in names) if not path.exists())
    folder = Path(config.output_dir)
    check_usable(folder, config.resume is not None)
    return folder
