"""The application: what the Python interface and the command line do, one function per command.

All functions have some arguments in common:

- `model` is a loaded `Model`, or a source for `load`.
- `data` is a directory of images with boxes, or an annotation file.
- `options` are the other options of the command with the same name. `groundtune COMMAND --help`
  lists them. None leaves an option at its default.
- `config` has all options at once instead, as an instance of the command's class in
  `groundtune.config`.
- `quiet` hides the progress that is shown on stderr.

A `ConfigError` lists all options that are unknown or invalid; a `DataError` says that images,
annotations or class names cannot be used; a `CheckpointError` says the same of a model.
"""

import json
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from groundtune import config as configs
from groundtune.config import DetectOptions, ExportConfig, ReportConfig, TrainConfig, train_config
from groundtune.errors import CheckpointError, ConfigError, DataError, NotWritten
from groundtune.options import read_yaml, resolve
from groundtune.printing import class_table
from groundtune.progress import Progress

if TYPE_CHECKING:
    from gradio import Blocks
    from supervision import Detections

    from groundtune.data.check.run import Report
    from groundtune.data.formats.convert import Converted
    from groundtune.data.formats.detect import Splits
    from groundtune.engine.blend import BlendPoint
    from groundtune.engine.evaluate import Evaluation
    from groundtune.engine.train import RunResult
    from groundtune.model.bundle import ModelBundle
    from groundtune.predict.inputs import ImageInput
    from groundtune.predict.label import Labeled
    from groundtune.predict.predictor import Predictor
    from groundtune.web.review_server import ReviewServer

    ClassNames = str | Iterable[str] | None
_C = TypeVar("_C")


@dataclass
class Model:
    """A loaded model.

    Attributes:
        bundle: network, tokenizer and image format.
        device: default device of all commands: auto, cpu, cuda, …
        precision: default precision of `predict` and `label`: auto, fp32, tf32, bf16 or fp16.
    """

    bundle: "ModelBundle"
    device: str = DetectOptions.device
    precision: str = DetectOptions.precision

    @property
    def classes(self) -> list[str]:
        """The class names of the fine-tuning; empty for a base model."""
        return list(self.bundle.classes)

    @overload
    def predict(self, images: "ImageInput", classes: "ClassNames" = None, **options: Any) -> "Detections": ...
    @overload
    def predict(
        self,
        images: "list[Any] | tuple[Any, ...] | Generator[Any]",
        classes: "ClassNames" = None,
        **options: Any,
    ) -> "list[Detections]": ...
    def predict(
        self, images: "ImageInput | Iterable[ImageInput]", classes: "ClassNames" = None, **options: Any
    ) -> "Detections | list[Detections]":
        """Detect objects by name.

        Args:
            images: an image (path, http(s) address, bytes, open file, PIL image, RGB array or
                tensor), or a batch or an iterable of images; docs/predict.md has the rules.
            classes: class names to detect, also as "cat, dog" or "cat . dog ."; None means those of
                the fine-tuning.
            options: threshold=0.3, nms=0.5, phrase, tiles, batch_size and others, see `predictor`.

        Returns:
            The detections, best first: boxes xyxy in pixels, `class_id` the index of the class
            name, `data["class_name"]`. A batch or an iterable of images gives a list.
        """
        from groundtune.predict.inputs import is_single

        detections = list(self.predictor(classes, **options).each(images))
        return detections[0] if is_single(images) else detections

    def predictor(self, classes: "ClassNames" = None, **options: Any) -> "Predictor":
        """Prepare a prompt for many images: `for d in model.predictor(["cat"]).each(paths)`.

        Args:
            classes: as in `predict`.
            options: those of `groundtune.config.PredictorOptions`: threshold, thresholds by class
                (a mapping, or as on the command line), nms, max_detections, phrase, tiles, …
        """
        given = {"model": self, "classes": classes, **options}
        config = _resolve(configs.PredictorOptions, None, "predictor()", **given)
        return _predictor(self.bundle, config)

    def save(self, folder: str | Path) -> None:
        """Write a model directory for `load`. It appears when complete, and replaces an old one."""
        from groundtune.model.checkpoint.save import save_bundle

        config = _resolve(ExportConfig, None, "save()", model=self, output=folder)
        save_bundle(_with_weights(self, "saved"), Path(config.output or folder))


