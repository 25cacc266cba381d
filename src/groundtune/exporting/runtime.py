"""Run exported files like a network, so that prediction and evaluation use the same code.

A file contains the image format, the vocabulary and the class names, in its ONNX metadata or
OpenVINO rt_info. It takes one prompt and images of one size at a time, because the graph has no
padding. A file of an older version takes one image, which is stretched if it is narrower than
`smallest_side`.
"""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertTokenizer

from groundtune.contracts import ImageFormat, LayerOutput, Output
from groundtune.errors import ConfigError, DataError, ExportError, first_line
from groundtune.exporting.graph import TEXT_INPUTS
from groundtune.model.bundle import ModelBundle, image_format_of
from groundtune.model.config import ModelConfig
from groundtune.model.head import ABSENT_LOGIT, pad_logits
from groundtune.text.tokens import TextInput, build_tokenizer, phrase_blocks, phrase_mask_and_positions

METADATA, VOCABULARY = "groundtune", "vocabulary"  # keys in the file
SUFFIXES = {".onnx": "onnx", ".xml": "openvino"}
# OpenVINO runs a graph of fixed size a fifth faster, but compiling it costs as much as 100 images
# gain.
_IMAGES_UNTIL_COMPILED, _MAX_COMPILED = 100, 2

_LOG = logging.getLogger("groundtune")

Feed = dict[str, np.ndarray]  # the graph's inputs by name
Shapes = tuple[tuple[int, ...], ...]  # of these inputs
RunGraph = Callable[[Feed, torch.device, str], list[np.ndarray]]  # with a provider, to logits and boxes


@dataclass
class ExportMetadata:
    """What a file says about itself."""

    classes: list[str]  # the fixed ones; with an open vocabulary those of the fine-tuning
    input_ids: list[int]  # prompt of the fixed classes, or []
    phrases: list[list[int]]  # token indices of each fixed class
    max_text_len: int
    image_format: ImageFormat
    precision: str  # "fp32", "fp16" or "int8"
    source: str  # the model
    class_phrases: dict[str, str] = field(default_factory=dict)  # what is read for `classes`, by name
    smallest_side: int = 1  # of an image, in pixels; larger in older files
    batches: bool = False  # whether a run can have several images; older files lack it


def metadata_props(metadata: ExportMetadata, tokenizer: BertTokenizer) -> dict[str, str]:
    """Return the texts to store in a file; ASCII."""
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    return {METADATA: json.dumps({"format": 1, **asdict(metadata)}), VOCABULARY: json.dumps(words)}


def open_exported(path: Path) -> ModelBundle:
    """Open a file as a bundle with an `ExportedNetwork`; a file of others is an `ExportError`."""
    run, props = (_open_onnx if SUFFIXES[path.suffix] == "onnx" else _open_openvino)(path)
    try:
        values = json.loads(props[METADATA])
        if values.pop("format") != 1:
            raise ValueError("a later version wrote it")
        metadata = ExportMetadata(**values | {"image_format": image_format_of(values["image_format"])})
        words: list[str] = json.loads(props[VOCABULARY])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{path} was not exported by groundtune ({error!r}); use the file of `groundtune export`."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
        tokenizer = build_tokenizer(vocabulary)
    network = ExportedNetwork(path, run, metadata, tokenizer)
    config = ModelConfig(max_text_len=metadata.max_text_len)
    classes, phrases = metadata.classes, metadata.class_phrases
    image_format = metadata.image_format
    return ModelBundle(network, tokenizer, config, image_format, classes, source=str(path), phrases=phrases)


def is_exported(network: object) -> bool:
    """Return whether a network is an exported file, which has no weights to train or save."""
    return isinstance(network, ExportedNetwork)


