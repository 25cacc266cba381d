"""The Python interface: `load`, `Model`, `train`, `evaluate`; the command line stands on the same functions.

Keyword options of `train` are those of the command line and of the YAML file, and are checked like them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from groundtune.commands import model_source, prompt_names, read_data, resolve_training, run_check, run_training
from groundtune.config import CheckConfig
from groundtune.errors import CheckpointError, ConfigError, DataError
from groundtune.options import resolve, suggestion
from groundtune.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from supervision import Detections

    from groundtune.data.check.report import Report
    from groundtune.engine.evaluate import Evaluation
    from groundtune.engine.train import RunResult
    from groundtune.model.bundle import ModelBundle

    Picture = str | Path | Image.Image | np.ndarray


@dataclass
class Model:
    """A loaded model.

    Attributes:
        bundle: network, tokenizer, picture format.
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
        self, images: "Picture", classes: Sequence[str] | None = None, threshold: float = 0.3, batch_size: int = 4
    ) -> "Detections": ...
    @overload
    def predict(
        self, images: "list[Picture]", classes: Sequence[str] | None = None, threshold: float = 0.3, batch_size: int = 4
    ) -> "list[Detections]": ...
    def predict(
        self,
        images: "Picture | list[Picture]",
        classes: Sequence[str] | None = None,
        threshold: float = 0.3,
        batch_size: int = 4,
    ) -> "Detections | list[Detections]":
        """Find objects by name.

        Args:
            images: a picture (path, PIL picture, or (H, W, 3) uint8 RGB array), or a list of them.
            classes: names to look for; None takes those of the fine-tuning.
            threshold: smallest score, in [0, 1].
            batch_size: pictures at a time.

        Returns:
            Per picture its detections, best first: boxes xyxy in pixels of the picture, `class_id` the index into the
            names, `data["class_name"]` the names. A list gives a list, an empty one an empty one.

        Raises:
            ConfigError: there are no names to look for.
            DataError: a picture cannot be read, or a name cannot be used.
        """
        from groundtune.device import pick_device, pick_precision
        from groundtune.predict import predict

        several = images if isinstance(images, list) else [images]
        pictures = [Path(picture) if isinstance(picture, str) else picture for picture in several]
        names = prompt_names(classes, self.bundle)
        device = pick_device(self.device)
        found = predict(
            self.bundle,
            pictures,
            names,
            threshold=threshold,
            device=device,
            batch_size=batch_size,
            precision=pick_precision(self.precision, device),
        )
        return found if isinstance(images, list) else found[0]

    def save(self, folder: str | Path) -> None:
        """Write a model folder that `load` reads. It appears whole or not at all; an existing one is replaced."""
        from groundtune.model.checkpoint.save import save_bundle

        save_bundle(self.bundle, Path(folder))


def load(source: str | Path, *, seed: int = 0, device: str = "auto") -> Model:
    """Load a model.

    Args:
        source: a preset ("nano"), a model folder or a run folder, a Hugging Face directory or Hub id such as
            "IDEA-Research/grounding-dino-tiny", or a .pth of IDEA or MMDetection.
        seed: of the weights that the source leaves untrained.
        device: where it will compute: auto, cpu, cuda, …

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
    """
    from groundtune.model.checkpoint.load import load_bundle

    return Model(load_bundle(model_source(source), seed=seed), device)


def export(model: Model | str | Path, path: str | Path, *, format: str = "hf") -> list[str]:
    """Write a model in a form that other tools read.

    Args:
        model: a loaded model, or a source for `load`.
        path: folder ("hf") or file ("idea"); one written before is replaced when the new one is whole.
        format: "hf", a Hugging Face directory that transformers opens; "idea", a .pth for IDEA's own code.

    Returns:
        What the other tool does otherwise, or has to be told, in sentences.

    Raises:
        ConfigError: there is no such format.
        CheckpointError: the format cannot express the model (every reason is given), or the path cannot be written.
    """
    from groundtune.model.checkpoint.hf import beyond_transformers
    from groundtune.model.checkpoint.save import save_bundle, save_idea

    if format not in ("hf", "idea"):
        raise ConfigError(f"format: expected hf or idea, got {format!r}.")
    bundle = (model if isinstance(model, Model) else load(model)).bundle
    if format == "idea":
        return save_idea(bundle, Path(path))
    reasons = beyond_transformers(bundle.config)
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

    bundle = (model if isinstance(model, Model) else load(model)).bundle
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(bundle, Path(folder) / "model")
        return upload(Path(folder) / "model", name, private)


