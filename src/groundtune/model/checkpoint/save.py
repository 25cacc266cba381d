"""Models on disk, in forms that other tools read.

A Swin + BERT network becomes a Hugging Face directory that transformers opens. Beside its files are
groundtune.json (classes, recipe, sizes), README.md (the model card), and groundtune.safetensors
with the denoising labels, for which transformers has no name. A network that transformers cannot
express, such as nano with its packaged towers or one with learned offsets of class names, is saved
under our own tensor names, which the card states.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import GroundingDinoProcessor
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)

from groundtune.errors import CheckpointError, escape_control_chars
from groundtune.files import atomic_folder, atomic_write
from groundtune.model.bundle import TOWERS, ModelBundle, packaged_towers, unique_state
from groundtune.model.checkpoint.convert import IDEA_LABELS, LABELS, layout_of, to_layout
from groundtune.model.checkpoint.hf import transformers_config, unsupported_by_transformers

BASE_NETWORK = "kept.safetensors"


def save_bundle(bundle: ModelBundle, folder: Path, results: Mapping[str, Any] | None = None) -> None:
    """Write a model folder, and its parent if need be, all or nothing, replacing an older one.

    `results` are "data", "metrics" and "zero_shot" for the card; None omits those parts.

    Raises:
        CheckpointError: the folder holds something else than a model of ours, or cannot be written.
    """
    check_replaceable(folder)
    network = bundle.detector
    bundle.config.num_labels = network.decoder.label_embedding.num_embeddings
    in_transformers, offsets = not unsupported_by_others(bundle), network.encoder.phrase_offsets
    card = _model_card(bundle, results or {}, in_transformers)
    meta = {
        "format": 1,
        "layout": "transformers" if in_transformers else "groundtune",
        "config": asdict(bundle.config),
        "image_format": asdict(bundle.image_format),
        **{name: getattr(bundle, name) for name in ("source", "base_model", "classes", "phrases", "recipe")},
        "phrase_offsets": offsets.names if offsets is not None else [],
        "results": dict(results or {}),
    }
    try:
        with atomic_folder(folder) as staging:
            (_write_transformers if in_transformers else _write_own)(bundle, staging)
            (staging / "groundtune.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
            (staging / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write the model to {folder}: {error}.") from error


def check_replaceable(folder: Path) -> None:
    """Raise a `CheckpointError` where a folder holds something else than a model of ours."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "groundtune.json").is_file():
        raise CheckpointError(f"The folder {folder} is not empty and no model of groundtune; name another.")


def unsupported_by_others(bundle: ModelBundle) -> list[str]:
    """List what neither transformers nor IDEA's code can express of a model."""
    reasons = unsupported_by_transformers(bundle.config)
    if bundle.detector.encoder.phrase_offsets is not None:
        reasons.append("it has learned offsets of class names (--tune prompt)")
    if bundle.base_network is not None:
        reasons.append("it has two sets of weights (--keep-base)")
    return reasons


def _model_card(bundle: ModelBundle, results: Mapping[str, Any], in_transformers: bool) -> str:
    """Render Markdown with the Hub's metadata; the owner fills in the license."""
    text = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    base = bundle.base_model or Path(bundle.source).name  # with a "/" it is an id of the Hub
    examples = bundle.classes or ["cat", "remote control"]
    phrases, names = bundle.phrases_of(examples), [escape_control_chars(name) for name in bundle.classes]
    context = {"bundle": bundle, "base": base, "results": results, "in_transformers": in_transformers}
    labels = [f"{phrase}." for phrase in phrases]
    template = jinja2.Template(text, trim_blocks=True, keep_trailing_newline=True)
    return template.render(context, names=names, examples=examples, labels=labels)


def _write_own(bundle: ModelBundle, folder: Path) -> None:
    towers = set(packaged_towers(bundle.config))
    bundle.tuned_towers |= towers - bundle.detector.frozen
    _save(unique_state(bundle.detector, towers - bundle.tuned_towers), folder / "model.safetensors")
    if bundle.base_network is not None:
        _save(unique_state(bundle.base_network, TOWERS), folder / BASE_NETWORK)
    bundle.tokenizer.save_pretrained(folder)


def _save(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, path)


def _write_transformers(bundle: ModelBundle, folder: Path) -> None:
    layout, image = layout_of("transformers", bundle.config), bundle.image_format
    theirs, left = to_layout(bundle.detector.state_dict(), layout)
    assert set(left) == {LABELS}, f"no name in transformers for {sorted(set(left) - {LABELS})}"
    copies = tuple(copy for copy, _ in layout.copies)
    weights = {name: tensor.clone() for name, tensor in theirs.items() if not name.startswith(copies)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(left, folder / "groundtune.safetensors")
    transformers_config(bundle.config).save_pretrained(folder)
    size = {"shortest_edge": image.short_side, "longest_edge": image.max_side}
    images = GroundingDinoImageProcessorPil(image_mean=list(image.mean), image_std=list(image.std), size=size)
    images.save_pretrained(folder)  # preprocessor_config.json, which versions before 5 need
    GroundingDinoProcessor(images, bundle.tokenizer).save_pretrained(folder)
    for path in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        text = path.read_text(encoding="utf-8")  # use the class name that all versions know
        text = text.replace("GroundingDinoImageProcessorPil", "GroundingDinoImageProcessor")
        path.write_text(text, encoding="utf-8")


def save_idea(bundle: ModelBundle, path: Path) -> list[str]:
    """Write a .pth for IDEA's own code; return notes on differences and on settings that it needs.

    Raises:
        CheckpointError: IDEA's code cannot express the network, or the file cannot be written.
    """
    config = bundle.config
    reasons = unsupported_by_others(bundle)
    if config.contrastive_bias and config.contrastive_scale == "auto":
        logits = "the class logits are scaled and shifted (MM-Grounding-DINO)"
        reasons.append(f"{logits}, IDEA's code has the plain product")
    if reasons:
        where = f"The model {bundle.source!r} cannot be written for IDEA's code"
        raise CheckpointError(f"{where}: {'; '.join(reasons)}.")
    theirs, left = to_layout(bundle.detector.state_dict(), layout_of("idea", config))
    assert not left, f"no name in IDEA's layout for {sorted(left)}"
    notes = ["IDEA's file does not store classes and image format."] if bundle.classes else []
    if config.class_labels:  # rows of this data set's classes, whose names the file does not have
        del theirs[IDEA_LABELS]
        notes.append("The denoising labels, which only training uses, are omitted.")
    if not config.share_box_head:
        notes.append("The box heads differ: build IDEA's network with dec_pred_bbox_embed_share = False.")
    if (config.decoder_eps, config.head_eps) != (1e-3, 1e-3):
        clamp = "IDEA's code clamps boxes at 1e-3, these weights were used with 1e-5"
        notes.append(f"{clamp}: boxes may differ a little.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save({"model": {f"module.{name}": tensor for name, tensor in theirs.items()}}, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"Cannot write {path}: {error}.") from error
    return notes
