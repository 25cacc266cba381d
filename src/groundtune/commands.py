"""What the Python interface and the command line share: options resolved, data read, a run or a check carried out."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.config import BlendConfig, CheckConfig, ReportConfig, TrainConfig, train_config
from groundtune.errors import ConfigError, DataError
from groundtune.options import read_yaml
from groundtune.progress import Progress

if TYPE_CHECKING:
    from groundtune.data.check.run import ModelLimits, Report
    from groundtune.data.sample import Dataset
    from groundtune.engine.blend import BlendPoint
    from groundtune.engine.train import RunResult
    from groundtune.model.bundle import ModelBundle


def model_source(source: str | Path) -> str:
    """What to load for what a user named: a run folder means its model."""
    inside = Path(source) / "model"
    return str(inside) if (inside / "groundtune.json").is_file() else str(source)


def prompt_names(classes: Sequence[str] | None, bundle: "ModelBundle") -> list[str]:
    """The names to look for: those given, or in the lines of a .txt file that is given; otherwise those of the fine-tuning.

    Raises:
        ConfigError: there are neither.
        DataError: the file cannot be read.
    """
    if isinstance(classes, str):
        classes = classes.split(",")
    if classes and len(classes) == 1 and classes[0].endswith(".txt"):
        from groundtune.data.formats.files import read_text

        classes = [line for line in read_text(Path(classes[0])).splitlines() if line.strip()]
        if not classes:
            raise ConfigError("classes: the file has no names; write one a line.")
    names = [name.strip() for name in classes or bundle.classes]
    if not names:
        raise ConfigError(
            f"classes: the model {bundle.source} has no classes of its own; name those to look for."
        )
    return names


def resolve_training(
    options: dict[str, Any], config_file: Path | None, *, where: str, bundle: "ModelBundle | None" = None
) -> TrainConfig:
    """Options of a training run, with the model's recipe below them.

    A run to go on with brings its own config.yaml, where no other file is given.

    Args:
        options: by name; the strongest.
        config_file: YAML file, or None.
        where: what `options` is called in messages.
        bundle: the model where it is loaded already.

    Raises:
        ConfigError: options are unknown or unusable, or the run to go on with is none.
    """
    if options.get("resume") and config_file is None:
        config_file = Path(options["resume"]) / "config.yaml"
        if not config_file.is_file():
            raise ConfigError(
                f"resume: {options['resume']} has no config.yaml; name the folder of a run that was started."
            )
        options = {"output_dir": options["resume"], **options}
    if bundle is not None:
        return train_config(options, config_file, bundle.recipe, where=where)
    config = train_config(options, config_file, {}, where=where)  # mistakes are told before torch is imported
    from groundtune.model.checkpoint.load import load_recipe

    source = model_source(config.model)
    return train_config({**options, "model": source}, config_file, load_recipe(source), where=where)


def run_training(
    config: TrainConfig,
    progress: Progress,
    *,
    bundle: "ModelBundle | None" = None,
    announce: Callable[[Path, "dict[str, Dataset]", "ModelBundle"], None] | None = None,
) -> "RunResult":
    """Read the data, load the model, train. Nothing is written before training starts.

    Args:
        config: resolved options.
        progress: told about everything.
        bundle: the model where it is loaded already.
        announce: called with the run folder, the splits and the model before training starts.

    Raises:
        GroundtuneError: as `train`.
    """
    from groundtune.engine.distributed import check_launcher

    check_launcher(config.devices)
    out = _run_folder(config)
    limits = {"train": config.max_train_images, "valid": config.max_valid_images}
    splits = read_data(config.data, config.extra_data, config.rename, limits)
    retained = read_retention_data(config.retention_data)
    from groundtune.data.check.run import raise_for_errors
    from groundtune.data.combine import parse_weighted_paths, with_rehearsal
    from groundtune.engine.train import train as train_loop
    from groundtune.model.checkpoint.load import load_bundle
    from groundtune.predict.detect import class_prompts

    bundle = bundle or load_bundle(config.model, seed=config.seed)
    warnings = raise_for_errors(splits, _limits(bundle, config.short_side, config.max_side))
    for dataset in (next(iter(splits.values())), *retained.values()):
        if dataset.class_names:  # one without a token ends the run here
            class_prompts(bundle.tokenizer, dataset.class_names, bundle.config.max_text_len)
    if announce is not None:
        announce(out, splits, bundle)
    if warnings:
        told = ", ".join(dict.fromkeys(warnings))
        progress.message(f"Warnings about the data: {told}. More about them: groundtune check {config.data}")
    others = parse_weighted_paths(config.rehearsal, "rehearsal", 0.2, 1.0)
    training = {"train": with_rehearsal(splits["train"], others)} if "train" in splits else {}
    found = train_loop(
        replace(config, output_dir=str(out)), bundle, splits | training, out, progress, retained
    )
    if os.environ.get("RANK", "0") == "0":  # of several processes one writes
        from groundtune.report.build import build_report

        try:
            build_report(out, splits, ReportConfig.max_images)
        except OSError as error:  # the run itself is whole
            progress.message(
                f"The report could not be written: {error}. Once there is room: groundtune report {out}"
            )
    return found


def read_data(
    data: str, mix: Sequence[str], names: Mapping[str, str], limits: Mapping[str, int | None] | None = None
) -> "dict[str, Dataset]":
    """Read a run's data: its splits, cut to their first images, what is mixed in, and the classes under their new names."""
    from groundtune.data.combine import add_extra_data, parse_weighted_paths, rename_classes
    from groundtune.data.formats.detect import load_splits

    others = parse_weighted_paths(mix, "extra_data", 1.0)
    splits = load_splits(Path(data))
    for split, most in (limits or {}).items():
        if split in splits:
            splits[split].samples = splits[split].samples[:most]
    add_extra_data(splits, others)
    rename_classes(list(splits.values()), names)
    return splits


