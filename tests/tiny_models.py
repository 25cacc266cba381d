"""Networks of a few thousand weights, in the variants that tests need."""

from typing import Any

import torch

from groundtune.contracts import ImageFormat
from groundtune.model.bundle import ModelBundle, build_network
from groundtune.model.config import ModelConfig
from groundtune.model.detector import GroundingDINO

# the smallest, for whole runs
SWIN = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIZES: dict[str, Any] = {
    "d_model": 64,
    "num_heads": 2,
    "encoder_points": 2,
    "decoder_points": 2,
    "num_queries": 20,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_dim": 64,
    "fusion_dim": 32,
    "fusion_heads": 2,
    "fusion_droppath": 0.0,
    "fusion_gamma": 0.1,
    "text_ffn_dim": 32,
    "query_content": "selected",
    "contrastive_scale": "auto",
    "contrastive_bias": True,
    "num_labels": 1,
}

# a little larger, for tests of the network: IDEA's family ("swin"), and the preset's towers and
# variants ("nano")
WIDER_SWIN = SWIN | {"image_size": 32, "embed_dim": 16, "num_heads": [1, 2, 2, 4]}
WIDER_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
KINDS: dict[str, dict[str, Any]] = {
    "swin": {
        "backbone_config": WIDER_SWIN,
        "query_content": "learned",
        "contrastive_scale": "none",
        "contrastive_bias": False,
    },
    "nano": {"backbone": "efficientnet-lite0"},
}
_NETWORK = {"num_heads": 4, "num_queries": 12, "fusion_gamma": 1e-4, "text_ffn_dim": 64, "num_labels": 8}


def tiny_bundle(tokenizer, **sizes: Any) -> ModelBundle:
    """The smallest model, with random weights, for images of 64 pixels."""
    config = ModelConfig(**({"backbone_config": SWIN, "language_config": BERT} | SIZES | sizes))
    image = ImageFormat(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), short_side=64, max_side=64)
    return ModelBundle(build_network(config), tokenizer, config, image)


def tiny_config(kind: str = "swin", **overrides: Any) -> ModelConfig:
    """The sizes of `tiny_network`."""
    return ModelConfig(**{**SIZES, **_NETWORK, "language_config": WIDER_BERT, **KINDS[kind], **overrides})


def tiny_network(
    kind: str = "swin", frozen=("backbone", "language_model"), **overrides: Any
) -> GroundingDINO:
    """A network in eval mode whose zero and near-zero weights are made visible."""
    network = build_network(tiny_config(kind, **overrides))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    network.freeze(list(frozen))
    return network
