"""Choose device, precision and threads, and measure memory."""

import ctypes
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
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
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}
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
    if accelerator is not None and name in ("auto", accelerator.type) and "LOCAL_RANK" in os.environ:
        index = int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count()
        return torch.device(accelerator.type, index)  # each process of a launcher has its own
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
    """Return "fp32", "tf32", "bf16" or "fp16"; warn of one that the device only emulates."""
    native = native_precisions(device)
    if name != "auto" and name not in native:
        effect = "computes in fp32 instead" if name == "tf32" else "is slower than in fp32"
        logging.getLogger("groundtune").warning(
            f"--precision {name}: {device} has no hardware for it and {effect}. auto takes {native[0]}."
        )
    return native[0] if name == "auto" else name


def native_precisions(device: torch.device) -> list[str]:
    """Return the precisions that a device has hardware for, first the one of "auto"."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)  # of this card: a machine may have several
        if capability >= (8, 0):
            return ["bf16", "fp32", "tf32", "fp16"]
        return ["fp16", "fp32"] if capability >= (7, 0) else ["fp32"]
    if device.type == "xpu":
        return ["bf16", "fp32", "fp16"] if torch.xpu.is_bf16_supported() else ["fp32", "fp16"]
    if device.type == "cpu":
        return ["bf16", "fp32"] if bf16_hardware() else ["fp32"]
    return ["fp32", "bf16", "fp16"]  # mps: not faster


def bf16_hardware() -> str:
    """Return the name of the CPU's hardware for bfloat16, or "" if it would be emulated."""
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}
    capabilities = torch.cpu.get_capabilities()
    return next((name for key, name in names.items() if capabilities.get(key)), "")


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Return the context in which matrix products have a precision; "fp32" and "tf32" need none."""
    kind = torch.device(device).type
    return torch.autocast(kind, REDUCED.get(precision, torch.bfloat16), enabled=precision in REDUCED)


@contextmanager
def float32_mode(device: torch.device | str, precision: str) -> Iterator[None]:
    """Compute float32 products on NVIDIA's cards exactly, or with "tf32" in TF32.

    By torch's own defaults only convolutions are TF32. Afterwards both of torch's interfaces to it
    are as before.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    backends: Any = torch.backends
    matmul = None
    parts = backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul
    before = [part.fp32_precision for part in parts]
    with suppress(RuntimeError):  # only the newer interface was used
        matmul = torch.get_float32_matmul_precision()
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = precision == "tf32"
    for part in parts[:3]:
        part.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = (value == "tf32" for value in before[:2])
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Use only algorithms that give equal results in each run; an error names what has none."""
    before = torch.get_deterministic_debug_mode()
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the first product
        torch.set_deterministic_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if not (found := re.match(r"(\S+) does not have a deterministic", str(error))):
            raise
        why = f"torch has no deterministic form of {found[1]} on this device"
        raise ConfigError(f"deterministic: {why}. Remove it, or use --device cpu.") from error
    finally:
        torch.set_deterministic_debug_mode(before)


def set_up_cpu(threads: int) -> None:
    """Set the number of torch's threads (0 keeps it), and keep freed memory in this process.

    glibc returns blocks over 32 MB to the system when they are freed, and the next step has to
    fault them in again, page by page. Keeping them saves up to a third of a step. With a
    GPU only images would be kept, of each thread that loads them.
    """
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc" and not torch.accelerator.is_available():
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
    if device.type in ("cuda", "xpu"):
        return int(torch.get_device_module(device).max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on; on a CPU only Linux can."""
    if device.type in ("cuda", "xpu"):
        torch.get_device_module(device).reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
