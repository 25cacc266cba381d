"""Weights of other projects ↔ ours, by the tables of `names`, and the sizes that the weights themselves tell.

Two things are more than names. Packed projections (query, key and value in one tensor) are cut apart. MMDetection's
Swin merges patches with `nn.Unfold`, whose channels come in another order than the concatenation of the original code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from groundtune.errors import CheckpointError
from groundtune.model.checkpoint.names import (
    Layout,
    idea_layout,
    mmdetection_layout,
    packed_match,
    renamed,
    transformers_layout,
)
from groundtune.model.config import ModelConfig

LABELS = "decoder.label_embedding.weight"
"""The denoising labels, which transformers and IDEA's published weights do not have."""

IDEA_LABELS = "label_enc.weight"
"""Their name in DINO, on which IDEA's code is built."""

_LAYOUTS = {"transformers": transformers_layout, "idea": idea_layout, "mmdetection": mmdetection_layout}
_POINTS = 4  # of every published model; a .pth tells only heads × points
_BERT_HEAD = 64  # width of a head of every published BERT


def layout_of(name: str, config: ModelConfig) -> Layout:
    """The names of "transformers", "idea" or "mmdetection" for a network of these sizes."""
    stages = list(config.backbone_config.get("out_indices", [2, 3, 4]))
    return _LAYOUTS[name](stages, config.num_levels, config.decoder_layers)


def to_ours(state: Mapping[str, Tensor], layout: Layout, where: str) -> dict[str, Tensor]:
    """Give their weights our names.

    Args:
        state: their tensors by name.
        layout: of their names.
        where: the tensors come from, for messages.

    Returns:
        Tensors by our names, floating-point ones as float32 (float64 stays).

    Raises:
        CheckpointError: names that no row knows, two names for one tensor, copies of a tied tensor that differ from it, or
            tensors that cannot be cut as their layout says; the first few and their number are given.
    """
    ours: dict[str, Tensor] = {}
    unknown, twice, differing, misshapen = [], [], [], []
    for name, tensor in state.items():
        if _one_of(layout.dropped, name):
            continue
        original = renamed(name, layout.copies) or name
        if original != name and original in state:
            differing += [] if torch.equal(tensor, state[original]) else [name]
            continue
        targets = our_names(original, layout)
        values = _cut(tensor, original, len(targets), layout)
        unknown += [] if targets else [name]
        misshapen += [] if values else [f"{name} {list(tensor.shape)}"]
        twice += [name for target in targets if target in ours]
        ours |= dict(zip(targets, values, strict=False))
    _refuse(where, unknown, "weights that groundtune does not know")
    _refuse(where, differing, "copies of a tied weight that differ from it")
    _refuse(where, misshapen, "weights of a shape that their layout does not have")
    _refuse(where, twice, "weights under more than one name")
    return ours


def our_names(name: str, layout: Layout) -> tuple[str, ...]:
    """Where a tensor of theirs goes: one name, three for a packed one, none for an unknown one."""
    parts = packed_match(name, layout.packed)
    if parts is not None:
        return parts
    one = renamed(name, layout.rows)
    return () if one is None else (one,)


def their_name(name: str, layout: Layout) -> str | None:
    """What a tensor of ours is called there, or is a part of; None where it has no place."""
    rows = [(ours, theirs) for theirs, ours in layout.rows]
    return renamed(name, [*rows, *((part, theirs) for theirs, parts in layout.packed for part in parts)])


def _cut(tensor: Tensor, name: str, parts: int, layout: Layout) -> list[Tensor]:
    """Their tensor as ours: widened, in our order of channels, in as many parts; [] where its shape forbids it."""
    value = tensor if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor.float()
    if value.ndim == 0 and _one_of(layout.scalars, name):
        value = value.view(1)
    if _one_of(layout.unfolded, name):
        if value.ndim == 0 or value.shape[-1] % 4:
            return []
        value = _from_unfold(value)
    if parts <= 1:
        return [value]
    return list(value.chunk(parts)) if value.ndim and value.shape[0] % parts == 0 else []


def _one_of(patterns: list[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def from_ours(state: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give our weights their names.

    Returns:
        Their tensors by name, contiguous, copies of tied heads included; and those of ours that they have no name for.
    """
    rows = [(ours, theirs) for theirs, ours in layout.rows]
    into = [((parts[n], theirs), n) for theirs, parts in layout.packed for n in range(3)]
    theirs: dict[str, Tensor] = {}
    packed: dict[str, dict[int, Tensor]] = {}
    left = {}
    for name, tensor in state.items():
        part = next(((found, n) for row, n in into if (found := renamed(name, [row])) is not None), None)
        target = renamed(name, rows)
        if part is not None:
            packed.setdefault(part[0], {})[part[1]] = tensor
        elif target is None:
            left[name] = tensor
        else:
            if _one_of(layout.unfolded, target):
                tensor = _to_unfold(tensor)
            if _one_of(layout.scalars, target):
                tensor = tensor.view(())
            theirs[target] = tensor.contiguous()
    theirs |= {name: torch.cat([parts[n] for n in range(3)]) for name, parts in packed.items()}
    backwards = [(original, copy) for copy, original in layout.copies]
    theirs |= {copy: tensor for name, tensor in list(theirs.items()) if (copy := renamed(name, backwards))}
    return theirs, left


def pth_layout(state: Mapping[str, Tensor], family: str) -> Layout:
    """The names of a .pth, which has no configuration beside it.

    Args:
        state: their tensors by their names.
        family: "idea" or "mmdetection".

    Raises:
        KeyError: the level embedding is missing, which tells the number of feature levels.
    """
    stage = r"backbone\.0\.norm(\d+)\.weight" if family == "idea" else r"backbone\.norm(\d+)\.weight"
    stages = sorted(int(match.group(1)) + 1 for name in state if (match := re.fullmatch(stage, name)))
    prefix = "transformer." if family == "idea" else ""
    levels = len(state[f"{prefix}level_embed"])
    return _LAYOUTS[family](stages, levels, _count(state, rf"{re.escape(prefix)}decoder\.layers\.(\d+)\..*"))


def config_of_pth(ours: Mapping[str, Tensor], family: str, bert_heads: int | None = None) -> ModelConfig:
    """Read the sizes off the weights of a .pth.

    Args:
        ours: tensors by our names.
        family: "idea" or "mmdetection".
        bert_heads: attention heads of the language model, which no tensor tells; None: one for each 64 channels.

    Raises:
        KeyError: a tensor is missing from which a size is read.
        IndexError, ZeroDivisionError: such a tensor has another shape.
    """
    levels, width = ours["encoder.level_embed"].shape
    decoder_layers = _count(ours, r"decoder\.layers\.(\d+)\..*")
    heads = max(1, ours["encoder.layers.0.self_attn.attention_weights.weight"].shape[0] // levels // _POINTS)
    biased = "bbox_head.cls_branches.0.bias" in ours
    learnable = "bbox_head.cls_branches.0.log_scale" in ours
    # MM-Grounding-DINO trains a head for each layer; those of an untrained one are equal and must not be tied for it
    shared = {kind: not biased and same_branches(ours, kind, decoder_layers) for kind in ("reg", "cls")}
    return ModelConfig(
        backbone_config=_swin_config(ours),
        language_config=_bert_config(ours, bert_heads),
        d_model=width,
        num_heads=heads,
        num_levels=levels,
        encoder_points=_POINTS,
        decoder_points=_POINTS,
        num_queries=len(ours["decoder.query_embedding.weight"]),
        encoder_layers=_count(ours, r"encoder\.layers\.(\d+)\..*"),
        decoder_layers=decoder_layers,
        ffn_dim=len(ours["encoder.layers.0.ffn.linear1.weight"]),
        fusion_dim=len(ours["encoder.fusion_layers.0.attn.vision_proj.weight"]),
        fusion_heads=max(1, heads // 2),
        text_ffn_dim=len(ours["encoder.text_layers.0.ffn.linear1.weight"]),
        share_box_head=shared["reg"],
        share_class_head=shared["cls"],
        contrastive_scale="learnable" if learnable else "auto" if biased else "none",
        contrastive_bias=biased,
        decoder_eps=1e-3,
        head_eps=1e-3 if family == "idea" else 1e-5,
        num_labels=len(ours[LABELS]) if LABELS in ours else 1,
        class_labels=LABELS not in ours,
    )


def same_branches(ours: Mapping[str, Tensor], kind: str, decoder_layers: int) -> bool:
    """Whether all decoder layers have the same box ("reg") or class ("cls") branch, or only the first one is there."""
    first = {name: tensor for name, tensor in ours.items() if name.startswith(f"bbox_head.{kind}_branches.0.")}
    return all(
        other not in ours or torch.equal(ours[other], tensor)
        for name, tensor in first.items()
        for layer in range(1, decoder_layers)
        for other in [name.replace("branches.0.", f"branches.{layer}.", 1)]
    )


def _swin_config(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    layers, norms = "backbone.body.swin.encoder.layers", "backbone.body.hidden_states_norms"
    table = "attention.relative_position_bias.relative_position_bias_table"
    depths = [
        _count(ours, rf"{re.escape(layers)}\.{stage}\.blocks\.(\d+)\..*")
        for stage in range(_count(ours, rf"{re.escape(layers)}\.(\d+)\..*"))
    ]
    tables = [ours[f"{layers}.{stage}.blocks.0.{table}"] for stage in range(len(depths))]
    patches = ours["backbone.body.swin.embeddings.patch_embeddings.projection.weight"]
    return {
        "embed_dim": patches.shape[0],
        "patch_size": patches.shape[-1],
        "depths": depths,
        "num_heads": [entry.shape[1] for entry in tables],
        "window_size": (round(tables[0].shape[0] ** 0.5) + 1) // 2,
        "out_indices": [stage for stage in range(1, len(depths) + 1) if f"{norms}.stage{stage}.weight" in ours],
    }


def _bert_config(ours: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    words = ours["language_model.bert.embeddings.word_embeddings.weight"]
    layer = "language_model.bert.encoder.layer"
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": _count(ours, rf"{re.escape(layer)}\.(\d+)\..*"),
        "num_attention_heads": heads or max(1, words.shape[1] // _BERT_HEAD),
        "intermediate_size": len(ours[f"{layer}.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(ours["language_model.bert.embeddings.position_embeddings.weight"]),
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return max((int(match.group(1)) + 1 for name in state if (match := re.fullmatch(pattern, name))), default=0)


def _from_unfold(tensor: Tensor) -> Tensor:
    """(…, 4·C) from channel-major in reading order to the four neighbours one after another, column by column."""
    return tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2).contiguous()


def _to_unfold(tensor: Tensor) -> Tensor:
    """The inverse of `_from_unfold`."""
    return tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def _refuse(where: str, names: list[str], what: str) -> None:
    if names:
        raise CheckpointError(f"{where} has {len(names)} {what}, for example {', '.join(names[:3])}.")