def train(
    model: Model | str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    config: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> "RunResult":
    """Fine-tune a model on a folder of pictures with boxes.

    Args:
        model: a loaded model, which is trained in place and has the best weights afterwards; or a source for `load`.
        data: the folder, or a COCO JSON file.
        out: run folder, new or empty; None takes runs/DATA-MODEL, the first free number.
        config: YAML file of options.
        quiet: show no progress on stderr.
        options: any other option of `groundtune train`, such as epochs=20 or lr=1e-4; stronger than the file.

    Returns:
        The run: `folder`, `zero_shot["valid/AP"]`, `metrics["valid/AP"]` of the best weights, `per_class`.

    Raises:
        ConfigError: options are unknown or unusable (all are listed), or the run folder is not empty.
        DataError: the data cannot be used.
        TrainingDiverged: the loss stayed non-finite.
    """
    bundle = model.bundle if isinstance(model, Model) else None
    given = {"data": data, "model": (bundle.source or "model") if bundle else model, **options}
    if isinstance(model, Model) and model.device != "auto":
        given.setdefault("device", model.device)
    if out is not None:
        given["out"] = out
    resolved = resolve_training(given, Path(config) if config else None, where="train()", bundle=bundle)
    return run_training(resolved, Progress(quiet=quiet), bundle=bundle)


def check(data: str | Path, *, quiet: bool = True, **options: Any) -> "Report":
    """Look for what is wrong with a data set.

    Args:
        data: a folder of pictures with boxes, or a COCO JSON file.
        quiet: show no progress on stderr.
        options: any option of `groundtune check`, such as model="nano" or fast=True.

    Returns:
        The report: `findings`, errors first; `count("error")`; `as_dict()` for JSON.

    Raises:
        ConfigError: options are unknown or unusable.
        DataError: there is no such folder or file. One that cannot be read is a finding.
    """
    return run_check(resolve(CheckConfig, [("check()", {"data": data, **options})]), Progress(quiet=quiet))


def convert(data: str | Path, out: str | Path, *, format: str, link: bool = False) -> dict[str, int]:
    """Write a data set in another format; all its splits, the pictures with them.

    Args:
        data: a folder of pictures with boxes, or an annotation file.
        out: new or empty folder. It appears whole or not at all.
        format: "coco", "yolo", "voc" or "odvg".
        link: link the pictures in place of copying them.

    Returns:
        How many pictures each split has.

    Raises:
        DataError: the data cannot be read or the folder not be written, or the format cannot express the data.
    """
    from groundtune.data.formats.convert import convert as write

    return write(Path(data), Path(out), format, link=link).pictures


def write_report(run: str | Path, *, data: str | Path | None = None, pictures: int = 500) -> Path:
    """Write the report of a run, finished or not: one HTML file that opens from disk.

    Args:
        run: the run folder.
        data: where its data lies now; None takes the path that it was trained with.
        pictures: of the gallery at the most, the worst ones.

    Returns:
        The file, RUN/report.html.

    Raises:
        DataError: it is no run folder, or its data cannot be read.
    """
    from groundtune.report.build import build_report
    from groundtune.report.run_data import read_run

    config = read_run(Path(run)).config
    limits = {split: config.get(f"limit_{split}") for split in ("train", "valid")}
    splits = read_data(
        str(data or config.get("data", "")), config.get("mix") or [], config.get("classes") or {}, limits
    )
    return build_report(Path(run), splits, pictures)


def compare_runs(runs: Sequence[str | Path], out: str | Path = "comparison.html") -> list[str]:
    """Write a page that compares runs: numbers, changed options, curves, classes; one HTML file that opens from disk.

    Args:
        runs: two run folders or more, finished or not. Their data are not needed.
        out: the file.

    Returns:
        What speaks against comparing their numbers, in sentences; the page says it too.

    Raises:
        ConfigError: there are fewer than two runs, or the file cannot be written.
        DataError: one is no run folder.
    """
    from groundtune.report.compare import build_comparison

    return build_comparison([Path(run) for run in runs], Path(out))


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
) -> "Evaluation":
    """Measure a model on a data set.

    Args:
        model: a loaded model, or a source for `load`.
        data: folder of pictures with boxes, or a COCO JSON file.
        split: "train", "valid" or "test".
        classes: names to ask for and to count; None takes all of the data set.
        rename: what the model reads for a class, by the class's name in the data set.
        batch_size: pictures at a time.
        device: None takes the model's.
        precision: fp32, bf16, or auto, which is bf16 where the device computes in it.
        progress: told about the pictures done.

    Returns:
        `metrics["AP"]`, `["AP50"]` …, by LVIS's rules where the categories have frequencies; of captions `["recall@1"]` …;
        `per_class[name]["AP"]`; `predictions` in COCO's result format.

    Raises:
        DataError: the data cannot be used, or has no such split or class.
    """
    from groundtune.data.sample import match_class_names

    splits = read_data(str(data), [], rename or {})
    if split not in splits:
        raise DataError(f"{data}: there is no split {split!r}; found: {', '.join(splits)}.{suggestion(split, splits)}")
    dataset = splits[split]
    indices = match_class_names(classes, dataset.class_names) if classes else None
    from groundtune.device import pick_device, pick_precision
    from groundtune.engine.evaluate import evaluate as measure

    loaded = model if isinstance(model, Model) else load(model)
    place = pick_device(device or loaded.device)
    return measure(
        loaded.bundle,
        dataset,
        class_indices=indices,
        batch_size=batch_size,
        device=place,
        precision=pick_precision(precision, place),
        progress=progress,
    )