def load(source: str | Path, **options: Any) -> Model:
    """Load a model.

    Args:
        source: a preset ("nano"), a model or run directory, a Hugging Face directory or Hub id such
            as "IDEA-Research/grounding-dino-tiny", a .pth file of IDEA or MMDetection, or an
            exported .onnx or .xml file.
        options: device (auto, cpu, cuda, …) and precision (auto, fp32, …), the defaults of the
            model's commands; seed of the weights that the source lacks.
    """
    config = _resolve(configs.LoadOptions, None, "load()", source=source, **options)
    from groundtune.device import pick_device

    pick_device(config.device)
    path = Path(config.source)
    if path.suffix in (".onnx", ".xml") and path.is_file():
        from groundtune.exporting.runtime import open_exported

        return Model(open_exported(path), config.device, config.precision)
    from groundtune.model.checkpoint.load import load_bundle, model_source

    bundle = load_bundle(model_source(config.source), seed=config.seed)
    return Model(bundle, config.device, config.precision)


def train(
    model: Model | str | Path | None = None,
    data: str | Path | None = None,
    *,
    output_dir: str | Path | None = None,
    config: str | Path | TrainConfig | None = None,
    quiet: bool = False,
    **options: Any,
) -> "RunResult":
    """Fine-tune a model on a data set. Nothing is written before training starts.

    Args:
        model: if it is loaded, it is trained in place and has the best weights afterwards.
        output_dir: run directory, new or empty; None means the first free one of runs/DATA-MODEL.
        config: YAML file of options, or a `TrainConfig`.
        options: such as epochs=20 or lr=1e-4; they override those of the file.

    Returns:
        The run: `folder`, `zero_shot["valid/AP"]`, `metrics["valid/AP"]` of the best weights,
        `per_class`.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGUSR1 interrupted the run, which can be resumed.
        OutOfMemory: there is no memory for a single image.
        TrainingDiverged: the loss stayed non-finite.
    """
    bundle = _with_weights(model, "trained") if isinstance(model, Model) else None
    options |= {"model": model, "data": data, "output_dir": output_dir}
    if isinstance(config, TrainConfig):
        config = _resolve(TrainConfig, config, "train()", **options)
        configs.validate(config)
    else:
        config = training_options(_given(TrainConfig, **options), config, "train()", bundle)
    from groundtune.data.check.run import describe_classes
    from groundtune.engine.distributed import is_main
    from groundtune.engine.prepare import prepare
    from groundtune.engine.rendezvous import check_launcher
    from groundtune.engine.train import train as run_training
    from groundtune.report.build import build_report

    check_launcher(config.devices)
    run = prepare(config, bundle)
    progress = Progress(quiet=quiet or not is_main())
    for message in [*(text for dataset in run.splits.values() for text in dataset.messages), *run.unread]:
        progress.message(message)
    progress.message(class_table(describe_classes(run.splits, run.bundle.tokenizer)))
    progress.message(f"Run directory: {run.folder}")
    if run.warnings:
        names = ", ".join(dict.fromkeys(run.warnings))
        progress.message(f"Warnings about the data: {names}. For details: groundtune check {config.data}")
    config = replace(config, output_dir=str(run.folder))
    result = run_training(config, run.bundle, run.training_splits, run.folder, progress, run.retention_data)
    if is_main():
        try:
            build_report(run.folder, run.splits, ReportConfig.max_images)
        except OSError as error:  # the run itself is complete
            fix = f"Once there is room: groundtune report {run.folder}"
            progress.message(f"Cannot write the report: {error}. {fix}")
    return result


def training_options(
    given: Mapping[str, Any], file: str | Path | None, where: str, bundle: "ModelBundle | None" = None
) -> TrainConfig:
    """Resolve the options of a training run; `where` names `given` in messages."""
    path = Path(file) if file else None
    if bundle is not None:
        return train_config(given, path, bundle.recipe, where=where)

    def recipe(source: str) -> Mapping[str, Any]:
        from groundtune.model.checkpoint.load import load_recipe, model_source

        return load_recipe(model_source(source))

    config = train_config(given, path, recipe, where=where)
    from groundtune.model.checkpoint.load import model_source

    return replace(config, model=model_source(config.model))


