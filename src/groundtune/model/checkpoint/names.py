"""The names of other projects' weights, as data: one table per layout, read in both directions.

A row is a pair of prefixes (theirs, ours); `{i}` and `{j}` stand for numbers and are the same on
both sides. The tables have rows as words "theirs=ours" under a pair of prefixes; a word without "="
is the same on both sides. Where ours has a "*", their tensor is a stack of three of ours: query,
key and value, with q, k and v for the "*".
"""

import functools
import re
from dataclasses import dataclass

Rows = list[tuple[str, str]]

_SWIN, _BLOCK = "backbone.body.swin.", "backbone.body.swin.encoder.layers.{i}.blocks.{j}."
_TEXT, _FUSION, _VISION = "encoder.text_layers.{i}.", "encoder.fusion_layers.{i}.", "encoder.layers.{i}."
_DECODER, _BERT, _NORMS = "decoder.layers.{i}.", "language_model.bert.", "backbone.body.hidden_states_norms."


@dataclass(frozen=True)
class Layout:
    """One project's names.

    Attributes:
        columns: four tables (theirs, ours): of whole tensors, and of each of the packed parts.
        copies: prefixes (copy, original) of theirs; a copy repeats another tensor (tied heads).
        unfolded: pattern of names whose last axis is in the order of `nn.Unfold`.
        scalars: pattern of names without an axis, where ours has one of length 1.
        dropped: pattern of names that hold nothing learned, or that no output reads.
    """

    columns: list[Rows]
    copies: Rows
    unfolded: str = ""
    scalars: str = ""
    dropped: str = r".*\.(relative_position_index|position_ids|pooler\..*|model\.(swin\.)?layernorm\..*)"


def renamed(name: str, rows: Rows) -> str | None:
    """Exchange the prefix of a name by the row that matches most of it, if any."""
    matches = [(match, old, new) for old, new in rows if (match := _pattern(old).match(name))]
    if not matches:
        return None
    match, _, new = max(matches, key=lambda row: (row[0].end(), "{" not in row[1]))
    return new.format(**match.groupdict()) + name[match.end() :]


@functools.cache
def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(re.escape(prefix).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)"))


def _under(theirs: str, ours: str, names: str) -> Rows:
    return [(theirs + pair[0], ours + pair[-1]) for pair in (name.split("=") for name in names.split())]


_BIAS_TABLE = "relative_position_bias_table=relative_position_bias.relative_position_bias_table"
# of torch's `nn.MultiheadAttention`
_ATTENTION = "in_proj_weight=*_proj.weight in_proj_bias=*_proj.bias out_proj."

# the files of transformers' two families
_HF_SWIN, _HF_LAYER = "model.backbone.conv_encoder.model.", "model.encoder.layers.{i}."
_HF_TEXT, _HF_VISION = _HF_LAYER + "text_enhancer_layer.", _HF_LAYER + "deformable_layer."
_HF_BLOCK, _HF_DECODER = _HF_SWIN + "encoder.layers.{i}.blocks.{j}.", "model.decoder.layers.{i}."
_HF_QKV, _HF_FFN = "query.=q_proj. key.=k_proj. value.=v_proj.", "fc1.=ffn.linear1. fc2.=ffn.linear2."
_HF_CROSS = ".=cross_attn. _text_layer_norm.=norm2. _layer_norm.=norm3."
_HF_ROWS = [
    *_under(_HF_SWIN, _SWIN, "embeddings. encoder.layers.{i}.downsample."),
    *_under(_HF_BLOCK, _BLOCK, "layernorm_before. layernorm_after. output.dense.=mlp.fc2."),
    *_under(_HF_BLOCK, _BLOCK, "intermediate.dense.=mlp.fc1. attention.output.dense.=attention.o_proj."),
    *_under(_HF_BLOCK + "attention.self.", _BLOCK + "attention.", f"{_HF_QKV} {_BIAS_TABLE}"),
    *_under("", "", f"{_HF_SWIN}hidden_states_norms.={_NORMS} model.text_backbone.={_BERT}"),
    *_under("model.", "encoder.", "text_projection. level_embed"),
    *_under("model.", "decoder.", "query_position_embeddings.=query_embedding. decoder.layer_norm.=norm."),
    *_under("model.enc_output", "decoder.", ".=memory_trans_fc. _norm.=memory_trans_norm."),
    ("model.decoder.reference_points_head.", "decoder.ref_point_head."),
    *_under(_HF_TEXT + "self_attn.", _TEXT + "self_attn.", f"{_HF_QKV} out_proj."),
    *_under(_HF_TEXT, _TEXT, f"layer_norm_before.=norm1. layer_norm_after.=norm2. {_HF_FFN}"),
    *_under(_HF_LAYER + "fusion_layer.", _FUSION, "vision_param=gamma_vision text_param=gamma_text ="),
    *_under(
        _HF_VISION, _VISION, f"self_attn. {_HF_FFN} self_attn_layer_norm.=norm1. final_layer_norm.=norm2."
    ),
    *_under(_HF_DECODER + "self_attn.", _DECODER + "self_attn.", f"{_HF_QKV} out_proj."),
    *_under(_HF_DECODER + "encoder_attn_text.", _DECODER + "cross_attn_text.", f"{_HF_QKV} out_proj."),
    *_under(
        _HF_DECODER + "encoder_attn", _DECODER, ".=cross_attn. _text_layer_norm.=norm2. _layer_norm.=norm3."
    ),
    *_under(_HF_DECODER, _DECODER, f"{_HF_FFN} self_attn_layer_norm.=norm1. final_layer_norm.=norm4."),
    *_under("", "bbox_head.", "bbox_embed.=reg_branches. class_embed.=cls_branches."),
]

