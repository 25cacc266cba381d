"""Options of a training run; the command line, the YAML file and the help text come from the fields.

A run is resolved as defaults < the model's recipe < YAML file < command line. `options.py` reads and checks them; those of
the other verbs are in `verb_configs.py`. Nothing here imports torch.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundtune.options import COMMAND_LINE, check, fail, option, read_yaml, resolve, suggestion

MODULES = ("backbone", "language_model", "neck", "encoder", "decoder", "bbox_head")
"""The names that `param_groups` knows, the reference's vocabulary (semantics 19). Paths go deeper: encoder.layers.0."""

ADAPTATIONS = ("full", "lora", "prompt", "heads")

_PLACES = ("data", "model", "mix", "out", "resume", "track", "retain", "replay")  # where a run reads and writes
# Values of these that name no place.
_WITHIN_THE_RUN: tuple[Any, ...] = ([], ["self"], ["own"], ["none"], "self", "own", "none")
DEVICE_HELP = "auto, cpu, cuda, cuda:1, mps; auto takes the accelerator that is there"
PRECISIONS = ("auto", "fp32", "bf16")
_TRACKERS = ("tensorboard", "wandb", "mlflow")
THREADS_HELP = "CPU threads of torch; 0 leaves torch's own number"
RENAME_HELP = "what the model reads for a class, as 'rbc=red blood cell|erythrocyte' or 'rbc=a {} cell'; repeatable"
MODEL_HELP = "a preset (see `groundtune models`), a model or run folder, a .pth, or a Hub id"


@dataclass
class OptimizerConfig:
    """The optimiser."""

    type: str = option("AdamW", "the optimiser", choices=("AdamW",), flag=False)
    lr: float = option(1e-4, "learning rate of a module with lr_mult 1", low=0, above=True, group="training")
    weight_decay: float = option(1e-4, "decoupled weight decay", low=0, group="training")


@dataclass
class ParamGroup:
    """Modules by their paths, and the factor of their learning rate; 0 freezes them."""

    modules: list[str] = option(help="paths of modules")
    lr_mult: float = option(1.0, "factor of the learning rate; 0 freezes", low=0)


def _default_groups() -> list[ParamGroup]:
    trained = [name for name in MODULES if name not in ("backbone", "language_model")]
    return [ParamGroup(["backbone"], 0.0), ParamGroup(["language_model"], 0.0), ParamGroup(trained, 1.0)]