def train_in_processes(config: TrainConfig) -> "int | RunResult | None":
    """Train with `devices` processes, which this one starts unless a launcher has started it.

    Returns:
        The exit code of the started processes; or the run, None in other than the main process.
    """
    from groundtune.engine.distributed import init_distributed_env, is_main, launch, launched

    init_distributed_env()
    if config.devices > 1 and not launched():
        return launch(config.devices, config.device, config.threads)
    result = train(config=config)
    return result if is_main() else None


def retention_rows(run: "RunResult") -> list[tuple[str, str, float | None, float | None, float | None]]:
    """Return name, metric, values before and after, and their quotient of each retention set."""
    from groundtune.metrics.grounding import retention

    return [(name, *retention(numbers)) for name, numbers in run.retention.items()]


def evaluate(
    model: Model | str | Path | None = None,
    data: str | Path | None = None,
    *,
    config: configs.EvaluateConfig | None = None,
    quiet: bool = True,
    **options: Any,
) -> "Evaluation":
    """Evaluate a model on a data set.

    Returns:
        `metrics["AP"]` and so on, by the rules of LVIS if categories have a frequency,
        `metrics["recall@1"]` and so on for captions; `per_class[name]["AP"]`; `predictions` in
        COCO's result format, with `file_name` and `category_name`.

    Raises:
        NotWritten: `output` cannot be written in the end; the error's `result` is the evaluation.
    """
    config = _resolve(configs.EvaluateConfig, config, "evaluate()", model=model, data=data, **options)
    from groundtune.files import check_writable

    if config.output:
        check_writable(Path(config.output), "output")
    from groundtune.data.combine import recall_phrases
    from groundtune.data.reading import read_data
    from groundtune.data.sample import match_class_names
    from groundtune.device import pick_device, pick_precision, set_up_cpu
    from groundtune.engine.evaluate import eval_task, name_images_and_classes, run_task
    from groundtune.engine.ray_evaluation import evaluate_on_ray
    from groundtune.exporting.runtime import use_provider
    from groundtune.predict.ray import RayPool
    from groundtune.text.prompt import split_names

    splits = read_data(config.data, [], config.rename, format=config.format, needed=[config.split])
    dataset = splits[config.split]
    bundle = _loaded(model, config.model)
    use_provider(bundle.network, config.provider)
    recall_phrases(list(splits.values()), bundle.phrases)
    names = split_names(config.classes, [*dataset.class_names, *dataset.phrases])
    indices = match_class_names(names, dataset.class_names, dataset.phrases) if names else None
    with closing(Progress(quiet=quiet)) as progress:
        for message in _evaluation_messages(splits, config.split, bundle):
            progress.message(message)
        if config.ray is not None:
            task = eval_task(bundle, dataset, indices, config.precision)
            pool = RayPool(config.ray, config.ray_workers, config.threads, gpus=config.device != "cpu")
            settings: dict[str, Any] = {"batch_size": config.batch_size, "device": config.device}
            result = evaluate_on_ray(task, dataset, pool, progress=progress, **settings)
        else:
            set_up_cpu(config.threads)
            device = pick_device(config.device)
            task = eval_task(bundle, dataset, indices, pick_precision(config.precision, device))
            result = run_task(task, dataset, config.batch_size, device, progress)
        if task.prompts is not None and task.prompts.warning:
            progress.message(task.prompts.warning)
    name_images_and_classes(dataset, result.predictions)
    if config.output:
        _write_predictions(result, Path(config.output))
    return result


def _write_predictions(result: "Evaluation", path: Path) -> None:
    from groundtune.files import write_whole

    try:
        write_whole(path, json.dumps(result.predictions).encode())
    except OSError as error:
        raise NotWritten(f"output: cannot write {path}: {error.strerror or error}.", result) from error


def _evaluation_messages(splits: "Splits", split: str, bundle: "ModelBundle") -> Iterator[str]:
    """Yield what to know about the data before an evaluation."""
    from groundtune.data.sample import join_examples

    dataset = splits[split]
    yield from dataset.messages
    if split == "valid" and "train" in splits:
        yield from (str(each) for each in splits["train"].findings if each.check == "split-made")
    own, classes = bundle.phrases_of(bundle.classes), zip(dataset.class_names, dataset.phrases, strict=True)
    new = [repr(name) for name, phrase in classes if phrase not in own]
    if own and new:
        yield f"The model was not fine-tuned on {join_examples(new)}."