# IDEA-Research/GroundingDINO's .pth, without the "module." in front of every name
_IDEA_BLOCK, _IDEA_DECODER = "backbone.0.layers.{i}.blocks.{j}.", "transformer.decoder.layers.{i}."
_IDEA_ROWS = [
    *_under("backbone.0.patch_embed.", _SWIN + "embeddings.", "proj.=patch_embeddings.projection. norm."),
    *_under("backbone.0.", _SWIN + "encoder.", "layers.{i}.downsample."),
    *_under(_IDEA_BLOCK, _BLOCK, "norm1.=layernorm_before. norm2.=layernorm_after. mlp."),
    *_under(_IDEA_BLOCK + "attn.", _BLOCK + "attention.", f"qkv.=*_proj. proj.=o_proj. {_BIAS_TABLE}"),
    *_under("", "", f"bert.={_BERT} feat_map.=encoder.text_projection. bbox_embed.=bbox_head.reg_branches."),
    *_under("transformer.", "", "level_embed=encoder.level_embed decoder.norm. decoder.ref_point_head."),
    *_under("transformer.enc_output", "decoder.", ".=memory_trans_fc. _norm.=memory_trans_norm."),
    *_under("transformer." + _TEXT + "self_attn.", _TEXT + "self_attn.", _ATTENTION),
    *_under("transformer." + _TEXT, _TEXT, "linear=ffn.linear norm"),
    *_under("transformer." + _VISION, _VISION, "self_attn. linear=ffn.linear norm"),
    *_under(_IDEA_DECODER + "self_attn.", _DECODER + "self_attn.", _ATTENTION),
    *_under(_IDEA_DECODER + "ca_text.", _DECODER + "cross_attn_text.", _ATTENTION),
    *_under(_IDEA_DECODER, _DECODER, "cross_attn. linear=ffn.linear"),
    *_under(_IDEA_DECODER, _DECODER, "norm2.=norm1. catext_norm.=norm2. norm1.=norm3. norm3.=norm4."),
    *_under("", "", "label_enc.=decoder.label_embedding. transformer.tgt_embed.=decoder.query_embedding."),
]

# MMDetection 3's .pth
_MMDET_BLOCK = "backbone.stages.{i}.blocks.{j}."
_MMDET_FFN = "norms.0.=norm1. norms.1.=norm2. ffn.layers.0.0.=ffn.linear1. ffn.layers.1.=ffn.linear2."
_MMDET_ROWS = [
    *_under("backbone.patch_embed.", _SWIN + "embeddings.", "projection.=patch_embeddings.projection. norm."),
    *_under("backbone.", _SWIN + "encoder.", "stages.{i}.downsample.=layers.{i}.downsample."),
    *_under(_MMDET_BLOCK, _BLOCK, "norm1.=layernorm_before. norm2.=layernorm_after."),
    *_under(_MMDET_BLOCK + "ffn.layers.", _BLOCK + "mlp.", "0.0.=fc1. 1.=fc2."),
    *_under(_MMDET_BLOCK + "attn.w_msa.", _BLOCK + "attention.", f"qkv.=*_proj. proj.=o_proj. {_BIAS_TABLE}"),
    ("language_model.language_backbone.body.model.", _BERT),
    *_under("", "", "neck. level_embed=encoder.level_embed text_feat_map.=encoder.text_projection."),
    *_under("", "", "decoder.norm. decoder.ref_point_head. bbox_head.cls_branches."),
    *_under("", "decoder.", "query_embedding. memory_trans_fc. memory_trans_norm."),
    ("dn_query_generator.label_embedding.", "decoder.label_embedding."),
    *_under(_TEXT + "self_attn.attn.", _TEXT + "self_attn.", _ATTENTION),
    *_under(_TEXT, _TEXT, _MMDET_FFN),
    *_under(_VISION, _VISION, f"self_attn. {_MMDET_FFN}"),
    *_under(_DECODER + "self_attn.attn.", _DECODER + "self_attn.", _ATTENTION),
    *_under(_DECODER + "cross_attn_text.attn.", _DECODER + "cross_attn_text.", _ATTENTION),
    *_under(_DECODER, _DECODER, f"cross_attn. {_MMDET_FFN} norms.2.=norm3. norms.3.=norm4."),
    *_under("bbox_head.reg_branches.{i}.", "bbox_head.reg_branches.{i}.layers.", "0. 2.=1. 4.=2."),
]

