"""Running exported files: in the place of a network, so that prediction and evaluation are the same code.

A file says itself what it needs to be asked rightly: image format, vocabulary, names, in its ONNX metadata or OpenVINO
rt_info, under the two keys below.

One image and one prompt at a time, as the graph has no padding. Images narrower than the graph allows, strips of more
than 1 : 3.5 mostly, are stretched to its smallest side; boxes are shares of the image, so they come out right.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertTokenizer

from groundtune.contracts import ImageFormat, LayerOutput, Output
from groundtune.errors import DataError, ExportError
from groundtune.model.bundle import ModelBundle, Network, image_format_of
from groundtune.model.config import ModelConfig
from groundtune.model.detector import ABSENT_LOGIT
from groundtune.model.head import pad_logits
from groundtune.text.tokens import TextInput, build_tokenizer, phrase_blocks, phrase_mask_and_positions

ABOUT, VOCABULARY = "groundtune", "vocabulary"
SUFFIXES = {".onnx": "onnx", ".xml": "openvino"}
# OpenVINO computes a graph of one size a fifth faster, and takes about 100 such gains to prepare it.
_OFTEN, _OWN_GRAPHS = (
    100,
    2,
)  # images of a size after which it gets a graph of its own; most of them, for memory

_Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of the graph's inputs
TrainSetup = Callable[[dict[str, np.ndarray]], list[np.ndarray]]  # the graph's inputs by name → logits, boxes


@dataclass
class ExportMetadata:
    """What a file says of itself.

    Attributes:
        classes: of a closed set its cleaned names; of an open vocabulary those of the fine-tuning.
        input_ids: the prompt of a closed set, [] of an open vocabulary.
        phrases: of a closed set the tokens of each name.
        max_text_len: most tokens of a prompt.
        smallest_side: pixels.
        image: its `ImageFormat`.
        precision: "fp32", "fp16" or "int8".
        source: the model that it was made of.
    """

    classes: list[str]
    input_ids: list[int]
    phrases: list[list[int]]
    max_text_len: int
    smallest_side: int
    image_format: ImageFormat
    precision: str
    source: str


def metadata(about: ExportMetadata, tokenizer: BertTokenizer) -> dict[str, str]:
    """What is written into a file; ASCII."""
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    return {ABOUT: json.dumps({"format": 1, **asdict(about)}), VOCABULARY: json.dumps(words)}


def open_exported(path: Path) -> ModelBundle:
    """Open a file for prediction and evaluation: a bundle whose network is an `ExportedNetwork`, and whose config is not.

    Raises:
        ExportError: it is no exported file of ours, or its runtime is not installed.
    """
    run, written = (_onnx if SUFFIXES[path.suffix] == "onnx" else _openvino)(path)
    try:
        values = json.loads(written[ABOUT])
        if values.pop("format") != 1:
            raise ValueError("it is of a later version")
        about = ExportMetadata(**values | {"image_format": image_format_of(values["image_format"])})
        words: list[str] = json.loads(written[VOCABULARY])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{path} is no exported file of groundtune ({error!r}); make one with groundtune export."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
        tokenizer = build_tokenizer(vocabulary)
    network = ExportedNetwork(path, run, about, tokenizer)
    config = ModelConfig(max_text_len=about.max_text_len)
    return ModelBundle(network, tokenizer, config, about.image_format, about.classes, source=str(path))


class ExportedNetwork(nn.Module):
    """A graph that is asked like a `GroundingDINO`, images and prompts on any device."""

    def __init__(self, path: Path, run: TrainSetup, about: ExportMetadata, tokenizer: BertTokenizer) -> None:
        super().__init__()
        self.path, self.about = path, about
        self.place = nn.Parameter(torch.empty(0))  # what an asker finds out the device by
        self._run, self._tokenizer = run, tokenizer
        ids = torch.tensor([about.input_ids], dtype=torch.long)
        real = torch.ones_like(ids, dtype=torch.bool)
        own = (
            TextInput(ids, real, *reversed(phrase_mask_and_positions(ids, real))) if about.input_ids else None
        )
        self._places = {} if own is None else {block: place for place, block in phrase_blocks(own)[0]}

    def extract_features(self, images: Tensor, sizes_hw: list[tuple[int, int]]) -> list[list[Tensor]]:
        """(B, 3, H, W) normalized, each in the upper left corner of its canvas → the images, which are all there is."""
        least, found = self.about.smallest_side, []
        for image, (h, w) in zip(images, sizes_hw, strict=True):
            cut = image[:, :h, :w]
            if min(h, w) < least:
                size = max(h, least), max(w, least)
                cut = F.interpolate(cut[None], size, mode="bilinear", align_corners=False)[0]
            found.append([cut])
        return found

    def forward_features(self, features: list[list[Tensor]], text: TextInput) -> Output:
        """B images from `extract_features` and B prompts → `pred_logits`, `pred_boxes` and `text_token_mask`.

        Raises:
            DataError: the file has a closed set, and a prompt has another phrase.
        """
        logits, boxes = [], []
        for row, (image,) in enumerate(features):
            prompt = text.rows(slice(row, row + 1))
            columns = self._columns(prompt) if self.about.input_ids else slice(None)
            feed = {"image": image[None].cpu().numpy()}
            if not self.about.input_ids:
                names = "input_ids", "position_ids", "phrase_mask"
                feed |= {name: getattr(prompt, name).cpu().numpy() for name in names}
            own_logits, own_boxes = (torch.from_numpy(np.asarray(part))[0] for part in self._run(feed))
            logits.append(pad_logits(own_logits[:, columns], self.about.max_text_len))
            boxes.append(own_boxes)
        nothing = torch.empty(0)
        return Output(
            pred_logits=pad_sequence(logits, batch_first=True, padding_value=ABSENT_LOGIT),
            pred_boxes=pad_sequence(boxes, batch_first=True),
            text_token_mask=text.text_token_mask,
            aux_outputs=[],
            enc_outputs=LayerOutput(pred_logits=nothing, pred_boxes=nothing),
        )

    def forget_phrases(self) -> None:
        """Do nothing: the graph caches no phrases."""

    def _columns(self, prompt: TextInput) -> list[int]:
        """For each token of a prompt its place in the file's own: names may be fewer, and in another order."""
        asked = phrase_blocks(prompt)[0]
        unknown = [str(self._tokenizer.decode(list(ids[:-1]))) for _, ids in asked if ids not in self._places]
        if unknown:
            raise DataError(
                f"{self.path} has the names {', '.join(self.about.classes)} and cannot look for {', '.join(unknown)}. "
                "Use some of its names, or export without --classes."
            )
        return [
            column for _, ids in asked for column in range(self._places[ids].start, self._places[ids].stop)
        ]