def predict(
    model: Model | str | Path | None = None,
    images: str | Path | Sequence[str | Path] | None = None,
    *,
    config: configs.PredictConfig | None = None,
    quiet: bool = True,
    **options: Any,
) -> Generator[dict[str, Any], None, None]:
    """Detect objects in images and videos, and save the results if there is an `output_dir`.

    Yields:
        One mapping per image or frame, see `groundtune.predict.run.predict_files`.
    """
    images = None if images is None else _as_list(images)
    config = _resolve(configs.PredictConfig, config, "predict()", model=model, images=images, **options)
    from groundtune.predict.sources import check_inputs_exist, check_output_not_input

    check_inputs_exist(config.images, config.recursive)
    if config.output_dir is not None:
        check_output_not_input(Path(config.output_dir), config.images, config.recursive)
    from groundtune.predict.run import predict_files

    progress = Progress(quiet=quiet)
    return predict_files(config, _predictor(_loaded(model, config.model), config, progress), progress)


def label(
    model: Model | str | Path | None = None,
    images: str | Path | Sequence[str | Path] = (),
    *,
    output_dir: str | Path | None = None,
    config: configs.LabelConfig | None = None,
    quiet: bool = True,
    **options: Any,
) -> "Labeled":
    """Label images with a model and write a data set. An interrupted labeling is resumed.

    Args:
        images: images, directories or glob patterns.
        output_dir: directory to write, new or empty.
        options: such as data="data/cells" or threshold=0.4.

    Returns:
        `written.images` and `written.boxes` by split; `unreadable`, the skipped images and the
        reasons.
    """
    given = {**options, "images": _as_list(images), "output_dir": output_dir}
    config = _resolve(configs.LabelConfig, config, "label()", model=model, **given)
    from groundtune.predict.label import label as label_images
    from groundtune.predict.label import read_given

    splits = read_given(config)
    default = splits["train"].class_names if splits else ["object"] if config.captions else []
    progress = Progress(quiet=quiet)
    predictor = _predictor(_loaded(model, config.model), config, progress, default)
    return label_images(config, predictor, splits, progress)


def blend(
    base: str | Path | None = None,
    tuned: str | Path | None = None,
    output_dir: str | Path | None = None,
    *,
    config: configs.BlendConfig | None = None,
    quiet: bool = True,
    **options: Any,
) -> "tuple[list[BlendPoint], BlendPoint]":
    """Find the best interpolation between a base model and its fine-tuned version.

    Args:
        tuned: a run directory, whose data is evaluated on; or a source for `load`, with data=.
        output_dir: directory for the best model, with blend.json and blend.html.
        options: such as alphas=[0.3, 0.5].

    Returns:
        The points in order (`alpha`, `metrics`, `retention`, `gain`, `retention_share`), and the
        best one.
    """
    given = {**options, "base": base, "tuned": tuned, "output_dir": output_dir}
    config = _resolve(configs.BlendConfig, config, "blend()", **given)
    run_file = Path(config.tuned) / "config.yaml"
    run = read_yaml(run_file) if run_file.is_file() else {}
    data = config.data or run.get("data")
    if not data:
        fix = "Give the data set that it was fine-tuned on."
        raise ConfigError(f"data: missing; {config.tuned} is not a run directory. {fix}")
    from groundtune.data.combine import recall_phrases
    from groundtune.data.reading import read_retention_data, read_run_data
    from groundtune.device import pick_device, set_up_cpu
    from groundtune.engine.blend import best_blend
    from groundtune.model.checkpoint.save import check_replaceable, save_bundle
    from groundtune.report.blend import write_blend

    splits = read_run_data(run, data)
    if "valid" not in splits:
        raise DataError(f"{data} has no split 'valid' to evaluate on; found: {', '.join(splits)}.")
    retained = read_retention_data(config.retention_data or run.get("retention_data") or [])
    out = Path(config.output_dir)
    check_replaceable(out)
    bundles = load(config.base).bundle, load(config.tuned).bundle
    recall_phrases(list(splits.values()), bundles[1].phrases)
    set_up_cpu(config.threads)
    settings: dict[str, Any] = {"batch_size": config.batch_size, "precision": "fp32"}
    settings["device"] = pick_device(config.device)
    with closing(Progress(quiet=quiet)) as progress:
        points, best = best_blend(
            *bundles, config.alphas, splits["valid"], retained, progress=progress, **settings
        )
    metrics, zero_shot = ({f"valid/{n}": v for n, v in p.metrics.items()} for p in (best, points[0]))
    results = {"data": Path(data).resolve().name, "metrics": metrics, "zero_shot": zero_shot}
    save_bundle(bundles[1], out, results)
    write_blend(points, best, out, {"base": config.base, "tuned": config.tuned, "data": str(data)})
    return points, best


