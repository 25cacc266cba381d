"""config.json and preprocessor_config.json of transformers' two families, read and written.

Deviation: transformers' default for `dropout` is 0.1, with which the weights were not trained (0.0
in IDEA's and MMDetection's configurations). It is ignored; `ModelConfig.dropout` stays 0.0.
"""

from operator import attrgetter
from pathlib import Path
from typing import Any

from transformers import GroundingDinoConfig, MMGroundingDinoConfig

from groundtune.contracts import ImageFormat
from groundtune.errors import CheckpointError
from groundtune.model.bundle import image_format_of
from groundtune.model.checkpoint.files import in_one_line, read_json
from groundtune.model.config import ModelConfig

PUBLISHED_IMAGE = ImageFormat((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 800, 1333)
SWIN_OPTIONS = (
    "image_size patch_size embed_dim depths num_heads window_size mlp_ratio qkv_bias hidden_act "
    "drop_path_rate layer_norm_eps use_absolute_embeddings out_indices"
).split()
BERT_OPTIONS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings type_vocab_size "
    "layer_norm_eps pad_token_id"
).split()
_FAMILIES: dict[str, Any] = {
    "grounding-dino": GroundingDinoConfig,
    "mm-grounding-dino": MMGroundingDinoConfig,
}
_SAME = ("d_model", "num_queries", "encoder_layers", "decoder_layers", "fusion_droppath", "max_text_len")
_OPTIONS = {name: name for name in _SAME} | {  # ours: theirs
    "num_heads": "encoder_attention_heads",
    "num_levels": "num_feature_levels",
    "encoder_points": "encoder_n_points",
    "decoder_points": "decoder_n_points",
    "ffn_dim": "encoder_ffn_dim",
    "share_box_head": "decoder_bbox_embed_share",
}
# options that make transformers fetch a backbone from the Hub
_FROM_HUB = ("backbone", "use_pretrained_backbone", "use_timm_backbone", "backbone_kwargs")
_EXPECTED = {  # the only values that our network implements
    "two_stage": True,
    "embedding_init_target": True,
    "position_embedding_type": "sine",
    "activation_function": "relu",
    "layer_norm_eps": 1e-5,
}


def config_of_transformers(settings: dict[str, Any], where: str) -> ModelConfig:
    """Convert a config.json; a `CheckpointError` lists options that our network lacks."""
    family = settings.get("model_type")
    if family not in list(_FAMILIES):
        families = " and ".join(map(repr, _FAMILIES))
        raise CheckpointError(f"{where} is a model of the type {family!r}; groundtune loads {families}.")
    for part, kind in {"backbone_config": "swin", "text_config": "bert"}.items():  # others may need the Hub
        inner = settings.get(part) or {}
        given = inner.get("model_type", kind) if isinstance(inner, dict) else inner
        if given != kind:
            raise CheckpointError(f"{where}: {part}.model_type is {given!r:.60}, expected {kind!r}.")
    try:
        local = {name: settings[name] for name in settings if name not in _FROM_HUB}
        theirs = _FAMILIES[family].from_dict(local)
        problems = _unsupported_by_us(theirs)
    except Exception as error:  # their validation raises classes of several libraries
        raise CheckpointError(f"{where}: its config.json cannot be used: {in_one_line(error)}.") from error
    if problems:
        raise CheckpointError(f"{where} cannot be loaded: {'; '.join(problems)}.")
    swin, bert, mm = theirs.backbone_config, theirs.text_config, family == "mm-grounding-dino"
    return ModelConfig(
        **{ours: getattr(theirs, name) for ours, name in _OPTIONS.items()},
        backbone_config={name: getattr(swin, name) for name in SWIN_OPTIONS},
        language_config={name: getattr(bert, name) for name in BERT_OPTIONS},
        fusion_dim=theirs.encoder_ffn_dim // 2,
        text_ffn_dim=theirs.encoder_ffn_dim // 2,
        fusion_heads=theirs.encoder_attention_heads // 2,
        share_class_head=theirs.decoder_cls_embed_share if mm else theirs.decoder_bbox_embed_share,
        contrastive_scale="auto" if mm else "none",
        contrastive_bias=mm,
        position_temperature=float(theirs.positional_embedding_temperature),
        num_labels=1,
    )