def is_exported(network: Network) -> bool:
    """Whether a bundle's network is a file's, which has no weights to train or write."""
    return isinstance(network, ExportedNetwork)


def _onnx(path: Path) -> tuple[TrainSetup, dict[str, str]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnx") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
    except Exception as error:  # it has a dozen kinds of its own
        raise ExportError(f"Cannot open {path}: {str(error).splitlines()[0]}") from error
    return lambda feed: session.run(["logits", "boxes"], feed), session.get_modelmeta().custom_metadata_map


def _openvino(path: Path) -> tuple[TrainSetup, dict[str, str]]:
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino") from error
    # a CPU with bfloat16 would use it of its own accord, and move the boxes
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    core = openvino.Core()
    try:
        model = core.read_model(path)
        written = {
            key: model.get_rt_info(key).astype(str) for key in (ABOUT, VOCABULARY) if model.has_rt_info(key)
        }
        any_size = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ExportError(f"Cannot open {path}: {str(error).splitlines()[0]}") from error

    asked, own = Counter[_Shapes](), dict[_Shapes, Any]()

    def run(feed: dict[str, Any]) -> list[np.ndarray]:
        shapes = tuple((name, array.shape) for name, array in feed.items())
        asked[shapes] += 1
        if asked[shapes] == _OFTEN and len(own) < _OWN_GRAPHS:
            fixed = model.clone()
            fixed.reshape(dict(shapes))
            own[shapes] = core.compile_model(fixed, "CPU", settings)
        found = own.get(shapes, any_size)(feed)
        return [found["logits"], found["boxes"]]

    return run, written


def missing(extra: str) -> ExportError:
    """The error of a package that is not installed; extra is "onnx" or "openvino"."""
    return ExportError(f'{extra} is not installed. Install it with: pip install "groundtune[{extra}]"')
