"""Sizes and variants of one network, as plain data.

Presets, checkpoints and `bundle.build_network` exchange a `ModelConfig`. It never enters a module:
the builder hands every module its own numbers.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """Everything that decides the shapes and the arithmetic of a `GroundingDINO`.

    The defaults are the published Grounding DINO tiny (Swin-T, BERT-base). `backbone_config` and
    `language_config` are keyword arguments of transformers' `SwinConfig` and `BertConfig`.
    """

    backbone: str = "swin"  # "swin", "efficientnet-lite0" or "lite0-nanodet"
    backbone_config: dict[str, Any] = field(default_factory=dict)
    language_model: str = "bert"  # "bert", "minilm" or "minilm-framed"
    language_config: dict[str, Any] = field(default_factory=dict)
    d_model: int = 256
    num_heads: int = 8
    num_levels: int = 4
    encoder_points: int = 4  # sampled per head and level
    enhance_finest: bool = True  # whether the finest level attends to the image in the encoder, too
    decoder_points: int = 4
    num_queries: int = 900
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_dim: int = 2048
    fusion_dim: int = 1024  # width of the vision-language attention
    fusion_heads: int = 4  # heads of the fusion and of the text enhancer
    fusion_droppath: float = 0.1
    fusion_gamma: float = 1e-4  # initial layer scale of the fusion
    text_ffn_dim: int = 1024
    dropout: float = 0.0
    query_content: str = "learned"  # "learned" (the reference) or "selected" (features of the positions)
    selection_iou: float = 1.0  # of two selected positions, above which the worse one comes last; 1: off
    share_box_head: bool = True  # one box branch for all decoder layers; MM-Grounding-DINO: one each
    share_class_head: bool = True  # the same for class branches, which have weights with scale or bias
    contrastive_scale: str = "none"  # "none" (IDEA), "auto" (÷ sqrt(D)) or "learnable" (× exp(log_scale))
    contrastive_bias: bool = False
    decoder_eps: float = 1e-5  # clamp of inverse_sigmoid; IDEA and MMDetection 1e-3, transformers 1e-5
    head_eps: float = 1e-5  # the same in the head; IDEA 1e-3, MMDetection and transformers 1e-5
    position_temperature: float = 20.0
    max_text_len: int = 256
    num_labels: int = 256  # rows of the denoising label embedding
    class_labels: bool = True  # a row is a class of the data set; MMDetection's rows have no such meaning