def blend_rows(points: "Sequence[BlendPoint]", best: "BlendPoint") -> list[list[str]]:
    """Return the table of a blend, in which the chosen point is marked."""
    from groundtune.report.blend import blend_rows

    marks = ["", *("chosen" if point is best else "" for point in points)]
    return [[*row, mark] for row, mark in zip(blend_rows(points), marks, strict=True)]


def check(
    data: str | Path | None = None,
    *,
    config: configs.CheckConfig | None = None,
    quiet: bool = True,
    **options: Any,
) -> "Report":
    """Check a data set for errors. Data that cannot be read is a finding, too.

    Returns:
        The report: `findings`, errors first; `count("error")`; `as_dict()` for JSON.
    """
    config = _resolve(configs.CheckConfig, config, "check()", data=data, **options)
    from groundtune.data.check.run import check_data, known_checks, unreadable
    from groundtune.data.combine import rename_classes
    from groundtune.data.formats.detect import load_splits
    from groundtune.engine.prepare import limits_of

    known_checks(config.ignore)
    if not Path(config.data).exists():
        raise DataError(f"The data {config.data} does not exist. Expected a directory of images with boxes.")
    limits = limits_of(load(config.model).bundle, config.short_side, config.max_side)
    try:
        splits = load_splits(Path(config.data), format=config.format, keep_going=True)
    except DataError as error:
        return unreadable(config.data, error)
    rename_classes(list(splits.values()), config.rename)
    with closing(Progress(quiet=quiet)) as progress:

        def show(done: int, total: int) -> None:
            progress.evaluation(done, total, "checking")

        settings: dict[str, Any] = {"files": not config.fast, "workers": config.workers, "progress": show}
        report = check_data(config.data, splits, limits, **settings)
    report.ignore(config.ignore)
    return report


def convert(
    data: str | Path | None = None, output_dir: str | Path | None = None, **options: Any
) -> dict[str, int]:
    """Convert a data set to another format, with its images.

    Args:
        output_dir: directory to write, new or empty. It appears when it is complete.
        options: format="coco", "yolo", "voc", "odvg", "csv" or "hf"; link=True links the images.

    Returns:
        The number of images of each split.
    """
    given = {**options, "data": data, "output_dir": output_dir}
    return convert_data(_resolve(configs.ConvertConfig, None, "convert()", **given)).images


def convert_data(config: configs.ConvertConfig) -> "Converted":
    """Convert a data set, and return its images and boxes by split, and messages."""
    from groundtune.data.formats.convert import convert

    data, output_dir = Path(config.data), Path(config.output_dir)
    return convert(data, output_dir, config.format, link=config.link, input_format=config.input_format)


def export(
    model: Model | str | Path | None = None,
    output: str | Path | None = None,
    *,
    config: ExportConfig | None = None,
    quiet: bool = True,
    **options: Any,
) -> list[str]:
    """Export a model for other tools.

    Args:
        output: directory or file, which appears when it is complete and replaces an existing one.
        options: format="hf", a Hugging Face directory that transformers opens; "onnx" (.onnx) or
            "openvino" (.xml and .bin), which `load` opens to predict and to evaluate; "idea", a
            .pth file for IDEA's code. classes, precision and data are for ONNX and OpenVINO.

    Returns:
        Notes: measurements, and differences in the target tool.

    Raises:
        CheckpointError: the format cannot express the model, or the path cannot be written.
        ExportError: the graph cannot express the model, or int8 loses more than `max_ap_drop`.
    """
    config = _resolve(ExportConfig, config, "export()", model=model, output=output, **options)
    bundle = _with_weights(model if isinstance(model, Model) else load(config.model), "exported")
    notes = [] if config.output is None else _export(bundle, Path(config.output), config, quiet)
    if config.push_to_hub is not None:
        notes.append(push_to_hub(Model(bundle), config.push_to_hub, private=config.private))
    return notes


