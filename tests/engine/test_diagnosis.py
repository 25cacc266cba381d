"""Finding the module where numbers stop being finite."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from groundtune.engine.nonfinite import describe_bad_step, first_non_finite_module, has_non_finite


@dataclass
class Pair:
    first: list[Tensor]
    second: int


class Poison(nn.Module):
    """Gives its input with one value replaced, wrapped up as networks do."""

    def __init__(self, value: float | None = None, wrap: str = "tensor") -> None:
        super().__init__()
        self.value, self.wrap = value, wrap

    def forward(self, x: Tensor) -> object:
        y = x.clone()
        if self.value is not None:
            y[0, 0] = self.value
        return {"tensor": y, "dict": {"a": (y, None)}, "dataclass": Pair([y], 1)}[self.wrap]


class Chain(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList(parts)
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for part in self.inner:
            y = part(x)
            x = y if isinstance(y, Tensor) else y["a"][0] if isinstance(y, dict) else y.first[0]
        return self.last(x)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([Poison(), Poison(torch.nan), Poison()], "inner.1"),
        ([Poison(torch.inf), Poison(torch.nan)], "inner.0"),
        ([Poison(-torch.inf), Poison(torch.nan)], "inner.1"),  # -inf is the logit outside a prompt
        ([Poison(-torch.inf)], None),
        ([Poison(), Poison()], None),
        ([Poison(), Poison(torch.nan, "dict")], "inner.1"),
        ([Poison(torch.nan, "dataclass"), Poison()], "inner.0"),
        ([Poison(), nn.Sequential(Poison(), Poison(torch.nan))], "inner.1.1"),  # the innermost one
    ],
)
def test_first_non_finite_module(parts: list[nn.Module], expected: str | None) -> None:
    network = Chain(*parts)
    with_gradient = []
    assert (
        first_non_finite_module(
            network, lambda: with_gradient.append(network(torch.ones(2, 2, requires_grad=True)).requires_grad)
        )
        == expected
    )
    assert with_gradient == [False]
    assert not any(module._forward_hooks for module in network.modules())


def test_hooks_are_gone_after_an_error_too() -> None:
    network = Chain(nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        first_non_finite_module(network, lambda: network(torch.ones(2, 2)))
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1.0])
def test_has_non_finite(value: float) -> None:
    broken = value not in (-torch.inf, 1.0)
    assert (
        has_non_finite(
            {"a": [torch.zeros(2), {"b": torch.tensor([1.0, value])}], "ids": torch.ones(1).long()}
        )
        == broken
    )


def test_description_names_module_or_gradient_and_each_image_once() -> None:
    paths = [Path("b.jpg"), Path("a.jpg"), Path("b.jpg")]
    network = Chain(Poison(torch.nan))
    text = describe_bad_step(network, lambda: network(torch.ones(1, 1)), paths, "loss nan")
    assert text == (
        "Step skipped: loss nan; the first module whose output is not finite is inner.0. Images: b.jpg, a.jpg"
    )
    network = Chain(nn.Linear(1, 1))
    for parameter, value in zip(network.parameters(), (torch.inf, 1.0), strict=True):
        parameter.grad = torch.full_like(parameter, value)
    text = describe_bad_step(network, lambda: network(torch.ones(1, 1)), paths[:1], "gradient norm inf")
    assert "all outputs are finite, the gradient of inner.0.weight is not. Images: b.jpg" in text
