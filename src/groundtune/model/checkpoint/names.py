"""Rename tables as data, one per layout, used in both directions.

A table is a list of (theirs, ours) prefixes; `{i}` stands for a layer number and is the same on both sides. Longer
prefixes win. A name that no row covers keeps its place only if it is listed as such.
"""

from __future__ import annotations

import re

# transformers `GroundingDinoForObjectDetection` (grounding-dino and mm-grounding-dino)
TRANSFORMERS: list[tuple[str, str]] = [
    ("model.backbone.conv_encoder.model.", "backbone.body."),
    ("model.text_backbone.", "language_model.bert."),
    ("model.text_projection.", "encoder.text_projection."),
    ("model.level_embed", "encoder.level_embed"),
    ("model.query_position_embeddings.", "decoder.query_embedding."),
    ("model.enc_output.", "decoder.memory_trans_fc."),
    ("model.enc_output_norm.", "decoder.memory_trans_norm."),
    ("model.encoder.layers.{i}.text_enhancer_layer.self_attn.query.", "encoder.text_layers.{i}.self_attn.q_proj."),
    ("model.encoder.layers.{i}.text_enhancer_layer.self_attn.key.", "encoder.text_layers.{i}.self_attn.k_proj."),
    ("model.encoder.layers.{i}.text_enhancer_layer.self_attn.value.", "encoder.text_layers.{i}.self_attn.v_proj."),
    ("model.encoder.layers.{i}.text_enhancer_layer.self_attn.out_proj.", "encoder.text_layers.{i}.self_attn.out_proj."),
    ("model.encoder.layers.{i}.text_enhancer_layer.fc1.", "encoder.text_layers.{i}.ffn.linear1."),
    ("model.encoder.layers.{i}.text_enhancer_layer.fc2.", "encoder.text_layers.{i}.ffn.linear2."),
    ("model.encoder.layers.{i}.text_enhancer_layer.layer_norm_before.", "encoder.text_layers.{i}.norm1."),
    ("model.encoder.layers.{i}.text_enhancer_layer.layer_norm_after.", "encoder.text_layers.{i}.norm2."),
    ("model.encoder.layers.{i}.fusion_layer.vision_param", "encoder.fusion_layers.{i}.gamma_vision"),
    ("model.encoder.layers.{i}.fusion_layer.text_param", "encoder.fusion_layers.{i}.gamma_text"),
    ("model.encoder.layers.{i}.fusion_layer.", "encoder.fusion_layers.{i}."),
    ("model.encoder.layers.{i}.deformable_layer.self_attn.", "encoder.layers.{i}.self_attn."),
    ("model.encoder.layers.{i}.deformable_layer.self_attn_layer_norm.", "encoder.layers.{i}.norm1."),
    ("model.encoder.layers.{i}.deformable_layer.fc1.", "encoder.layers.{i}.ffn.linear1."),
    ("model.encoder.layers.{i}.deformable_layer.fc2.", "encoder.layers.{i}.ffn.linear2."),
    ("model.encoder.layers.{i}.deformable_layer.final_layer_norm.", "encoder.layers.{i}.norm2."),
    ("model.decoder.layer_norm.", "decoder.norm."),
    ("model.decoder.reference_points_head.", "decoder.ref_point_head."),
    ("model.decoder.layers.{i}.self_attn.query.", "decoder.layers.{i}.self_attn.q_proj."),
    ("model.decoder.layers.{i}.self_attn.key.", "decoder.layers.{i}.self_attn.k_proj."),
    ("model.decoder.layers.{i}.self_attn.value.", "decoder.layers.{i}.self_attn.v_proj."),
    ("model.decoder.layers.{i}.self_attn.out_proj.", "decoder.layers.{i}.self_attn.out_proj."),
    ("model.decoder.layers.{i}.self_attn_layer_norm.", "decoder.layers.{i}.norm1."),
    ("model.decoder.layers.{i}.encoder_attn_text.query.", "decoder.layers.{i}.cross_attn_text.q_proj."),
    ("model.decoder.layers.{i}.encoder_attn_text.key.", "decoder.layers.{i}.cross_attn_text.k_proj."),
    ("model.decoder.layers.{i}.encoder_attn_text.value.", "decoder.layers.{i}.cross_attn_text.v_proj."),
    ("model.decoder.layers.{i}.encoder_attn_text.out_proj.", "decoder.layers.{i}.cross_attn_text.out_proj."),
    ("model.decoder.layers.{i}.encoder_attn_text_layer_norm.", "decoder.layers.{i}.norm2."),
    ("model.decoder.layers.{i}.encoder_attn.", "decoder.layers.{i}.cross_attn."),
    ("model.decoder.layers.{i}.encoder_attn_layer_norm.", "decoder.layers.{i}.norm3."),
    ("model.decoder.layers.{i}.fc1.", "decoder.layers.{i}.ffn.linear1."),
    ("model.decoder.layers.{i}.fc2.", "decoder.layers.{i}.ffn.linear2."),
    ("model.decoder.layers.{i}.final_layer_norm.", "decoder.layers.{i}.norm4."),
    ("bbox_embed.{i}.", "bbox_head.reg_branches.{i}."),
    ("class_embed.{i}.", "bbox_head.cls_branches.{i}."),
]


def rename(name: str, table: list[tuple[str, str]]) -> str | None:
    """The other project's name → ours; None if no row of the table covers it."""
    for theirs, ours in sorted(table, key=lambda row: len(row[0]), reverse=True):
        match = re.match(re.escape(theirs).replace(r"\{i\}", r"(\d+)"), name)
        if match is not None:
            layer = match.group(1) if match.groups() else ""
            return ours.replace("{i}", layer) + name[match.end() :]
    return None


def transformers_to_ours(name: str, decoder_layers: int, backbone_levels: int) -> str | None:
    """Our name for a parameter of transformers' port.

    The neck and the encoder's own head are numbered differently there: `input_proj_vision` runs on through the extra
    levels, and the encoder's box head stands apart from the decoder's.

    Args:
        name: of transformers' state dict.
        decoder_layers: number of decoder layers.
        backbone_levels: number of feature maps of the backbone.
    """
    neck = re.match(r"model\.input_proj_vision\.(\d+)\.([01])\.(.*)", name)
    if neck is not None:
        level, part = int(neck.group(1)), ("conv", "gn")[int(neck.group(2))]
        stack, index = ("convs", level) if level < backbone_levels else ("extra_convs", level - backbone_levels)
        return f"neck.{stack}.{index}.{part}.{neck.group(3)}"
    for theirs, ours in (("bbox", "reg"), ("class", "cls")):
        prefix = f"model.encoder_output_{theirs}_embed."
        if name.startswith(prefix):
            return f"bbox_head.{ours}_branches.{decoder_layers}.{name[len(prefix) :]}"
    if name.startswith(("model.decoder.bbox_embed.", "model.decoder.class_embed.")):
        return rename(name.removeprefix("model.decoder."), TRANSFORMERS)
    return rename(name, TRANSFORMERS)
