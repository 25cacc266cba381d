"""Export a model for ONNX Runtime or OpenVINO: trace, compare with the model, shrink, measure.

The finished file is measured in its own runtime by the code that evaluates models. A file that is
worse than allowed is never moved into place.
"""

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from groundtune.data.combine import recall_phrases
from groundtune.data.prefetch import evaluation_images
from groundtune.data.sample import Dataset
from groundtune.engine.evaluate import DECODE_THREADS, Evaluation, eval_task, run_task
from groundtune.errors import ConfigError, DataError, ExportError
from groundtune.exporting.graph import TEXT_INPUTS, fixed_prompt, trace
from groundtune.exporting.runtime import (
    SUFFIXES,
    ExportMetadata,
    metadata_props,
    not_installed,
    open_exported,
)
from groundtune.model.bundle import ModelBundle
from groundtune.predict.detect import class_prompts, inference_mode
from groundtune.progress import Progress

_CALIBRATION_IMAGES = 64  # spread evenly over the training split
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "onnxruntime", "openvino")}
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportSpec:
    """What to write."""

    format: str  # "onnx" or "openvino"
    names: list[str]  # fixed classes; none: open vocabulary
    precision: str  # "fp32", "fp16" or "int8"
    max_ap_drop: float  # points (hundredths) of AP, or of recall@1 for captions, that int8 may lose
    opset: int  # of ONNX


