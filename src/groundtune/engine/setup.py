"""The parts of a training run, put together from its options, its data and a model.

Everything that can be wrong with the options comes up here, before the run folder exists.
"""

import dataclasses
import importlib.util
import json
import math
import random
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from groundtune.config import TrainConfig, to_yaml
from groundtune.contracts import Output
from groundtune.data.loader import Batch, TrainLoader
from groundtune.data.sample import Dataset
from groundtune.data.transforms import resize_keep_ratio
from groundtune.device import pick_device, set_up_cpu
from groundtune.engine.checkpoint import trained_state
from groundtune.engine.optim import WeightAverage, adapt, build_optimizer, build_schedule, freeze, groups_of
from groundtune.engine.run_folder import RunFolder
from groundtune.environment import describe
from groundtune.errors import ConfigError, DataError
from groundtune.loss.criterion import GroundingDINOCriterion
from groundtune.model.bundle import ModelBundle, companion
from groundtune.model.deformable import compile_sampling
from groundtune.model.detector import GroundingDINO
from groundtune.predict.features import FeatureCache
from groundtune.progress import Progress

Metrics = dict[str, float | None]

_COMPILED_BUCKET = 4  # cells of stride 32: with sides up to 1333 px there are ten sizes of each side at most
_CACHE_SHARE = 0.4  # of the free memory that cached features may take; training needs some too


@dataclass
class TrainState:
    """How far a run has come; saved with every checkpoint."""

    epoch: int = 0
    batch: int = 0  # of the epoch: so many are done
    step: int = 0
    running: dict[str, float] = field(default_factory=dict)  # means of the losses that are shown
    sums: dict[str, Tensor] = field(
        default_factory=dict
    )  # of the terms since the last line of metrics.jsonl,
    counted: int = 0  # over so many steps
    bad_steps: int = 0  # in a row
    micro_batch_size: int = (
        0  # what memory had room for, where it was too small for `config.micro_batch_size`
    )
    best_ap: float = -math.inf
    best: dict[str, Any] = field(default_factory=dict)
    final: Metrics = field(default_factory=dict)
    zero_shot: Metrics = field(default_factory=dict)
    retained: dict[str, dict[str, Metrics]] = field(default_factory=dict)  # of each set "before" and "after"
    seconds: float = 0.0
    memory_bytes: int = 0  # the most that was needed


@dataclass
class TrainSetup:
    """The parts of a run, which do not change while it runs."""

    config: TrainConfig
    bundle: ModelBundle
    folder: RunFolder
    progress: Progress
    accelerator: Accelerator
    model: nn.Module
    optimizer: Optimizer
    schedule: LambdaLR
    parameters: list[Tensor]
    average: WeightAverage | None
    criterion: GroundingDINOCriterion
    loader: TrainLoader
    train_features: FeatureCache | None
    valid: Dataset
    valid_features: FeatureCache | None
    base: dict[str, Tensor] | None = None  # what trains, as it was before, where `config.blend` asks for it
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)  # of each split the images, and why

    @property
    def network(self) -> GroundingDINO:
        return self.bundle.detector

    def say(self, text: str) -> None:
        self.folder.log(text)
        self.progress.message(text)

    def record(self, place: TrainState, values: dict[str, Any]) -> None:
        """Writes numbers down in metrics.jsonl and tells them to the trackers, which have no nested names and no None."""
        self.folder.metrics({"step": place.step, "epoch": place.epoch} | values)
        flat = values | {f"lr/{group}": rate for group, rate in values.get("lr", {}).items()}
        numbers = {
            re.sub("[@=]", "-", name): v for name, v in flat.items() if isinstance(v, int | float)
        }  # MLflow's rule
        self.accelerator.log({"epoch": place.epoch} | numbers, step=place.step)

    def start_trackers(self, step: int) -> None:
        """Starts what `config.track` names; TensorBoard hides what an earlier process told it after `step`."""
        options = dataclasses.asdict(self.config).items()
        plain = {name: v if isinstance(v, int | float | str) else json.dumps(v) for name, v in options}
        name = self.folder.path.resolve().name
        of_each = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {"name": name},
            "mlflow": {"run_name": name},
        }
        self.accelerator.init_trackers("groundtune", plain, of_each)