def _export(bundle: "ModelBundle", path: Path, config: ExportConfig, quiet: bool) -> list[str]:
    from groundtune.data.reading import read_data
    from groundtune.exporting.write import ExportSpec, write_exported
    from groundtune.model.checkpoint.save import save_bundle, save_idea, unsupported_by_others
    from groundtune.predict.run import class_names

    if config.format == "idea":
        return save_idea(bundle, path)
    if config.format != "hf":
        names = class_names(config.classes, bundle) if config.fixed_classes or config.classes else []
        spec = ExportSpec(config.format, names, config.precision, config.max_ap_drop, config.opset)
        splits = None if config.data is None else read_data(config.data, [], {})
        return write_exported(bundle, path, spec, splits, Progress(quiet=quiet))
    if reasons := unsupported_by_others(bundle):
        problem = f"The model {bundle.source!r} cannot be written for transformers: {'; '.join(reasons)}."
        raise CheckpointError(f"{problem} Model.save writes it as a directory that groundtune opens.")
    save_bundle(bundle, path)
    return []


def push_to_hub(model: Model | str | Path, name: str, *, private: bool = ExportConfig.private) -> str:
    """Upload a model to the Hugging Face Hub; the environment variable HF_TOKEN must allow it.

    Args:
        name: "owner/model"; created if it does not exist.
        private: whether it is created as a private model.

    Returns:
        The address of the upload.
    """
    from groundtune.model.checkpoint.hub import upload
    from groundtune.model.checkpoint.save import save_bundle

    config = _resolve(ExportConfig, None, "push_to_hub()", model=model, push_to_hub=name, private=private)
    bundle = _with_weights(model if isinstance(model, Model) else load(config.model), "uploaded")
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(bundle, Path(folder) / "model")
        return upload(Path(folder) / "model", config.push_to_hub or name, config.private)


def write_report(
    run: str | Path | None = None, *, config: ReportConfig | None = None, **options: Any
) -> Path:
    """Write report.html of a run, finished or not, and return its path.

    Args:
        run: run directory.
        options: data, the current location of the data set; max_images in the gallery.
    """
    runs = None if run is None else [run]
    config = _resolve(ReportConfig, config, "write_report()", runs=runs, **options)
    from groundtune.data.reading import read_run_data
    from groundtune.report.build import build_report
    from groundtune.report.run_data import read_run

    folder = Path(config.runs[0])
    return build_report(folder, read_run_data(read_run(folder).config, config.data), config.max_images)


def compare_runs(runs: Sequence[str | Path], output: str | Path = ReportConfig.output) -> list[str]:
    """Write an HTML page that compares runs: metrics, options, curves and classes.

    Returns:
        Warnings about the comparison, which the page has too.
    """
    config = _resolve(ReportConfig, None, "compare_runs()", runs=runs, output=output)
    from groundtune.report.compare import build_comparison

    return build_comparison([Path(run) for run in config.runs], Path(config.output))


def generate_scenes(config: configs.InitConfig) -> None:
    """Write a generated data set."""
    from groundtune.data.scenes import write_captioned_scenes, write_scenes
    from groundtune.text.prompt import split_names

    sizes = {"train": config.train_images, "valid": config.valid_images, "size": config.image_size}
    if config.captions:
        write_captioned_scenes(Path(config.output_dir), **sizes, seed=config.seed)
    else:
        names = split_names(config.classes) or None
        write_scenes(Path(config.output_dir), **sizes, seed=config.seed, classes=names)


def review_server(config: configs.ReviewConfig) -> "ReviewServer":
    """Open the review page of a data set; `serve_forever` serves it."""
    from groundtune.web.review_server import serve

    return serve(Path(config.data), config.split, config.host, config.port)


