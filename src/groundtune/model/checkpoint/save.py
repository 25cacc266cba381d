"""Models on disk, in forms that other tools read.

A Swin + BERT network becomes a Hugging Face directory that transformers opens: config.json, model.safetensors, tokenizer
and processor, with the flags of head sharing always written out (pitfall 13). Beside it lie groundtune.json (classes,
recipe, sizes), README.md (the model card), and groundtune.safetensors with what transformers has no place for, the
denoising labels. A network that transformers cannot express, such as nano with its packaged towers, keeps our own names,
and the card says so.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GroundingDinoConfig, GroundingDinoProcessor, MMGroundingDinoConfig
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from groundtune.errors import CheckpointError
from groundtune.model.bundle import ModelBundle, packaged_towers, unique_state
from groundtune.model.checkpoint.card import model_card
from groundtune.model.checkpoint.convert import LABELS, from_ours, layout_of
from groundtune.model.config import ModelConfig


def save_bundle(bundle: ModelBundle, folder: Path, results: Mapping[str, Any] | None = None) -> None:
    """Write a model folder; it appears whole or not at all, an existing one is replaced.

    Args:
        bundle: the model.
        folder: directory to write, whose parent exists or is made.
        results: for the card: "data", "metrics", "zero_shot"; None leaves those parts out.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    bundle.config.num_labels = bundle.network.decoder.label_embedding.num_embeddings
    towers = set(packaged_towers(bundle.config))
    bundle.own_towers |= towers - bundle.network.frozen
    left_out = tuple(f"{tower}." for tower in towers - bundle.own_towers)
    in_transformers = not beyond_transformers(bundle.config)
    meta = {
        "format": 1,
        "layout": "transformers" if in_transformers else "groundtune",
        "source": bundle.source,
        "config": asdict(bundle.config),
        "picture": asdict(bundle.picture),
        "classes": bundle.classes,
        "recipe": bundle.recipe,
        "results": dict(results or {}),
    }

    def write(staging: Path) -> None:
        if in_transformers:
            _write_transformers(bundle, staging)
        else:
            weights = unique_state(bundle.network)
            kept = {name: w.cpu().contiguous() for name, w in weights.items() if not name.startswith(left_out)}
            save_file(kept, staging / "model.safetensors")
            bundle.tokenizer.save_pretrained(staging)
        (staging / "groundtune.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        (staging / "README.md").write_text(model_card(bundle, results or {}, in_transformers), encoding="utf-8")

    write_folder(folder, write)


def beyond_transformers(config: ModelConfig) -> list[str]:
    """What of a network transformers' two families cannot express, in words; empty where they can express it all."""
    half = {
        "fusion_dim": config.ffn_dim // 2,
        "text_ffn_dim": config.ffn_dim // 2,
        "fusion_heads": config.num_heads // 2,
    }
    reasons = [
        f"{name} is {getattr(config, name)}, there it is always {value}"
        for name, value in half.items()
        if getattr(config, name) != value
    ]
    if config.backbone != "swin":
        reasons.append(f"the backbone is {config.backbone}")
    if config.language_model != "bert":
        reasons.append(f"the language model is {config.language_model}")
    if config.query_content != "learned":
        reasons.append("the queries start from the selected positions")
    if (config.contrastive_scale, config.contrastive_bias) not in (("none", False), ("auto", True)):
        bias = "with" if config.contrastive_bias else "without"
        reasons.append(f"the class logits are scaled {config.contrastive_scale!r} {bias} a bias")
    return reasons


def save_idea(bundle: ModelBundle, path: Path) -> None:
    """Write a .pth that IDEA's own code loads (`model.load_state_dict(checkpoint["model"], strict=False)`).

    The denoising labels are in it as `label_enc.weight`. BERT's pooler, which detection does not use, is not.

    Args:
        bundle: a network of IDEA's kind.
        path: file to write; an existing one is replaced when the new one is whole.

    Raises:
        CheckpointError: IDEA's code cannot express the network (every reason is given), or the file cannot be written.
    """
    config = bundle.config
    reasons = beyond_transformers(config)
    if not config.share_box_head:
        reasons.append("the decoder layers have box heads of their own, IDEA's code has one for all")
    if config.contrastive_bias:
        reasons.append("the class logits are scaled and shifted (MM-Grounding-DINO), IDEA's code has the plain product")
    if reasons:
        raise CheckpointError(f"The model {bundle.source!r} cannot be written for IDEA's code: {'; '.join(reasons)}.")
    theirs, _ = from_ours(_full_state(bundle.network), layout_of("idea", config))
    state = {f"module.{name}": tensor for name, tensor in theirs.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": state}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"Cannot write {path}: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have a folder written beside its place and put there whole; the old one stays until then, and on failure.

    Args:
        folder: whose parent exists or is made.
        write: fills the folder that it is given.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            write(staging)
            staging.chmod(0o755)
            _swap(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write the model to {folder}: {error}.") from error


def _write_transformers(bundle: ModelBundle, folder: Path) -> None:
    theirs, left = from_ours(_full_state(bundle.network), layout_of("transformers", bundle.config))
    copies = [copy for copy, _ in layout_of("transformers", bundle.config).copies]
    weights = {name: tensor.clone() for name, tensor in theirs.items() if not name.startswith(tuple(copies))}
    assert set(left) == {LABELS}, f"no name in transformers for {sorted(set(left) - {LABELS})}"
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(left, folder / "groundtune.safetensors")
    transformers_config(bundle.config).save_pretrained(folder)
    picture = bundle.picture
    images = GroundingDinoImageProcessorPil(
        image_mean=list(picture.mean),
        image_std=list(picture.std),
        size={"shortest_edge": picture.short_side, "longest_edge": picture.max_side},
    )
    GroundingDinoProcessor(images, bundle.tokenizer).save_pretrained(folder)
    images.save_pretrained(folder)  # preprocessor_config.json too, which older versions look for


def transformers_config(config: ModelConfig) -> GroundingDinoConfig | MMGroundingDinoConfig:
    """transformers' configuration of a network that it can express."""
    settings: dict[str, Any] = {
        "backbone_config": {"model_type": "swin", **{"out_indices": [2, 3, 4], **config.backbone_config}},
        "text_config": {"model_type": "bert", **config.language_config},
        "d_model": config.d_model,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "num_feature_levels": config.num_levels,
        "encoder_n_points": config.encoder_points,
        "decoder_n_points": config.decoder_points,
        "num_queries": config.num_queries,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_ffn_dim": config.ffn_dim,
        "decoder_ffn_dim": config.ffn_dim,
        "fusion_droppath": config.fusion_droppath,
        "dropout": config.dropout,
        "max_text_len": config.max_text_len,
        "positional_embedding_temperature": int(config.position_temperature),
        "decoder_bbox_embed_share": config.share_box_head,
        "dtype": "float32",
    }
    if config.contrastive_bias:
        return MMGroundingDinoConfig(
            **settings,
            decoder_cls_embed_share=config.share_class_head,
            architectures=["MMGroundingDinoForObjectDetection"],
        )
    return GroundingDinoConfig(**settings, architectures=["GroundingDinoForObjectDetection"])


def _full_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}


def _swap(staging: Path, folder: Path) -> None:
    """Put `staging` in the place of `folder`; if that fails, the old one is back."""
    if not folder.exists():
        os.replace(staging, folder)
        return
    previous = staging.with_name(f"{staging.name}.previous")
    os.replace(folder, previous)
    try:
        os.replace(staging, folder)
    except OSError:
        os.replace(previous, folder)
        raise
    shutil.rmtree(previous, ignore_errors=True)
