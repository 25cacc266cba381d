"""The parts of a training run, built from its options, its data and a model.

Every unusable option raises here, before the run directory exists.
"""

import importlib.util
import math
import re
import shlex
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast, set_seed
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from groundtune.config import TrainConfig, to_yaml
from groundtune.data.loader import TrainLoader
from groundtune.data.mirror import describe_mirroring
from groundtune.data.prefetch import decode_threads
from groundtune.data.sample import Dataset
from groundtune.device import reset_peak_memory, set_up_cpu
from groundtune.engine import optim
from groundtune.engine.checkpoint import trained_weights
from groundtune.engine.distributed import from_main, launched, own_device, share
from groundtune.engine.evaluate import Metrics
from groundtune.engine.memory_fit import feature_caches, fit_batch_size
from groundtune.engine.optim import WeightAverage
from groundtune.engine.run_folder import RunFolder
from groundtune.environment import describe
from groundtune.errors import ConfigError
from groundtune.loss.criterion import GroundingDINOCriterion
from groundtune.model import deformable
from groundtune.model.bundle import TOWERS, ModelBundle, companion
from groundtune.model.detector import GroundingDINO
from groundtune.predict.features import FeatureCache
from groundtune.progress import Progress, counted

_COMPILED_BUCKET = 4  # cells of stride 32: at most ten sizes of each side up to 1333 px


