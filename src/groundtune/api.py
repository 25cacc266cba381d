"""The Python interface: `load`, `Model`, `train`, `evaluate`; the command line stands on the same functions.

Keyword options of `train` are those of the command line and of the YAML file, and are checked like them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from groundtune.commands import (
    model_source,
    prompt_names,
    read_data,
    read_run_data,
    resolve_training,
    run_blend,
    run_check,
    run_thresholds,
    run_training,
)
from groundtune.config import BlendConfig, CheckConfig, LabelConfig
from groundtune.errors import CheckpointError, ConfigError, DataError, suggestion
from groundtune.options import resolve
from groundtune.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from supervision import Detections

    from groundtune.data.check.run import Report
    from groundtune.engine.blend import BlendPoint
    from groundtune.engine.evaluate import Evaluation
    from groundtune.engine.train import RunResult
    from groundtune.model.bundle import ModelBundle
    from groundtune.predict.label import Labeled
    from groundtune.predict.predictor import Predictor
    from groundtune.predict.tiles import Tiles

    ImageInput = str | Path | Image.Image | np.ndarray


@dataclass
class Model:
    """A loaded model.

    Attributes:
        bundle: network, tokenizer, image format.
        device: where it computes: auto, cpu, cuda, …
        precision: of `predict`: fp32, bf16, or auto, which is bf16 where the device computes in it.
    """

    bundle: "ModelBundle"
    device: str = "auto"
    precision: str = "auto"

    @property
    def classes(self) -> list[str]:
        """The names that it was fine-tuned on; empty before."""
        return list(self.bundle.classes)

    @overload
    def predict(
        self,
        images: "ImageInput",
        classes: Sequence[str] | None = None,
        threshold: float = 0.3,
        batch_size: int = 4,
    ) -> "Detections": ...
    @overload
    def predict(
        self,
        images: "list[ImageInput]",
        classes: Sequence[str] | None = None,
        threshold: float = 0.3,
        batch_size: int = 4,
    ) -> "list[Detections]": ...
    def predict(
        self,
        images: "ImageInput | list[ImageInput]",
        classes: Sequence[str] | None = None,
        threshold: float = 0.3,
        batch_size: int = 4,
    ) -> "Detections | list[Detections]":
        """Find objects by name.

        Args:
            images: an image (path, PIL image, or (H, W, 3) uint8 RGB array), or a list of them.
            classes: names to look for; None takes those of the fine-tuning.
            threshold: smallest score, in [0, 1].
            batch_size: images at a time.

        Returns:
            Per image its detections, best first: boxes xyxy in pixels of the image, `class_id` the index into the
            names, `data["class_name"]` the names. A list gives a list, an empty one an empty one.

        Raises:
            ConfigError: there are no names to look for.
            DataError: an image cannot be read, or a name cannot be used.
        """
        several = images if isinstance(images, list) else [images]
        inputs = [Path(image) if isinstance(image, str) else image for image in several]
        found = list(self.predictor(classes, threshold, batch_size=batch_size).each(inputs))
        return found if isinstance(images, list) else found[0]

    def predictor(
        self,
        classes: Sequence[str] | None = None,
        threshold: float = 0.3,
        *,
        thresholds: Mapping[str, float] | None = None,
        phrases: Sequence[str] = (),
        tiles: "Tiles | None" = None,
        batch_size: int = 4,
    ) -> "Predictor":
        """Ask for objects once, and find them in any number of images: `for found in model.predictor(["cat"]).each(paths)`.

        Args:
            classes: names to look for; None takes those of the fine-tuning.
            threshold: smallest score, in [0, 1].
            thresholds: those of single names.
            phrases: sentences in the place of names, each describing an object as a whole, or [several] in [brackets].
            tiles: how large images are divided; None: not at all.
            batch_size: images, or tiles, at a time.

        Raises:
            ConfigError: there are no names to look for.
            DataError: a name cannot be used.
        """
        from groundtune.device import pick_device, pick_precision
        from groundtune.predict.predictor import Predictor

        names = list(phrases) or prompt_names(classes, self.bundle)
        device = pick_device(self.device)
        precision = pick_precision(self.precision, device)
        return Predictor(
            self.bundle,
            names,
            device,
            threshold,
            thresholds or {},
            bool(phrases),
            tiles,
            batch_size,
            precision,
        )

    def save(self, folder: str | Path) -> None:
        """Write a model folder that `load` reads. It appears whole or not at all; an existing one is replaced."""
        from groundtune.model.checkpoint.save import save_bundle

        save_bundle(_with_weights(self, "saved"), Path(folder))


def load(source: str | Path, *, seed: int = 0, device: str = "auto") -> Model:
    """Load a model.

    Args:
        source: a preset ("nano"), a model folder or a run folder, a Hugging Face directory or Hub id such as
            "IDEA-Research/grounding-dino-tiny", a .pth of IDEA or MMDetection, or an exported .onnx or .xml.
        seed: of the weights that the source leaves untrained.
        device: where it will compute: auto, cpu, cuda, …

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
    """
    if Path(source).suffix in (".onnx", ".xml") and Path(source).is_file():
        from groundtune.export.runtime import open_exported

        return Model(open_exported(Path(source)), device)
    from groundtune.model.checkpoint.load import load_bundle

    return Model(load_bundle(model_source(source), seed=seed), device)


def _with_weights(model: Model | str | Path, use: str) -> "ModelBundle":
    """The bundle of a model that is no exported file; `use` says what is wanted of it, in a participle."""
    from groundtune.export.runtime import is_exported

    bundle = (model if isinstance(model, Model) else load(model)).bundle
    if is_exported(bundle.network):
        raise CheckpointError(
            f"{bundle.source} is an exported file, which can predict and be evaluated, but not be {use}; use its model."
        )
    return bundle


def export(
    model: Model | str | Path,
    path: str | Path,
    *,
    format: str = "hf",
    classes: Sequence[str] | None = None,
    precision: str = "fp32",
    data: str | Path | None = None,
    max_ap_drop: float = 1.0,
) -> list[str]:
    """Write a model in a form that other tools read.

    Args:
        model: a loaded model, or a source for `load`.
        path: folder ("hf") or file; one written before is replaced when the new one is whole.
        format: "hf", a Hugging Face directory that transformers opens; "onnx" (a .onnx file) or "openvino" (.xml and .bin),
            which `load` opens for prediction and evaluation; "idea", a .pth for IDEA's own code.
        classes: names to build into a graph, which then needs the image only; None leaves the vocabulary open.
        precision: of a graph: "fp32"; "fp16", weights of half the size; "int8".
        data: where to calibrate int8 (split train), and to measure the graph against the model (split valid).
        max_ap_drop: points of AP that int8 may lose.

    Returns:
        What was measured, what the other tool does otherwise or has to be told, in sentences.

    Raises:
        ConfigError: there is no such format or precision, or options do not fit each other.
        CheckpointError: the format cannot express the model (every reason is given), or the path cannot be written.
        ExportError: the graph cannot express the model or be written, or int8 loses more than is allowed.
    """
    from groundtune.model.checkpoint.save import save_bundle, save_idea, unsupported_by_others

    for name, value, known in (
        ("format", format, ("hf", "onnx", "openvino", "idea")),
        ("precision", precision, ("fp32", "fp16", "int8")),
    ):
        if value not in known:
            raise ConfigError(f"{name}: expected {', '.join(known[:-1])} or {known[-1]}, got {value!r}.")
    bundle = _with_weights(model, "exported")
    if format in ("onnx", "openvino"):
        from groundtune.export.write import ExportSpec, write_exported

        wanted = ExportSpec(format, list(classes or []), precision, max_ap_drop)
        splits = None if data is None else read_data(str(data), [], {})
        return write_exported(bundle, Path(path), wanted, splits, Progress())
    if classes or data is not None or precision != "fp32":
        raise ConfigError(
            f"classes, precision and data are of the formats onnx and openvino, not of {format}."
        )
    if format == "idea":
        return save_idea(bundle, Path(path))
    reasons = unsupported_by_others(bundle)
    if reasons:
        raise CheckpointError(
            f"The model {bundle.source!r} cannot be written for transformers: {'; '.join(reasons)}. "
            "Model.save writes it as a folder that groundtune opens."
        )
    save_bundle(bundle, Path(path))
    return []


def push_to_hub(model: Model | str | Path, name: str, *, private: bool = False) -> str:
    """Upload a model folder to the Hugging Face Hub; HF_TOKEN must allow it.

    Args:
        model: a loaded model, or a source for `load`.
        name: "owner/model"; created where it does not exist.
        private: whether it is created as a private one.

    Returns:
        The address of the upload.

    Raises:
        CheckpointError: the Hub cannot be reached or refuses.
    """
    import tempfile

    from groundtune.model.checkpoint.hub import upload
    from groundtune.model.checkpoint.save import save_bundle

    bundle = _with_weights(model, "uploaded")
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(bundle, Path(folder) / "model")
        return upload(Path(folder) / "model", name, private)


def train(
    model: Model | str | Path,
    data: str | Path,
    *,
    output_dir: str | Path | None = None,
    config: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> "RunResult":
    """Fine-tune a model on a folder of images with boxes.

    Args:
        model: a loaded model, which is trained in place and has the best weights afterwards; or a source for `load`.
        data: the folder, or a COCO JSON file.
        output_dir: run folder, new or empty; None takes runs/DATA-MODEL, the first free number.
        config: YAML file of options.
        quiet: show no progress on stderr.
        options: any other option of `groundtune train`, such as epochs=20 or lr=1e-4; stronger than the file.

    Returns:
        The run: `folder`, `zero_shot["valid/AP"]`, `metrics["valid/AP"]` of the best weights, `per_class`.

    Raises:
        ConfigError: options are unknown or unusable (all are listed), or the run folder is not empty.
        DataError: the data cannot be used.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the run can be resumed.
        OutOfMemory: there is no memory for a single image.
        TrainingDiverged: the loss stayed non-finite.
    """
    bundle = _with_weights(model, "trained") if isinstance(model, Model) else None
    given = {"data": data, "model": (bundle.source or "model") if bundle else model, **options}
    if isinstance(model, Model) and model.device != "auto":
        given.setdefault("device", model.device)
    if output_dir is not None:
        given["output_dir"] = output_dir
    resolved = resolve_training(given, Path(config) if config else None, where="train()", bundle=bundle)
    return run_training(resolved, Progress(quiet=quiet), bundle=bundle)


def label(
    model: Model | str | Path,
    images: Sequence[str | Path] = (),
    *,
    output_dir: str | Path,
    quiet: bool = True,
    **options: Any,
) -> "Labeled":
    """Let a model draw the boxes of images, and write them as a data set. One that was stopped goes on where it was.

    Args:
        model: a loaded model, or a source for `load`.
        images: images, folders or patterns of them.
        output_dir: folder to write, new or empty.
        quiet: show no progress on stderr.
        options: any option of `groundtune label`, such as data="data/cells" or threshold=0.4.

    Returns:
        `written.images` and `written.boxes` by split; `unreadable`, the images that were left out, and why.

    Raises:
        ConfigError: options are unknown or unusable, or there are no names to look for.
        DataError: images or data cannot be used, or the folder is not empty.
    """
    from groundtune.predict.label import label as label_images
    from groundtune.predict.label import read_given

    source = (model.bundle.source or "model") if isinstance(model, Model) else model
    values = {**options, "model": source, "images": [str(name) for name in images], "output_dir": output_dir}
    config = resolve(LabelConfig, [("label()", values)])
    splits = read_given(config)
    thresholds = run_thresholds(Path(config.thresholds)) if config.thresholds else {}
    loaded = model if isinstance(model, Model) else load(model, device=config.device)
    loaded = Model(loaded.bundle, loaded.device, config.precision)
    names = config.classes or (
        splits["train"].class_names if splits else ["object"] if config.captions else None
    )
    predictor = loaded.predictor(names, config.threshold, thresholds=thresholds, batch_size=config.batch_size)
    return label_images(config, predictor, splits, Progress(quiet=quiet))


def blend(
    base: str | Path, tuned: str | Path, output_dir: str | Path, *, quiet: bool = True, **options: Any
) -> "tuple[list[BlendPoint], BlendPoint]":
    """Find the best model between a base and what was fine-tuned from it, on the line of their weights.

    Args:
        base: a source for `load`.
        tuned: a run folder, whose data is measured on; or a source for `load`, and data=.
        output_dir: folder for the chosen model, with blend.json and blend.html.
        quiet: show no progress on stderr.
        options: any option of `groundtune blend`, such as alphas=[0.3, 0.5] or retention_data=["data/coco-sample"].

    Returns:
        The points in order (`at`, `metrics`, `retained`, `gain`, `kept`), and the chosen one.

    Raises:
        ConfigError: options are unknown or unusable, or there is no data to measure on.
        DataError: the data cannot be used.
        CheckpointError: the models do not fit each other, or the folder cannot be written.
    """
    values = {"base": base, "tuned": tuned, "output_dir": output_dir, **options}
    return run_blend(resolve(BlendConfig, [("blend()", values)]), Progress(quiet=quiet))


def check(data: str | Path, *, quiet: bool = True, **options: Any) -> "Report":
    """Look for what is wrong with a data set.

    Args:
        data: a folder of images with boxes, or a COCO JSON file.
        quiet: show no progress on stderr.
        options: any option of `groundtune check`, such as model="nano" or fast=True.

    Returns:
        The report: `findings`, errors first; `count("error")`; `as_dict()` for JSON.

    Raises:
        ConfigError: options are unknown or unusable.
        DataError: there is no such folder or file. One that cannot be read is a finding.
    """
    return run_check(resolve(CheckConfig, [("check()", {"data": data, **options})]), Progress(quiet=quiet))


def convert(data: str | Path, output_dir: str | Path, *, format: str, link: bool = False) -> dict[str, int]:
    """Write a data set in another format; all its splits, the images with them.

    Args:
        data: a folder of images with boxes, or an annotation file.
        output_dir: new or empty folder. It appears whole or not at all.
        format: "coco", "yolo", "voc" or "odvg".
        link: link the images in place of copying them.

    Returns:
        How many images each split has.

    Raises:
        DataError: the data cannot be read or the folder not be written, or the format cannot express the data.
    """
    from groundtune.data.formats.convert import convert as write

    return write(Path(data), Path(output_dir), format, link=link).images


def write_report(run: str | Path, *, data: str | Path | None = None, max_images: int = 500) -> Path:
    """Write the report of a run, finished or not: one HTML file that opens from disk.

    Args:
        run: the run folder.
        data: where its data lies now; None takes the path that it was trained with.
        images: of the gallery at the most, the worst ones.

    Returns:
        The file, RUN/report.html.

    Raises:
        DataError: it is no run folder, or its data cannot be read.
    """
    from groundtune.report.build import build_report
    from groundtune.report.run_data import read_run

    return build_report(Path(run), read_run_data(read_run(Path(run)).config, data), max_images)


def compare_runs(runs: Sequence[str | Path], output: str | Path = "comparison.html") -> list[str]:
    """Write a page that compares runs: numbers, changed options, curves, classes; one HTML file that opens from disk.

    Args:
        runs: two run folders or more, finished or not. Their data are not needed.
        output: the file.

    Returns:
        What speaks against comparing their numbers, in sentences; the page says it too.

    Raises:
        ConfigError: there are fewer than two runs, or the file cannot be written.
        DataError: one is no run folder.
    """
    from groundtune.report.compare import build_comparison

    return build_comparison([Path(run) for run in runs], Path(output))


def evaluate(
    model: Model | str | Path,
    data: str | Path,
    *,
    split: str = "valid",
    classes: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    batch_size: int = 8,
    device: str | None = None,
    precision: str = "fp32",
    progress: Progress | None = None,
    ray: str | None = None,
    ray_workers: int = 0,
    threads: int = 0,
) -> "Evaluation":
    """Measure a model on a data set.

    Args:
        model: a loaded model, or a source for `load`.
        data: folder of images with boxes, or a COCO JSON file.
        split: "train", "valid" or "test".
        classes: names to ask for and to count; None takes all of the data set.
        rename: what the model reads for a class, by the class's name in the data set.
        batch_size: images at a time.
        device: None takes the model's.
        precision: fp32, bf16, or auto, which is bf16 where the device computes in it.
        progress: told about the images done.
        ray: share the images out among Ray's workers: "local", "auto", or a cluster's "HOST:PORT" or "ray://HOST:PORT".
        ray_workers: 0 is one per GPU, or where there is none one per core.
        threads: of torch in each of these workers; 0 is one.

    Returns:
        `metrics["AP"]`, `["AP50"]` …, by LVIS's rules where the categories have frequencies; of captions `["recall@1"]` …;
        `per_class[name]["AP"]`; `predictions` in COCO's result format.

    Raises:
        DataError: the data cannot be used, or has no such split or class.
    """
    from groundtune.data.sample import match_class_names

    splits = read_data(str(data), [], rename or {})
    if split not in splits:
        raise DataError(
            f"{data}: there is no split {split!r}; found: {', '.join(splits)}.{suggestion(split, splits)}"
        )
    dataset = splits[split]
    indices = match_class_names(classes, dataset.class_names) if classes else None
    from groundtune.device import pick_device, pick_precision
    from groundtune.engine.evaluate import evaluate as measure

    loaded = model if isinstance(model, Model) else load(model)
    name = device or loaded.device
    if ray is not None:
        from groundtune.engine.evaluate import eval_task
        from groundtune.engine.ray_evaluation import evaluate_on_ray
        from groundtune.predict.ray import RayPool

        return evaluate_on_ray(
            eval_task(loaded.bundle, dataset, indices, precision),
            dataset,
            RayPool(ray, ray_workers, threads, gpus=name != "cpu"),
            batch_size=batch_size,
            device=name,
            progress=progress,
        )
    place = pick_device(name)
    return measure(
        loaded.bundle,
        dataset,
        class_indices=indices,
        batch_size=batch_size,
        device=place,
        precision=pick_precision(precision, place),
        progress=progress,
    )
