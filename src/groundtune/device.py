"""Where to compute, and in which precision."""

import torch

from groundtune.errors import ConfigError


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
        raise ConfigError(f"device: {name!r} is not a device; expected auto, cpu, cuda, cuda:1 or mps.") from error
    available = torch.accelerator.device_count() if accelerator is not None and device.type == accelerator.type else 0
    if device.type != "cpu" and (device.index or 0) >= available:
        here = f"{accelerator.type} ({torch.accelerator.device_count()})" if accelerator is not None else "only the CPU"
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
