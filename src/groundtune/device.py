"""Choose device, precision and threads, and measure memory."""

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

from groundtune.errors import ConfigError

_Item = TypeVar("_Item", bound=Any)
_OUT_OF_MEMORY = [
    *("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory"),
    *("failed to allocate memory", "bad_alloc", "bad allocation"),  # ONNX Runtime, OpenVINO
    *("alloc_failed", "could not create a primitive"),  # oneDNN reports the latter only
]
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # in glibc's malloc.h


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the accelerator, or the CPU if there is none.

    Raises:
        ConfigError: torch does not know the name, or the machine does not have the device.
    """
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # CUDA reads this with its first tensor. Images of many sizes then leave no gaps.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        message = f"device: {name!r} is not a device; expected auto, cpu, cuda, cuda:1 or mps."
        raise ConfigError(message) from error
    count = torch.accelerator.device_count() if accelerator is not None else 0
    usable = count if accelerator is not None and device.type == accelerator.type else 0
    if device.type != "cpu" and (device.index or 0) >= usable:
        seen = "only the CPU" if accelerator is None else f"{accelerator.type} ({count})"
        raise ConfigError(f"device: {name!r} is not available here; torch sees {seen}. Use --device auto.")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return "bf16" or "fp32"; "auto" is bf16 where the device supports it."""
    return ("bf16" if bf16_arithmetic(device) else "fp32") if name == "auto" else name


def bf16_arithmetic(device: torch.device) -> str:
    """Return the name of the hardware that computes in bfloat16, or "" if it would be emulated."""
    if device.type == "cuda":
        return "tensor cores" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}
    return next((name for key, name in names.items() if capabilities.get(key)), "")


def set_up_cpu(threads: int) -> None:
    """Set the number of torch's threads (0 keeps it), and keep freed memory in this process.

    glibc returns blocks over 32 MB to the system when they are freed, and the next step has to
    fault them in again, page by page. Keeping them saves up to a third of a step.
    """
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        allocator.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors on a device: on a GPU by one copy, for which the host does not wait.

    A plain copy waits until the GPU has done all earlier work.
    """
    waiting = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if device.type != "cuda" or not waiting:
        return [tensor.to(device) for tensor in tensors]
    sizes = [-(-tensor.nbytes // 16) * 16 for tensor in waiting]  # each begins at an aligned place
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
    for tensor, part in zip(waiting, packed.split(sizes), strict=True):
        part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    parts = zip(waiting, packed.to(device, non_blocking=True).split(sizes), strict=True)
    moved = (part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape) for tensor, part in parts)
    return [next(moved) if tensor.device.type == "cpu" else tensor.to(device) for tensor in tensors]


def move(items: Sequence[_Item], device: torch.device) -> list[_Item]:
    """Return dataclasses with their tensors on a device, as `to_device`.

    Their field `host` keeps the originals, whose values the host can read without waiting.
    """
    fields = [[name for name, value in vars(item).items() if isinstance(value, Tensor)] for item in items]
    tensors = [getattr(item, name) for item, names in zip(items, fields, strict=True) for name in names]
    moved = iter(to_device(tensors, device))
    return [
        replace(item, host=item.host or item, **{name: next(moved) for name in names})
        for item, names in zip(items, fields, strict=True)
    ]


def free_memory(device: torch.device) -> int:
    """Return the free memory in bytes, of a GPU or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def release_memory() -> None:
    """Return cached memory to the accelerator, and to the system what `set_up_cpu` keeps."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that the host or an accelerator has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: allocated on a GPU, or resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