@dataclass
class TrainConfig:
    """Fine-tune a model on a folder of pictures with boxes."""

    data: str = option(help="a folder with pictures and boxes, or a COCO .json file", positional=True)
    model: str = option("nano", MODEL_HELP, group="run")
    mix: list[str] = option(
        [],
        "more training data, as PATH or PATH=WEIGHT,PATH=WEIGHT; a weight is how often a picture is shown per epoch",
        group="run",
    )
    out: str | None = option(None, "run folder; otherwise runs/DATA-MODEL, the first free number", group="run")
    resume: str | None = option(None, "run folder to go on with; its own options are taken up", group="run")
    seed: int = option(0, "of every random choice", low=0, high=2**32 - 1, group="run")
    track: list[str] = option(
        ["auto"],
        "where numbers go too, as tensorboard,wandb,mlflow; none is nowhere, auto TensorBoard if it is installed",
        choices=("auto", "none", *_TRACKERS),
        group="run",
    )
    retain: list[str] = option(
        ["own"],
        "data sets that should not be forgotten, as PATH,PATH: measured before and after training; own measures whether the "
        "model still finds the common things that it found in the validation pictures; none measures nothing",
        group="run",
    )
    replay: list[str] = option(
        [],
        "what keeps other things findable: self, the model's own detections of what nobody labelled in the training pictures; "
        "PATH=SHARE, another data set's pictures and their share of an epoch (0.2 where none is given); none",
        group="run",
    )
    limit_train: int | None = option(None, "pictures of train to use, the first ones", low=1, group="run")
    limit_valid: int | None = option(None, "pictures of valid to use, the first ones", low=1, group="run")

    epochs: int = option(20, "passes over the training pictures", low=1, group="training")
    min_steps: int = option(
        0,
        "steps to take at least, by more epochs on a small data set; 0 where epochs are given",
        low=0,
        group="training",
    )
    batch_size: int = option(4, "pictures per optimiser step, over all devices", low=1, group="training")
    micro_batch: int = option(
        0,
        "pictures of a step that a device computes at a time: fewer need less memory, with the same losses; 0 takes all",
        low=0,
        group="training",
    )
    eval_every: int = option(1, "epochs between evaluations", low=1, group="training")
    save_every: int = option(
        500, "steps between checkpoints within an epoch; 0 saves only at the end of each", low=0, group="training"
    )
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    param_groups: list[ParamGroup] = dataclasses.field(default_factory=_default_groups)
    adapt: str = option(
        "full",
        "what trains: full, all but the towers; lora, small matrices beside encoder and decoder, and the heads; heads, the "
        "class and box heads; prompt, how the class names are read, which leaves all other names as they were",
        choices=ADAPTATIONS,
        group="training",
    )
    lora_rank: int = option(8, "rank of --adapt lora", low=1, group="training")
    lora_alpha: float = option(16.0, "scale of --adapt lora, over its rank", low=0, above=True, group="training")
    blend: float | None = option(
        None,
        "in the end, how far to go from the base (0) to the trained weights (1); see groundtune blend",
        low=0,
        high=1,
        group="training",
    )
    keep: bool = option(
        False,
        "keep the base's weights beside the trained ones: they answer for all names but the data set's, as before",
        group="training",
    )
    clip_grad: float = option(0.1, "largest norm of the gradient; 0 does not clip", low=0, group="training")
    warmup_steps: int = option(50, "steps of linear warm-up", low=0, group="training")
    lr_drop_at: float = option(
        0.7, "share of training after which the learning rate drops", low=0, high=1, group="training"
    )
    lr_drop_factor: float = option(0.1, "factor of that drop", low=0, high=1, group="training")
    ema: float = option(
        0.0,
        "decay per step of the moving average of the weights; 0 is off",
        low=0,
        high=1,
        below=True,
        group="training",
    )
    denoising: bool = option(True, "contrastive denoising queries", group="training")

    loss_cls: float = option(2.0, "weight of the class loss", low=0, group="loss")
    loss_bbox: float = option(5.0, "weight of the L1 loss of the boxes", low=0, group="loss")
    loss_giou: float = option(2.0, "weight of the GIoU loss of the boxes", low=0, group="loss")
    focal_alpha: float = option(0.25, "weight of the positive tokens in the focal loss", low=0, high=1, group="loss")
    focal_gamma: float = option(2.0, "focusing exponent of the focal loss", low=0, group="loss")

    short_side: int | None = option(
        None, "pixels of a picture's short side; the model's own otherwise", low=32, group="pictures"
    )
    max_side: int | None = option(
        None, "most pixels of its long side; the model's own otherwise", low=32, group="pictures"
    )
    flip: float = option(0.5, "probability of a horizontal flip", low=0, high=1, group="pictures")
    multi_scale: list[float] = option(
        [], "factors of the short side to draw from, as 0.8,1,1.2", low=0.1, high=10, group="pictures"
    )
    crop: float = option(0.0, "probability of a random crop", low=0, high=1, group="pictures")
    cache_features: bool = option(
        False, "compute the features of a frozen backbone once and keep them", group="pictures"
    )
    cache_views: int = option(2, "augmented views of each picture that are kept", low=1, group="pictures")

    shuffle_classes: bool = option(True, "another order of the class names in every prompt", group="prompts")
    classes: dict[str, str] = option({}, RENAME_HELP, flag="--rename", group="prompts")
    negative_probability: float = option(
        0.5, "how often only a sample of the absent classes is in the prompt", low=0, high=1, group="prompts"
    )

    device: str = option("auto", DEVICE_HELP, group="machine")
    devices: int = option(
        1,
        "processes to start on this machine, one per GPU; on a CPU they divide its threads. torchrun, accelerate and srun "
        "start their own",
        low=1,
        group="machine",
    )
    precision: str = option(
        "auto",
        "fp32 or bf16 (the losses stay fp32); auto takes bf16 where the device computes in it",
        choices=PRECISIONS,
        group="machine",
    )
    compile: bool = option(
        False, "compiled sampling: faster steps after half a minute for each picture size", group="machine"
    )
    recompute: bool = option(
        False, "compute the encoder's activations again in the backward pass: less memory, more time", group="machine"
    )
    workers: int = option(
        0, "threads that load pictures ahead; 0 loads each when it is its turn", low=0, group="machine"
    )
    threads: int = option(0, THREADS_HELP, low=0, group="machine")
    max_bad_steps: int = option(
        5, "steps in a row with a non-finite loss before training stops", low=1, group="machine"
    )
    max_bad_pictures: float = option(
        0.01,
        "share of a split's pictures that may turn out unreadable, at least one picture, before training stops; 0 allows none",
        low=0,
        high=1,
        group="machine",
    )
    log_every: int = option(10, "steps between lines of metrics.jsonl", low=1, group="machine")


