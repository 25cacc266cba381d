"""The feature cache: what it stores, when it computes, its memory, and when it is refused."""

import pytest
import torch
from engine_fakes import FakeNetwork

from groundtune.config import ParamGroup
from groundtune.engine.optim import freeze
from groundtune.errors import ConfigError
from groundtune.predict.features import FeatureCache, extract

CPU = torch.device("cpu")


@pytest.fixture
def network() -> FakeNetwork:
    network = FakeNetwork()
    freeze(network, [ParamGroup(["backbone"], 0.0)])
    return network


def test_each_image_and_view_is_computed_once(network: FakeNetwork) -> None:
    cache = FeatureCache(network)
    images = [torch.rand(3, 32, 48), torch.rand(3, 64, 32)]
    assert cache.needs_pixels(5, 0)
    first = cache.get(images, [5, 9], [0, 1], CPU)
    assert network.extracted == 2
    again = cache.get([None, torch.rand(3, 32, 32), None], [9, 5, 5], [1, 1, 0], CPU)
    assert network.extracted == 3
    assert torch.equal(again[0][0], first[1][0]) and torch.equal(again[2][0], first[0][0])
    assert not cache.needs_pixels(5, 0) and not cache.needs_pixels(5, 1) and cache.needs_pixels(9, 0)


def test_maps_are_rounded_to_half_also_on_the_first_use_or_exact_on_request(network: FakeNetwork) -> None:
    image = torch.rand(3, 40, 40)
    true = extract(network, [image], CPU)[0][0]
    half = FeatureCache(network).get([image], [0], [0], CPU)[0][0]
    assert (
        half.dtype == torch.float32 and torch.equal(half, true.half().float()) and not torch.equal(half, true)
    )
    assert torch.equal(FeatureCache(network, torch.float32).get([image], [0], [0], CPU)[0][0], true)
    assert not half.requires_grad


def test_estimate_is_the_memory_taken(network: FakeNetwork) -> None:
    cache = FeatureCache(network)
    sizes = [(32, 48), (64, 32), (64, 64)]
    taken = 0
    for index, (h, w) in enumerate(sizes):
        for view in range(2):
            maps = cache.get([torch.rand(3, h, w)], [index], [view], CPU)[0]
            taken += sum(level.numel() for level in maps) * 2
    assert cache.estimate_bytes(sizes, 2, CPU) == taken
    assert cache.estimate_bytes([], 2, CPU) == 0


def test_refused_while_the_backbone_trains() -> None:
    with pytest.raises(ConfigError, match="cache_features"):
        FeatureCache(FakeNetwork())


def test_maps_that_are_not_finite_are_not_cached(network: FakeNetwork) -> None:
    """The step is computed again in float32, which must not get them back."""
    cache, image = FeatureCache(network), torch.randn(3, 32, 32)
    with torch.no_grad():
        network.backbone[0].bias[0] = float("nan")
        assert cache.get([image], [0], [0], CPU)[0][0].isnan().any() and cache.needs_pixels(0, 0)
        network.backbone[0].bias[0] = 0.0
        assert cache.get([image], [0], [0], CPU)[0][0].isfinite().all() and not cache.needs_pixels(0, 0)
