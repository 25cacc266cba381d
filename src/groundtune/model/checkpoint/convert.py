"""Weights of other projects ↔ ours, by the tables of `names`; and the sizes that they imply.

Two things are more than names. Packed projections (query, key and value in one tensor) are cut
apart. MMDetection's Swin merges patches with `nn.Unfold`, whose channels are in another order than
the concatenation of the original code.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from groundtune.errors import CheckpointError
from groundtune.model.checkpoint.files import summary
from groundtune.model.checkpoint.names import Layout, Rows, project_layout, renamed
from groundtune.model.config import ModelConfig

# denoising labels, absent in transformers and IDEA's published weights
LABELS = "decoder.label_embedding.weight"
IDEA_LABELS = "label_enc.weight"  # their name in DINO, on which IDEA's code is built

# `nn.Unfold` gives (C, 4) in reading order; the original code concatenates (4, C), column by column
_UNFOLD_ORDER = [0, 2, 1, 3]
_POINTS = ModelConfig.encoder_points  # a .pth implies only heads × points; all published ones have this many
_BERT_HEAD = 64  # width of a head of every published BERT


def layout_of(name: str, config: ModelConfig) -> Layout:
    """Return the names of "transformers", "idea" or "mmdetection" for a network of these sizes."""
    stages = list(config.backbone_config.get("out_indices", [2, 3, 4]))
    return project_layout(name, stages, config.num_levels, config.decoder_layers)


def pth_layout(state: Mapping[str, Tensor], family: str) -> Layout:
    """Return the names of a .pth; a `KeyError` where it has no level embedding."""
    backbone, prefix = ("backbone.0.", "transformer.") if family == "idea" else ("backbone.", "")
    stages = [stage + 1 for stage in range(4) if f"{backbone}norm{stage}.weight" in state]
    levels, layers = len(state[f"{prefix}level_embed"]), _count(state, f"{prefix}decoder.layers.")
    return project_layout(family, stages, levels, layers)


def to_groundtune(state: Mapping[str, Tensor], layout: Layout, where: str) -> dict[str, Tensor]:
    """Rename their weights to ours, floating-point ones as float32 (float64 is kept).

    Raises:
        CheckpointError: names or shapes are unknown, or copies of a tied tensor differ from it.
    """
    ours: dict[str, Tensor] = {}
    faults: dict[str, list[str]] = defaultdict(list)
    for name, tensor in state.items():
        original = renamed(name, layout.copies) or name
        if re.fullmatch(layout.dropped, name):
            continue
        if original != name and original in state:
            if not torch.equal(tensor, state[original]):
                faults["copies of a tied weight that differ from it"].append(name)
            continue
        targets = [target for rows in layout.columns if (target := renamed(original, rows))]
        values = _cut(tensor, original, len(targets), layout)
        if not targets:
            faults["weights that groundtune does not know"].append(name)
        if not values:
            shaped = f"{name} {list(tensor.shape)}"
            faults["weights of a shape that their layout does not have"].append(shaped)
        ours |= dict(zip(targets, values, strict=False))
    if faults:
        raise CheckpointError(f"{where} has {summary(faults)}.")
    return ours


def _cut(tensor: Tensor, name: str, parts: int, layout: Layout) -> list[Tensor]:
    """Return our tensors from theirs: widened, reordered, cut; [] where its shape forbids it."""
    value = tensor if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor.float()
    value = value.view(1) if value.ndim == 0 and re.fullmatch(layout.scalars, name) else value
    if re.fullmatch(layout.unfolded, name):
        if value.ndim == 0 or value.shape[-1] % 4:
            return []
        value = value.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., _UNFOLD_ORDER, :].flatten(-2).contiguous()
    if parts <= 1:
        return [value]
    return list(value.chunk(parts)) if value.ndim and value.shape[0] % parts == 0 else []


def to_layout(state: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return our weights by their names, with copies of tied heads; and those without a name."""
    left = {name: tensor.cpu() for name, tensor in state.items()}
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    for backwards in map(_inverse, layout.columns):
        for name in state:
            if (target := renamed(name, backwards)) is not None:
                pieces[target].append(left.pop(name))
    theirs = {}
    for name, tensors in pieces.items():
        tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        if re.fullmatch(layout.unfolded, name):
            tensor = tensor.unflatten(-1, (4, -1))[..., _UNFOLD_ORDER, :].transpose(-1, -2).flatten(-2)
        theirs[name] = tensor.view(()) if re.fullmatch(layout.scalars, name) else tensor.contiguous()
    backwards = _inverse(layout.copies)
    copies = {copy: tensor for name, tensor in theirs.items() if (copy := renamed(name, backwards))}
    return theirs | copies, left


