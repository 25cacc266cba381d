"""A network with all that its use needs: tokenizer, image format, classes, training recipe.

Networks are built here, from sizes; `checkpoint` reads and writes their weights. Frozen towers
that come from an installed package are part of no file of ours.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
import yaml
from torch import Tensor, nn
from transformers import BertTokenizer

from groundtune.contracts import ImageFormat, Output
from groundtune.errors import CheckpointError, ExportError
from groundtune.model.backbone import EfficientNetLite0, Swin, load_efficientnet_lite0
from groundtune.model.config import ModelConfig
from groundtune.model.decoder import Decoder, DecoderLayer
from groundtune.model.detector import GroundingDINO
from groundtune.model.encoder import DeformableLayer, Encoder, TextLayer
from groundtune.model.evidence import EvidenceReader
from groundtune.model.fusion import FusionLayer
from groundtune.model.head import MLP, BoxHead, ContrastiveEmbed
from groundtune.model.language import LanguageModel, build_bert, load_minilm
from groundtune.model.neck import Neck
from groundtune.model.towers import TwoTowers, load_towers
from groundtune.text.prompt import class_phrases, known_phrases
from groundtune.text.tokens import TextInput

PRESET_FOLDER = Path(__file__).parent / "presets"
_MAX_SIDE = 8192  # pixels, of the image size that a model's files may demand
DETECTING_BACKBONE = "lite0-nanodet"
_PACKAGED_TOWERS = {"efficientnet-lite0": "backbone", "minilm": "language_model"}
_PACKAGED_TOWERS |= {DETECTING_BACKBONE: "backbone", "minilm-framed": "language_model"}
_QUIET = 0.2
TOWERS = ("backbone", "language_model")  # shared by a network and its `companion`


class Network(Protocol):
    """What prediction and evaluation need: a `GroundingDINO` or an exported file."""

    def extract_features(self, images: Tensor, sizes_hw: list[tuple[int, int]]) -> list[list[Tensor]]: ...
    def forward_features(self, features: list[list[Tensor]], text: TextInput) -> Output: ...
    def forget_phrases(self) -> None: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def eval(self) -> Self: ...
    def to(self, device: torch.device) -> Self: ...


@dataclass
class ModelBundle:
    """A loaded model.

    Attributes:
        network: in eval mode.
        classes: class names that it was fine-tuned on, as its data writes them; empty before.
        recipe: its training defaults, names as in `TrainConfig`.
        source: what it was loaded from.
        tuned_towers: packaged towers that were fine-tuned; their weights are saved, frozen or not.
        base_model: the first origin of its weights, before all fine-tunings; "" if unknown.
        base_network: with `--keep-base` the network before fine-tuning, with the same towers. It
            detects all other phrases than those of `phrases`.
        phrases: what it reads for `classes`, and for those merged into them; {} in older models.
    """

    network: Network
    tokenizer: BertTokenizer
    config: ModelConfig
    image_format: ImageFormat
    classes: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    tuned_towers: set[str] = field(default_factory=set)
    base_model: str = ""
    base_network: GroundingDINO | None = None
    phrases: dict[str, str] = field(default_factory=dict)

    @property
    def detector(self) -> GroundingDINO:
        """The network with its modules and weights, for training, saving and export.

        Raises:
            ExportError: the model is an exported file.
        """
        if not isinstance(self.network, GroundingDINO):
            raise ExportError(f"{self.source} is an exported file, which has no weights to train or save.")
        return self.network

    @property
    def tuned_phrases(self) -> frozenset[str] | None:
        """The phrases that `network` detects; None: all phrases."""
        own = {*self.phrases_of(self.classes), *self.phrases.values()}
        return frozenset(own) if self.base_network is not None else None

    def phrases_of(self, names: Sequence[str]) -> list[str]:
        """Return the phrase of each of N unique class names, a learned one where there is one."""
        return class_phrases(names, known_phrases(names, self.phrases))

    def to(self, device: torch.device) -> Network:
        """Move everything to a device; return the network."""
        if self.base_network is not None:
            self.base_network.to(device)
        return self.network.to(device)


def image_format_of(values: dict[str, Any]) -> ImageFormat:
    """Check a stored image format; a `KeyError`, `TypeError` or `ValueError` if it is unusable."""
    try:
        mean, std = (tuple(float(value) for value in values[name]) for name in ("mean", "std"))
        image = ImageFormat(mean, std, short_side=int(values["short_side"]), max_side=int(values["max_side"]))
    except OverflowError as error:
        raise ValueError(f"a number is infinite: {error}") from error
    if (len(mean), len(std)) != (3, 3) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"expected three numbers for mean and three above 0 for std, got {mean} and {std}")
    if not (1 <= image.short_side <= _MAX_SIDE and 1 <= image.max_side <= _MAX_SIDE):
        raise ValueError(f"expected short_side and max_side between 1 and {_MAX_SIDE}, got {image}")
    return image


def presets() -> dict[str, dict[str, Any]]:
    """Return the built-in presets by name; in their YAML files `like` names one to inherit from."""
    read = {path.stem: yaml.safe_load(path.read_text()) for path in PRESET_FOLDER.glob("*.yaml")}
    return {name: read.get(read[name].get("like"), {}) | read[name] for name in sorted(read)}


def published() -> dict[str, dict[str, Any]]:
    """Return the published models by their Hub ids, with their sizes and licenses."""
    read = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())
    summary = {"summary": "downloaded from the Hub at its first use"}
    return {name: about | summary for name, about in read.items()}


def build_network(config: ModelConfig, seed: int = 0) -> GroundingDINO:
    """Build a network with random weights, except for the nano towers.

    The global random state does not change. Raises `CheckpointError` without the towers' packages.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _build_backbone(config)
        framed = {"minilm": False, "minilm-framed": True}.get(config.language_model)
        language_model = build_bert(config.language_config) if framed is None else load_minilm(framed)
        network = GroundingDINO(
            backbone,
            language_model,
            Neck(backbone.channels, config.d_model, config.num_levels),
            _build_encoder(config, language_model),
            _build_decoder(config),
            _build_head(config),
            EvidenceReader(config.decoder_layers + 1) if isinstance(backbone, TwoTowers) else None,
        )
    network.selection_iou = config.selection_iou
    network.freeze(packaged_towers(config))
    return network.eval()


