"""Trace the network as an ONNX graph for images of any one size.

Open vocabulary: inputs are the images and the tokens of one prompt. Fixed classes: the text
features are part of the file, and only the images go in. Outputs are the logits of the prompt's
tokens and the boxes.

torch's tracer is used instead of `torch.export`, which takes hours because it carries a formula for
every side through every layer. The tracer records one branch of each condition: in its image all
maps are padded, which changes nothing in maps that need none. `write` compares the file with the
network in other sizes.
"""

import copy
import warnings
from pathlib import Path
from typing import Any

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

TEXT_INPUTS = ("input_ids", "position_ids", "phrase_mask")
_STRIDE = 32  # of the coarsest backbone map


class _WholePrompt(nn.Module):
    """The language model over the whole prompt, without its cache of phrases. Same numbers."""

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.model = language_model

    def forward(self, text: TextInput) -> Tensor:
        prompt = (text.input_ids, text.position_ids, text.phrase_mask)
        return self.model.run_bert(*(part[:1] for part in prompt)).expand(text.input_ids.shape[0], -1, -1)


class _FixedVocabulary(nn.Module):
    """The text features of one prompt, instead of a language model."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, text: TextInput) -> Tensor:
        return self.features.expand(text.input_ids.shape[0], -1, -1)


class _Graph(nn.Module):
    """The network as a function of tensors; the prompt is an input unless `text` is given."""

    def __init__(self, network: GroundingDINO, text: TextInput | None) -> None:
        super().__init__()
        self.network, self.text = network, text

    def forward(self, image: Tensor, *prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, 3, H, W) and `TEXT_INPUTS` to logits (B, Q, T) and boxes cxcywh (B, Q, 4)."""
        text = self.text
        if text is None:
            input_ids, position_ids, phrase_mask = prompt
            real = torch.ones_like(input_ids, dtype=torch.bool)
            text = TextInput(input_ids, real, position_ids, phrase_mask)
        images = image.shape[0]
        parts = (text.input_ids, text.text_token_mask, text.position_ids, text.phrase_mask)
        ids, real, positions, mask = (part.expand(images, *part.shape[1:]) for part in parts)
        text = TextInput(ids, real, positions, mask)
        output = self.network.detect_in_maps(self.network.backbone(image), None, text)
        return output["pred_logits"][..., : text.input_ids.shape[1]], output["pred_boxes"]


def fixed_prompt(bundle: ModelBundle, names: list[str]) -> tuple[TextInput, list[list[int]]]:
    """Return the one prompt of unique class names, and the token indices of each name.

    Raises:
        ExportError: the names do not fit one prompt.
    """
    phrases, max_text_len = bundle.phrases_of(names), bundle.config.max_text_len
    prompts = class_prompts(bundle.tokenizer, phrases, max_text_len, None, names)
    count = len(prompts.phrase_maps)
    if count > 1:
        raise ExportError(
            f"classes: the {len(names)} names need {count} prompts of {max_text_len} tokens, "
            "but a file has one. Use fewer names, or export without --classes and name them when predicting."
        )
    return prompts.text, [row.nonzero().flatten().tolist() for row in prompts.phrase_maps[0]]


@torch.no_grad()
def trace(bundle: ModelBundle, text: TextInput | None, opset: int, path: Path) -> None:
    """Write the graph as float32 ONNX; `text` is from `fixed_prompt`, None for an open vocabulary.

    Raises:
        ExportError: an open-vocabulary graph cannot express the model.
    """
    network = copy.deepcopy(bundle.detector).cpu().eval()
    use_sampling(network, sample_levels)
    side, backbone = 2 * _STRIDE, network.backbone
    if isinstance(backbone, Swin):  # an odd number of patches, an incomplete last window in all stages
        side = _STRIDE * backbone.body.config.window_size + backbone.patch_size
    inputs = {"image": torch.zeros(1, 3, side, side)}
    axes = {name: {0: "images", 1: "queries"} for name in ("logits", "boxes")}
    axes["image"] = {0: "images", 2: "height", 3: "width"}
    offsets = network.encoder.phrase_offsets
    tower: nn.Module = _WholePrompt(network.language_model)
    if text is not None:
        features = network.language_model(text)
        tower = _FixedVocabulary(features if offsets is None else offsets(features, text))
        network.encoder.phrase_offsets = None
    elif offsets is not None:
        raise ExportError(
            f"{bundle.source!r} has learned class-name embeddings, which need fixed classes: add --classes."
        )
    else:
        example = [class_prompt(["cat", "remote control"])]
        prompt, _ = tokenize(bundle.tokenizer, example, bundle.config.max_text_len)
        inputs |= {name: getattr(prompt, name) for name in TEXT_INPUTS}
        axes |= {name: {1: "tokens"} for name in TEXT_INPUTS}
        axes["phrase_mask"][2] = axes["logits"][2] = "tokens"
    network.register_module("language_model", tower)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about recorded branches and the newer exporter
        names: dict[str, Any] = {"input_names": list(inputs), "output_names": ["logits", "boxes"]}
        options = names | {"dynamic_axes": axes, "opset_version": opset, "dynamo": False}
        torch.onnx.export(_Graph(network, text).eval(), tuple(inputs.values()), str(path), **options)
