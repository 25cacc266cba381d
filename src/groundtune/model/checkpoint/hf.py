"""config.json and preprocessor_config.json of transformers' two families, read and written.

Deviation: transformers' default for `dropout` is 0.1, which the weights were not made with (0.0 in IDEA's and MMDetection's
configurations); it is not taken over, `ModelConfig.dropout` keeps its 0.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GroundingDinoConfig, MMGroundingDinoConfig

from groundtune.data.transforms import PictureFormat
from groundtune.errors import CheckpointError
from groundtune.model.checkpoint.files import read_json
from groundtune.model.config import ModelConfig

PUBLISHED_PICTURE = PictureFormat((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 800, 1333)
_FAMILIES: dict[str, Any] = {"grounding-dino": GroundingDinoConfig, "mm-grounding-dino": MMGroundingDinoConfig}
_SWIN_OPTIONS = (
    *("image_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias"),
    *("hidden_act", "drop_path_rate", "layer_norm_eps", "use_absolute_embeddings"),
)
_BERT_OPTIONS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("layer_norm_eps", "pad_token_id"),
)
# What our network does, and a configuration may not ask otherwise.
_EXPECTED = {
    "two_stage": True,
    "two_stage_bbox_embed_share": False,
    "embedding_init_target": True,
    "position_embedding_type": "sine",
    "activation_function": "relu",
    "layer_norm_eps": 1e-5,
    "query_dim": 4,
}


def config_of_transformers(settings: dict[str, Any], where: str) -> ModelConfig:
    """Our sizes and variants for a config.json of transformers' two families.

    Args:
        settings: as read.
        where: they come from, for messages.

    Raises:
        CheckpointError: another family, or options that our network does not have; all of them are listed.
    """
    family = settings.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise CheckpointError(
            f"{where} is a model of the type {family!r}; groundtune loads {' and '.join(map(repr, _FAMILIES))}."
        )
    try:
        theirs = _FAMILIES[family].from_dict(settings)
        problems = _beyond_ours(theirs)
    except Exception as error:  # their validation raises classes of several libraries
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{where}: its config.json cannot be used: {reason}.") from error
    if problems:
        raise CheckpointError(f"{where} cannot be loaded: {'; '.join(problems)}.")
    return _ours(theirs, mm=family == "mm-grounding-dino")


def _beyond_ours(theirs: Any) -> list[str]:
    """What of a configuration our network does not have, in words."""
    swin, bert = theirs.backbone_config, theirs.text_config
    problems = [
        f"{name} is {getattr(theirs, name)!r}, expected {value!r}"
        for name, value in _EXPECTED.items()
        if getattr(theirs, name, value) != value
    ]
    kinds = (("backbone", swin.model_type, "swin"), ("text model", bert.model_type, "bert"))
    problems += [f"the {what} is {kind!r}, expected {value!r}" for what, kind, value in kinds if kind != value]
    for what in ("attention_heads", "ffn_dim"):
        pair = [getattr(theirs, f"{side}_{what}") for side in ("encoder", "decoder")]
        problems += [f"encoder and decoder differ in {what}: {pair[0]} and {pair[1]}"] if pair[0] != pair[1] else []
    return problems


def _ours(theirs: Any, mm: bool) -> ModelConfig:
    swin, bert = theirs.backbone_config, theirs.text_config
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


def beyond_transformers(config: ModelConfig) -> list[str]:
    """What of a network transformers' two families cannot express, in words; empty where they can express it all.

    The eps of the inverse sigmoid is not among it: transformers always takes 1e-5, and the model card says so.
    """
    half = {
        "fusion_dim": config.ffn_dim // 2,
        "text_ffn_dim": config.ffn_dim // 2,
        "fusion_heads": config.num_heads // 2,
    }
    reasons = [
        f"{name} is {getattr(config, name)}, there it is always {value}"
        for name, value in half.items()
        if getattr(config, name) != value
    ]
    if config.backbone != "swin":
        reasons.append(f"the backbone is {config.backbone}")
    if config.language_model != "bert":
        reasons.append(f"the language model is {config.language_model}")
    if config.query_content != "learned":
        reasons.append("the queries start from the selected positions")
    if config.position_temperature != int(config.position_temperature):
        reasons.append(f"position_temperature is {config.position_temperature}, there it is a whole number")
    if (config.contrastive_scale, config.contrastive_bias) not in (("none", False), ("auto", True)):
        bias = "with" if config.contrastive_bias else "without"
        reasons.append(f"the class logits are scaled {config.contrastive_scale!r} {bias} a bias")
    return reasons


def transformers_config(config: ModelConfig) -> GroundingDinoConfig | MMGroundingDinoConfig:
    """transformers' configuration of a network that it can express."""
    settings: dict[str, Any] = {
        "backbone_config": {"model_type": "swin", **{"out_indices": [2, 3, 4], **config.backbone_config}},
        "text_config": {"model_type": "bert", **config.language_config},
        "d_model": config.d_model,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "num_feature_levels": config.num_levels,
        "encoder_n_points": config.encoder_points,
        "decoder_n_points": config.decoder_points,
        "num_queries": config.num_queries,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_ffn_dim": config.ffn_dim,
        "decoder_ffn_dim": config.ffn_dim,
        "fusion_droppath": config.fusion_droppath,
        "dropout": config.dropout,
        "max_text_len": config.max_text_len,
        "positional_embedding_temperature": int(config.position_temperature),
        "decoder_bbox_embed_share": config.share_box_head,
        "dtype": "float32",
    }
    if config.contrastive_bias:
        return MMGroundingDinoConfig(
            **settings,
            decoder_cls_embed_share=config.share_class_head,
            architectures=["MMGroundingDinoForObjectDetection"],
        )
    return GroundingDinoConfig(**settings, architectures=["GroundingDinoForObjectDetection"])


def picture_of_transformers(folder: Path) -> PictureFormat:
    """The picture format of a directory's preprocessor; the published one where it has none.

    Raises:
        CheckpointError: it asks for another kind of resizing, or cannot be used.
    """
    path = next(
        (p for p in (folder / "preprocessor_config.json", folder / "processor_config.json") if p.is_file()), None
    )
    if path is None:
        return PUBLISHED_PICTURE
    settings = read_json(path)
    settings = settings.get("image_processor", settings)
    try:
        size = settings.get("size", {"shortest_edge": 800, "longest_edge": 1333})
        size = (
            size if isinstance(size, dict) else {"shortest_edge": size, "longest_edge": settings.get("max_size", 1333)}
        )
        if "shortest_edge" not in size or "longest_edge" not in size:
            raise ValueError(f"size is {size}, expected a shortest_edge and a longest_edge")
        return picture_format(
            {
                "mean": settings.get("image_mean", PUBLISHED_PICTURE.mean),
                "std": settings.get("image_std", PUBLISHED_PICTURE.std),
                "short_side": size["shortest_edge"],
                "max_side": size["longest_edge"],
            }
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its picture format cannot be used: {error}.") from error


def picture_format(values: dict[str, Any]) -> PictureFormat:
    """A picture format of plain values.

    Raises:
        KeyError, TypeError, ValueError: something is missing or no number.
    """
    mean, std = (tuple(float(value) for value in values[name]) for name in ("mean", "std"))
    if (len(mean), len(std)) != (3, 3):
        raise ValueError(f"mean {mean} and std {std} must have three numbers each")
    return PictureFormat(mean, std, short_side=int(values["short_side"]), max_side=int(values["max_side"]))