def packaged_towers(config: ModelConfig) -> list[str]:
    """Return the modules whose weights come from installed packages."""
    chosen = (config.backbone, config.language_model)
    return [tower for name, tower in _PACKAGED_TOWERS.items() if name in chosen]


def _build_backbone(config: ModelConfig) -> Swin | EfficientNetLite0 | TwoTowers:
    if config.backbone == "swin":
        return Swin(config.backbone_config)
    if config.backbone == "efficientnet-lite0":
        return load_efficientnet_lite0()
    if config.backbone == DETECTING_BACKBONE:
        return load_towers()
    raise CheckpointError(f"Unknown backbone {config.backbone!r}; expected 'swin' or 'efficientnet-lite0'.")


def _build_encoder(config: ModelConfig, language_model: LanguageModel) -> Encoder:
    width, dropout = config.d_model, config.dropout
    fusion = width, config.fusion_dim, config.fusion_heads, config.fusion_droppath, config.fusion_gamma
    text = width, config.fusion_heads, config.text_ffn_dim, dropout
    deformable = width, config.num_heads, config.num_levels, config.encoder_points, config.ffn_dim, dropout
    layers = [
        (FusionLayer(*fusion), TextLayer(*text), DeformableLayer(*deformable))
        for _ in range(config.encoder_layers)
    ]
    sizes = width, config.num_levels, config.position_temperature, not config.enhance_finest
    return Encoder(language_model.width, layers, *sizes)


def _build_decoder(config: ModelConfig) -> Decoder:
    width, points, learned = config.d_model, config.decoder_points, config.query_content == "learned"
    sizes = width, config.num_heads, config.num_levels, points, config.ffn_dim, config.dropout
    layers = [DecoderLayer(*sizes) for _ in range(config.decoder_layers)]
    decoder = Decoder(layers, width, config.num_queries, learned, config.num_labels, config.decoder_eps)
    if config.backbone == DETECTING_BACKBONE:  # untrained, the network says what its towers say
        for norm in (decoder.norm, decoder.memory_trans_norm):
            nn.init.constant_(norm.weight, _QUIET)
    return decoder


def _build_head(config: ModelConfig) -> BoxHead:
    layers, width = config.decoder_layers, config.d_model
    scale, bias = config.contrastive_scale, config.contrastive_bias
    classifiers = [ContrastiveEmbed(scale, bias) for _ in range(layers + 1)]
    regressors = [MLP([width, width, width, 4], zero_last=True) for _ in range(layers + 1)]
    if config.share_class_head:
        classifiers[:-1] = classifiers[:1] * layers
    if config.share_box_head:
        regressors[:-1] = regressors[:1] * layers
    return BoxHead(classifiers, regressors, config.head_eps, config.max_text_len)


def companion(network: GroundingDINO) -> GroundingDINO:
    """Copy a network before it is trained; the two share their towers, which must be frozen."""
    copied = GroundingDINO(
        network.backbone,
        network.language_model,
        copy.deepcopy(network.neck),
        copy.deepcopy(network.encoder),
        copy.deepcopy(network.decoder),
        copy.deepcopy(network.bbox_head),
        copy.deepcopy(network.evidence),
    )
    copied.selection_iou = network.selection_iou
    for part in (copied.neck, copied.encoder, copied.decoder, copied.bbox_head, copied.evidence):
        if part is not None:
            part.requires_grad_(False)
    copied.decoder.label_embedding = nn.Embedding(1, copied.decoder.d_model)  # only training needs labels
    return copied.eval()


def unique_state(network: nn.Module, skipped: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return the state dict without some modules, each shared tensor once, under its first name."""
    prefixes = tuple(f"{module}." for module in skipped)
    first: dict[int, str] = {}
    state = network.state_dict(keep_vars=True)
    names = [name for name in state if first.setdefault(id(state[name]), name) == name]
    return {name: state[name].detach() for name in names if not name.startswith(prefixes)}
