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
from transformers import GroundingDinoProcessor
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from groundtune.errors import CheckpointError
from groundtune.model.bundle import ModelBundle, packaged_towers, unique_state
from groundtune.model.checkpoint.card import model_card
from groundtune.model.checkpoint.convert import IDEA_LABELS, LABELS, from_ours, layout_of
from groundtune.model.checkpoint.hf import beyond_transformers, transformers_config


def save_bundle(bundle: ModelBundle, folder: Path, results: Mapping[str, Any] | None = None) -> None:
    """Write a model folder; it appears whole or not at all, an existing one of ours is replaced.

    Args:
        bundle: the model.
        folder: directory to write, whose parent exists or is made.
        results: for the card: "data", "metrics", "zero_shot"; None leaves those parts out.

    Raises:
        CheckpointError: the folder holds something else than a model of ours, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "groundtune.json").is_file():
        raise CheckpointError(f"The folder {folder} is not empty and no model of groundtune; name another.")
    bundle.config.num_labels = bundle.network.decoder.label_embedding.num_embeddings
    towers = set(packaged_towers(bundle.config))
    bundle.own_towers |= towers - bundle.network.frozen
    left_out = tuple(f"{tower}." for tower in towers - bundle.own_towers)
    in_transformers = not beyond_transformers(bundle.config)
    meta = {
        "format": 1,
        "layout": "transformers" if in_transformers else "groundtune",
        "source": bundle.source,
        "base_model": bundle.base_model,
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


def save_idea(bundle: ModelBundle, path: Path) -> list[str]:
    """Write a .pth that IDEA's own code loads (`model.load_state_dict(checkpoint["model"], strict=False)`).

    Args:
        bundle: a network of IDEA's kind.
        path: file to write; an existing one is replaced when the new one is whole.

    Returns:
        What IDEA's code does otherwise, or has to be told, in sentences.

    Raises:
        CheckpointError: IDEA's code cannot express the network (every reason is given), or the file cannot be written.
    """
    config = bundle.config
    reasons = beyond_transformers(config)
    if config.contrastive_bias and config.contrastive_scale == "auto":
        reasons.append("the class logits are scaled and shifted (MM-Grounding-DINO), IDEA's code has the plain product")
    theirs, left = from_ours(_full_state(bundle.network), layout_of("idea", config))
    if left and not reasons:
        reasons.append(f"IDEA's code has no place for {len(left)} weights, for example {', '.join(list(left)[:3])}")
    if reasons:
        raise CheckpointError(f"The model {bundle.source!r} cannot be written for IDEA's code: {'; '.join(reasons)}.")
    notes = ["IDEA's file has no classes and no picture format in it."] if bundle.classes else []
    if config.class_labels:  # they belong to this data set's classes, whose names the file does not have
        del theirs[IDEA_LABELS]
        notes.append("The denoising labels, which only training uses, are left out.")
    if not config.share_box_head:
        notes.append("The box heads differ: build IDEA's network with dec_pred_bbox_embed_share = False.")
    if (config.decoder_eps, config.head_eps) != (1e-3, 1e-3):
        notes.append("IDEA's code clamps boxes at 1e-3, these weights were used with 1e-5: boxes may differ a little.")
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
    return notes


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
    images.save_pretrained(folder)  # preprocessor_config.json, which versions before 5 look for
    GroundingDinoProcessor(images, bundle.tokenizer).save_pretrained(folder)
    for name in ("preprocessor_config.json", "processor_config.json"):  # the name that every version knows
        path = folder / name
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("GroundingDinoImageProcessorPil", "GroundingDinoImageProcessor"), encoding="utf-8")


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
