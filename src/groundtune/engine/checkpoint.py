"""Training state on disk, in one file of tensors and plain Python values.

It is read with `weights_only=True`: an untrusted checkpoint may be wrong but cannot run code.
Frozen modules are not in it; they come from the model. The file ends with a SHA-256 of all before
it, which torch ignores: torch's own format does not detect a flipped bit.
"""

import hashlib
import mmap
import random
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from groundtune.errors import CheckpointError
from groundtune.files import atomic_write
from groundtune.model.checkpoint.files import check_fit
from groundtune.model.detector import GroundingDINO

State = dict[str, Any]
_CHECKSUM = "\nsha256 {}"
_CHECKSUM_BYTES = len(_CHECKSUM.format("0" * 64))


def trained_weights(network: GroundingDINO) -> dict[str, Tensor]:
    """Copy the parameters and buffers outside the frozen modules to the CPU."""
    frozen = tuple(f"{path}." for path in network.frozen)
    return {
        name: tensor.detach().to("cpu", copy=True)
        for name, tensor in network.state_dict().items()
        if not name.startswith(frozen)
    }


def load_trained_weights(network: GroundingDINO, weights: dict[str, Tensor], source: str) -> None:
    """Load the result of `trained_weights` into a network with the same frozen modules.

    Raises:
        CheckpointError: names or shapes differ from the network's.
    """
    check_fit(weights, trained_weights(network), source)
    network.load_state_dict(weights, strict=False)


def random_state() -> State:
    """Return the states of the random generators of torch (CPU and GPUs), NumPy and Python."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [],
        **_device_states(),
        "numpy": (algorithm, [int(key) for key in keys], position, has_gauss, gauss),
        "python": random.getstate(),
    }


def _device_states() -> dict[str, list[Tensor]]:
    """Return "cuda", "xpu" or "mps" and the states of all such devices; {} without any."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return {}
    module = torch.get_device_module(device)
    return {device.type: [module.get_rng_state()] if device.type == "mps" else module.get_rng_state_all()}


def set_random_state(state: State) -> str:
    """Restore `random_state`; return a message if its devices are not those of this machine."""
    torch.set_rng_state(state["torch"])
    saved, now = {kind: state[kind] for kind in ("cuda", "xpu", "mps") if state.get(kind)}, _device_states()
    there, here = (" ".join(f"{kind} ({len(n)})" for kind, n in x.items()) or "a CPU" for x in (saved, now))
    for kind, states in saved.items() if there == here else ():
        module = torch.get_device_module(kind)
        module.set_rng_state(states[0]) if kind == "mps" else module.set_rng_state_all(states)
    algorithm, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    differ = f"The random state is of {there}, this is {here}: dropout will draw other numbers."
    return "" if there == here else differ


def save_state(state: State, path: Path, previous: Path | None = None) -> None:
    """Write a state so that a reader sees the old file, which becomes `previous`, or the new one.

    Raises:
        CheckpointError: the file cannot be written; the old one is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, previous) as file:
            torch.save(state, file)
            file.seek(0)
            file.write(_CHECKSUM.format(hashlib.file_digest(file, "sha256").hexdigest()).encode())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {error}. Is the disk full? The previous one is whole."
        ) from error


def load_state(path: Path) -> State:
    """Read a state to the CPU without running any code in the file.

    Raises:
        CheckpointError: there is no such file, it is not a training state, or it is corrupted.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        with path.open("rb") as file:
            _verify(file)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parser meets in a corrupted file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({reason}). Is it corrupted or from another program?"
        ) from error
    if not isinstance(state, dict) or "network" not in state or "epoch" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of a Groundtune training run.")
    return state


def _verify(file: BinaryIO) -> None:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
        checksum = hashlib.sha256(view[:-_CHECKSUM_BYTES]).hexdigest()
        if bytes(view[-_CHECKSUM_BYTES:]) != _CHECKSUM.format(checksum).encode():
            raise ValueError("its checksum does not match")
