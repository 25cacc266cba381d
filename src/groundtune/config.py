"""The options of every command: one dataclass each.

Command line, YAML file, keyword arguments and help texts come from the fields.
A training run is resolved as defaults < the model's recipe < YAML file < command line; `options`
reads and checks the values. An option's default, unit and range stand here and nowhere else.
Nothing here imports torch.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from groundtune.errors import ConfigError, suggestion
from groundtune.options import COMMAND_LINE, Layer, check, fail, option, read_yaml, resolve

MODULES = ("backbone", "language_model", "neck", "encoder", "decoder", "bbox_head")
"""Module names in `param_groups`, as in MMDetection; paths may go deeper (encoder.layers.0)."""

TUNE_MODES = ("full", "lora", "prompt", "heads")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
DATA_FORMATS = ("coco", "yolo", "voc", "odvg", "csv", "hf")
EXPORT_FORMATS = ("hf", "onnx", "openvino", "idea")
EXPORT_PRECISIONS = ("fp32", "fp16", "int8")
PROVIDERS = ("auto", "tensorrt")
SAVE_FORMATS = ("annotated", "json", "coco", "yolo", "csv", "crops")

_LOGGERS = ("tensorboard", "wandb", "mlflow")
_PATHS = ("data", "model", "extra_data", "output_dir", "resume", "report_to", "retention_data", "rehearsal")
_NOT_A_PATH: tuple[Any, ...] = ([], ["self"], ["none"], "self", "none")

_MODEL = "preset (see `groundtune models`), model or run directory, .pth file, or Hugging Face Hub id"
_DATA = "data set (a directory of images with boxes, a zip or tar file of one, or an annotation file)"
_FORMAT = "format of the data set, as coco or yolo; default: recognized by its content"
_NEW_DIR = "directory to write, new or empty"
_CLASSES = "class names, as 'cat, remote control', or a .txt file of them; default: those of the fine-tuning"
_THRESHOLDS = "thresholds by class: cat=0.5,dog=0.3, a YAML or JSON file, or a run with its best-F1 ones"
_RENAME = "phrase for a class, as 'rbc=red blood cell|erythrocyte' or 'rbc=a {} cell'; repeatable"
_SIDES = (
    "short side of an image in pixels; default: the model's",
    "maximum long side in pixels; default: the model's",
)
_PRECISION = "auto uses bf16, or fp16 on a GPU without it, where the device has hardware for it"
_BATCH = "images per batch"
_PROVIDER = ".onnx files: auto follows --device; tensorrt builds an engine for every image size, for minutes"
_JSON = "print JSON"
_NMS_IOU = 0.7
_HOST = "address to listen on; 0.0.0.0 admits other machines"

# The groups of the help text.
_run, _training, _loss = (partial(option, group=group) for group in ("run", "training", "loss"))
_images, _prompts, _compute = (partial(option, group=group) for group in ("images", "prompts", "compute"))
_detections = partial(option, group="detections")
_nms = partial(_detections, help="IoU threshold of the per-class non-maximum suppression", low=0, high=1)


@dataclass(kw_only=True)
class ComputeOptions:
    """Where a command computes."""

    device: str = _compute(
        "auto", "auto, cpu, cuda, cuda:1 or mps; auto uses the accelerator if there is one"
    )
    threads: int = _compute(0, "CPU threads of PyTorch; 0 keeps PyTorch's own number", low=0)


@dataclass(kw_only=True)
class RayOptions:
    """How a command shares its images among Ray workers."""

    ray: str | None = _compute(
        None, "use Ray workers: local, auto, or a cluster as HOST:PORT or ray://HOST:PORT"
    )
    ray_workers: int = _compute(0, "Ray workers; 0 means one per GPU, or per CPU core without a GPU", low=0)


@dataclass(kw_only=True)
class SelectionOptions:
    """Which detections of an image are kept."""

    nms: float | None = _nms(None)
    agnostic_nms: bool = _detections(
        False, f"NMS across classes: one object, one name; IoU {_NMS_IOU} without --nms"
    )
    max_detections: int | None = _detections(None, "most detections per image; default: the 300 best", low=1)

    def __post_init__(self) -> None:
        if self.agnostic_nms and self.nms is None:
            self.nms = _NMS_IOU


@dataclass(kw_only=True)
class DetectOptions(ComputeOptions, SelectionOptions):
    """How a model detects objects in images."""

    classes: str | list[str] | None = option(None, _CLASSES)
    threshold: float = option(0.3, "confidence threshold", low=0, high=1)
    thresholds: str | dict[str, float] | None = option(None, _THRESHOLDS, low=0, high=1)
    batch_size: int = _compute(4, "images (or tiles) per batch", low=1)
    precision: str = _compute("auto", _PRECISION, choices=PRECISIONS)
    provider: str = _compute("auto", _PROVIDER, choices=PROVIDERS)


@dataclass(kw_only=True)
class PredictorOptions(DetectOptions):
    """How `Model.predict` detects objects."""

    phrase: list[str] = option(
        [],
        "sentence instead of classes, as 'the cat on the left' or 'a [cat] on the [sofa]'; repeatable",
        repeat=True,
    )
    tiles: int | None = option(
        None, "also detect in overlapping tiles of N pixels, for small objects", low=64
    )
    tile_overlap: float = option(0.2, "share of a tile that overlaps with the next one", low=0.05, high=0.8)
    max_megapixels: float = option(89.478485, "maximum size of an image in millions of pixels", low=89.478485)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phrase and self.classes:
            raise ConfigError("phrase, classes: a model detects sentences or classes; remove one of them.")


@dataclass
class OptimizerConfig:
    """The optimizer."""

    type: str = option("AdamW", "optimizer", choices=("AdamW",), flag=False)
    lr: float = _training(1e-4, "learning rate of modules with lr_mult 1", low=0, above=True)
    weight_decay: float = _training(1e-4, "weight decay of AdamW", low=0)


@dataclass
class ParamGroup:
    """Modules by their paths, and the multiplier of their learning rate."""

    modules: list[str] = option(help="module paths")
    lr_mult: float = option(1.0, "learning rate multiplier; 0 freezes the modules", low=0)


def _default_groups() -> list[ParamGroup]:
    trained = [name for name in MODULES if name not in ("backbone", "language_model")]
    return [ParamGroup(["backbone"], 0.0), ParamGroup(["language_model"], 0.0), ParamGroup(trained, 1.0)]


@dataclass(kw_only=True)
class TrainConfig(ComputeOptions):
    """Fine-tune a model on a data set."""

    data: str = option(help=_DATA, positional=True)
    model: str = _run("nano", _MODEL)
    format: str | None = _run(None, _FORMAT)
    exhaustive: bool = _run(
        True,
        "every object has a box; otherwise only the classes of an image's boxes are taught as background",
    )
    incomplete: list[str] = _run([], "data sets, or folders in them, of which not every object has a box")
    extra_data: list[str] = _run(
        [], "more training data, as PATH=WEIGHT; WEIGHT (1) is how often an image is shown per epoch"
    )
    output_dir: str | None = _run(
        None, "run directory, new or empty; default: runs/DATA-MODEL, numbered", short="-o"
    )
    resume: str | None = _run(None, "run directory of an interrupted run to resume, with its own options")
    seed: int = _run(0, "random seed", low=0, high=2**32 - 1)
    report_to: list[str] = _run(
        ["auto"],
        "loggers: auto (TensorBoard if installed), none, tensorboard, wandb, mlflow",
        choices=("auto", "none", *_LOGGERS),
    )
    retention_data: list[str] = _run(
        ["self"],
        "data sets that measure forgetting, evaluated before and after training; self measures whether "
        "the model still detects the common objects that it detected before; none skips it",
    )
    rehearsal: list[str] = _run(
        [], "data sets to rehearse against forgetting, as PATH=SHARE; SHARE (0.2) of an epoch's images"
    )
    self_distillation: bool = _run(False, "also train on the model's own detections of unlabeled objects")
    max_train_images: int | None = _run(None, "use only the first N training images", low=1)
    max_valid_images: int | None = _run(None, "use only the first N validation images", low=1)

    epochs: int = _training(20, "passes over the training images", low=1)
    min_steps: int = _training(
        0, "minimum number of steps, for small data sets; 0 if epochs are given", low=0
    )
    batch_size: int = _training(
        4, "images per step, over all devices; auto takes what fits a GPU and adapts lr", low=0, auto=True
    )
    micro_batch_size: int = _training(
        0, "images that a device computes at a time, to save memory; 0 means all", low=0
    )
    eval_epochs: int = _training(1, "epochs between evaluations", low=1)
    save_steps: int = _training(500, "steps between checkpoints; 0 saves only at the end of an epoch", low=0)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    param_groups: list[ParamGroup] = field(default_factory=_default_groups)
    tune: str = _training(
        "full",
        "weights to train: full (all but backbone and language model), lora (low-rank adapters and the "
        "heads), heads, or prompt (only the class-name embeddings; other classes are unaffected)",
        choices=TUNE_MODES,
    )
    lora_rank: int = _training(8, "rank of --tune lora", low=1)
    lora_alpha: float = _training(16.0, "alpha of --tune lora; the scale is alpha / rank", low=0, above=True)
    blend: float | None = _training(
        None,
        "final weights between the base model (0) and the trained one (1); see groundtune blend",
        low=0,
        high=1,
    )
    keep_base: bool = _training(
        False, "save the base model's weights too, and use them for all other class names"
    )
    max_grad_norm: float = _training(0.1, "gradient clipping norm; 0 disables clipping", low=0)
    warmup_steps: int = _training(50, "steps of linear learning rate warm-up", low=0)
    lr_drop_at: float = _training(0.7, "share of training after which the learning rate drops", low=0, high=1)
    lr_drop_factor: float = _training(0.1, "factor of that drop", low=0, high=1)
    ema_decay: float = _training(
        0.0, "decay of the EMA of the weights; 0 disables it", low=0, high=1, below=True
    )
    denoising: bool = _training(True, "contrastive denoising queries")

    loss_cls: float = _loss(2.0, "weight of the classification loss", low=0)
    loss_bbox: float = _loss(5.0, "weight of the L1 box loss", low=0)
    loss_giou: float = _loss(2.0, "weight of the GIoU box loss", low=0)
    focal_alpha: float = _loss(0.25, "alpha of the focal loss: weight of positive tokens", low=0, high=1)
    focal_gamma: float = _loss(2.0, "gamma of the focal loss", low=0)

    short_side: int | None = _images(None, _SIDES[0], low=32)
    max_side: int | None = _images(None, _SIDES[1], low=32)
    flip: float = _images(0.5, "probability of a horizontal flip", low=0, high=1)
    multi_scale: list[float] = _images(
        [], "factors of the short side to choose from, as 0.8,1,1.2", low=0.1, high=10
    )
    crop: float = _images(0.0, "probability of a random crop", low=0, high=1)
    cache_features: bool = _images(False, "compute the features of a frozen backbone once and cache them")
    cache_views: int = _images(2, "augmented views of each image in the feature cache", low=1)

    shuffle_classes: bool = _prompts(True, "shuffle the class names in every prompt")
    rename: dict[str, str] = _prompts({}, _RENAME)
    negative_probability: float = _prompts(
        0.5, "probability that a prompt has only a sample of the absent classes", low=0, high=1
    )

    devices: int = _compute(
        1, "processes to start, one per GPU; torchrun, accelerate and srun start their own", low=1
    )
    precision: str = _compute("auto", f"{_PRECISION}; losses are always fp32", choices=PRECISIONS)
    deterministic: bool = _compute(False, "equal numbers in each run on one device; slower on a GPU")
    compile: bool = _compute(
        False, "compile the deformable sampling, on a GPU whole layers: a minute or more, then faster steps"
    )
    gradient_checkpointing: bool = _compute(
        False, "recompute the encoder's activations: less memory, more time"
    )
    workers: int | None = _compute(
        None, "threads that load images ahead; auto: one per core, at most 8, with a GPU, else 0", low=0
    )
    max_nonfinite_steps: int = _compute(
        5, "consecutive steps with a non-finite loss before training stops", low=1
    )
    max_unreadable_share: float = _compute(
        0.01, "share of unreadable images (at least one) before training stops; 0 allows none", low=0, high=1
    )
    log_steps: int = _compute(10, "steps between lines of metrics.jsonl", low=1)


@dataclass(kw_only=True)
class LoadOptions:
    """How `groundtune.load` opens a model."""

    source: str = option(help=_MODEL)
    seed: int = option(TrainConfig.seed, low=0, high=2**32 - 1)
    device: str = option(ComputeOptions.device)
    precision: str = option(DetectOptions.precision, choices=PRECISIONS)


@dataclass(kw_only=True)
class EvaluateConfig(ComputeOptions, RayOptions):
    """Evaluate a model on a data set: AP, or the recall of phrases."""

    model: str = option(help=_MODEL, positional=True)
    data: str = option(help=_DATA, positional=True)
    format: str | None = option(None, _FORMAT)
    split: str = option("valid", "train, valid or test")
    classes: str | list[str] | None = option(None, "class names to detect and to evaluate; default: all")
    rename: dict[str, str] = option({}, _RENAME)
    output: str | None = option(None, "file for the detections, in COCO's result format", short="-o")
    json: bool = option(False, _JSON)
    batch_size: int = _compute(8, _BATCH, low=1)
    precision: str = _compute("fp32", _PRECISION, choices=PRECISIONS)
    provider: str = _compute("auto", _PROVIDER, choices=PROVIDERS)


@dataclass(kw_only=True)
class BlendConfig(ComputeOptions):
    """Find the best model between a base model and its fine-tuned version."""

    base: str = option(help=_MODEL, positional=True)
    tuned: str = option(help="run directory or model that was fine-tuned from BASE", positional=True)
    output_dir: str = option(help="directory for the best model, blend.json and blend.html", short="-o")
    alphas: list[float] = option(
        [0.3, 0.5, 0.7],
        "points to evaluate between BASE (0) and TUNED (1), which are evaluated too",
        low=0,
        high=1,
    )
    data: str | None = option(None, "data set of the fine-tuning; default: that of the run")
    retention_data: list[str] = option([], "data sets that measure forgetting; default: those of the run")
    batch_size: int = _compute(8, _BATCH, low=1)


@dataclass(kw_only=True)
class CheckConfig:
    """Check a data set for errors."""

    data: str = option(help=_DATA, positional=True)
    format: str | None = option(None, _FORMAT)
    model: str = option("nano", f"{_MODEL}; its limits apply")
    rename: dict[str, str] = option({}, _RENAME)
    ignore: list[str] = option([], "checks to skip, as near-duplicate,object-tiny")
    fast: bool = option(False, "skip the checks that open images")
    json: bool = option(False, _JSON)
    strict: bool = option(False, "exit with code 3 on warnings too")
    short_side: int | None = option(None, _SIDES[0], low=32)
    max_side: int | None = option(None, _SIDES[1], low=32)
    workers: int = option(0, "threads that decode images; 0 means one per core, at most 8", low=0)


@dataclass(kw_only=True)
class ConvertConfig:
    """Convert a data set to another format."""

    data: str = option(help=_DATA, positional=True)
    output_dir: str = option(help=_NEW_DIR, positional=True)
    format: str = option(help="format to write", choices=DATA_FORMATS)
    input_format: str | None = option(None, _FORMAT)
    link: bool = option(False, "link the images instead of copying them")


@dataclass(kw_only=True)
class InitConfig:
    """Generate a data set to try things on."""

    what: str = option(
        help="scenes: images of shapes, silhouettes, letters and digits", positional=True, choices=("scenes",)
    )
    output_dir: str = option(help=_NEW_DIR, positional=True)
    captions: bool = option(False, "write captions with phrases (ODVG) instead of boxes with classes (COCO)")
    classes: str | list[str] | None = option(
        None, "classes to draw, as 'red ring, striped star'; default: six"
    )
    train_images: int = option(160, "number of training images", low=1)
    valid_images: int = option(40, "number of validation images", low=1)
    image_size: int = option(320, "long side of an image in pixels", low=32)
    seed: int = option(0, "random seed", low=0)

    def __post_init__(self) -> None:
        if self.captions and self.classes:
            raise ConfigError("captions, classes: captioned scenes have all classes; remove one of them.")


@dataclass(kw_only=True)
class PredictConfig(PredictorOptions):
    """Detect objects by name in images and videos."""

    model: str = option(help=_MODEL, positional=True)
    images: list[str] = option(
        help="images, videos, directories, glob patterns, addresses, a camera number, or - for stdin",
        positional=True,
    )
    recursive: bool = option(False, "search directories recursively")
    frame_stride: int = option(1, "process every N-th frame of a video", low=1)
    output_dir: str | None = option(None, "directory for the results", short="-o")
    save_as: list[str] = option(
        ["annotated", "json"], f"what to save: {', '.join(SAVE_FORMATS)}", choices=SAVE_FORMATS
    )
    json: bool = option(False, _JSON)


@dataclass(kw_only=True)
class LabelConfig(DetectOptions, RayOptions):
    """Label images with a model and write a data set."""

    model: str = option(help=_MODEL, positional=True)
    images: list[str] = option([], "images, directories or glob patterns", positional=True)
    output_dir: str = option(help=_NEW_DIR, short="-o")
    recursive: bool = option(False, "search directories recursively")
    data: str | None = option(
        None, "data set whose training images without boxes are labeled; it is written as a whole"
    )
    captions: str | None = option(
        None,
        'JSON Lines file of {"image": …, "caption": "a [cat] on the [left sofa]"}; the phrases in '
        "brackets are detected and written as a data set with captions",
    )
    input_format: str | None = option(None, _FORMAT)
    format: str = option("coco", "format to write; only coco keeps the scores", choices=DATA_FORMATS)
    link: bool = option(False, "link the images instead of copying them")
    nms: float | None = _nms(_NMS_IOU)


@dataclass(kw_only=True)
class ReviewConfig:
    """Review the boxes of a labeled data set in the browser."""

    data: str = option(
        help="COCO data set, as `groundtune label` writes it, or its .json file", positional=True
    )
    split: str = option("train", "split to review")
    host: str = option("127.0.0.1", f"{_HOST} that know the page's address")
    port: int = option(0, "port to listen on; 0 means a free one", low=0, high=65535)


@dataclass(kw_only=True)
class DemoConfig(ComputeOptions, SelectionOptions):
    """Detect objects on a page in the browser."""

    model: str = option(help=_MODEL, positional=True)
    base: str | None = option(None, "second model to compare with, such as the base model of the fine-tuning")
    classes: str | list[str] | None = option(
        None, "initial class names, as 'cat, remote control'; default: those of the fine-tuning"
    )
    threshold: float = option(0.3, "initial confidence threshold", low=0.05, high=1)
    host: str = option("127.0.0.1", f"{_HOST}, without a password")
    port: int | None = option(
        None, "port to listen on; default: the first free one from 7860", low=1, high=65535
    )
    precision: str = _compute("auto", _PRECISION, choices=PRECISIONS)


@dataclass(kw_only=True)
class ExportConfig:
    """Export a model for other tools."""

    model: str = option(help=_MODEL, positional=True)
    format: str = option(
        "hf",
        "hf: Hugging Face directory; onnx, openvino: file for that runtime; idea: .pth for IDEA's code",
        choices=EXPORT_FORMATS,
    )
    output: str | None = option(None, "directory (hf) or file (.onnx, .xml, .pth) to write", short="-o")
    classes: str | list[str] | None = option(
        None, "onnx, openvino: classes to build in; the file has no language model then"
    )
    fixed_classes: bool = option(False, "onnx, openvino: build in the classes of the fine-tuning")
    precision: str = option("fp32", "onnx, openvino: precision of the weights", choices=EXPORT_PRECISIONS)
    opset: int = option(17, "onnx: version of ONNX's operators", low=16, high=20)
    data: str | None = option(
        None, "onnx, openvino: data set to compare with the model on (valid) and to calibrate int8 on (train)"
    )
    max_ap_drop: float = option(1.0, "points of AP that int8 may lose; otherwise nothing is written", low=0)
    push_to_hub: str | None = option(None, "OWNER/NAME on the Hugging Face Hub to upload the directory to")
    private: bool = option(False, "make the model on the Hub private")

    def __post_init__(self) -> None:
        if self.output is None and self.push_to_hub is None:
            fix = "give a directory or file to write, or a model on the Hub with push_to_hub."
            raise ConfigError(f"output: missing; {fix}")
        if self.push_to_hub is not None and self.format != "hf":
            raise ConfigError(f"push_to_hub: expected format hf, got {self.format!r}.")
        graph_only = self.classes or self.fixed_classes or self.data is not None or self.precision != "fp32"
        if graph_only and self.format in ("hf", "idea"):
            names = "classes, fixed_classes, precision, data"
            raise ConfigError(f"{names}: only for the formats onnx and openvino, not for {self.format}.")
        if self.opset != type(self).opset and self.format != "onnx":
            raise ConfigError(f"opset: only for the format onnx, not for {self.format}.")


@dataclass(kw_only=True)
class ReportConfig:
    """Write report.html of a run, or compare several runs."""

    runs: list[str] = option(help="run directory, or several to compare", positional=True)
    output: str = option(
        "comparison.html", "file of the comparison; a run's report is RUN/report.html", short="-o"
    )
    data: str | None = option(None, "current location of the data set; default: where the run read it")
    max_images: int = option(500, "maximum number of images in the gallery, the worst ones first", low=0)


@dataclass(kw_only=True)
class ModelsConfig:
    """List the built-in and the published models."""


@dataclass(kw_only=True)
class EnvConfig:
    """Show versions and the machine, for results and bug reports."""


def train_config(
    given: Mapping[str, Any],
    yaml_path: Path | None,
    recipe: Mapping[str, Any] | Callable[[str], Mapping[str, Any]],
    *,
    where: str = COMMAND_LINE,
) -> TrainConfig:
    """Resolve the options of a training run: defaults < recipe < YAML file < given.

    Args:
        given: options by name; those of the optimizer with or without the prefix "optimizer.".
            Strings are converted.
        yaml_path: a YAML file, or None, which means config.yaml of the run to resume, if any.
        recipe: training defaults of the model. A function receives the name of the model, and is
            called when all options are valid.
        where: name of the source of `given` in messages.

    Raises:
        ConfigError: the file cannot be read, or options are unknown or invalid; all of them are
            listed.
    """
    if given.get("resume") and yaml_path is None:
        yaml_path = Path(given["resume"]) / "config.yaml"
        if not yaml_path.is_file():
            raise ConfigError(f"resume: {given['resume']} is not a run directory (no config.yaml).")
        given = {"output_dir": given["resume"], **({"min_steps": 0} if "epochs" in given else {}), **given}
    file = read_yaml(yaml_path) if yaml_path else {}
    optimizer = {item.name for item in fields(OptimizerConfig)}
    given = {f"optimizer.{name}" if name in optimizer else name: value for name, value in given.items()}

    def training_defaults(values: Mapping[str, Any]) -> Mapping[str, Any]:
        defaults = recipe(values.get("model", TrainConfig.model)) if callable(recipe) else recipe
        # A recipe may come with an untrusted model.
        paths = [name for name, value in defaults.items() if name in _PATHS and value not in _NOT_A_PATH]
        fail([f"the model's recipe: {name}: a recipe may not set paths; remove this key." for name in paths])
        if "epochs" in values:  # an explicit number of epochs is meant
            return {name: value for name, value in defaults.items() if name != "min_steps"}
        return defaults

    layers: list[Layer] = [(where, given), (str(yaml_path), file), ("the model's recipe", training_defaults)]
    config = resolve(TrainConfig, layers)
    validate(config)
    return config


def validate(config: TrainConfig) -> None:
    """Check a training configuration, including one that was built by hand.

    Raises:
        ConfigError: values out of range, unknown modules, or conflicting options; all of them are
            listed.
    """
    problems = check(config) + _group_problems(config.param_groups)
    if config.tune != "full" and config.param_groups != _default_groups():
        problems.append(
            f"tune, param_groups: --tune {config.tune} and param_groups both choose the trained weights; "
            "remove one of them."
        )
    if config.keep_base and (config.tune != "full" or config.blend is not None):
        problems.append("keep_base: requires --tune full without --blend; remove these options.")
    if config.short_side and config.max_side and config.short_side > config.max_side:
        problems.append(f"short_side: {config.short_side} is larger than max_side {config.max_side}.")
    problems += [
        f"report_to: {name} is not installed. Install it (pip install {name}), or remove it."
        for name in config.report_to
        if name in _LOGGERS and importlib.util.find_spec(name) is None
    ]
    fail(problems)


def to_yaml(config: TrainConfig) -> str:
    """Return all options as YAML, which `train --config` reads back to the same configuration."""
    import yaml

    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def _group_problems(groups: list[ParamGroup]) -> list[str]:
    """Return what is wrong with the module names; only the network knows deeper paths."""
    paths = [path for group in groups for path in group.modules]
    problems = [
        f"param_groups[{index}].modules: empty; expected module names."
        for index, group in enumerate(groups)
        if not group.modules
    ]
    expected = f"expected {', '.join(MODULES)}, or a path inside them."
    for path in dict.fromkeys(paths):
        top = path.split(".")[0]
        if top not in MODULES:
            hint = suggestion(top, MODULES)
            problems.append(f"param_groups: unknown module {path!r}; {expected}{hint}")
        if paths.count(path) > 1:
            problems.append(f"param_groups: {path!r} is in more than one group; keep one of them.")
    return problems
