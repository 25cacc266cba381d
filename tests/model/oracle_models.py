"""Small random models of transformers' two families, in the variants that the published ones have."""

import pytest
import torch
from tiny_models import WIDER_BERT, WIDER_SWIN
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    SwinConfig,
)

FAMILIES = {
    "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection),
    "mm-grounding-dino": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
}
_BOX, _CLASS = "decoder_bbox_embed_share", "decoder_cls_embed_share"
CASES = [
    pytest.param("grounding-dino", {_BOX: True}, [2, 3, 4], id="dino-shared"),
    pytest.param("grounding-dino", {_BOX: False}, [1, 2, 3, 4], id="dino-separate-4-stages"),
    pytest.param("mm-grounding-dino", {_BOX: False, _CLASS: False}, [1, 2, 3, 4], id="mm-separate-4-stages"),
    pytest.param("mm-grounding-dino", {_BOX: True, _CLASS: True}, [2, 3, 4], id="mm-shared"),
    pytest.param("mm-grounding-dino", {_BOX: False, _CLASS: True}, [2, 3, 4], id="mm-boxes-separate"),
]


def oracle(family, heads, stages, queries=20):
    config_class, model_class = FAMILIES[family]
    config = config_class(
        backbone_config=SwinConfig(**WIDER_SWIN | {"image_size": 64}, out_indices=stages),
        text_config=BertConfig(**WIDER_BERT),
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
        # zeros and tiny scales at initialization would hide mistakes
        for name, parameter in model.named_parameters():
            if "fusion_layer" in name and name.endswith("param"):
                parameter.fill_(0.3)
            elif "backbone" not in name and (parameter.numel() == 1 or parameter.std() < 0.2):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