@dataclass
class TrainState:
    """What changes during a run besides the weights, the optimizer and the random generators."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the current epoch
    step: int = 0  # finished steps of the run
    bad_steps: int = 0  # non-finite steps in a row
    skipped_steps: int = 0  # all non-finite steps
    float32_steps: int = 0  # steps that were not finite in bf16 or fp16
    micro_batch_size: int = 0  # limit found when memory ran out; 0: none yet
    running: dict[str, float] = field(default_factory=dict)  # moving means of the displayed losses
    sums: dict[str, Tensor] = field(default_factory=dict)  # of all terms since the last log line
    counted: int = 0  # steps in `sums`
    best_ap: float = -math.inf
    best: dict[str, Any] = field(default_factory=dict)  # epoch, step, metrics, per_class
    final: Metrics = field(default_factory=dict)
    zero_shot: Metrics = field(default_factory=dict)
    retention: dict[str, dict[str, Metrics]] = field(default_factory=dict)  # before, after
    seconds: float = 0.0  # wall time up to the last save
    memory_bytes: int = 0  # peak
    # The last two belong to this process and are not saved.
    began: float = field(default_factory=time.perf_counter)  # minus the time before a resume
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)  # split → path → reason


@dataclass
class TrainSetup:
    """The parts of a run, none of which is replaced once they are built."""

    config: TrainConfig
    bundle: ModelBundle
    folder: RunFolder
    progress: Progress
    accelerator: Accelerator  # processes and trackers; device and precision are ours
    device: torch.device
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler  # of fp16
    average: WeightAverage | None
    criterion: GroundingDINOCriterion
    loader: TrainLoader
    train_features: FeatureCache | None
    valid: Dataset
    valid_features: FeatureCache | None
    base_weights: dict[str, Tensor] | None  # before training, for `config.blend`

    @property
    def network(self) -> GroundingDINO:
        return self.bundle.detector

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that train."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def log(self, text: str) -> None:
        """Write a line to train.log and to the terminal."""
        self.folder.log(text)
        self.progress.message(text)

    def record(self, state: TrainState, values: dict[str, Any]) -> None:
        """Write values to metrics.jsonl and the trackers, which have no nested names, no None."""
        self.folder.metrics({"step": state.step, "epoch": state.epoch} | values)
        flat = values | {f"lr/{group}": rate for group, rate in values.get("lr", {}).items()}
        numbers = {name: value for name, value in flat.items() if isinstance(value, int | float)}
        numbers = {re.sub("[@=]", "-", name): v for name, v in numbers.items()}  # for MLflow
        self.accelerator.log({"epoch": state.epoch} | numbers, step=state.step)


def build_setup(
    config: TrainConfig, bundle: ModelBundle, training: Dataset, valid: Dataset, out: Path, progress: Progress
) -> TrainSetup:
    """Build the parts of a run.

    Changes the bundle: its device, classes, image format, and which of its modules train. Seeds the
    random generators of Python, NumPy and torch.

    Raises:
        ConfigError: options or the run directory are unusable; nothing has been written.
    """
    set_up_cpu(config.threads)
    accelerator, device = start_processes(config, out)
    precisions = share(config.precision)  # GPUs may differ: all take what the weakest has
    config = replace(config, precision=min(precisions, key=["fp32", "tf32", "fp16", "bf16"].index))
    set_seed(config.seed + accelerator.process_index)
    optimizer = _prepare_network(config, bundle, training, valid, device)
    network = bundle.detector
    build_loader = partial(_build_loader, bundle=bundle, training=training, accelerator=accelerator)
    criterion = GroundingDINOCriterion(
        config.loss_cls, config.loss_bbox, config.loss_giou, config.focal_alpha, config.focal_gamma
    )
    config, batch_message = fit_batch_size(config, bundle, build_loader, optimizer, criterion)
    loader = build_loader(config)
    train_features, valid_features, cache_message = feature_caches(config, network, loader, valid)
    if config.cache_features and train_features is None:
        config = replace(config, cache_features=False)
        loader = build_loader(config)
    config = _with_min_steps(config, len(loader))
    schedule = optim.build_schedule(optimizer, config, config.epochs * len(loader))
    folder = RunFolder(out, config.resume is not None, accelerator.is_main_process)
    folder.text("config.yaml", to_yaml(config))
    about = {"trains on": str(device), "deformable sampling": deformable.describe_sampling(device)}
    folder.json("env.json", describe() | about | {"command": shlex.join(sys.argv)})
    setup = TrainSetup(
        config=config,
        bundle=bundle,
        folder=folder,
        progress=progress if accelerator.is_main_process else Progress(quiet=True),
        accelerator=accelerator,
        device=device,
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        average=WeightAverage(network, config.ema_decay) if config.ema_decay > 0 else None,
        criterion=criterion,
        loader=loader,
        train_features=train_features,
        valid=valid,
        valid_features=valid_features,
        base_weights=trained_weights(network) if config.blend is not None else None,
    )
    _log_start(setup, f"{batch_message}{cache_message}")
    return setup


def _log_start(setup: TrainSetup, choices: str) -> None:
    training = setup.loader.dataset
    frozen = f"frozen: {', '.join(sorted(setup.network.frozen)) or 'nothing'}"
    tuned = frozen if setup.config.tune == "full" else f"tune: {setup.config.tune}"
    setup.log(
        f"Training {sum(p.numel() for p in setup.parameters) / 1e6:.1f} M parameters on "
        f"{counted(len(training.samples), 'image')}, {counted(len(training.class_names), 'class')}, "
        f"{counted(setup.config.epochs, 'epoch')}, "
        f"{setup.device}, {setup.config.precision}; {tuned}.{choices}"
    )
    if setup.config.flip and (mirroring := describe_mirroring(training)):
        setup.log(f"--flip: {'; '.join(mirroring)}.")


def start_processes(config: TrainConfig, out: Path) -> tuple[Accelerator, torch.device]:
    """Join the run's processes, if that has not been done, and choose this one's device.

    accelerate keeps one device and one precision for the life of a process. The device is its own
    choice only where a launcher has started several processes, and the precision never is, so that
    one process can train several times with different ones.
    """
    device = own_device(config.device)
    reset_peak_memory(device)
    known = {"none": [], "auto": ["tensorboard"] if importlib.util.find_spec("tensorboard") else []}
    trackers = [tracker for name in config.report_to for tracker in known.get(name, [name])]
    # Explicit: the defaults are variables of the environment, ACCELERATE_...
    settings: dict[str, Any] = {"mixed_precision": "no", "dynamo_backend": "no", "log_with": trackers or None}
    settings |= {"gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=1)}
    on_cpu = device.type == "cpu" and launched()
    accelerator = Accelerator(cpu=on_cpu, project_dir=out / "tensorboard", **settings)
    from_main(lambda: None)  # connects the processes: from now on one that ends is noticed at once
    return accelerator, device


def _prepare_network(
    config: TrainConfig, bundle: ModelBundle, training: Dataset, valid: Dataset, device: torch.device
) -> Optimizer:
    """Adapt the bundle to the data and the options; return the optimizer of what trains."""
    network = bundle.detector.to(device)
    network.configure_training(
        denoising=config.denoising,
        gradient_checkpointing=config.gradient_checkpointing,
        bucket=_COMPILED_BUCKET if config.compile and device.type != "cpu" else None,
    )
    if config.compile and device.type == "cpu":
        deformable.compile_sampling(network)
    elif config.compile:
        network.compile_layers()
    phrases = training.phrases
    if bundle.config.class_labels and phrases and bundle.phrases_of(bundle.classes) != phrases:
        network.init_label_embedding(phrases, bundle.tokenizer)
    bundle.classes = list(valid.class_names)  # without those of rehearsal and self-distillation
    own_phrases = dict(zip(bundle.classes, valid.phrases, strict=True))
    bundle.phrases = valid.renamed | own_phrases
    optim.add_tuned_parameters(network, config, list(own_phrases.values()), bundle.tokenizer)
    groups = optim.param_groups(config)
    optim.freeze(network, groups)
    bundle.base_network = _base_network(bundle) if config.keep_base else None
    optimizer = optim.build_optimizer(network, config.optimizer, groups)
    trained = [parameter.data for group in optimizer.param_groups for parameter in group["params"]]
    broadcast(trained)  # some begin at random: all processes take those of the main one
    bundle.image_format = replace(
        bundle.image_format,
        short_side=config.short_side or bundle.image_format.short_side,
        max_side=config.max_side or bundle.image_format.max_side,
    )
    return optimizer


def _base_network(bundle: ModelBundle) -> GroundingDINO:
    """Return the network for all other classes: the bundle's base, or a copy of its network."""
    if not bundle.classes:
        why = "the class names select the weights, but the data set has captions. Remove it."
        raise ConfigError(f"keep_base: {why}")
    if trained := [tower for tower in TOWERS if tower not in bundle.detector.frozen]:
        why = f"both sets of weights share the towers, but {' and '.join(trained)} would train. Freeze them."
        raise ConfigError(f"keep_base: {why}")
    return bundle.base_network or companion(bundle.detector)


def _build_loader(
    config: TrainConfig, bundle: ModelBundle, training: Dataset, accelerator: Accelerator
) -> TrainLoader:
    if config.batch_size < accelerator.num_processes:
        expected = f"expected at least one image for each of {accelerator.num_processes} processes"
        raise ConfigError(f"batch_size: {expected}, got {config.batch_size}.")
    loader = TrainLoader(
        training,
        bundle.tokenizer,
        bundle.image_format,
        config,
        bundle.config.max_text_len,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    device = next(bundle.detector.parameters()).device
    loader.raw = device.type != "cpu"
    loader.workers = decode_threads(device, 0) if config.workers is None else config.workers
    return loader


def _with_min_steps(config: TrainConfig, batches: int) -> TrainConfig:
    """Raise the epochs to `config.min_steps`, with as many validations as before."""
    epochs = max(config.epochs, math.ceil(config.min_steps / batches))
    eval_epochs = config.eval_epochs * epochs // config.epochs
    return replace(config, epochs=epochs, eval_epochs=eval_epochs)
