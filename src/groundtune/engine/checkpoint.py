"""The training state on disk: all that a resumed run needs to go on as if it had never stopped.

One file of tensors and plain Python values, so that it opens with `weights_only=True`: a checkpoint from a stranger can be
wrong but cannot run code. Frozen modules are not in it, they come from the model itself. The file ends with a SHA-256 of all
before it, which torch's reader takes no notice of: its own format does not see a flipped bit.
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
from groundtune.files import replacing
from groundtune.model.detector import GroundingDINO

State = dict[str, Any]
_CHECKSUM = "\nsha256 {}"
_CHECKSUM_BYTES = len(_CHECKSUM.format("0" * 64))


def trained_state(network: GroundingDINO) -> dict[str, Tensor]:
    """Copies of the parameters and buffers outside the frozen modules, on the CPU."""
    frozen = tuple(f"{path}." for path in network.frozen)
    return {
        name: tensor.detach().to("cpu", copy=True)
        for name, tensor in network.state_dict().items()
        if not name.startswith(frozen)
    }


def load_trained_state(network: GroundingDINO, state: dict[str, Tensor], source: str) -> None:
    """Writes what `trained_state` took back into a network with the same modules frozen.

    Args:
        source: where the state came from, for the message.

    Raises:
        CheckpointError: names or shapes are not those of this network.
    """
    own = trained_state(network)
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or extra or wrong:
        counts = f"{len(missing)} missing, {len(extra)} unknown, {len(wrong)} of another shape"
        example = (missing + extra + wrong)[0]
        raise CheckpointError(
            f"{source} does not fit this model: {counts} (for example {example}). "
            "Resume with the model and the param_groups that the run was started with."
        )
    network.load_state_dict(state, strict=False)


def random_state() -> State:
    """The states of the random generators of torch (CPU and CUDA), NumPy and Python."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (algorithm, [int(key) for key in keys], position, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_state(state: State) -> None:
    """Takes up `random_state`; the states of CUDA devices that are not here are left out."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    algorithm, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def save_state(state: State, path: Path, previous: Path | None = None) -> None:
    """Writes a state so that a reader sees the old file or the new one, never half of one.

    Args:
        previous: where the old file goes; None lets it go.

    Raises:
        CheckpointError: the file cannot be written; the old one is whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, previous) as file:
            torch.save(state, file)
            file.seek(0)
            file.write(_CHECKSUM.format(hashlib.file_digest(file, "sha256").hexdigest()).encode())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {error}. Is the disk full? The one before it is whole."
        ) from error


def load_state(path: Path) -> State:
    """Reads a state to the CPU, without running any code from the file.

    Raises:
        CheckpointError: there is no such file, it is not one of ours, or it is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        with path.open("rb") as file:
            _verify(file)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parser meets in a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({reason}). Is it damaged or from elsewhere?"
        ) from error
    if not isinstance(state, dict) or "network" not in state or "epoch" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of a Groundtune training run.")
    return state


def _verify(file: BinaryIO) -> None:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
        checksum = hashlib.sha256(view[:-_CHECKSUM_BYTES]).hexdigest()
        if bytes(view[-_CHECKSUM_BYTES:]) != _CHECKSUM.format(checksum).encode():
            raise ValueError("its checksum does not match")
