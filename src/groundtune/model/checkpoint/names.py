"""The names of other projects' weights, as data: one table per layout, read in both directions.

A row is a pair of prefixes (theirs, ours); `{i}` and `{j}` stand for numbers and are the same on both sides. A row of
`packed` has three of ours: their tensor is ours one under another (query, key, value). `copies` are names that repeat
another tensor of the file (tied heads), `dropped` hold nothing that is learned. Rows that depend on how many levels or
layers there are come from the functions below.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

_HF_SWIN, _HF_ENCODER, _HF_DECODER = (
    "model.backbone.conv_encoder.model.",
    "model.encoder.layers.{i}.",
    "model.decoder.layers.{i}.",
)
_SWIN_BLOCK, _SWIN = "backbone.body.swin.encoder.layers.{i}.blocks.{j}.", "backbone.body.swin."
_BERT = "language_model.bert."
_TEXT, _FUSION, _VISION, _DECODER = (
    "encoder.text_layers.{i}.",
    "encoder.fusion_layers.{i}.",
    "encoder.layers.{i}.",
    "decoder.layers.{i}.",
)

Rows = list[tuple[str, str]]
PackedRows = list[tuple[str, tuple[str, str, str]]]


@dataclass(frozen=True)
class Layout:
    """One project's names.

    Attributes:
        rows: prefixes (theirs, ours).
        packed: their prefix, and ours of the three parts.
        copies: prefixes (copy, original) of theirs.
        dropped: regular expressions of whole names of theirs.
        unfolded: regular expressions of whole names whose last axis is in the order of `nn.Unfold`.
        scalars: regular expressions of whole names that have no axis where ours has one of length 1.
    """

    rows: Rows
    packed: PackedRows
    copies: Rows
    dropped: list[str]
    unfolded: list[str]
    scalars: list[str]


# transformers' `GroundingDinoForObjectDetection` and `MMGroundingDinoForObjectDetection`, as their files have them
_HF_ROWS: Rows = [
    (_HF_SWIN + "embeddings.", _SWIN + "embeddings."),
    (_HF_SWIN + "encoder.layers.{i}.downsample.", _SWIN + "encoder.layers.{i}.downsample."),
    (_HF_SWIN + "encoder.layers.{i}.blocks.{j}.layernorm_before.", _SWIN_BLOCK + "layernorm_before."),
    (_HF_SWIN + "encoder.layers.{i}.blocks.{j}.layernorm_after.", _SWIN_BLOCK + "layernorm_after."),
    (_HF_SWIN + "encoder.layers.{i}.blocks.{j}.attention.self.query.", _SWIN_BLOCK + "attention.q_proj."),
    (_HF_SWIN + "encoder.layers.{i}.blocks.{j}.attention.self.key.", _SWIN_BLOCK + "attention.k_proj."),
    (_HF_SWIN + "encoder.layers.{i}.blocks.{j}.attention.self.value.", _SWIN_BLOCK + "attention.v_proj."),
    (
        _HF_SWIN + "encoder.layers.{i}.blocks.{j}.attention.self.relative_position_bias_table",
        _SWIN_BLOCK + "attention.relative_position_bias.relative_position_bias_table",
    ),
    (_HF_SWIN + "encoder.layers.{i}.blocks.{j}.attention.output.dense.", _SWIN_BLOCK + "attention.o_proj."),
    (_HF_SWIN + "encoder.layers.{i}.blocks.{j}.intermediate.dense.", _SWIN_BLOCK + "mlp.fc1."),
    (_HF_SWIN + "encoder.layers.{i}.blocks.{j}.output.dense.", _SWIN_BLOCK + "mlp.fc2."),
    (_HF_SWIN + "hidden_states_norms.", "backbone.body.hidden_states_norms."),
    ("model.text_backbone.", _BERT),
    ("model.text_projection.", "encoder.text_projection."),
    ("model.level_embed", "encoder.level_embed"),
    ("model.query_position_embeddings.", "decoder.query_embedding."),
    ("model.enc_output.", "decoder.memory_trans_fc."),
    ("model.enc_output_norm.", "decoder.memory_trans_norm."),
    (_HF_ENCODER + "text_enhancer_layer.self_attn.query.", _TEXT + "self_attn.q_proj."),
    (_HF_ENCODER + "text_enhancer_layer.self_attn.key.", _TEXT + "self_attn.k_proj."),
    (_HF_ENCODER + "text_enhancer_layer.self_attn.value.", _TEXT + "self_attn.v_proj."),
    (_HF_ENCODER + "text_enhancer_layer.self_attn.out_proj.", _TEXT + "self_attn.out_proj."),
    (_HF_ENCODER + "text_enhancer_layer.fc1.", _TEXT + "ffn.linear1."),
    (_HF_ENCODER + "text_enhancer_layer.fc2.", _TEXT + "ffn.linear2."),
    (_HF_ENCODER + "text_enhancer_layer.layer_norm_before.", _TEXT + "norm1."),
    (_HF_ENCODER + "text_enhancer_layer.layer_norm_after.", _TEXT + "norm2."),
    (_HF_ENCODER + "fusion_layer.vision_param", _FUSION + "gamma_vision"),
    (_HF_ENCODER + "fusion_layer.text_param", _FUSION + "gamma_text"),
    (_HF_ENCODER + "fusion_layer.", _FUSION),
    (_HF_ENCODER + "deformable_layer.self_attn.", _VISION + "self_attn."),
    (_HF_ENCODER + "deformable_layer.self_attn_layer_norm.", _VISION + "norm1."),
    (_HF_ENCODER + "deformable_layer.fc1.", _VISION + "ffn.linear1."),
    (_HF_ENCODER + "deformable_layer.fc2.", _VISION + "ffn.linear2."),
    (_HF_ENCODER + "deformable_layer.final_layer_norm.", _VISION + "norm2."),
    ("model.decoder.layer_norm.", "decoder.norm."),
    ("model.decoder.reference_points_head.", "decoder.ref_point_head."),
    (_HF_DECODER + "self_attn.query.", _DECODER + "self_attn.q_proj."),
    (_HF_DECODER + "self_attn.key.", _DECODER + "self_attn.k_proj."),
    (_HF_DECODER + "self_attn.value.", _DECODER + "self_attn.v_proj."),
    (_HF_DECODER + "self_attn.out_proj.", _DECODER + "self_attn.out_proj."),
    (_HF_DECODER + "self_attn_layer_norm.", _DECODER + "norm1."),
    (_HF_DECODER + "encoder_attn_text.query.", _DECODER + "cross_attn_text.q_proj."),
    (_HF_DECODER + "encoder_attn_text.key.", _DECODER + "cross_attn_text.k_proj."),
    (_HF_DECODER + "encoder_attn_text.value.", _DECODER + "cross_attn_text.v_proj."),
    (_HF_DECODER + "encoder_attn_text.out_proj.", _DECODER + "cross_attn_text.out_proj."),
    (_HF_DECODER + "encoder_attn_text_layer_norm.", _DECODER + "norm2."),
    (_HF_DECODER + "encoder_attn.", _DECODER + "cross_attn."),
    (_HF_DECODER + "encoder_attn_layer_norm.", _DECODER + "norm3."),
    (_HF_DECODER + "fc1.", _DECODER + "ffn.linear1."),
    (_HF_DECODER + "fc2.", _DECODER + "ffn.linear2."),
    (_HF_DECODER + "final_layer_norm.", _DECODER + "norm4."),
    ("bbox_embed.{i}.", "bbox_head.reg_branches.{i}."),
    ("class_embed.{i}.", "bbox_head.cls_branches.{i}."),
]

# What IDEA's and MMDetection's Swin call alike, below "layers.{i}.blocks.{j}." and "stages.{i}.blocks.{j}."
_IDEA_BLOCK, _MMDET_BLOCK = "backbone.0.layers.{i}.blocks.{j}.", "backbone.stages.{i}.blocks.{j}."
_QKV = (_SWIN_BLOCK + "attention.q_proj.", _SWIN_BLOCK + "attention.k_proj.", _SWIN_BLOCK + "attention.v_proj.")
_BIAS_TABLE = "attention.relative_position_bias.relative_position_bias_table"


def _in_proj(attention: str, kind: str) -> tuple[str, str, str]:
    """Where the rows of torch's `in_proj_weight` or `in_proj_bias` go."""
    return (f"{attention}q_proj.{kind}", f"{attention}k_proj.{kind}", f"{attention}v_proj.{kind}")


