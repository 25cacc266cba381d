"""Options of the verbs but `train`: one dataclass each; the command line and the help text come from its fields."""

from dataclasses import dataclass

from groundtune.config import DEVICE_HELP, MODEL_HELP, PRECISIONS, RENAME_HELP, THREADS_HELP
from groundtune.options import option

_FORMATS = ("coco", "yolo", "voc", "odvg")
_RAY_HELP = "share the pictures out among Ray's workers: local, auto, or a cluster's HOST:PORT or ray://HOST:PORT"
_RAY_WORKERS_HELP = "of --ray; 0 is one per GPU, or where there is none one per core"
SAVED_AS = ("drawn", "json", "coco", "yolo", "csv", "crops")


@dataclass
class EvaluateConfig:
    """Measure a model on a data set."""

    model: str = option(help=MODEL_HELP, positional=True)
    data: str = option(help="a folder with pictures and boxes, or a COCO .json file", positional=True)
    split: str = option("valid", "train, valid or test")
    classes: list[str] = option([], "names to ask for and to count, as a,b; all otherwise")
    rename: dict[str, str] = option({}, RENAME_HELP)
    out: str | None = option(None, "file for the detections, in COCO's result format")
    json: bool = option(False, "print JSON")
    batch_size: int = option(8, "pictures at a time", low=1)
    device: str = option("auto", DEVICE_HELP)
    precision: str = option("fp32", "fp32, bf16, or auto: bf16 where the device computes in it", choices=PRECISIONS)
    threads: int = option(0, THREADS_HELP, low=0)
    ray: str | None = option(None, _RAY_HELP)
    ray_workers: int = option(0, _RAY_WORKERS_HELP, low=0)


@dataclass
class BlendConfig:
    """Find the best model between a base and what was fine-tuned from it."""

    base: str = option(help=MODEL_HELP, positional=True)
    tuned: str = option(help="a run folder, or the model that was fine-tuned from BASE", positional=True)
    out: str = option(help="folder for the chosen model, with blend.json and blend.html")
    at: list[float] = option(
        [0.3, 0.5, 0.7], "points to measure beside the ends, 0 the base and 1 TUNED", low=0, high=1
    )
    data: str | None = option(None, "the data set that TUNED was made for; otherwise that of its run, the split valid")
    retain: list[str] = option([], "data sets that should not be forgotten, as PATH,PATH; otherwise those of its run")
    batch_size: int = option(8, "pictures at a time", low=1)
    device: str = option("auto", DEVICE_HELP)
    threads: int = option(0, THREADS_HELP, low=0)


@dataclass
class CheckConfig:
    """Look for what is wrong with a data set."""

    data: str = option(help="a folder with pictures and boxes, or a COCO .json file", positional=True)
    model: str = option("nano", MODEL_HELP + "; its limits are checked against")
    rename: dict[str, str] = option({}, RENAME_HELP)
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

    model: str = option(help=MODEL_HELP, positional=True)
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
    device: str = option("auto", DEVICE_HELP)
    precision: str = option("auto", "fp32, bf16, or auto: bf16 where the device computes in it", choices=PRECISIONS)
    threads: int = option(0, THREADS_HELP, low=0)


@dataclass
class LabelConfig:
    """Let a model draw the boxes of pictures, as a data set."""

    model: str = option(help=MODEL_HELP, positional=True)
    out: str = option(help="folder to write, new or empty")
    images: list[str] = option([], "pictures, folders or patterns of them", positional=True)
    data: str | None = option(
        None, "a data set, of which the training pictures without any box are labelled; it is written whole"
    )
    captions: str | None = option(
        None,
        'a file of lines {"picture": …, "caption": "a [cat] on the [left sofa]"}: what is in brackets is looked for in '
        "that picture, and a data set with captions is written",
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
    device: str = option("auto", DEVICE_HELP)
    precision: str = option("auto", "fp32, bf16, or auto: bf16 where the device computes in it", choices=PRECISIONS)
    threads: int = option(0, THREADS_HELP, low=0)
    ray: str | None = option(None, _RAY_HELP)
    ray_workers: int = option(0, _RAY_WORKERS_HELP, low=0)


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

    model: str = option(help=MODEL_HELP, positional=True)
    base: str | None = option(None, "a model to show beside it, before and after: what MODEL was fine-tuned from")
    classes: list[str] = option([], "names to begin with, as 'cat, remote control'; otherwise those of the fine-tuning")
    threshold: float = option(0.3, "smallest score that the page begins with", low=0.05, high=1)
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 lets other machines in, and there is no password")
    port: int | None = option(None, "port to listen at; otherwise the first free one from 7860", low=1, high=65535)
    device: str = option("auto", DEVICE_HELP)
    precision: str = option("auto", "fp32, bf16, or auto: bf16 where the device computes in it", choices=PRECISIONS)
    threads: int = option(0, THREADS_HELP, low=0)


@dataclass
class ExportConfig:
    """Write a model in a form that other tools read."""

    model: str = option(help=MODEL_HELP, positional=True)
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