class _Forward(nn.Module):
    """The one module that accelerate wraps: both ways into the network must pass through it to be cast."""

    def __init__(self, network: GroundingDINO) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch, features: list[list[Tensor]] | None, most_boxes: int) -> Output:
        if features is not None:
            return self.network.forward_features(features, batch.text, batch.targets, most_boxes)
        return self.network(batch.canvas(), batch.sizes_hw, batch.text, batch.targets, most_boxes)


def training_data(config: TrainConfig, splits: dict[str, Dataset]) -> tuple[Dataset, Dataset]:
    """The training and the validation split, each with boxes."""
    for name, use in (("train", "to train on"), ("valid", "to choose the best weights by")):
        if name not in splits:
            have = ", ".join(splits) or "none"
            raise DataError(
                f"{config.data}: there is no split {name!r} {use}; found: {have}. Add one to the data set."
            )
    for dataset in (splits["train"], splits["valid"]):
        if not any(len(sample.boxes_xyxy) > int(sample.crowd.sum()) for sample in dataset.samples):
            raise DataError(
                f"{config.data}: the split {dataset.name!r} has no boxes in its {len(dataset.samples)} images."
            )
    return splits["train"], splits["valid"]


def _kept(bundle: ModelBundle, frozen: Sequence[str], class_names: Sequence[str]) -> GroundingDINO:
    """The network that goes on answering for other names, as it is now; that of a model that has one is taken over."""
    if not class_names:
        raise ConfigError("keep: what a run has learned is told by its class names, and captions have none.")
    towers = [tower for tower in ("backbone", "language_model") if tower not in frozen]
    if towers:
        raise ConfigError(
            f"keep: both sets of weights share the towers, and {' and '.join(towers)} would train; freeze them."
        )
    return bundle.base_network or companion(bundle.detector)