def _packed_attention(theirs: str, ours: str) -> PackedRows:
    return [(f"{theirs}in_proj_{kind}", _in_proj(ours, kind)) for kind in ("weight", "bias")]


# IDEA-Research/GroundingDINO's .pth, "module." in front of every name left out
_IDEA_ENCODER, _IDEA_DECODER = "transformer.encoder.", "transformer.decoder.layers.{i}."
_IDEA_ROWS: Rows = [
    ("backbone.0.patch_embed.proj.", _SWIN + "embeddings.patch_embeddings.projection."),
    ("backbone.0.patch_embed.norm.", _SWIN + "embeddings.norm."),
    ("backbone.0.layers.{i}.downsample.", _SWIN + "encoder.layers.{i}.downsample."),
    (_IDEA_BLOCK + "norm1.", _SWIN_BLOCK + "layernorm_before."),
    (_IDEA_BLOCK + "norm2.", _SWIN_BLOCK + "layernorm_after."),
    (_IDEA_BLOCK + "attn.relative_position_bias_table", _SWIN_BLOCK + _BIAS_TABLE),
    (_IDEA_BLOCK + "attn.proj.", _SWIN_BLOCK + "attention.o_proj."),
    (_IDEA_BLOCK + "mlp.", _SWIN_BLOCK + "mlp."),
    ("bert.", _BERT),
    ("feat_map.", "encoder.text_projection."),
    ("transformer.level_embed", "encoder.level_embed"),
    ("transformer.tgt_embed.", "decoder.query_embedding."),
    ("transformer.enc_output.", "decoder.memory_trans_fc."),
    ("transformer.enc_output_norm.", "decoder.memory_trans_norm."),
    ("label_enc.", "decoder.label_embedding."),
    (_IDEA_ENCODER + "text_layers.{i}.self_attn.out_proj.", _TEXT + "self_attn.out_proj."),
    (_IDEA_ENCODER + "text_layers.{i}.linear", _TEXT + "ffn.linear"),
    (_IDEA_ENCODER + "text_layers.{i}.norm", _TEXT + "norm"),
    (_IDEA_ENCODER + "layers.{i}.self_attn.", _VISION + "self_attn."),
    (_IDEA_ENCODER + "layers.{i}.linear", _VISION + "ffn.linear"),
    (_IDEA_ENCODER + "layers.{i}.norm", _VISION + "norm"),
    (_IDEA_DECODER + "self_attn.out_proj.", _DECODER + "self_attn.out_proj."),
    (_IDEA_DECODER + "norm2.", _DECODER + "norm1."),
    (_IDEA_DECODER + "ca_text.out_proj.", _DECODER + "cross_attn_text.out_proj."),
    (_IDEA_DECODER + "catext_norm.", _DECODER + "norm2."),
    (_IDEA_DECODER + "cross_attn.", _DECODER + "cross_attn."),
    (_IDEA_DECODER + "norm1.", _DECODER + "norm3."),
    (_IDEA_DECODER + "linear", _DECODER + "ffn.linear"),
    (_IDEA_DECODER + "norm3.", _DECODER + "norm4."),
    ("transformer.decoder.norm.", "decoder.norm."),
    ("transformer.decoder.ref_point_head.", "decoder.ref_point_head."),
    ("bbox_embed.{i}.", "bbox_head.reg_branches.{i}."),
]
_IDEA_PACKED: PackedRows = [
    (_IDEA_BLOCK + "attn.qkv.", _QKV),
    *_packed_attention(_IDEA_ENCODER + "text_layers.{i}.self_attn.", _TEXT + "self_attn."),
    *_packed_attention(_IDEA_DECODER + "self_attn.", _DECODER + "self_attn."),
    *_packed_attention(_IDEA_DECODER + "ca_text.", _DECODER + "cross_attn_text."),
]

