"""Writing a model for ONNX Runtime or OpenVINO: traced, compared with the model, shrunk where asked, measured, put in place.

A file that is worse than allowed is never put in place: what is measured is the finished file in its own runtime, by the
code that measures models.
"""

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from groundtune.data.prefetch import evaluation_images
from groundtune.data.sample import Dataset
from groundtune.engine.evaluate import DECODE_THREADS, Evaluation, evaluate
from groundtune.errors import ConfigError, DataError, ExportError
from groundtune.export.graph import closed_prompt, smallest_side, trace
from groundtune.export.runtime import SUFFIXES, ExportMetadata, metadata, missing, open_exported
from groundtune.model.bundle import ModelBundle
from groundtune.predict.detect import class_prompts, inference_mode
from groundtune.progress import Progress
from groundtune.text.prompt import unique_names

_CALIBRATION = 64  # images, evenly over the training split
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "onnxruntime", "openvino")}
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportSpec:
    """What to write.

    Attributes:
        format: "onnx" or "openvino".
        names: of a closed set; none is an open vocabulary.
        precision: "fp32", "fp16" or "int8".
        max_ap_drop: points (hundredths) of AP, or of recall@1 for captions, that int8 may lose.
    """

    format: str
    names: list[str]
    precision: str
    max_ap_drop: float


