"""Where to compute, in which precision, on how many threads."""

import ctypes
import platform
import sys

import psutil
import torch

from groundtune.errors import ConfigError

_NO_MEMORY = [
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "alloc_failed",
]
_NO_MEMORY += ["could not create a primitive"]  # of oneDNN, which says no more
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def pick_device(name: str) -> torch.device:
    """The device of a name as users write it: "auto" is the accelerator that is there, otherwise the CPU.

    Raises:
        ConfigError: torch does not know the name, or the machine does not have the device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device: {name!r} is not a device; expected auto, cpu, cuda, cuda:1 or mps."
        ) from error
    available = (
        torch.accelerator.device_count() if accelerator is not None and device.type == accelerator.type else 0
    )
    if device.type != "cpu" and (device.index or 0) >= available:
        here = (
            f"{accelerator.type} ({torch.accelerator.device_count()})"
            if accelerator is not None
            else "only the CPU"
        )
        raise ConfigError(f"device: {name!r} is not available here; torch sees {here}. Use --device auto.")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """ "bf16" or "fp32": "auto" is bf16 on devices with arithmetic of their own for it."""
    return ("bf16" if bf16_arithmetic(device) else "fp32") if name == "auto" else name


def bf16_arithmetic(device: torch.device) -> str:
    """What computes in bfloat16 on a device, in words; "" where it would be emulated."""
    if device.type == "cuda":
        return "its tensor cores" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}
    return next((name for key, name in names.items() if capabilities.get(key)), "")


def set_up_cpu(threads: int) -> None:
    """Prepare this process for long work on a CPU.

    glibc hands blocks of more than 32 MB back to the system when they are freed, and the next step takes them again page by
    page; keeping them saves up to a third of a step. Freed memory then stays with the process.

    Args:
        threads: of torch; 0 leaves its own number.
    """
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        allocator.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def release_memory() -> None:
    """Give back what is kept for later: to the accelerator, and to the system what `set_up_cpu` keeps."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that the host or an accelerator had no memory left; torch has no one type for it."""
    told = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in told for words in _NO_MEMORY)
    )


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of a GPU what torch gave out, otherwise the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
