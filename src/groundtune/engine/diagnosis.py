"""Finding out where a training step stopped being finite (semantics 17)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


def first_non_finite_module(network: nn.Module, run: Callable[[], object]) -> str | None:
    """Runs a forward pass again and watches every module.

    Minus infinity is not a fault: it is the logit of the places outside a prompt.

    Args:
        network: the modules to watch.
        run: makes the forward pass; it runs without gradient.

    Returns:
        Path of the first module that gives NaN or plus infinity, the innermost one; None when all are finite.
    """
    found: list[str] = []
    handles = []

    def watch(path: str) -> None:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and has_non_finite(output):
                found.append(path)

        handles.append(network.get_submodule(path).register_forward_hook(hook))

    for path, _ in network.named_modules():
        watch(path)
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] or "the network") if found else None


def describe_bad_step(network: nn.Module, run: Callable[[], object], paths: Sequence[Path], reason: str) -> str:
    """Puts a step that was not finite into words: the pictures, and where it began.

    Args:
        network: with the gradients of that step, if there are any.
        run: makes that step's forward pass.
        paths: the picture files of the batch.
        reason: what was not finite.
    """
    module = first_non_finite_module(network, run)
    if module is not None:
        where = f"the first module whose output is not finite is {module}"
    else:
        broken = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        where = f"all outputs are finite, the gradient of {broken[-1]} is not" if broken else "all outputs are finite"
    files = ", ".join(str(path) for path in dict.fromkeys(paths))
    return f"Step skipped: {reason}; {where}. Pictures: {files}"


def has_non_finite(value: object) -> bool:
    """Whether a tensor anywhere inside is NaN or plus infinity."""
    return any(_is_broken(tensor) for tensor in _tensors(value))


def _is_broken(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool((tensor.isnan() | (tensor == torch.inf)).any())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
