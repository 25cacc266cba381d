"""Describe a training step that is not finite: its images, and the module where it began."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


def describe_bad_step(
    network: nn.Module, forward: Callable[[], object], paths: Sequence[Path], reason: str
) -> str:
    """Describe a step that is not finite: its images, and where it began.

    The network has the gradients of the step, if any; `forward` repeats its forward pass.
    """
    module = first_non_finite_module(network, forward)
    broken = [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if module is not None:
        where = f"the first module whose output is not finite is {module}"
    elif broken:
        where = f"all outputs are finite, the gradient of {broken[-1]} is not"
    else:
        where = "all outputs are finite"
    return f"Step skipped: {reason}; {where}. Images: {', '.join(map(str, dict.fromkeys(paths)))}"


def first_non_finite_module(network: nn.Module, forward: Callable[[], object]) -> str | None:
    """Return the path of the first, innermost module whose output has NaN or +inf in `forward`."""
    names = {module: path for path, module in network.named_modules()}
    paths: list[str] = []

    def hook(module: nn.Module, inputs: object, output: object) -> None:
        if not paths and has_non_finite(output):
            paths.append(names.get(module) or "the network")

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        with torch.no_grad():
            forward()
    finally:
        handle.remove()
    return paths[0] if paths else None


def has_non_finite(value: object) -> bool:
    """Whether a tensor anywhere inside has NaN or +inf; -inf is the logit outside a prompt."""
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool((value.isnan() | (value == torch.inf)).any())
    parts = vars(value) if is_dataclass(value) else value
    items = parts.values() if isinstance(parts, Mapping) else parts if isinstance(parts, list | tuple) else ()
    return any(map(has_non_finite, items))