def _unsupported_by_us(theirs: Any) -> list[str]:
    shared = ("attention_heads", "ffn_dim")  # of encoder and decoder
    expected = _EXPECTED | {f"decoder_{name}": getattr(theirs, f"encoder_{name}") for name in shared}
    given = {name: attrgetter(name)(theirs) for name in expected}
    wrong = [name for name in expected if given[name] != expected[name]]
    return [f"{name} is {given[name]!r}, expected {expected[name]!r}" for name in wrong]


def unsupported_by_transformers(config: ModelConfig) -> list[str]:
    """List what transformers cannot express, except for the eps, of which the card warns."""
    width, heads = config.ffn_dim // 2, config.num_heads // 2
    temperature, logits = config.position_temperature, (config.contrastive_scale, config.contrastive_bias)
    reasons = {
        f"fusion_dim is {config.fusion_dim}, there it is always {width}": config.fusion_dim != width,
        f"text_ffn_dim is {config.text_ffn_dim}, there it is always {width}": config.text_ffn_dim != width,
        f"fusion_heads is {config.fusion_heads}, there it is always {heads}": config.fusion_heads != heads,
        f"the backbone is {config.backbone}": config.backbone != "swin",
        f"the language model is {config.language_model}": config.language_model != "bert",
        "the queries start from the selected positions": config.query_content != "learned",
        f"position_temperature is {temperature}, there it is an integer": temperature != int(temperature),
        f"contrastive_scale and contrastive_bias are {logits}": logits
        not in (("none", False), ("auto", True)),
    }
    return [reason for reason, applies in reasons.items() if applies]


def transformers_config(config: ModelConfig) -> GroundingDinoConfig | MMGroundingDinoConfig:
    """Return transformers' configuration of a network that it can express."""
    settings: dict[str, Any] = {
        **{theirs: getattr(config, name) for name, theirs in _OPTIONS.items()},
        "backbone_config": {"model_type": "swin", "out_indices": [2, 3, 4], **config.backbone_config},
        "text_config": {"model_type": "bert", **config.language_config},
        "decoder_attention_heads": config.num_heads,
        "decoder_ffn_dim": config.ffn_dim,
        "dropout": config.dropout,
        "positional_embedding_temperature": int(config.position_temperature),
        "dtype": "float32",
    }
    if not config.contrastive_bias:
        return GroundingDinoConfig(**settings, architectures=["GroundingDinoForObjectDetection"])
    settings |= {"decoder_cls_embed_share": config.share_class_head}
    return MMGroundingDinoConfig(**settings, architectures=["MMGroundingDinoForObjectDetection"])


def image_of_transformers(folder: Path) -> ImageFormat:
    """Return the image format of a directory's preprocessor, or else the published one.

    Raises:
        CheckpointError: the preprocessor's format cannot be used.
    """
    files = [folder / name for name in ("preprocessor_config.json", "processor_config.json")]
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        return PUBLISHED_IMAGE
    settings = read_json(path)
    try:
        settings = settings.get("image_processor", settings)
        size = settings.get("size", {"shortest_edge": 800, "longest_edge": 1333})
        if "shortest_edge" not in size or "longest_edge" not in size:
            raise ValueError(f"size is {size}, expected a shortest_edge and a longest_edge")
        colors = {n: settings.get(f"image_{n}", getattr(PUBLISHED_IMAGE, n)) for n in ("mean", "std")}
        sides = {"short_side": size["shortest_edge"], "max_side": size["longest_edge"]}
        return image_format_of(colors | sides)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its image format cannot be used: {error}.") from error