# MMDetection 3's .pth
_MMDET_ROWS: Rows = [
    ("backbone.patch_embed.projection.", _SWIN + "embeddings.patch_embeddings.projection."),
    ("backbone.patch_embed.norm.", _SWIN + "embeddings.norm."),
    ("backbone.stages.{i}.downsample.", _SWIN + "encoder.layers.{i}.downsample."),
    (_MMDET_BLOCK + "norm1.", _SWIN_BLOCK + "layernorm_before."),
    (_MMDET_BLOCK + "norm2.", _SWIN_BLOCK + "layernorm_after."),
    (_MMDET_BLOCK + "attn.w_msa.relative_position_bias_table", _SWIN_BLOCK + _BIAS_TABLE),
    (_MMDET_BLOCK + "attn.w_msa.proj.", _SWIN_BLOCK + "attention.o_proj."),
    (_MMDET_BLOCK + "ffn.layers.0.0.", _SWIN_BLOCK + "mlp.fc1."),
    (_MMDET_BLOCK + "ffn.layers.1.", _SWIN_BLOCK + "mlp.fc2."),
    ("language_model.language_backbone.body.model.", _BERT),
    ("neck.convs.", "neck.convs."),
    ("neck.extra_convs.", "neck.extra_convs."),
    ("text_feat_map.", "encoder.text_projection."),
    ("level_embed", "encoder.level_embed"),
    ("query_embedding.", "decoder.query_embedding."),
    ("memory_trans_fc.", "decoder.memory_trans_fc."),
    ("memory_trans_norm.", "decoder.memory_trans_norm."),
    ("dn_query_generator.label_embedding.", "decoder.label_embedding."),
    ("encoder.text_layers.{i}.self_attn.attn.out_proj.", _TEXT + "self_attn.out_proj."),
    ("encoder.layers.{i}.self_attn.", _VISION + "self_attn."),
    ("decoder.layers.{i}.self_attn.attn.out_proj.", _DECODER + "self_attn.out_proj."),
    ("decoder.layers.{i}.cross_attn_text.attn.out_proj.", _DECODER + "cross_attn_text.out_proj."),
    ("decoder.layers.{i}.cross_attn.", _DECODER + "cross_attn."),
    ("decoder.norm.", "decoder.norm."),
    ("decoder.ref_point_head.", "decoder.ref_point_head."),
    ("bbox_head.cls_branches.", "bbox_head.cls_branches."),
    *((f"bbox_head.reg_branches.{{i}}.{2 * n}.", f"bbox_head.reg_branches.{{i}}.layers.{n}.") for n in range(3)),
    *(
        (f"{kind}.layers.{{i}}.ffn.layers.{part}.", f"{kind}.layers.{{i}}.ffn.linear{n}.")
        for kind in ("encoder", "decoder")
        for n, part in enumerate(("0.0", "1"), start=1)
    ),
    *(
        (f"encoder.text_layers.{{i}}.ffn.layers.{part}.", f"{_TEXT}ffn.linear{n + 1}.")
        for n, part in enumerate(("0.0", "1"))
    ),
    *((f"{layer}norms.{n}.", f"{layer}norm{n + 1}.") for layer in (_TEXT, _VISION, _DECODER) for n in range(4)),
]
_MMDET_PACKED: PackedRows = [
    (_MMDET_BLOCK + "attn.w_msa.qkv.", _QKV),
    *_packed_attention("encoder.text_layers.{i}.self_attn.attn.", _TEXT + "self_attn."),
    *_packed_attention("decoder.layers.{i}.self_attn.attn.", _DECODER + "self_attn."),
    *_packed_attention("decoder.layers.{i}.cross_attn_text.attn.", _DECODER + "cross_attn_text."),
]