def read_run_data(config: Mapping[str, Any], data: str | Path | None = None) -> "dict[str, Dataset]":
    """Read what a run was trained and measured on, as its config.yaml tells.

    Args:
        config: the options by name; any may be missing.
        data: where its data lies now; None takes the path that it was trained with.

    Raises:
        DataError: the data cannot be read.
    """
    limits = {split: config.get(f"max_{split}_images") for split in ("train", "valid")}
    return read_data(
        str(data or config.get("data", "")),
        config.get("extra_data") or [],
        config.get("rename") or {},
        limits,
    )


def read_retention_data(paths: Sequence[str]) -> "dict[str, Dataset]":
    """Read the data sets of `--retention-data`, by their names: of each the split "valid", otherwise "test", otherwise "train".

    Raises:
        DataError: one of them cannot be read, or has nothing to find.
    """
    from groundtune.data.formats.detect import read_splits

    found: dict[str, Dataset] = {}
    for path in paths if list(paths) not in (["self"], ["none"]) else ():
        splits = read_splits(Path(path))
        dataset = next(splits[split] for split in ("valid", "test", "train") if split in splits)
        if all(sample.crowd.all() for sample in dataset.samples):
            raise DataError(
                f"retain: the split {dataset.name!r} of {path} has no boxes to measure by. Name another set."
            )
        name = Path(path).resolve().name
        found[path if name in found else name] = dataset
    return found


def run_thresholds(folder: Path) -> dict[str, float]:
    """The score of each class from which on its F1 is best on the validation split of a run, as its report shows it.

    Classes of which nothing right was found have none.

    Raises:
        DataError: it is no run folder, it has no detections of classes yet, or its data cannot be read.
    """
    from groundtune.metrics.errors import best_thresholds, collect
    from groundtune.report.run_data import read_run

    run = read_run(folder)
    splits = read_run_data(run.config)
    if "valid" not in splits or splits["valid"].is_grounding or not run.predictions:
        raise DataError(
            f"{folder} has no thresholds: it has no detections of classes. Name a run that was evaluated."
        )
    names = splits["valid"].class_names
    best = best_thresholds(collect(splits["valid"], run.predictions), len(names))
    return {name: one.threshold for name, one in zip(names, best, strict=True) if one.f1}