def write_exported(
    bundle: ModelBundle,
    path: Path,
    spec: ExportSpec,
    splits: Mapping[str, Dataset] | None,
    progress: Progress,
) -> list[str]:
    """Write an .onnx file, or the .xml and .bin of OpenVINO, once they are complete and checked.

    Of `splits`, "train" calibrates int8, and "valid" compares the file with the model; None: no
    comparison.

    Returns:
        Sentences about what was measured.

    Raises:
        ConfigError: wrong suffix, or int8 without data.
        DataError: the data lacks a split or all classes.
        ExportError: a package is missing, the model is not supported, or int8 loses too much.
    """
    if SUFFIXES.get(path.suffix) != spec.format:
        suffix = {format: suffix for suffix, format in SUFFIXES.items()}[spec.format]
        raise ConfigError(f"output: expected a name that ends in {suffix} for {spec.format}, got {path}.")
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES[spec.format]):
        raise not_installed(spec.format)
    phrase_of = dict(zip(spec.names, phrases := bundle.phrases_of(spec.names), strict=True))
    _check_data(spec, bundle.phrases | phrase_of, splits)
    bundle = _single_network(bundle, phrases)
    notes: list[str] = []
    text, tokens = fixed_prompt(bundle, spec.names) if phrases else (None, [])
    metadata = ExportMetadata(
        classes=spec.names or bundle.classes,
        class_phrases=phrase_of or bundle.phrases,
        input_ids=[] if text is None else text.input_ids[0].tolist(),
        phrases=tokens,
        max_text_len=bundle.config.max_text_len,
        image_format=bundle.image_format,
        precision=spec.precision,
        source=bundle.source,
        batches=True,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            graph = Path(folder) / "model.onnx"
            trace(bundle, text, spec.opset, graph)
            _add_props(graph, metadata_props(metadata, bundle.tokenizer))
            _check_equal(bundle, open_exported(graph), phrases)
            if spec.precision == "int8" and splits is not None:
                _quantize(bundle, graph, phrases, splits["train"])
            written = _convert(graph, spec)
            if spec.format == "openvino" and spec.precision == "fp32":
                _check_equal(bundle, open_exported(written), phrases)
            if splits is not None:
                notes = [_compare_scores(bundle, written, spec, splits["valid"], phrases, progress)]
            for suffix in (".bin", ".xml") if spec.format == "openvino" else (".onnx",):
                os.replace(written.with_suffix(suffix), path.with_suffix(suffix))
    except OSError as error:
        raise ExportError(f"Cannot write {path}: {error.strerror or error}.") from error
    return notes


def _check_data(spec: ExportSpec, phrase_of: Mapping[str, str], splits: Mapping[str, Dataset] | None) -> None:
    """Check that the data has what is needed, and let it be read by the phrases of the model."""
    if splits is None:
        if spec.precision == "int8":
            raise ConfigError(
                "data: int8 is calibrated and measured on images; add your data set with --data."
            )
        return
    missing = ({"train", "valid"} if spec.precision == "int8" else {"valid"}) - splits.keys()
    if missing:
        raise DataError(f"The data has no split {' and '.join(sorted(missing))}; found {', '.join(splits)}.")
    recall_phrases(list(splits.values()), phrase_of)
    known = splits["valid"].class_names
    if spec.names and known and not {phrase_of[n] for n in spec.names} & set(splits["valid"].phrases):
        wanted = ", ".join(spec.names)
        raise DataError(f"The data has none of the classes {wanted}; it has {', '.join(known)}.")


def _single_network(bundle: ModelBundle, phrases: list[str]) -> ModelBundle:
    """Return the model without the base network of `--keep-base`, or with only that one."""
    if bundle.tuned_phrases is None or bundle.base_network is None:
        return bundle
    tuned = [phrase in bundle.tuned_phrases for phrase in phrases]
    if not tuned or any(tuned) != all(tuned):
        raise ExportError(
            f"The model {bundle.source!r} has two sets of weights (--keep-base), a file has one: with "
            f"--classes choose only classes of the fine-tuning ({', '.join(bundle.classes)}) or only others."
        )
    return replace(bundle, network=bundle.network if tuned[0] else bundle.base_network, base_network=None)


def _add_props(graph: Path, props: Mapping[str, str]) -> None:
    import onnx

    model = onnx.load(graph)
    onnx.helper.set_model_props(model, dict(props))
    onnx.save(model, graph)


def _check_equal(bundle: ModelBundle, written: ModelBundle, phrases: list[str]) -> None:
    """Compare a file with its model on noise: two images, and a strip with few positions.

    This detects wrong graphs. Single queries may differ: rounding decides between positions of
    equal score.
    """
    phrases = phrases or ["red kite", "white blood cell", "x"]
    text = class_prompts(bundle.tokenizer, phrases, bundle.config.max_text_len).text
    short, max_side = bundle.image_format.short_side, bundle.image_format.max_side
    for count, *size_hw in ((2, short, min(max_side, short * 4 // 3) - 1), (1, max_side, max_side // 20 + 1)):
        images = torch.randn(count, 3, *size_hw, generator=torch.Generator().manual_seed(0))
        queries = []
        for network in (bundle.network.to(_CPU), written.network):
            with inference_mode(network, "fp32"):
                features = network.extract_features(images, [(size_hw[0], size_hw[1])] * count)
                output = network.forward_features(features, text.rows([0] * count))
            logits = output["pred_logits"][..., : text.input_ids.shape[1]]
            queries.append(torch.cat((output["pred_boxes"] * 10, logits), -1))
        equal = (torch.cdist(queries[0], queries[1], p=torch.inf).amin(2) < 1e-2).float().mean()
        if not equal >= 0.95:
            raise ExportError(
                f"The graph differs from the model {bundle.source!r} in {1 - equal:.0%} of the boxes of an "
                f"image of {size_hw[1]} x {size_hw[0]} pixels, so nothing was written. Please report this."
            )


def _quantize(bundle: ModelBundle, graph: Path, phrases: list[str], train: Dataset) -> None:
    from groundtune.exporting.precision import quantize

    step = max(1, len(train.samples) // _CALIBRATION_IMAGES)
    chosen = replace(train, samples=train.samples[::step][:_CALIBRATION_IMAGES])
    tokens: dict[str, np.ndarray] = {}
    if not phrases:
        known = train.phrases or ["object"]
        text = class_prompts(bundle.tokenizer, known, bundle.config.max_text_len).text.rows([0])
        tokens = {name: getattr(text, name).numpy() for name in TEXT_INPUTS}
    batches = evaluation_images(chosen, bundle.image_format, 1, threads=DECODE_THREADS)
    quantize(graph, (image for batch in batches for image in batch.images if image is not None), tokens)


def _convert(graph: Path, spec: ExportSpec) -> Path:
    """Convert the ONNX file to the format; int8 layers are in it already."""
    if spec.format == "openvino":
        import onnx
        import openvino

        model = openvino.convert_model(graph)
        for entry in onnx.load(graph, load_external_data=False).metadata_props:
            model.set_rt_info(entry.value, entry.key)
        openvino.save_model(model, graph.with_suffix(".xml"), compress_to_fp16=spec.precision == "fp16")
        return graph.with_suffix(".xml")
    if spec.precision == "fp16":
        from groundtune.exporting.precision import store_float16

        store_float16(graph)
    return graph


def _compare_scores(
    bundle: ModelBundle, written: Path, spec: ExportSpec, valid: Dataset, read: list[str], progress: Progress
) -> str:
    indices = [index for index, phrase in enumerate(valid.phrases) if not read or phrase in read]

    def score(model: ModelBundle) -> Evaluation:
        return run_task(eval_task(model, valid, indices, "fp32"), valid, 8, _CPU, progress)

    model, file = score(bundle), score(open_exported(written))
    if model.score is None or file.score is None:
        raise DataError("The split valid has no boxes, so the file cannot be measured.")
    metric, loss = "AP" if "AP" in model.metrics else "recall@1", 100 * (model.score - file.score)
    scores = f"{model.score:.3f} with the model, {file.score:.3f} with {spec.format} {spec.precision}"
    note = f"{metric} on valid: {scores} ({-loss:+.1f} points)."
    if spec.precision == "int8" and loss > spec.max_ap_drop:
        raise ExportError(
            f"{note} int8 may lose {spec.max_ap_drop:g}, so nothing was written. "
            "Use --precision fp16, or allow the loss with --max-ap-drop."
        )
    return note
