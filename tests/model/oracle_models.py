"""Small random models of transformers' two families, in the variants that the published ones have."""

import pytest
import torch
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    SwinConfig,
)

SWIN = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FAMILIES = {
    "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection),
    "mm-grounding-dino": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
}
CASES = [
    pytest.param("grounding-dino", {"decoder_bbox_embed_share": True}, [2, 3, 4], id="dino-shared"),
    pytest.param(
        "grounding-dino", {"decoder_bbox_embed_share": False}, [1, 2, 3, 4], id="dino-separate-4-stages"
    ),
    pytest.param(
        "mm-grounding-dino",
        {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False},
        [1, 2, 3, 4],
        id="mm-separate-4-stages",
    ),
    pytest.param(
        "mm-grounding-dino",
        {"decoder_bbox_embed_share": True, "decoder_cls_embed_share": True},
        [2, 3, 4],
        id="mm-shared",
    ),
    pytest.param(
        "mm-grounding-dino",
        {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": True},
        [2, 3, 4],
        id="mm-boxes-separate",
    ),
]


def oracle(family, heads, stages, queries=20):
    config_class, model_class = FAMILIES[family]
    config = config_class(
        backbone_config=SwinConfig(**SWIN, out_indices=stages),
        text_config=BertConfig(**BERT),
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_feature_levels=len(stages) + 1,
        num_queries=queries,
        dropout=0.0,
        **heads,
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for (
            name,
            parameter,
        ) in model.named_parameters():  # zeros and tiny scales at initialization would hide mistakes
            if "fusion_layer" in name and name.endswith("param"):
                parameter.fill_(0.3)
            elif "backbone" not in name and (parameter.numel() == 1 or parameter.std() < 0.2):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
