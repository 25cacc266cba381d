"""A network with everything that it needs to be used: tokenizer, image format, classes, training recipe.

Networks are built here, from sizes; where their weights come from and go to is in `checkpoint`. Frozen towers that come
from an installed package are part of no file of ours.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import BertTokenizer

from groundtune.contracts import ImageFormat
from groundtune.errors import CheckpointError
from groundtune.model.backbone import EfficientNetLite0, Swin, load_efficientnet_lite0
from groundtune.model.config import ModelConfig
from groundtune.model.decoder import Decoder, DecoderLayer
from groundtune.model.detector import GroundingDINO
from groundtune.model.encoder import DeformableLayer, Encoder, TextLayer
from groundtune.model.fusion import FusionLayer
from groundtune.model.head import BoxHead
from groundtune.model.language import LanguageModel, build_bert, load_minilm
from groundtune.model.neck import Neck

PRESET_FOLDER = Path(__file__).parent / "presets"
_LARGEST_SIDE = 8192  # pixels that a model may ask its images to be resized to
_PACKAGED_TOWERS = {"efficientnet-lite0": "backbone", "minilm": "language_model"}


@dataclass
class ModelBundle:
    """A loaded model."""

    network: GroundingDINO  # in eval mode
    tokenizer: BertTokenizer
    config: ModelConfig
    image_format: ImageFormat
    classes: list[str] = field(default_factory=list)  # names that it was fine-tuned on, cleaned; empty before
    recipe: dict[str, Any] = field(default_factory=dict)  # its training defaults, names as in `TrainConfig`
    source: str = ""  # what it was loaded from
    # towers of the nano packages that were fine-tuned: their weights are stored though they may be frozen
    own_towers: set[str] = field(default_factory=set)
    # what its weights first came from, through any number of fine-tunings: a preset, a Hub id, a file or folder; "" unknown
    base_model: str = ""
    # what `network` was trained from (`--keep-base`), with the same towers: it answers for all names but `classes`
    kept: GroundingDINO | None = None

    @property
    def tuned_names(self) -> frozenset[str] | None:
        """The names that `network` answers for; None: all of them."""
        return frozenset(self.classes) if self.kept is not None else None

    def to(self, device: torch.device) -> GroundingDINO:
        """Move everything to a device; the network."""
        if self.kept is not None:
            self.kept.to(device)
        return self.network.to(device)


def image_format_of(values: dict[str, Any]) -> ImageFormat:
    """An image format of plain values; a `KeyError`, `TypeError` or `ValueError` if one is missing or no number."""
    try:
        mean, std = (tuple(float(value) for value in values[name]) for name in ("mean", "std"))
        image = ImageFormat(mean, std, short_side=int(values["short_side"]), max_side=int(values["max_side"]))
    except OverflowError as error:
        raise ValueError(f"numbers without end: {error}") from error
    if (len(mean), len(std)) != (3, 3) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"mean {mean} and std {std} must have three numbers each, those of std above 0")
    if not (1 <= image.short_side <= _LARGEST_SIDE and 1 <= image.max_side <= _LARGEST_SIDE):
        raise ValueError(f"short_side and max_side must lie between 1 and {_LARGEST_SIDE}, found {image}")
    return image


def presets() -> dict[str, dict[str, Any]]:
    """The built-in presets by name, as read from their YAML files; one that is `like` another has what that one has."""
    read = {path.stem: yaml.safe_load(path.read_text()) for path in PRESET_FOLDER.glob("*.yaml")}
    return {name: read.get(read[name].get("like"), {}) | read[name] for name in sorted(read)}


def published() -> dict[str, dict[str, Any]]:
    """Published models by their ids on the Hub, with their sizes and licenses."""
    read = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())
    return {
        name: {**about, "summary": "downloaded from the Hub at its first use"} for name, about in read.items()
    }


def build_network(config: ModelConfig, seed: int = 0) -> GroundingDINO:
    """A network of these sizes, with random weights but for the nano towers; the global random state is left as it was.

    Raises:
        CheckpointError: a package of the nano towers is missing.
    """
    shared = config.share_box_head, config.share_class_head
    contrastive = config.contrastive_scale, config.contrastive_bias
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _build_backbone(config)
        language_model = (
            load_minilm() if config.language_model == "minilm" else build_bert(config.language_config)
        )
        network = GroundingDINO(
            backbone,
            language_model,
            Neck(backbone.channels, config.d_model, config.num_levels),
            _build_encoder(config, language_model),
            _build_decoder(config),
            BoxHead(config.d_model, config.decoder_layers, *shared, *contrastive),
            head_eps=config.head_eps,
            max_text_len=config.max_text_len,
        )
    network.freeze(packaged_towers(config))
    return network.eval()


def packaged_towers(config: ModelConfig) -> list[str]:
    """The modules whose weights come from installed packages."""
    return [
        tower for name, tower in _PACKAGED_TOWERS.items() if name in (config.backbone, config.language_model)
    ]


def _build_backbone(config: ModelConfig) -> Swin | EfficientNetLite0:
    if config.backbone == "swin":
        return Swin(config.backbone_config)
    if config.backbone != "efficientnet-lite0":
        raise CheckpointError(
            f"Unknown backbone {config.backbone!r}; expected 'swin' or 'efficientnet-lite0'."
        )
    return load_efficientnet_lite0()


def _build_encoder(config: ModelConfig, language_model: LanguageModel) -> Encoder:
    width, dropout = config.d_model, config.dropout
    layers = [
        (
            FusionLayer(
                width, config.fusion_dim, config.fusion_heads, config.fusion_droppath, config.fusion_gamma
            ),
            TextLayer(width, config.fusion_heads, config.text_ffn_dim, dropout),
            DeformableLayer(
                width, config.num_heads, config.num_levels, config.encoder_points, config.ffn_dim, dropout
            ),
        )
        for _ in range(config.encoder_layers)
    ]
    return Encoder(language_model.width, layers, width, config.num_levels, config.position_temperature)


def _build_decoder(config: ModelConfig) -> Decoder:
    width, learned = config.d_model, config.query_content == "learned"
    sizes = (
        width,
        config.num_heads,
        config.num_levels,
        config.decoder_points,
        config.ffn_dim,
        config.dropout,
    )
    layers = [DecoderLayer(*sizes) for _ in range(config.decoder_layers)]
    return Decoder(layers, width, config.num_queries, learned, config.num_labels, config.decoder_eps)


def companion(network: GroundingDINO) -> GroundingDINO:
    """A copy that stays as it is while the network is trained; the two have the same frozen towers."""
    kept = GroundingDINO(
        network.backbone,
        network.language_model,
        copy.deepcopy(network.neck),
        copy.deepcopy(network.encoder),
        copy.deepcopy(network.decoder),
        copy.deepcopy(network.bbox_head),
        head_eps=network.head_eps,
        max_text_len=network.max_text_len,
    )
    for part in (kept.neck, kept.encoder, kept.decoder, kept.bbox_head):
        part.requires_grad_(False)
    kept.decoder.label_embedding = nn.Embedding(1, kept.decoder.d_model)  # of training only
    return kept.eval()


def kept_state(kept: GroundingDINO) -> dict[str, torch.Tensor]:
    """What a network of `companion` has of its own, by the names in it; the shared towers are not in it."""
    towers = ("backbone.", "language_model.")
    return {name: tensor for name, tensor in unique_state(kept).items() if not name.startswith(towers)}


def unique_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """State dict in which a tensor under several names (a shared box head) stands once, under its first."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique
