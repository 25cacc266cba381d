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
        CheckpointError: names that no row knows, or two names for one tensor; the first few and their number are given.
    """
    dropped = [re.compile(pattern) for pattern in layout.dropped]
    unfolded = [re.compile(pattern) for pattern in layout.unfolded]
    scalars = [re.compile(pattern) for pattern in layout.scalars]
    ours: dict[str, Tensor] = {}
    unknown, twice = [], []
    for name, tensor in state.items():
        if any(pattern.fullmatch(name) for pattern in dropped):
            continue
        original = renamed(name, layout.copies)
        if original is not None and original in state:
            continue
        name = original or name
        value = tensor if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor.float()
        if any(pattern.fullmatch(name) for pattern in unfolded):
            value = _from_unfold(value)
        if value.ndim == 0 and any(pattern.fullmatch(name) for pattern in scalars):
            value = value.view(1)
        parts = packed_match(name, layout.packed)
        one = renamed(name, layout.rows)
        if parts is not None:
            pairs = list(zip(parts, value.chunk(3), strict=True))
        elif one is not None:
            pairs = [(one, value)]
        else:
            unknown.append(name)
            continue
        twice += [target for target, _ in pairs if target in ours]
        ours |= dict(pairs)
    _refuse(unknown, f"{where} has weights that groundtune does not know")
    _refuse(twice, f"{where} has more than one tensor for")
    return ours


def from_ours(state: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give our weights their names.

    Returns:
        Their tensors by name, contiguous, copies of tied heads included; and those of ours that they have no name for.
    """
    rows = [(ours, theirs) for theirs, ours in layout.rows]
    into = [((parts[n], theirs), n) for theirs, parts in layout.packed for n in range(3)]
    unfolded = [re.compile(pattern) for pattern in layout.unfolded]
    scalars = [re.compile(pattern) for pattern in layout.scalars]
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
            if any(pattern.fullmatch(target) for pattern in unfolded):
                tensor = _to_unfold(tensor)
            if any(pattern.fullmatch(target) for pattern in scalars):
                tensor = tensor.view(())
            theirs[target] = tensor.contiguous()
    theirs |= {name: torch.cat([parts[n] for n in range(3)]) for name, parts in packed.items()}
    backwards = [(original, copy) for copy, original in layout.copies]
    theirs |= {copy: tensor for name, tensor in list(theirs.items()) if (copy := renamed(name, backwards))}
    return theirs, left


def config_of_pth(state: Mapping[str, Tensor], family: str, bert_heads: int | None = None) -> ModelConfig:
    """Read the sizes off a .pth, which has no configuration beside it.

    Args:
        state: their tensors by their names.
        family: "idea" or "mmdetection".
        bert_heads: attention heads of the language model, which no tensor tells; None: one for each 64 channels.

    Raises:
        CheckpointError: tensors are missing from which the sizes are read.
    """
    stage = r"backbone\.0\.norm(\d+)\.weight" if family == "idea" else r"backbone\.norm(\d+)\.weight"
    stages = sorted(int(match.group(1)) + 1 for name in state if (match := re.fullmatch(stage, name)))
    prefix = "transformer." if family == "idea" else ""
    levels = _tensor(state, f"{prefix}level_embed").shape[0]
    decoder_layers = _count(state, rf"{re.escape(prefix)}decoder\.layers\.(\d+)\..*")
    ours = to_ours(state, _LAYOUTS[family](stages, levels, decoder_layers), "The file")
    points_and_heads = _tensor(ours, "encoder.layers.0.self_attn.attention_weights.weight").shape[0] // levels
    heads = max(1, points_and_heads // _POINTS)
    biased = "bbox_head.cls_branches.0.bias" in ours
    learnable = "bbox_head.cls_branches.0.log_scale" in ours
    eps = 1e-3 if family == "idea" else 1e-5
    return ModelConfig(
        backbone_config=_swin_config(ours, stages),
        language_config=_bert_config(ours, bert_heads),
        d_model=_tensor(ours, "encoder.level_embed").shape[1],
        num_heads=heads,
        num_levels=levels,
        encoder_points=_POINTS,
        decoder_points=_POINTS,
        num_queries=_tensor(ours, "decoder.query_embedding.weight").shape[0],
        encoder_layers=_count(ours, r"encoder\.layers\.(\d+)\..*"),
        decoder_layers=decoder_layers,
        ffn_dim=_tensor(ours, "encoder.layers.0.ffn.linear1.weight").shape[0],
        fusion_dim=_tensor(ours, "encoder.fusion_layers.0.attn.vision_proj.weight").shape[0],
        fusion_heads=max(1, heads // 2),
        text_ffn_dim=_tensor(ours, "encoder.text_layers.0.ffn.linear1.weight").shape[0],
        share_box_head=same_branches(ours, "reg", decoder_layers),
        share_class_head=same_branches(ours, "cls", decoder_layers),
        contrastive_scale="learnable" if learnable else "auto" if biased else "none",
        contrastive_bias=biased,
        decoder_eps=1e-3,
        head_eps=eps,
        num_labels=ours[LABELS].shape[0] if LABELS in ours else 1,
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


def _swin_config(ours: Mapping[str, Tensor], stages: list[int]) -> dict[str, Any]:
    layers = "backbone.body.swin.encoder.layers"
    table = "attention.relative_position_bias.relative_position_bias_table"
    depths = [
        _count(ours, rf"{re.escape(layers)}\.{stage}\.blocks\.(\d+)\..*")
        for stage in range(_count(ours, rf"{re.escape(layers)}\.(\d+)\..*"))
    ]
    tables = [_tensor(ours, f"{layers}.{stage}.blocks.0.{table}") for stage in range(len(depths))]
    patches = _tensor(ours, "backbone.body.swin.embeddings.patch_embeddings.projection.weight")
    return {
        "embed_dim": patches.shape[0],
        "patch_size": patches.shape[-1],
        "depths": depths,
        "num_heads": [entry.shape[1] for entry in tables],
        "window_size": (round(tables[0].shape[0] ** 0.5) + 1) // 2,
        "out_indices": stages,
    }


def _bert_config(ours: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    words = _tensor(ours, "language_model.bert.embeddings.word_embeddings.weight")
    layer = "language_model.bert.encoder.layer"
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": _count(ours, rf"{re.escape(layer)}\.(\d+)\..*"),
        "num_attention_heads": heads or max(1, words.shape[1] // _BERT_HEAD),
        "intermediate_size": _tensor(ours, f"{layer}.0.intermediate.dense.weight").shape[0],
        "max_position_embeddings": _tensor(ours, "language_model.bert.embeddings.position_embeddings.weight").shape[0],
    }


def _tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"The weights have no {name}, from which a size is read; is the file complete?")
    return state[name]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return max((int(match.group(1)) + 1 for name in state if (match := re.fullmatch(pattern, name))), default=0)


def _from_unfold(tensor: Tensor) -> Tensor:
    """(…, 4·C) from channel-major in reading order to the four neighbours one after another, column by column."""
    return tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2).contiguous()


def _to_unfold(tensor: Tensor) -> Tensor:
    """The inverse of `_from_unfold`."""
    return tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def _refuse(names: list[str], problem: str) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(f"{problem}: {', '.join(names[:3])}{more}.")