def train_config(
    cli: Mapping[str, Any], yaml_path: Path | None, recipe: Mapping[str, Any], *, where: str = COMMAND_LINE
) -> TrainConfig:
    """Resolve a training run's options: defaults < recipe < YAML file < command line.

    Args:
        cli: options by name, the optimiser's with or without its name ("lr"). Strings are converted.
        yaml_path: a YAML file, or None.
        recipe: training defaults of the model.
        where: what `cli` is called in messages.

    Raises:
        ConfigError: the file cannot be read, or options are unknown or unusable; all of them are listed.
    """
    file = read_yaml(yaml_path) if yaml_path else {}
    optimizer = {field.name for field in dataclasses.fields(OptimizerConfig)}
    cli = {f"optimizer.{name}" if name in optimizer else name: value for name, value in cli.items()}
    own = {**file, **cli}
    if "epochs" in own and "min_steps" not in own:  # who says how many epochs means it
        recipe = {name: value for name, value in recipe.items() if name != "min_steps"}
    told = "a model has no say in where a run reads and writes; remove it."  # it may come from anywhere
    places = {name: value for name, value in recipe.items() if name in _PLACES and value not in _WITHIN_THE_RUN}
    fail([f"the model's recipe: {name}: {told}" for name in places])
    layers = [("the model's recipe", recipe), (str(yaml_path), file), (where, cli)]
    config = resolve(TrainConfig, layers)
    validate(config)
    return config


def validate(config: TrainConfig) -> None:
    """Check a training configuration, also one that was put together by hand.

    Raises:
        ConfigError: values out of range, unknown modules, options that contradict each other; all of them are listed.
    """
    problems = check(config) + _group_problems(config.param_groups)
    if config.adapt != "full" and config.param_groups != _default_groups():
        problems.append(
            f"adapt, param_groups: --adapt {config.adapt} decides what trains, and so do param_groups; leave one of them out."
        )
    if config.keep and (config.adapt != "full" or config.blend is not None):
        problems.append("keep: it is for --adapt full without --blend; leave these out.")
    if config.short_side and config.max_side and config.short_side > config.max_side:
        problems.append(f"short_side: {config.short_side} is more than max_side {config.max_side}.")
    problems += [
        f"track: {name} is not installed. Install it (pip install {name}), or leave it out."
        for name in config.track
        if name in _TRACKERS and importlib.util.find_spec(name) is None
    ]
    fail(problems)


def to_yaml(config: TrainConfig) -> str:
    """All options as YAML, which `train --config` reads back to the same configuration."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _group_problems(groups: list[ParamGroup]) -> list[str]:
    """What is wrong with the names of modules. Whether a deeper path exists is known to the network only."""
    paths = [path for group in groups for path in group.modules]
    problems = [
        f"param_groups[{index}].modules: empty; name a module." for index, g in enumerate(groups) if not g.modules
    ]
    for path in dict.fromkeys(paths):
        top = path.split(".")[0]
        if top not in MODULES:
            problems.append(
                f"param_groups: no module is called {path!r}; there are {', '.join(MODULES)} and paths inside them."
                + suggestion(top, MODULES)
            )
        if paths.count(path) > 1:
            problems.append(f"param_groups: {path!r} stands in more than one group; keep one of them.")
    return problems