# The fusion has the same parts in both, under short names
_SHORT_FUSION: Rows = [
    ("gamma_v", "gamma_vision"),
    ("gamma_l", "gamma_text"),
    ("layer_norm_v.", "layer_norm_vision."),
    ("layer_norm_l.", "layer_norm_text."),
    ("attn.v_proj.", "attn.vision_proj."),
    ("attn.l_proj.", "attn.text_proj."),
    ("attn.values_v_proj.", "attn.values_vision_proj."),
    ("attn.values_l_proj.", "attn.values_text_proj."),
    ("attn.out_v_proj.", "attn.out_vision_proj."),
    ("attn.out_l_proj.", "attn.out_text_proj."),
]


def transformers_layout(stages: list[int], levels: int, decoder_layers: int) -> Layout:
    """Names of transformers' files.

    Args:
        stages: the backbone's output stages, counted from 1.
        levels: feature levels, at least as many.
        decoder_layers: L; the encoder's own branch of our head is number L.
    """
    rows = [
        *_HF_ROWS,
        *_neck("model.input_proj_vision.", len(stages), levels),
        ("model.encoder_output_bbox_embed.", f"bbox_head.reg_branches.{decoder_layers}."),
        ("model.encoder_output_class_embed.", f"bbox_head.cls_branches.{decoder_layers}."),
    ]
    copies = [(f"model.decoder.{kind}_embed.", f"{kind}_embed.") for kind in ("bbox", "class")]
    dropped = [
        r".*\.relative_position_index",
        r".*\.position_ids",
        r"model\.backbone\.conv_encoder\.model\.(swin\.)?layernorm\..*",
    ]
    return Layout(rows, [], copies, [*dropped, r"model\.text_backbone\.pooler\..*"], [], [r".*class_embed\..*"])