@contextmanager
def demo_page(config: configs.DemoConfig) -> Iterator[tuple["Blocks", bool]]:
    """Start the demo page; yield it, and whether only this machine can reach it."""
    from groundtune.device import pick_device, pick_precision, set_up_cpu
    from groundtune.predict.postprocess import Selection
    from groundtune.text.prompt import split_names
    from groundtune.web.demo import Demo, need_gradio, serve
    from groundtune.web.review_server import is_loopback

    need_gradio()
    set_up_cpu(config.threads)
    device = pick_device(config.device)
    models = {source: load(source).bundle for source in (config.base, config.model) if source is not None}
    own = models[config.model].classes
    selection = Selection(config.nms, config.agnostic_nms, config.max_detections)
    demo = Demo(models, device, pick_precision(config.precision, device), config.threshold, selection, own)
    names = split_names(config.classes, own) or own
    with tempfile.TemporaryDirectory(prefix="groundtune-") as folder:
        yield serve(demo, names, config.host, config.port, folder), is_loopback(config.host)


def known_models() -> dict[str, dict[str, Any]]:
    """Return the built-in and published models by name: parameters, backbone, license, summary."""
    from groundtune.model.bundle import presets, published

    return presets() | published()


def environment() -> dict[str, str]:
    """Return versions and the machine."""
    from groundtune.device import pick_device
    from groundtune.environment import describe
    from groundtune.model.deformable import describe_sampling

    return describe() | {"deformable sampling": describe_sampling(pick_device("auto"))}


def _resolve(kind: type[_C], config: _C | None, where: str, **given: Any) -> _C:
    """Return the options of a call, `config` or keywords, checked like those of a command line."""
    if config is None:
        return resolve(kind, [(where, _given(kind, **given))])
    if not isinstance(config, kind):
        raise ConfigError(f"{where}: config: expected {kind.__name__}, got {type(config).__name__}.")
    known = {name for name, value in given.items() if value is not None and value != []}
    if extra := known - ({"model"} if isinstance(given.get("model"), Model) else set()):
        raise ConfigError(f"{where}: config has all options; remove {', '.join(sorted(extra))}.")
    return resolve(kind, [(where, vars(config))])


def _given(kind: type, **given: Any) -> dict[str, Any]:
    """Return the options that are not None, with source, device and precision of a loaded model."""
    given = {name: value for name, value in given.items() if value is not None}
    model = given.get("model")
    if isinstance(model, Model):
        defaults = {"model": model.bundle.source or "model"}
        defaults |= {"device": model.device} if model.device != "auto" else {}
        defaults |= {"precision": model.precision} if issubclass(kind, DetectOptions) else {}
        names = {field.name for field in fields(kind)}
        del given["model"]
        given = {name: value for name, value in defaults.items() if name in names} | given
    if "device" in given:
        given["device"] = str(given["device"])  # also a torch.device
    return given


def _loaded(model: Any, source: str) -> "ModelBundle":
    return (model if isinstance(model, Model) else load(source)).bundle


def _with_weights(model: Model, use: str) -> "ModelBundle":
    """Return the bundle of a model that is not an exported file; `use` is for the message."""
    from groundtune.exporting.runtime import is_exported

    if is_exported(model.bundle.network):
        raise CheckpointError(
            f"{model.bundle.source} is an exported file, which can predict and be evaluated, but cannot be "
            f"{use}. Use the model that it was exported from."
        )
    return model.bundle


def _predictor(
    bundle: "ModelBundle",
    options: DetectOptions,
    progress: Progress | None = None,
    default: Sequence[str] = (),
) -> "Predictor":
    """Build a predictor; a warning about names goes to stderr."""
    from groundtune.exporting.runtime import use_provider
    from groundtune.predict.run import build_predictor, check_thresholds, read_thresholds
    from groundtune.report.run_data import run_thresholds

    use_provider(bundle.network, options.provider)
    given = options.thresholds or {}
    of_run = isinstance(given, str) and os.path.isdir(given)  # a run may have other classes
    thresholds = run_thresholds(Path(str(given))) if of_run else read_thresholds(given)
    predictor = build_predictor(bundle, options, default, thresholds)
    if not of_run:
        check_thresholds(predictor)
    if predictor.warning:
        (progress or Progress()).message(predictor.warning)
    return predictor


def _as_list(images: Any) -> list[Any]:
    return list(images) if isinstance(images, list | tuple) else [images]
