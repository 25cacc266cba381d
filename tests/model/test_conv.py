"""Convolutions with a stride in bfloat16: right for narrow maps, unchanged for others.

torch's fault needs a CPU with AMX. The form can be tested everywhere: narrow maps are computed in
float32.
"""

from collections.abc import Iterator

import pytest
import torch
from tiny_models import tiny_network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from groundtune.model.backbone import EfficientNetLite0, Swin
from groundtune.model.conv import Conv2d

NARROW = [(10, w) for w in range(1, 5)] + [(w, 10) for w in range(1, 5)] + [(1, 1), (2, 2), (40, 1), (160, 2)]
ORDINARY = [(10, 5), (5, 10), (5, 5), (40, 7), (8, 8)]


class Spy(TorchDispatchMode):
    """Records dtype, kernel, stride, groups and map of each convolution that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, int, int, int, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func) and "backward" not in str(func):
            x, weight, stride, groups = args[0], args[1], args[3][0], args[8]
            self.seen.append((x.dtype, weight.shape[-1], stride, groups, tuple(x.shape[-2:])))
        return func(*args, **(kwargs or {}))


def cases(sizes) -> Iterator[tuple[Conv2d, torch.Tensor]]:
    """The settings of kernel, channels and layout in which torch's fault was found."""
    torch.manual_seed(0)
    for attempt, (kernel, size) in enumerate((kernel, size) for kernel in (3, 5) for size in sizes):
        layout = (torch.contiguous_format, torch.channels_last)[attempt % 2]
        channels = (64, 128, 320)[attempt % 3]
        layer = Conv2d(channels, 128, kernel, 2, kernel // 2).to(memory_format=layout)
        junk = [
            torch.full((1 << s,), (float("nan"), 1e4)[attempt % 2], dtype=torch.bfloat16) for s in (12, 20)
        ]
        del junk
        yield layer, torch.randn(1, channels, *size).to(memory_format=layout)


@pytest.mark.parametrize("sizes", [NARROW, ORDINARY], ids=["narrow", "ordinary"])
def test_equals_float32_within_rounding(sizes) -> None:
    for layer, x in cases(sizes):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            result = layer(x)
        expected = nn.functional.conv2d(x, layer.weight, layer.bias, 2, layer.padding)
        assert result.dtype == torch.bfloat16
        assert (result.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_narrow_maps_are_computed_in_float32_and_others_as_before() -> None:
    for sizes, dtype in ((NARROW, torch.float32), (ORDINARY, torch.bfloat16)):
        for layer, x in cases(sizes):
            with Spy() as spy, torch.autocast("cpu", torch.bfloat16):
                result = layer(x)
                plain = nn.functional.conv2d(x, layer.weight, layer.bias, 2, layer.padding)
            assert [dtype for dtype, *_ in spy.seen] == [dtype, torch.bfloat16]
            assert sizes is NARROW or result.equal(plain)
    with Spy() as spy:
        layer(x[..., :1])  # nothing changes without autocast
    assert [dtype for dtype, *_ in spy.seen] == [torch.float32]


def test_gradients_reach_a_narrow_map() -> None:
    layer, x = next(cases([(10, 2)]))
    with torch.autocast("cpu", torch.bfloat16):
        layer(x.requires_grad_()).sum().backward()
    assert layer.weight.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["swin", "nano"])
def test_no_convolution_of_a_network_runs_narrow_in_bfloat16(kind: str) -> None:
    """Of those with a stride and one group; images from 1 to 50 pixels wide."""
    network = tiny_network(kind)
    assert isinstance(network.backbone, Swin if kind == "swin" else EfficientNetLite0)
    for size in ((50, 1), (1, 50), (1, 1), (64, 9), (20, 64), (400, 8), (64, 64)):
        with Spy() as spy, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = network.extract_features(torch.randn(1, 3, *size), [size])
            network.neck([level[None] for level in features[0]], None)
        strided = [row for row in spy.seen if row[2] > 1 and row[3] == 1]
        assert len(strided) >= 2  # of the backbone's first layer and of the neck
        bad = [row for row in strided if row[0] != torch.float32 and min(row[4]) <= 2 * row[2]]
        assert bad == []
    assert torch.bfloat16 in {dtype for dtype, *_ in spy.seen}
