"""Files of weights and settings, read so that a wrong one is told in words and none can run code.

Pickles (.pth, .bin) are opened with `weights_only=True`: they can be damaged, but what they name is never imported.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from groundtune.errors import CheckpointError


def in_one_line(error: BaseException, lines: int | None = None) -> str:
    """What an error says (in its first lines), or its kind where it says nothing."""
    return " ".join(" ".join(str(error).strip().splitlines()[:lines]).split()) or type(error).__name__


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's model.safetensors, its shards, or pytorch_model.bin; a `CheckpointError` if damaged."""
    index, pickled = folder / "model.safetensors.index.json", folder / "pytorch_model.bin"
    if (folder / "model.safetensors").is_file():
        return read_safetensors(folder / "model.safetensors")
    if pickled.is_file() and not index.is_file():
        return _tensors_by_name(_unpickled(pickled), pickled)
    if not index.is_file():
        raise CheckpointError(
            f"Cannot read the weights in {folder}: there is no model.safetensors nor shards of it."
        )
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{index} has no weight_map from names to files.")
    for shard in places.values():
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} names a file outside its folder: {shard}. It is not opened.")
    shards = [read_safetensors(folder / shard) for shard in sorted(set(places.values()))]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file; a `CheckpointError` if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the weights {path}: {error}. Is the file whole?") from error


def read_pth(path: Path) -> tuple[dict[str, Tensor], str]:
    """The weights of a .pth, and whose names they have, "idea" or "mmdetection"; a `CheckpointError` if of neither."""
    content = _unpickled(path)
    for key in ("model", "state_dict"):
        content = (
            content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
        )
    state = {name.removeprefix("module."): tensor for name, tensor in _tensors_by_name(content, path).items()}
    if any(name.startswith("transformer.encoder.fusion_layers.") for name in state):
        return state, "idea"
    if any(name.startswith("language_model.language_backbone.") for name in state):
        return state, "mmdetection"
    names = f"its {len(state)} names begin with {', '.join(list(state)[:3])}"
    raise CheckpointError(f"{path} is not a Grounding DINO of IDEA or MMDetection: {names}.")


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parser meets in a damaged file
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise CheckpointError(
                f"Cannot read the weights {path}: {in_one_line(error, 1)}. Is the file whole?"
            ) from error
        raise CheckpointError(
            f"{path} carries more than weights, it names {named.group(1)}, and is not opened: such a file can run code. "
            "Have the tool that wrote it save its state_dict alone."
        ) from error


def _tensors_by_name(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} does not hold weights by name, found {type(content).__name__}.")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        found = f"{len(others)} of its entries are no tensors, for example {', '.join(others[:3])}"
        raise CheckpointError(f"{path} does not hold weights by name: {found}.")
    return {str(name): tensor for name, tensor in content.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; a `CheckpointError` if it does not, or cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"Cannot read {path}: {error}. Expected the JSON file of a saved model."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object, found {type(content).__name__}.")
    return content