def idea_layout(stages: list[int], levels: int, decoder_layers: int) -> Layout:
    """Names of IDEA's files; arguments as in `transformers_layout`."""
    rows = [
        *_IDEA_ROWS,
        *((f"{_IDEA_ENCODER}fusion_layers.{{i}}.{theirs}", _FUSION + ours) for theirs, ours in _SHORT_FUSION),
        *_neck("input_proj.", len(stages), levels),
        *_stage_norms("backbone.0.norm", stages),
        ("transformer.enc_out_bbox_embed.", f"bbox_head.reg_branches.{decoder_layers}."),
    ]
    dropped = [r".*\.relative_position_index", r".*\.position_ids", r"bert\.pooler\..*"]
    return Layout(rows, _IDEA_PACKED, [("transformer.decoder.bbox_embed.", "bbox_embed.")], dropped, [], [])


def mmdetection_layout(stages: list[int], levels: int, decoder_layers: int) -> Layout:
    """Names of MMDetection's files; arguments as in `transformers_layout`."""
    rows = [
        *_MMDET_ROWS,
        *((f"encoder.fusion_layers.{{i}}.{theirs}", _FUSION + ours) for theirs, ours in _SHORT_FUSION),
        *_stage_norms("backbone.norm", stages),
    ]
    dropped = [r".*\.relative_position_index", r".*\.position_ids", r".*body\.model\.pooler\..*"]
    return Layout(rows, _MMDET_PACKED, [], dropped, [r"backbone\.stages\.\d+\.downsample\.(norm|reduction)\..*"], [])


def _neck(theirs: str, backbone_levels: int, levels: int) -> Rows:
    """Levels run on through one list there; ours has the extra ones apart."""
    rows = []
    for level in range(levels):
        ours = f"convs.{level}" if level < backbone_levels else f"extra_convs.{level - backbone_levels}"
        rows += [(f"{theirs}{level}.{n}.", f"neck.{ours}.{part}.") for n, part in enumerate(("conv", "gn"))]
    return rows


def _stage_norms(theirs: str, stages: list[int]) -> Rows:
    """Stages are counted from 0 there."""
    return [(f"{theirs}{stage - 1}.", f"backbone.body.hidden_states_norms.stage{stage}.") for stage in stages]


@functools.cache
def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(re.escape(prefix).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)"))


def renamed(name: str, rows: Rows) -> str | None:
    """The name with its prefix exchanged, by the row that says most; None where none fits."""
    best: tuple[int, bool] | None = None
    result = None
    for old, new in rows:
        match = _pattern(old).match(name)
        rank = None if match is None else (match.end(), "{" not in old)
        if match is not None and rank is not None and (best is None or rank > best):
            best, result = rank, filled(new, match) + name[match.end() :]
    return result


def filled(prefix: str, match: re.Match[str]) -> str:
    """A prefix with the numbers of a match in place of `{i}` and `{j}`."""
    for letter, number in match.groupdict().items():
        prefix = prefix.replace(f"{{{letter}}}", number)
    return prefix


def packed_match(name: str, packed: PackedRows) -> tuple[str, str, str] | None:
    """The three names of ours whose tensors one packed tensor of theirs holds; None for other names."""
    for theirs, ours in packed:
        match = _pattern(theirs).match(name)
        if match is not None:
            first, second, third = (filled(prefix, match) + name[match.end() :] for prefix in ours)
            return first, second, third
    return None
