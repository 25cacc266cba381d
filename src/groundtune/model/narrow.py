"""Cast the weights of many layers together, for bfloat16 on a GPU.

Autocast casts each weight and each bias by itself, and each gradient back: a third of the kernels
of a training step. One cast of all gives the same numbers.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

_Result = TypeVar("_Result")


class _Bound(nn.Module):
    """A function as a module with parts, whose weights `functional_call` can replace."""

    def __init__(self, function: Callable[[], Any], parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts, self.forward = nn.ModuleList(parts), function


def call_narrow(function: Callable[[], _Result], parts: Iterable[nn.Module], device: torch.device) -> _Result:
    """Call a function; on a GPU under bfloat16's autocast its parts have cast weights meanwhile.

    All layers of the parts must compute under autocast.
    """
    if not casts_together(device):
        return function()
    bound = _Bound(function, parts)
    return functional_call(bound, cast_weights(bound), (), tie_weights=False)  # shared layers come once


def casts_together(device: torch.device) -> bool:
    """Return whether the current autocast is bfloat16's on a GPU."""
    on = device.type != "cpu" and torch.is_autocast_enabled(device.type)
    return on and torch.get_autocast_dtype(device.type) == torch.bfloat16


def cast_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of all linear and convolution layers by name, in bfloat16.

    They are views of one tensor, through which gradients reach the parameters.
    """
    parameters = {
        f"{path}.{name}": parameter
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        for name, parameter in layer.named_parameters(recurse=False)
    }
    names = sorted(parameters, key=lambda name: parameters[name].numel() % 8)  # the others stay aligned
    flat = torch.cat([parameters[name].flatten() for name in names]).bfloat16()
    parts = flat.split([parameters[name].numel() for name in names])
    return {name: part.view_as(parameters[name]) for name, part in zip(names, parts, strict=True)}