def write_exported(
    bundle: ModelBundle,
    path: Path,
    wanted: ExportSpec,
    splits: Mapping[str, Dataset] | None,
    progress: Progress,
) -> list[str]:
    """Write the file, for OpenVINO the two of them; they appear when they are whole and good.

    Args:
        bundle: the model.
        path: ends in .onnx or .xml.
        wanted: what to write.
        splits: "train" calibrates int8, "valid" is measured on before and after. None, where it is not int8: not measured.
        progress: told about the images done.

    Returns:
        What was measured, in sentences.

    Raises:
        ConfigError: the path ends otherwise, or int8 has no data.
        DataError: the data lacks a split or the names.
        ExportError: a package is missing, the graph cannot express the model or its two networks, or int8 loses more than is
            allowed.
    """
    if SUFFIXES.get(path.suffix) != wanted.format:
        suffix = next(suffix for suffix, format in SUFFIXES.items() if format == wanted.format)
        raise ConfigError(f"out: {path} must end in {suffix} for the format {wanted.format}.")
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES[wanted.format]):
        raise missing(wanted.format)
    needed = {"train", "valid"} if wanted.precision == "int8" else {"valid"} if splits is not None else set()
    if needed and splits is None:
        raise ConfigError("data: int8 is calibrated and measured on images; name your data set with --data.")
    if splits is not None and needed - splits.keys():
        raise DataError(
            f"The data has no split {' and '.join(sorted(needed - splits.keys()))}; found: {', '.join(splits)}."
        )
    names = unique_names(wanted.names)[0]
    bundle = _one_network(bundle, names)
    side = smallest_side(bundle)
    of_data = splits["valid"].class_names if splits is not None else []
    if names and of_data and not set(names) & set(of_data):
        raise DataError(f"The data has none of the names {', '.join(names)}; it has {', '.join(of_data)}.")
    text, phrases = closed_prompt(bundle, names) if names else (None, [])
    ids = [] if text is None else text.input_ids[0].tolist()
    about = ExportMetadata(
        names or bundle.classes,
        ids,
        phrases,
        bundle.config.max_text_len,
        side,
        bundle.image_format,
        wanted.precision,
        bundle.source,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            graph = Path(folder) / "model.onnx"
            trace(bundle, text, side, graph)
            _describe(graph, metadata(about, bundle.tokenizer))
            _refuse_different(bundle, open_exported(graph), names)
            if wanted.precision == "int8" and splits is not None:
                _quantize(bundle, graph, names, splits["train"])
            written = _finished(graph, wanted)
            if wanted.format == "openvino" and wanted.precision == "fp32":
                _refuse_different(bundle, open_exported(written), names)
            notes = (
                _measure(bundle, written, wanted, splits["valid"], names, progress)
                if splits is not None
                else []
            )
            for part in (".bin", ".xml") if wanted.format == "openvino" else (".onnx",):
                os.replace(written.with_suffix(part), path.with_suffix(part))
    except OSError as error:
        raise ExportError(f"Cannot write {path}: {error.strerror or error}.") from error
    return notes


def _one_network(bundle: ModelBundle, names: list[str]) -> ModelBundle:
    """A model without a kept base (`--keep-base`): of its two networks the one that answers for these names."""
    if bundle.kept is None:
        return bundle
    own = [name in bundle.classes for name in names]
    if not names or any(own) != all(own):
        raise ExportError(
            f"The model {bundle.source!r} has two sets of weights (--keep-base), and one graph has one: build in names of its "
            f"fine-tuning only ({', '.join(bundle.classes)}), or others only, with --classes."
        )
    return replace(bundle, network=bundle.network if own[0] else bundle.kept, kept=None)


def _describe(graph: Path, written: Mapping[str, str]) -> None:
    import onnx

    model = onnx.load(graph)
    onnx.helper.set_model_props(model, dict(written))
    onnx.save(model, graph)


def _quantize(bundle: ModelBundle, graph: Path, names: list[str], train: Dataset) -> None:
    from groundtune.export.precision import quantize

    step = max(1, len(train.samples) // _CALIBRATION)
    chosen = Dataset(
        train.name, train.root, train.class_names, train.samples[::step][:_CALIBRATION], train.category_ids
    )
    tokens: dict[str, np.ndarray] = {}
    if not names:
        asked = class_prompts(
            bundle.tokenizer, train.class_names or ["object"], bundle.config.max_text_len
        ).rows([0])
        tokens = {name: getattr(asked, name).numpy() for name in ("input_ids", "position_ids", "phrase_mask")}
    batches = evaluation_images(chosen, bundle.image_format, 1, workers=DECODE_THREADS)
    quantize(graph, (image for batch in batches for image in batch.images if image is not None), tokens)


def _finished(graph: Path, wanted: ExportSpec) -> Path:
    """The file in the wanted format; its int8 layers are there already."""
    if wanted.format == "openvino":
        import onnx
        import openvino

        model = openvino.convert_model(graph)
        for entry in onnx.load(graph, load_external_data=False).metadata_props:
            model.set_rt_info(entry.value, entry.key)
        openvino.save_model(model, graph.with_suffix(".xml"), compress_to_fp16=wanted.precision == "fp16")
        return graph.with_suffix(".xml")
    if wanted.precision == "fp16":
        from groundtune.export.precision import store_float16

        store_float16(graph)
    return graph


def _refuse_different(bundle: ModelBundle, written: ModelBundle, names: list[str]) -> None:
    """Compare a file with its model on noise in two sizes that it was not traced in.

    The tests compare to the last digits. Here it is about a graph that is wrong; single queries may differ, as rounding
    decides which of two positions with equal scores comes first.
    """
    prompts = class_prompts(
        bundle.tokenizer, names or ["red kite", "white blood cell", "x"], bundle.config.max_text_len
    )
    short = bundle.image_format.short_side
    least, long = smallest_side(bundle), min(bundle.image_format.max_side, short * 4 // 3)
    for size_hw in ((short, long - 1), (max(least, short * 3 // 4 - 1), short)):
        image = torch.randn(1, 3, *size_hw, generator=torch.Generator().manual_seed(0))
        queries = []
        for one in (bundle, written):
            with inference_mode(one.network):
                network = one.network.to(_CPU)
                output = network.forward_features(network.extract_features(image, [size_hw]), prompts.text)
            real = output["pred_logits"][0, :, : prompts.text.input_ids.shape[1]]
            queries.append(torch.cat((output["pred_boxes"][0] * 10, real), -1))
        same = (torch.cdist(queries[0], queries[1], p=torch.inf).amin(1) < 1e-2).float().mean()
        if not same >= 0.95:
            raise ExportError(
                f"The written graph differs from the model {bundle.source!r} in {1 - same:.0%} of the boxes of an image of "
                f"{size_hw[1]} x {size_hw[0]} pixels, so it is not kept. Please report this model's sizes."
            )


def _measure(
    bundle: ModelBundle,
    written: Path,
    wanted: ExportSpec,
    valid: Dataset,
    names: list[str],
    progress: Progress,
) -> list[str]:
    indices = [place for place, name in enumerate(valid.class_names) if not names or name in names]

    def score(asked: ModelBundle) -> Evaluation:
        return evaluate(
            asked,
            valid,
            class_indices=indices,
            batch_size=8,
            device=_CPU,
            precision="fp32",
            progress=progress,
        )

    before, after = score(bundle), score(open_exported(written))
    if before.score is None or after.score is None:
        raise DataError("There is nothing to measure in the split valid, which has no boxes.")
    loss = 100 * (before.score - after.score)
    metric, kind = "AP" if "AP" in before.metrics else "recall@1", f"{wanted.format} {wanted.precision}"
    told = f"{metric} on valid: {before.score:.3f} the model, {after.score:.3f} {kind} ({-loss:+.1f} points)"
    if wanted.precision == "int8" and loss > wanted.max_ap_drop:
        allowed = f"int8 may lose {wanted.max_ap_drop:g}, so it is not kept"
        raise ExportError(f"{told}. {allowed}. Use --precision fp16, or allow the loss with --max-ap-drop.")
    return [f"{told}."]