def source_name(name: str, layout: Layout | None) -> str:
    """Return the name in a layout of (the tensor that contains) ours, or else our own name."""
    rows = [row for rows in layout.columns for row in rows] if layout is not None else []
    return renamed(name, _inverse(rows)) or name


def _inverse(rows: Rows) -> Rows:
    return [(ours, theirs) for theirs, ours in rows]


def config_of_pth(ours: Mapping[str, Tensor], family: str, bert_heads: int | None = None) -> ModelConfig:
    """Read the sizes of a .pth off its weights, by our names; `bert_heads`, which none implies.

    Raises:
        KeyError, IndexError, ValueError, ZeroDivisionError: a tensor or its shape is wrong.
    """
    levels, width = ours["encoder.level_embed"].shape
    decoder_layers = _count(ours, "decoder.layers.")
    heads = max(1, len(ours["encoder.layers.0.self_attn.attention_weights.weight"]) // levels // _POINTS)
    biased = "bbox_head.cls_branches.0.bias" in ours
    learned = "bbox_head.cls_branches.0.log_scale" in ours
    return ModelConfig(
        backbone_config=_swin_config(ours),
        language_config=_bert_config(ours, bert_heads),
        d_model=width,
        num_heads=heads,
        num_levels=levels,
        num_queries=len(ours["decoder.query_embedding.weight"]),
        encoder_layers=_count(ours, "encoder.layers."),
        decoder_layers=decoder_layers,
        ffn_dim=len(ours["encoder.layers.0.ffn.linear1.weight"]),
        fusion_dim=len(ours["encoder.fusion_layers.0.attn.vision_proj.weight"]),
        fusion_heads=max(1, heads // 2),
        text_ffn_dim=len(ours["encoder.text_layers.0.ffn.linear1.weight"]),
        # MM-Grounding-DINO trains a head per layer: equal ones (untrained) must not be tied
        share_box_head=not biased and same_branches(ours, "reg", decoder_layers),
        share_class_head=not biased and same_branches(ours, "cls", decoder_layers),
        contrastive_scale="learnable" if learned else "auto" if biased else "none",
        contrastive_bias=biased,
        decoder_eps=1e-3,
        head_eps=1e-3 if family == "idea" else 1e-5,
        num_labels=len(ours[LABELS]) if LABELS in ours else 1,
        class_labels=LABELS not in ours,
    )


def same_branches(ours: Mapping[str, Tensor], kind: str, decoder_layers: int) -> bool:
    """Whether all decoder layers' box ("reg") or class ("cls") branches are equal or absent."""
    first, *others = (f"bbox_head.{kind}_branches.{layer}." for layer in range(decoder_layers))
    parts = [name.removeprefix(first) for name in ours if name.startswith(first)]
    pairs = [(first + part, other + part) for part in parts for other in others]
    return all(other not in ours or torch.equal(ours[other], ours[name]) for name, other in pairs)


def _swin_config(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    layers, norm = "backbone.body.swin.encoder.layers.", "backbone.body.hidden_states_norms.stage"
    stages = range(_count(ours, layers))
    table = "blocks.0.attention.relative_position_bias.relative_position_bias_table"
    tables = [ours[f"{layers}{stage}.{table}"] for stage in stages]
    patches = ours["backbone.body.swin.embeddings.patch_embeddings.projection.weight"]
    return {
        "embed_dim": patches.shape[0],
        "patch_size": patches.shape[-1],
        "depths": [_count(ours, f"{layers}{stage}.blocks.") for stage in stages],
        "num_heads": [entry.shape[1] for entry in tables],
        "window_size": (round(tables[0].shape[0] ** 0.5) + 1) // 2,
        "out_indices": [stage + 1 for stage in stages if f"{norm}{stage + 1}.weight" in ours],
    }


def _bert_config(ours: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    bert = "language_model.bert."
    words = ours[f"{bert}embeddings.word_embeddings.weight"]
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": _count(ours, f"{bert}encoder.layer."),
        "num_attention_heads": heads or max(1, words.shape[1] // _BERT_HEAD),
        "intermediate_size": len(ours[f"{bert}encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(ours[f"{bert}embeddings.position_embeddings.weight"]),
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