def run_blend(config: BlendConfig, progress: Progress) -> "tuple[list[BlendPoint], BlendPoint]":
    """Measure the models between a base and a fine-tuned one, and write the best of them; all points, and the chosen one.

    Raises:
        GroundtuneError: as `blend`.
    """
    folder = Path(config.tuned)
    run = read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    data = config.data or run.get("data")
    if not data:
        raise ConfigError(
            f"data: missing; {folder} is no run folder, so name the data set that it was fine-tuned on."
        )
    splits = read_run_data(run, data)
    if "valid" not in splits:
        raise DataError(f"{data}: there is no split 'valid' to measure on; found: {', '.join(splits)}.")
    retained = read_retention_data(config.retention_data or run.get("retention_data") or [])
    from groundtune.device import pick_device
    from groundtune.engine.blend import best_point, blended, measure_line
    from groundtune.engine.evaluate import Evaluation, evaluate
    from groundtune.model.checkpoint.load import load_bundle
    from groundtune.model.checkpoint.save import check_replaceable, save_bundle
    from groundtune.report.blend import write_blend

    check_replaceable(Path(config.output_dir))
    base, tuned = load_bundle(model_source(config.base)), load_bundle(model_source(config.tuned))
    device = pick_device(config.device)

    def measure(dataset: "Dataset") -> Evaluation:
        return evaluate(
            tuned, dataset, batch_size=config.batch_size, device=device, precision="fp32", progress=progress
        )

    try:
        points = measure_line(
            base.detector.to(device),
            tuned.detector.to(device),
            config.alphas,
            lambda: (
                measure(splits["valid"]),
                {name: measure(dataset) for name, dataset in retained.items()},
            ),
        )
    finally:
        progress.close()
    best = best_point(points)
    tuned.detector.load_state_dict(blended(base.detector.state_dict(), tuned.detector.state_dict(), best.at))
    numbers = [
        {f"valid/{name}": value for name, value in point.metrics.items()} for point in (best, points[0])
    ]
    about = {"data": Path(data).resolve().name, "metrics": numbers[0], "zero_shot": numbers[1]}
    save_bundle(tuned, Path(config.output_dir), about)
    write_blend(
        points, best, Path(config.output_dir), {"base": config.base, "tuned": config.tuned, "data": str(data)}
    )
    return points, best


def run_check(config: CheckConfig, progress: Progress) -> "Report":
    """Read a data set and run its checks.

    Raises:
        GroundtuneError: as `check`.
    """
    from groundtune.data.check.run import check_data, known_checks, unreadable

    known_checks(config.ignore)
    if not Path(config.data).exists():
        raise DataError(f"The data {config.data} does not exist. Expected a folder with images and boxes.")
    from groundtune.data.combine import rename_classes
    from groundtune.data.formats.detect import load_splits
    from groundtune.model.checkpoint.load import load_bundle

    limits = _limits(load_bundle(model_source(config.model)), config.short_side, config.max_side)
    try:
        splits = load_splits(Path(config.data), keep_going=True)
    except DataError as error:
        return unreadable(config.data, error)
    rename_classes(list(splits.values()), config.rename)
    try:
        report = check_data(
            config.data,
            splits,
            limits,
            files=not config.fast,
            workers=config.workers,
            progress=lambda done, total: progress.evaluation(done, total, "checking"),
        )
    finally:
        progress.close()
    report.ignore(config.ignore)
    return report


def _limits(bundle: "ModelBundle", short_side: int | None, max_side: int | None) -> "ModelLimits":
    from groundtune.data.check.run import ModelLimits

    image, sizes = bundle.image_format, bundle.config
    return ModelLimits(
        bundle.tokenizer,
        sizes.max_text_len,
        sizes.num_queries,
        short_side or image.short_side,
        max_side or image.max_side,
    )


def _run_folder(config: TrainConfig) -> Path:
    """The run folder: as named, or the first free runs/DATA-MODEL.

    Raises:
        ConfigError: the named one is a file, or holds something and is not the run to go on with.
    """
    if config.output_dir is None:
        source = Path(config.model)
        model = source.parent.name if source.name == "model" else source.name
        data = Path(config.data).resolve()
        base = f"{data.stem if data.is_file() else data.name}-{model}"
        names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        return next(path for path in (Path("runs") / name for name in names) if not path.exists())
    out = Path(config.output_dir)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {out} is a file; name a folder.")
    if config.resume is None and out.is_dir() and any(out.iterdir()):
        raise ConfigError(
            f"out: the folder {out} is not empty. Name another with --output-dir, or go on with that run by --resume {out}."
        )
    return out