class ExportedNetwork(nn.Module):
    """A `contracts.Network` that runs a graph; images and prompts may be on any device.

    Attributes:
        provider: "auto", or "tensorrt" for ONNX files.
    """

    provider = "auto"

    def __init__(self, path: Path, run: RunGraph, metadata: ExportMetadata, tokenizer: BertTokenizer) -> None:
        super().__init__()
        self.path, self.metadata = path, metadata
        self.device_marker = nn.Parameter(torch.empty(0))  # callers read the device from a parameter
        self._run, self._tokenizer = run, tokenizer
        self._blocks: dict[tuple[int, ...], slice] = {}  # of fixed classes the columns of each phrase
        if metadata.input_ids:
            ids = torch.tensor([metadata.input_ids], dtype=torch.long)
            real = torch.ones_like(ids, dtype=torch.bool)
            mask, positions = phrase_mask_and_positions(ids, real)
            blocks = phrase_blocks(TextInput(ids, real, positions, mask))[0]
            self._blocks = {block: columns for columns, block in blocks}

    @property
    def device(self) -> torch.device:
        """Where the graph runs: the device that the network was moved to."""
        return self.device_marker.device

    def extract_features(self, images: Tensor, sizes_hw: list[tuple[int, int]]) -> list[list[Tensor]]:
        """Cut the images out of (B, 3, H, W), and stretch those too narrow for the graph."""
        least, features = self.metadata.smallest_side, []
        for image, (h, w) in zip(images, sizes_hw, strict=True):
            cut = image[:, :h, :w]
            if min(h, w) < least:
                size = max(h, least), max(w, least)
                cut = F.interpolate(cut[None], size, mode="bilinear", align_corners=False)[0]
            features.append([cut])
        return features

    def forward_features(self, features: list[list[Tensor]], text: TextInput) -> Output:
        """Detect with one prompt per image; a phrase that is not a fixed class is a `DataError`."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for row, (image,) in enumerate(features):
            same = (image.shape, *text.input_ids[row].tolist()) if self.metadata.batches else (row,)
            groups.setdefault(same, []).append(row)
        results: dict[int, tuple[Tensor, Tensor]] = {}
        for rows in groups.values():
            prompt = text.rows(slice(rows[0], rows[0] + 1))
            columns: list[int] | slice = slice(None)
            feed = {"image": torch.stack([features[row][0] for row in rows]).cpu().numpy()}
            if self._blocks:
                columns = self._columns(prompt)
            else:
                feed |= {name: getattr(prompt, name).cpu().numpy() for name in TEXT_INPUTS}
            logits, boxes = (
                torch.from_numpy(np.asarray(part)) for part in self._run(feed, self.device, self.provider)
            )
            padded = pad_logits(logits[..., columns], self.metadata.max_text_len)
            results |= zip(rows, zip(padded, boxes, strict=True), strict=True)
        in_order = [results[row] for row in range(len(features))]
        return Output(
            pred_logits=pad_sequence([part for part, _ in in_order], True, ABSENT_LOGIT),
            pred_boxes=pad_sequence([part for _, part in in_order], True),
            text_token_mask=text.text_token_mask,
            aux_outputs=[],
            enc_outputs=LayerOutput(pred_logits=torch.empty(0), pred_boxes=torch.empty(0)),
        )

    def forget_phrases(self) -> None:
        """Do nothing: the graph caches no phrases."""

    def _columns(self, prompt: TextInput) -> list[int]:
        """Return the column of each token of a prompt; names may be fewer and in any order."""
        phrases = [ids for _, ids in phrase_blocks(prompt)[0]]
        unknown = [str(self._tokenizer.decode(list(ids[:-1]))) for ids in phrases if ids not in self._blocks]
        if unknown:
            raise DataError(
                f"{self.path} has the fixed classes {', '.join(self.metadata.classes)}, got "
                f"{', '.join(unknown)}. Use some of its classes, or export without --classes."
            )
        return [
            column for ids in phrases for column in range(self._blocks[ids].start, self._blocks[ids].stop)
        ]


def _open_onnx(path: Path) -> tuple[RunGraph, dict[str, str]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise not_installed("onnx") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    built: set[Shapes] = set()

    @cache
    def session(device: torch.device, provider: str) -> Any:
        providers = onnx_providers(onnxruntime.get_available_providers(), device, provider)
        try:
            opened = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # it has a dozen kinds of its own
            raise ExportError(f"Cannot open {path}: {first_line(error)}") from error
        if device.type != "cpu" and opened.get_providers()[0] == "CPUExecutionProvider":
            fix = "For NVIDIA's GPUs install onnxruntime-gpu instead of onnxruntime."
            _LOG.warning(f"ONNX Runtime cannot use {device}: {path} runs on the CPU. {fix}")
        return opened

    def run(feed: Feed, device: torch.device, provider: str) -> list[np.ndarray]:
        shapes = tuple(array.shape for array in feed.values())
        if provider == "tensorrt" and shapes not in built:
            built.add(shapes)
            count, _, height, width = feed["image"].shape
            sizes = f"{count} image(s) of {width} × {height} pixels"
            _LOG.warning(f"TensorRT builds an engine for {sizes}: minutes, again for every other size.")
        opened = session(device, provider)
        try:
            return list(opened.run(["logits", "boxes"], feed))
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            raise RuntimeError(str(error)) from error  # its own types hide too little memory

    return run, session(torch.device("cpu"), "auto").get_modelmeta().custom_metadata_map


def onnx_providers(available: Sequence[str], device: torch.device, provider: str) -> list[Any]:
    """Return ONNX Runtime's providers for a device, the CPU last; never TensorRT by itself.

    Raises:
        ConfigError: TensorRT is wanted but not available.
    """
    kinds = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    if provider == "tensorrt":
        if not kinds or "TensorrtExecutionProvider" not in available:
            raise ConfigError(
                f"provider: tensorrt needs --device cuda and onnxruntime-gpu with TensorRT; got {device} and "
                f"{', '.join(available)}. Remove --provider."
            )
        kinds.insert(0, "TensorrtExecutionProvider")
    settings = {"device_id": device.index or 0}
    return [*((kind, settings) for kind in kinds if kind in available), "CPUExecutionProvider"]


def use_provider(network: object, provider: str) -> None:
    """Let an exported ONNX file run by a provider; "auto" suits every network."""
    if isinstance(network, ExportedNetwork) and network.path.suffix == ".onnx":
        network.provider = provider
    elif provider != "auto":
        raise ConfigError("provider: only exported .onnx files have one. Remove --provider.")


def _open_openvino(path: Path) -> tuple[RunGraph, dict[str, str]]:
    try:
        import openvino
    except ImportError as error:
        raise not_installed("openvino") from error
    # float32, because bfloat16 (the default on CPUs that have it) moves boxes
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    core = openvino.Core()
    try:
        model = core.read_model(path)
        keys = [key for key in (METADATA, VOCABULARY) if model.has_rt_info(key)]
        props = {key: model.get_rt_info(key).astype(str) for key in keys}
        dynamic = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ExportError(f"Cannot open {path}: {first_line(error)}") from error
    counts, compiled = Counter[Shapes](), dict[Shapes, Any]()

    def run(feed: Feed, *_: object) -> list[np.ndarray]:
        shapes = tuple(array.shape for array in feed.values())
        counts[shapes] += 1
        if counts[shapes] == _IMAGES_UNTIL_COMPILED and len(compiled) < _MAX_COMPILED:
            fixed = model.clone()
            fixed.reshape(dict(zip(feed, shapes, strict=True)))
            compiled[shapes] = core.compile_model(fixed, "CPU", settings)
        outputs = compiled.get(shapes, dynamic)(feed)
        return [outputs["logits"], outputs["boxes"]]

    return run, props


def not_installed(extra: str) -> ExportError:
    return ExportError(f'{extra} is not installed. Install it with: pip install "groundtune[{extra}]"')