def set_up(
    config: TrainConfig, bundle: ModelBundle, training: Dataset, valid: Dataset, out: Path, progress: Progress
) -> TrainSetup:
    """Builds every part. What can be wrong with the options comes up here, before the run folder exists."""
    set_up_cpu(config.threads)
    device = pick_device(config.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with=_trackers(config.report_to) or None,
        project_dir=out / "tensorboard",
    )
    _seed(config.seed + accelerator.process_index)

    network = bundle.detector.to(accelerator.device)
    network.configure_training(
        denoising=config.denoising,
        gradient_checkpointing=config.gradient_checkpointing,
        bucket=_COMPILED_BUCKET if config.compile else None,
    )
    if config.compile:
        compile_sampling(network)
    if bundle.config.class_labels and training.class_names and bundle.classes != training.class_names:
        network.init_label_embedding(training.class_names, bundle.tokenizer)
    bundle.classes = list(valid.class_names)  # without those that are replayed
    adapt(network, config, bundle.classes, bundle.tokenizer)
    groups = groups_of(config)
    frozen = freeze(network, groups)
    bundle.base_network = _kept(bundle, frozen, bundle.classes) if config.keep_base else None
    optimizer, parameters = build_optimizer(network, config.optimizer, groups)
    broadcast([parameter.data for parameter in parameters])  # what begins at random
    bundle.image_format = dataclasses.replace(
        bundle.image_format,
        short_side=config.short_side or bundle.image_format.short_side,
        max_side=config.max_side or bundle.image_format.max_side,
    )
    loader = _loader(config, bundle, training, accelerator)
    caches, cache_says = _feature_caches(config, network, loader, valid)
    if config.cache_features and caches is None:
        config = dataclasses.replace(config, cache_features=False)
        loader = _loader(config, bundle, training, accelerator)
    epochs = max(config.epochs, math.ceil(config.min_steps / len(loader)))
    # a small data set that is shown more often is not evaluated more often for that
    config = dataclasses.replace(
        config, epochs=epochs, eval_epochs=config.eval_epochs * epochs // config.epochs
    )
    schedule = build_schedule(optimizer, config, config.epochs * len(loader))
    folder = RunFolder(out, resume=config.resume is not None, writes=accelerator.is_main_process)
    folder.text("config.yaml", to_yaml(config))
    folder.json(
        "env.json", describe() | {"trains on": str(accelerator.device), "command": shlex.join(sys.argv)}
    )
    run = TrainSetup(
        config=config,
        bundle=bundle,
        folder=folder,
        progress=progress if accelerator.is_main_process else Progress(quiet=True),
        accelerator=accelerator,
        model=accelerator.prepare_model(
            _Forward(network), evaluation_mode=True
        ),  # `step` reduces the gradients itself
        optimizer=optimizer,
        schedule=schedule,
        parameters=parameters,
        average=WeightAverage(network, config.ema_decay) if config.ema_decay > 0 else None,
        criterion=GroundingDINOCriterion(
            config.loss_cls, config.loss_bbox, config.loss_giou, config.focal_alpha, config.focal_gamma
        ),
        loader=loader,
        train_features=caches[0] if caches else None,
        valid=valid,
        valid_features=caches[1] if caches else None,
        base=trained_state(network) if config.blend is not None else None,
    )
    trained = sum(parameter.numel() for parameter in parameters)
    run.say(
        f"Training {trained / 1e6:.1f} M parameters on {len(training.samples)} images, {len(training.class_names)} "
        f"classes, {epochs} epochs, {accelerator.device}, {config.precision}; "
        + (
            f"frozen: {', '.join(frozen) or 'nothing'}."
            if config.tune == "full"
            else f"adapt: {config.tune}."
        )
        + cache_says
    )
    return run


def _feature_caches(
    config: TrainConfig, network: GroundingDINO, loader: TrainLoader, valid: Dataset
) -> tuple[tuple[FeatureCache, FeatureCache] | None, str]:
    """Caches for the training and the validation images, and what to say of them; none where memory is short."""
    if not config.cache_features:
        return None, ""
    caches = FeatureCache(network), FeatureCache(network)
    device, needed = next(network.parameters()).device, 0
    for dataset, views in ((loader.dataset, loader.num_views), (valid, 1)):
        sizes_hw = [
            resize_keep_ratio(sample.size_hw, loader.image_format).size_hw for sample in dataset.samples
        ]
        needed += caches[0].estimate_bytes(sizes_hw, views, device)
    what = (
        f"the backbone's features of {loader.num_views} views per image: {needed / 2**20:,.0f} MB of memory"
    )
    available = psutil.virtual_memory().available
    if needed > _CACHE_SHARE * available:
        return (
            None,
            f" Not keeping {what}, of {available / 2**20:,.0f} MB that are free; they are computed in every epoch.",
        )
    loader.needs_pixels = caches[0].needs_pixels
    return caches, f" Keeping {what}."


def _loader(
    config: TrainConfig, bundle: ModelBundle, training: Dataset, accelerator: Accelerator
) -> TrainLoader:
    if config.batch_size < accelerator.num_processes:
        raise ConfigError(
            f"batch_size: {config.batch_size} images are too few for {accelerator.num_processes} processes."
        )
    return TrainLoader(
        training,
        bundle.tokenizer,
        bundle.image_format,
        config,
        bundle.config.max_text_len,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def _trackers(names: list[str]) -> list[str]:
    known = {"none": [], "auto": ["tensorboard"] if importlib.util.find_spec("tensorboard") else []}
    return [tracker for name in names for tracker in known.get(name, [name])]


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
