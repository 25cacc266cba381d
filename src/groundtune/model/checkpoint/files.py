"""Files of weights and settings: damaged ones are reported in a sentence, none can run code.

Pickles (.pth, .bin) are opened with `weights_only=True`: code that they name is never imported.
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from groundtune import files
from groundtune.errors import CheckpointError


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder's model.safetensors, its shards, or pytorch_model.bin.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    index, pickled = folder / "model.safetensors.index.json", folder / "pytorch_model.bin"
    if (folder / "model.safetensors").is_file():
        return read_safetensors(folder / "model.safetensors")
    if pickled.is_file() and not index.is_file():
        return _tensors_by_name(_unpickled(pickled), pickled)
    if not index.is_file():
        raise CheckpointError(f"Cannot read the weights in {folder}: expected model.safetensors or shards.")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index} has no weight_map from names to files.")
    for shard in shards.values():
        if Path(shard).name != shard:
            raise CheckpointError(f"{index} names a file outside its folder: {shard}. It is not opened.")
    parts = [read_safetensors(folder / shard) for shard in sorted(set(shards.values()))]
    return {name: tensor for part in parts for name, tensor in part.items()}


def names_of(meta: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Return the class names of a groundtune.json, and their phrases, or raise a `ValueError`."""
    classes, phrases = list(map(str, meta["classes"])), dict(meta.get("phrases") or {})
    if not all(isinstance(text, str) and text and not set(".?") & set(text) for text in phrases.values()):
        raise ValueError(f"phrases are not words: {phrases!r:.80}")
    return list(dict.fromkeys(classes)), phrases


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file; a `CheckpointError` if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the weights {path}: {error}. Is the file complete?") from error


def read_pth(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a .pth; return its weights and its layout, "idea" or "mmdetection"."""
    content = _unpickled(path)
    if isinstance(content, dict) and {"network", "epoch"} <= content.keys():
        run = path.parent.parent if path.parent.name == "checkpoints" else "that wrote it"
        raise CheckpointError(
            f"{path} is a state of a training run, not a model. Use the run directory {run}."
        )
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
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
            why = in_one_line(error, 1)
            raise CheckpointError(f"Cannot read the weights {path}: {why}. Is the file complete?") from error
        raise CheckpointError(
            f"{path} contains more than weights ({named.group(1)}) and is not opened: such a file can run "
            "code. Save its state_dict alone with the tool that wrote it."
        ) from error


def _tensors_by_name(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} does not hold weights by name, found {type(content).__name__}.")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if problem := summary({"of its entries are no tensors": others}):
        raise CheckpointError(f"{path} does not hold weights by name: {problem}.")
    return {str(name): tensor for name, tensor in content.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; a `CheckpointError` if it cannot be read."""
    content = files.read_json(path, CheckpointError, "Expected the JSON of a saved model.")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object, found {type(content).__name__}.")
    return content


def check_fit(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    where: str,
    optional: Collection[str] = (),
    source_name: Callable[[str], str] = str,
) -> None:
    """Check that weights have the names and shapes of those expected, or raise a `CheckpointError`.

    Args:
        optional: expected names that may be missing.
        where, source_name: the source, and the names in it, for messages.
    """
    common = [name for name in weights if name in expected]
    shapes = [(source_name(name), list(weights[name].shape), list(expected[name].shape)) for name in common]
    faults = {
        "missing": [source_name(name) for name in expected if name not in weights and name not in optional],
        "unexpected": [source_name(name) for name in weights if name not in expected],
        "of another shape": [f"{name} {a}, expected {b}" for name, a, b in shapes if a != b],
    }
    if problems := summary(faults):
        raise CheckpointError(f"The weights in {where} do not fit the model: {problems}.")


def summary(faults: Mapping[str, list[str]]) -> str:
    """Describe names by fault: "2 missing, for example a, b; 1 unexpected, for example c"."""
    kinds = [(kind, names) for kind, names in faults.items() if names]
    return "; ".join(f"{len(names)} {kind}, for example {', '.join(names[:3])}" for kind, names in kinds)


def in_one_line(error: BaseException, lines: int | None = None) -> str:
    """Return (the first lines of) an error's message in one line, or its type if it has none."""
    return " ".join(" ".join(str(error).strip().splitlines()[:lines]).split()) or type(error).__name__
