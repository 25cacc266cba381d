"""Options of the verbs: one dataclass each; the command line, the YAML file and the help text come from its fields.

A training run is resolved as defaults < the model's recipe < YAML file < command line. `options.py` reads and
checks them. Nothing here imports torch.
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
SAVED_AS = ("drawn", "json", "coco", "yolo", "csv", "crops")

_PLACES = ("data", "model", "mix", "out", "resume", "track", "retain", "replay")  # where a run reads and writes
# Values of these that name no place.
_WITHIN_THE_RUN: tuple[Any, ...] = ([], ["self"], ["own"], ["none"], "self", "own", "none")
_DEVICE_HELP = "auto, cpu, cuda, cuda:1, mps; auto takes the accelerator that is there"
_FORMATS = ("coco", "yolo", "voc", "odvg")
_PRECISIONS = ("auto", "fp32", "bf16")
_TRACKERS = ("tensorboard", "wandb", "mlflow")
_THREADS_HELP = "CPU threads of torch; 0 leaves torch's own number"
_RENAME_HELP = "what the model reads for a class, as 'rbc=red blood cell|erythrocyte' or 'rbc=a {} cell'; repeatable"
_MODEL_HELP = "a preset (see `groundtune models`), a model or run folder, a .pth, or a Hub id"


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
    model: str = option("nano", _MODEL_HELP, group="run")
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
    classes: dict[str, str] = option({}, _RENAME_HELP, flag="--rename", group="prompts")
    negative_probability: float = option(
        0.5, "how often only a sample of the absent classes is in the prompt", low=0, high=1, group="prompts"
    )

    device: str = option("auto", _DEVICE_HELP, group="machine")
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
        choices=_PRECISIONS,
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
    threads: int = option(0, _THREADS_HELP, low=0, group="machine")
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


@dataclass
class EvaluateConfig:
    """Measure a model on a data set."""

    model: str = option(help=_MODEL_HELP, positional=True)
    data: str = option(help="a folder with pictures and boxes, or a COCO .json file", positional=True)
    split: str = option("valid", "train, valid or test")
    classes: list[str] = option([], "names to ask for and to count, as a,b; all otherwise")
    rename: dict[str, str] = option({}, _RENAME_HELP)
    out: str | None = option(None, "file for the detections, in COCO's result format")
    json: bool = option(False, "print JSON")
    batch_size: int = option(8, "pictures at a time", low=1)
    device: str = option("auto", _DEVICE_HELP)
    precision: str = option("fp32", "fp32, bf16, or auto: bf16 where the device computes in it", choices=_PRECISIONS)
    threads: int = option(0, _THREADS_HELP, low=0)
    ray: str | None = option(
        None, "share the pictures out among Ray's workers: local, auto, or a cluster's HOST:PORT or ray://HOST:PORT"
    )
    ray_workers: int = option(0, "of --ray; 0 is one per GPU, or where there is none one per core", low=0)


@dataclass
class BlendConfig:
    """Find the best model between a base and what was fine-tuned from it."""

    base: str = option(help=_MODEL_HELP, positional=True)
    tuned: str = option(help="a run folder, or the model that was fine-tuned from BASE", positional=True)
    out: str = option(help="folder for the chosen model, with blend.json and blend.html")
    at: list[float] = option(
        [0.3, 0.5, 0.7], "points to measure beside the ends, 0 the base and 1 TUNED", low=0, high=1
    )
    data: str | None = option(None, "the data set that TUNED was made for; otherwise that of its run, the split valid")
    retain: list[str] = option([], "data sets that should not be forgotten, as PATH,PATH; otherwise those of its run")
    batch_size: int = option(8, "pictures at a time", low=1)
    device: str = option("auto", _DEVICE_HELP)
    threads: int = option(0, _THREADS_HELP, low=0)


@dataclass
class CheckConfig:
    """Look for what is wrong with a data set."""

    data: str = option(help="a folder with pictures and boxes, or a COCO .json file", positional=True)
    model: str = option("nano", _MODEL_HELP + "; its limits are checked against")
    rename: dict[str, str] = option({}, _RENAME_HELP)
    ignore: list[str] = option([], "checks to leave out, as near-duplicate,object-tiny")
    fast: bool = option(False, "run only the checks that open no picture")
    json: bool = option(False, "print JSON")
    strict: bool = option(False, "exit with code 3 on warnings too")
    short_side: int | None = option(None, "pixels of a picture's short side; the model's own otherwise", low=32)
    max_side: int | None = option(None, "most pixels of its long side; the model's own otherwise", low=32)
    workers: int = option(0, "threads that decode pictures; 0 takes one per core", low=0)


@dataclass
class ConvertConfig:
    """Write a data set in another format."""

    data: str = option(help="a folder with pictures and boxes, or an annotation file", positional=True)
    out: str = option(help="folder to write, new or empty", positional=True)
    format: str = option(help="coco, yolo, voc or odvg", choices=_FORMATS)
    link: bool = option(False, "link the pictures in place of copying them")


@dataclass
class InitConfig:
    """Write a generated data set to try things on."""

    what: str = option(
        help="scenes: pictures of shapes, silhouettes, letters and digits", positional=True, choices=("scenes",)
    )
    out: str = option(help="folder to write, new or empty", positional=True)
    captions: bool = option(False, "grounding captions (ODVG) in place of boxes with classes (COCO)")
    classes: list[str] = option([], "what to draw, as 'red ring, striped star'; otherwise six classes")
    train: int = option(160, "pictures in train", low=1)
    valid: int = option(40, "pictures in valid", low=1)
    size: int = option(320, "pixels of the longer side", low=32)
    seed: int = option(0, "of every random choice", low=0)


@dataclass
class PredictConfig:
    """Find objects by name in pictures."""

    model: str = option(help=_MODEL_HELP, positional=True)
    images: list[str] = option(
        help="pictures, videos, folders or patterns of them, the number of a camera, or - for paths on stdin",
        positional=True,
    )
    classes: list[str] = option(
        [],
        "names to look for, as 'cat, remote control', or a .txt file with one a line; otherwise those of the fine-tuning",
    )
    phrase: list[str] = option(
        [],
        "in place of names a sentence, as 'the cat on the left', to look for as a whole; or what it has in brackets, as "
        "'a [cat] on the [sofa]'; repeatable",
        repeat=True,
    )
    threshold: float = option(0.3, "smallest score of a detection", low=0, high=1)
    thresholds: str | None = option(
        None, "a run, of which each class gets the threshold with the best F1; --threshold is for other names"
    )
    tiles: int | None = option(
        None, "look at larger pictures also in overlapping squares of so many pixels, for small objects", low=64
    )
    tile_overlap: float = option(0.2, "share of a tile that the next one shows again", low=0.05, high=0.8)
    recursive: bool = option(False, "look into the folders of a folder too")
    every: int = option(1, "look at each n-th frame of a video", low=1)
    save: str | None = option(None, "folder for the results")
    save_as: list[str] = option(
        ["drawn", "json"], "what is saved, as A,B of drawn, json, coco, yolo, csv, crops", choices=SAVED_AS
    )
    json: bool = option(False, "print JSON")
    batch_size: int = option(4, "pictures, or tiles, at a time", low=1)
    device: str = option("auto", _DEVICE_HELP)
    precision: str = option("auto", "fp32, bf16, or auto: bf16 where the device computes in it", choices=_PRECISIONS)
    threads: int = option(0, _THREADS_HELP, low=0)


@dataclass
class LabelConfig:
    """Let a model draw the boxes of pictures, as a data set."""

    model: str = option(help=_MODEL_HELP, positional=True)
    out: str = option(help="folder to write, new or empty")
    images: list[str] = option([], "pictures, folders or patterns of them", positional=True)
    data: str | None = option(
        None, "a data set, of which the training pictures without any box are labelled; it is written whole"
    )
    format: str = option("coco", "coco, which alone keeps the scores, yolo, voc or odvg", choices=_FORMATS)
    link: bool = option(False, "link the pictures in place of copying them")
    classes: list[str] = option([], "names to look for, as predict's; otherwise those of DATA or of the fine-tuning")
    threshold: float = option(0.3, "smallest score of a box", low=0, high=1)
    thresholds: str | None = option(
        None, "a run, of which each class gets the threshold with the best F1; --threshold is for other names"
    )
    nms: float = option(0.7, "of boxes of one class with a larger IoU the best one is kept", low=0, high=1)
    recursive: bool = option(False, "look into the folders of a folder too")
    batch_size: int = option(4, "pictures at a time", low=1)
    device: str = option("auto", _DEVICE_HELP)
    precision: str = option("auto", "fp32, bf16, or auto: bf16 where the device computes in it", choices=_PRECISIONS)
    threads: int = option(0, _THREADS_HELP, low=0)


@dataclass
class ReviewConfig:
    """Look through the boxes that a model drew, in the browser."""

    data: str = option(help="a COCO data set, such as label writes, or its .json file", positional=True)
    split: str = option("train", "which split of the folder")
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 lets in who knows the page's address")
    port: int = option(0, "port to listen at; 0 takes a free one", low=0, high=65535)


@dataclass
class DemoConfig:
    """Find objects by name on a page in the browser."""

    model: str = option(help=_MODEL_HELP, positional=True)
    base: str | None = option(None, "a model to show beside it, before and after: what MODEL was fine-tuned from")
    classes: list[str] = option([], "names to begin with, as 'cat, remote control'; otherwise those of the fine-tuning")
    threshold: float = option(0.3, "smallest score that the page begins with", low=0.05, high=1)
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 lets other machines in, and there is no password")
    port: int | None = option(None, "port to listen at; otherwise the first free one from 7860", low=1, high=65535)
    device: str = option("auto", _DEVICE_HELP)
    precision: str = option("auto", "fp32, bf16, or auto: bf16 where the device computes in it", choices=_PRECISIONS)
    threads: int = option(0, _THREADS_HELP, low=0)


@dataclass
class ExportConfig:
    """Write a model in a form that other tools read."""

    model: str = option(help=_MODEL_HELP, positional=True)
    format: str = option(
        "hf",
        "hf: a Hugging Face directory; onnx, openvino: a file for that runtime; idea: a .pth for IDEA's own code",
        choices=("hf", "onnx", "openvino", "idea"),
    )
    out: str | None = option(None, "folder (hf) or file (NAME.onnx, NAME.xml, NAME.pth) to write")
    classes: list[str] = option(
        [], "onnx, openvino: names to build in, as a,b: a closed set, without the language model"
    )
    closed: bool = option(False, "the same with the names that the model was fine-tuned on")
    precision: str = option(
        "fp32", "onnx, openvino: fp32; fp16, weights of half the size; int8", choices=("fp32", "fp16", "int8")
    )
    data: str | None = option(
        None, "measure the file against the model on this data set's split valid; its split train calibrates int8"
    )
    allow_loss: float = option(1.0, "points of AP that int8 may lose; otherwise nothing is written", low=0)
    push_to_hub: str | None = option(None, "owner/name of a model on the Hub, to upload the folder to")
    private: bool = option(False, "make the model on the Hub a private one")


@dataclass
class ReportConfig:
    """Write report.html of a run, finished or not; or a page that compares several runs."""

    runs: list[str] = option(help="a run folder, or several to compare", positional=True)
    out: str = option("comparison.html", "file of a comparison; the report of one run is RUN/report.html")
    data: str | None = option(None, "where its data lies now; otherwise where it was trained from")
    pictures: int = option(500, "pictures of the gallery at the most, the worst ones", low=0)


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