# The fusion of IDEA and MMDetection
_SHORT_FUSION = (
    "gamma_v=gamma_vision gamma_l=gamma_text layer_norm_v.=layer_norm_vision. "
    "layer_norm_l.=layer_norm_text. attn.v_proj.=attn.vision_proj. "
    "attn.values_v_proj.=attn.values_vision_proj. attn.out_v_proj.=attn.out_vision_proj. "
    "attn.l_proj.=attn.text_proj. attn.values_l_proj.=attn.values_text_proj. "
    "attn.out_l_proj.=attn.out_text_proj."
)


def _neck(theirs: str, stages: list[int], levels: int) -> Rows:
    """Map their one list of all levels to our two."""
    ours = [f"convs.{n}." for n in range(len(stages))]
    ours += [f"extra_convs.{n}." for n in range(levels - len(stages))]
    pairs = [_under(f"{theirs}{n}.", f"neck.{name}", "0.=conv. 1.=gn.") for n, name in enumerate(ours)]
    return [row for pair in pairs for row in pair]


def _stage_norms(theirs: str, stages: list[int]) -> Rows:
    """Map their norms, which count stages from 0."""
    return [(f"{theirs}{stage - 1}.", f"{_NORMS}stage{stage}.") for stage in stages]


def _layout(rows: Rows, copies: Rows, **patterns: str) -> Layout:
    whole = [row for row in rows if "*" not in row[1]]
    packed = [(theirs, ours) for theirs, ours in rows if "*" in ours]
    parts = [[(theirs, ours.replace("*", part)) for theirs, ours in packed] for part in "qkv"]
    return Layout([whole, *parts], copies, **patterns)


def transformers_layout(stages: list[int], levels: int, decoder_layers: int) -> Layout:
    """Return the names of transformers' files; the output `stages` of the backbone count from 1."""
    of_encoder = f"bbox_embed.=reg_branches.{decoder_layers}. class_embed.=cls_branches.{decoder_layers}."
    rows = _HF_ROWS + _neck("model.input_proj_vision.", stages, levels)
    rows += _under("model.encoder_output_", "bbox_head.", of_encoder)
    copies = _under("model.decoder.", "", "bbox_embed. class_embed.")
    return _layout(rows, copies, scalars=r".*class_embed\..*")


def idea_layout(stages: list[int], levels: int, decoder_layers: int) -> Layout:
    """Return the names of IDEA's files; arguments as in `transformers_layout`."""
    rows = _IDEA_ROWS + _under("transformer." + _FUSION, _FUSION, _SHORT_FUSION)
    rows += _neck("input_proj.", stages, levels) + _stage_norms("backbone.0.norm", stages)
    rows += [("transformer.enc_out_bbox_embed.", f"bbox_head.reg_branches.{decoder_layers}.")]
    return _layout(rows, _under("transformer.decoder.", "", "bbox_embed."))


def mmdetection_layout(stages: list[int], levels: int, decoder_layers: int) -> Layout:
    """Return the names of MMDetection's files; arguments as in `transformers_layout`."""
    rows = _MMDET_ROWS + _under(_FUSION, _FUSION, _SHORT_FUSION) + _stage_norms("backbone.norm", stages)
    return _layout(rows, [], unfolded=r"backbone\.stages\.\d+\.downsample\.(norm|reduction)\..*")


LAYOUTS = {"transformers": transformers_layout, "idea": idea_layout, "mmdetection": mmdetection_layout}
