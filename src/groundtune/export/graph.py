"""The network as an ONNX graph of one image of any size.

Open vocabulary: the image and the tokens of one prompt go in. Closed set: the class names are part of the file, the
language model is not, and only the image goes in. Out come the logits of the prompt's tokens and the boxes, as in
`detector.Output`; scores and pixels are made of them outside, by the formulas of `postprocess`.

The exporter is torch's tracer, not the newer one of `torch.export`: that one carries a formula for every side through every
layer, and the roundings of a backbone's padding make it take hours where the tracer takes seconds. The tracer keeps the
branches that it walks, so it walks those that are right for all larger images (`smallest_side`), and the file is compared
with the network in other sizes before anyone gets it.
"""

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from groundtune.errors import ExportError
from groundtune.model.backbone import Swin
from groundtune.model.bundle import ModelBundle
from groundtune.model.deformable import sample_levels, use_sampling
from groundtune.model.detector import GroundingDINO
from groundtune.model.language import LanguageModel
from groundtune.predict.detect import class_prompts
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import TextInput, tokenize

OPSET = 17  # the first with a layer norm of its own
_STEP = 32  # of the coarsest backbone map


class _WholePrompt(nn.Module):
    """The language model over the whole prompt, without its memory of phrases. Same numbers."""

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.model = language_model

    def forward(self, text: TextInput) -> Tensor:
        return self.model.run_bert(text.input_ids, text.position_ids, text.phrase_mask)


class _Known(nn.Module):
    """The features of one prompt, in place of a language model."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, _: TextInput) -> Tensor:
        return self.features


class _Graph(nn.Module):
    """The network as a function of tensors: of the image where `text` is known, otherwise of the tokens too."""

    def __init__(self, network: GroundingDINO, text: TextInput | None) -> None:
        super().__init__()
        self.network, self.text = network, text

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        phrase_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) and, as in `TextInput`, one prompt → logits (1, Q, T), boxes cxcywh (1, Q, 4)."""
        text = self.text
        if text is None:
            assert input_ids is not None and position_ids is not None and phrase_mask is not None
            text = TextInput(
                input_ids, torch.ones_like(input_ids, dtype=torch.bool), position_ids, phrase_mask
            )
        features = [[level[0] for level in self.network.backbone(image)]]
        output = self.network.forward_features(features, text)
        return output["pred_logits"][..., : text.input_ids.shape[1]], output["pred_boxes"]


def smallest_side(bundle: ModelBundle) -> int:
    """The side in pixels from which on an image runs through the branches that a square of this side is traced through.

    A Swin's maps must be larger than its window, with an odd number of patches and a rest in the last window of each stage,
    so that the tracer sees them padded; and there must be a position for each query.

    Raises:
        ExportError: the model's own images are smaller.
    """
    side = 2 * _STEP
    backbone = bundle.detector.backbone
    if isinstance(backbone, Swin):
        side = _STEP * backbone.body.config.window_size + backbone.patch_size
    while (
        sum((-(-side // (8 << level))) ** 2 for level in range(bundle.config.num_levels))
        < bundle.config.num_queries
    ):
        side += _STEP
    if side > bundle.image_format.short_side:
        raise ExportError(
            f"The model {bundle.source!r} takes images with a short side of {bundle.image_format.short_side} pixels; a graph for "
            f"images of any size needs {side}, for the windows of the backbone and the number of queries."
        )
    return side


def closed_prompt(bundle: ModelBundle, names: list[str]) -> tuple[TextInput, list[list[int]]]:
    """The one prompt of a closed set of cleaned, unique names, and the tokens of each name.

    Raises:
        ExportError: the names do not fit one prompt.
    """
    prompts = class_prompts(bundle.tokenizer, names, bundle.config.max_text_len)
    if len(prompts.phrase_maps) > 1:
        raise ExportError(
            f"classes: the {len(names)} names need {len(prompts.phrase_maps)} prompts of {bundle.config.max_text_len} tokens, "
            "and a closed set has one. Name fewer, or export without --classes and name them when predicting."
        )
    return prompts.text, [row.nonzero().flatten().tolist() for row in prompts.phrase_maps[0]]


@torch.no_grad()
def trace(bundle: ModelBundle, text: TextInput | None, side: int, path: Path) -> None:
    """Write the graph as float32 ONNX; `text` is the prompt of a closed set, `side` from `smallest_side`.

    Raises:
        ExportError: an open-vocabulary graph cannot express the model.
    """
    network = copy.deepcopy(bundle.detector).cpu().eval()
    use_sampling(network, sample_levels)
    inputs = {"image": torch.zeros(1, 3, side, side)}
    axes: dict[str, dict[int, str]] = {"image": {2: "height", 3: "width"}}
    offsets = network.encoder.phrase_offsets
    if text is not None:
        features = network.language_model(text)
        network.register_module(
            "language_model", _Known(features if offsets is None else offsets(features, text))
        )
        network.encoder.phrase_offsets = None
    elif offsets is not None:
        raise ExportError(
            f"The model {bundle.source!r} has learned offsets of class names, which only a closed set can have: add --classes."
        )
    else:
        network.register_module("language_model", _WholePrompt(network.language_model))
        example, _ = tokenize(
            bundle.tokenizer, [class_prompt(["cat", "remote control"])], bundle.config.max_text_len
        )
        for name in ("input_ids", "position_ids", "phrase_mask"):
            inputs[name], axes[name] = getattr(example, name), {1: "tokens"}
        axes["phrase_mask"] = {1: "tokens", 2: "tokens"}
    axes |= {
        "logits": {1: "queries"} if text is not None else {1: "queries", 2: "tokens"},
        "boxes": {1: "queries"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that branches are kept, and that there is the newer exporter
        torch.onnx.export(
            _Graph(network, text).eval(),
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            input_names=list(inputs),
            output_names=["logits", "boxes"],
            dynamic_axes=axes,
            opset_version=OPSET,
        )
