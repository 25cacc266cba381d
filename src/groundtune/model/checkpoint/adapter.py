"""Adapters on disk: a folder of a few MB that needs the model on which it was trained.

adapter_config.json and adapter_model.safetensors are peft's own form. heads.safetensors has the
class and box heads and the denoising labels, which train fully. groundtune.json has the classes,
the image format and a fingerprint of the base weights: on another base, an adapter would silently
give wrong boxes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from groundtune.errors import CheckpointError
from groundtune.files import atomic_folder
from groundtune.model import adapters as lora
from groundtune.model.bundle import ModelBundle, image_format_of
from groundtune.model.checkpoint.convert import LABELS
from groundtune.model.checkpoint.files import check_fit, names_of, read_json, read_safetensors
from groundtune.model.checkpoint.save import check_replaceable

CONFIG = "adapter_config.json"
_WEIGHTS, _HEADS = "adapter_model.safetensors", "heads.safetensors"
_PREFIX, _NAME = "base_model.model.", ".default"  # in peft's names: in the file, in the network


def save_adapter(bundle: ModelBundle, folder: Path, results: Mapping[str, Any]) -> None:
    """Write the adapters of a network, all or nothing, replacing an older adapter.

    The bundle's `source` becomes their base model; `results` are those of `save_bundle`.

    Raises:
        CheckpointError: the folder holds something else, or cannot be written.
    """
    from peft import LoraConfig  # takes a second, and only this needs it

    check_replaceable(folder)
    network, source = bundle.detector, Path(bundle.source)
    layer = next(layer for _, layer in lora.adapted_layers(network))
    config = LoraConfig(r=layer.rank, lora_alpha=layer.alpha, target_modules=lora.LAYERS)  # type: ignore[arg-type]
    config.base_model_name_or_path = str(source.resolve()) if source.exists() else bundle.source
    weights = {name: tensor.cpu().contiguous() for name, tensor in lora.adapter_weights(network).items()}
    adapters = {_PREFIX + name.replace(_NAME, ""): weights[name] for name in weights if lora.is_adapter(name)}
    heads = {name: weights[name] for name in weights if not lora.is_adapter(name)}
    meta = {
        "format": 1,
        "base_fingerprint": _fingerprint(lora.base_weights(network)),
        "image_format": asdict(bundle.image_format),
        **{name: getattr(bundle, name) for name in ("base_model", "classes", "phrases", "recipe")},
        "results": dict(results),
    }
    try:
        with atomic_folder(folder) as staging:
            config.save_pretrained(str(staging))
            save_file(adapters, staging / _WEIGHTS, metadata={"format": "pt"})
            save_file(heads, staging / _HEADS)
            (staging / "groundtune.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write the adapter to {folder}: {error}.") from error


def base_of(folder: Path) -> tuple[str, list[Path]]:
    """Return the base model of an adapter, and the chain of adapters on it, this one last.

    Raises:
        CheckpointError: an adapter names no base, or the chain is a circle.
    """
    adapters, base = [], str(folder)
    while (Path(base) / CONFIG).is_file():
        adapters.append(Path(base))
        base = read_json(Path(base) / CONFIG).get("base_model_name_or_path") or ""
        known = [path.resolve() for path in adapters]
        if not base or not isinstance(base, str) or Path(base).resolve() in known:
            raise CheckpointError(
                f"{adapters[-1] / CONFIG} names no model as base_model_name_or_path, found {base!r}. "
                "Expected a preset, a model folder or a Hub id."
            )
    return base, adapters[::-1]


def with_adapter(base: ModelBundle, folder: Path) -> ModelBundle:
    """Merge an adapter into the network of its base, in place.

    Raises:
        CheckpointError: the adapter is damaged, or was trained on other weights than this base's.
    """
    settings, meta = read_json(folder / CONFIG), read_json(folder / "groundtune.json")
    stored = read_safetensors(folder / _WEIGHTS).items()
    adapters = {n.removeprefix(_PREFIX).replace(".weight", f"{_NAME}.weight"): tensor for n, tensor in stored}
    weights = adapters | read_safetensors(folder / _HEADS)
    try:
        image_format = image_format_of(meta["image_format"])
        classes, phrases = names_of(meta)
        recipe, fingerprint = dict(meta["recipe"]), meta["base_fingerprint"]
        alpha = float(settings["lora_alpha"])
        rank = next(tensor.shape[0] for name, tensor in adapters.items() if ".lora_A." in name)
        labels, width = weights[LABELS].shape
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise CheckpointError(f"The adapter {folder} is incomplete or not one of ours: {error!r}.") from error
    network = base.detector
    if _fingerprint(lora.base_weights(network)) != fingerprint:
        raise CheckpointError(
            f"The adapter {folder} was trained on other weights than those of {base.source!r}. Name the "
            f"right base in base_model_name_or_path of its {CONFIG}, or use the merged model in the run's "
            "folder model/."
        )
    lora.add_adapters(network, rank, alpha)
    network.decoder.label_embedding = nn.Embedding(labels, width)
    check_fit(weights, lora.adapter_weights(network), f"the adapter {folder}")
    network.load_state_dict(weights, strict=False)
    lora.merge_adapters(network)
    base = replace(base, config=replace(base.config, num_labels=labels), source=str(folder))
    return replace(base, classes=classes, phrases=phrases, recipe=recipe, image_format=image_format)


def _fingerprint(weights: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
