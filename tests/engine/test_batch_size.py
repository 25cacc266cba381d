"""`--batch-size auto`: the largest batch that fits, found with a card that the CPU stands in for."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import Recorder, gradients_of, logged, messages, options, run, scenes, tiny_bundle

from groundtune.config import train_config
from groundtune.engine import memory_fit
from groundtune.engine.memory_fit import largest_fitting
from groundtune.errors import ConfigError
from groundtune.model.detector import GroundingDINO
from groundtune.options import read_yaml


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("auto") / "data", train=9, valid=2, size=80)


@pytest.fixture
def card(monkeypatch) -> list[tuple[int, int, int]]:
    """Forward passes of more than five images fail. The sizes (B, h, w) of those to come."""
    seen: list[tuple[int, int, int]] = []
    forward = GroundingDINO.forward

    def limited(self: Any, images: Any, *args: Any) -> Any:
        torch.rand(1)
        seen.append((len(images), *images.shape[2:]))
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, images, *args)

    monkeypatch.setattr(GroundingDINO, "forward", limited)
    monkeypatch.setattr(memory_fit, "OVERCOMMITTED", set())
    return seen


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 8, 99, 100, 1000])
def test_largest_fitting(most: int, limit: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= limit

    assert largest_fitting(fits, most) == max(1, min(limit, most))
    assert max(tried) <= most and len(tried) <= 2 * math.log2(most) + 2


def test_the_largest_batch_that_fits_is_found_and_the_learning_rate_follows(
    tmp_path: Path, data: Path, tokenizer, card
) -> None:
    bundle, watcher = tiny_bundle(tokenizer), Recorder()
    config = options(data, batch_size=0, epochs=1, multi_scale=[0.5, 1.0, 1.5], lr=1e-3)
    run(config, bundle, tmp_path / "run", watcher)
    tried = [size for size in card if size[1:] == (96, 96)]
    assert [count for count, *_ in tried[:5]] == [1, 2, 4, 8, 6] and tried[5][0] == 5
    saved = train_config({"data": str(data)}, tmp_path / "run" / "config.yaml", {})
    assert saved.batch_size == 5 and saved.optimizer.lr == pytest.approx(1e-3 * math.sqrt(5 / 4))
    (line,) = [text for text in messages(watcher) if "Batch size 5: the most that fits" in text]
    assert "learning rate 0.00112, which is 0.001 × √(5 / 4)" in line
    rates = list(logged(tmp_path / "run")[0]["lr"].values())  # half, in the first of two warm-up steps
    assert rates == pytest.approx([saved.optimizer.lr / 2] * len(rates))


def test_a_run_with_auto_is_the_run_with_that_number(tmp_path: Path, data: Path, tokenizer, card) -> None:
    """Finding it changes neither weights nor random numbers."""
    found = []
    for name, size, lr in (("auto", 0, 1e-3), ("five", 5, 1e-3 * math.sqrt(5 / 4))):
        bundle = tiny_bundle(tokenizer, fusion_droppath=0.5)
        with gradients_of(bundle) as gradients:
            run(options(data, batch_size=size, epochs=1, lr=lr), bundle, tmp_path / name)
        found.append(gradients)
    for own, other in zip(*found, strict=True):
        assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


def test_other_errors_are_raised(tmp_path: Path, data: Path, tokenizer, card, monkeypatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(GroundingDINO, "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(options(data, batch_size=0), tiny_bundle(tokenizer), tmp_path / "run")


def test_on_a_cpu_it_is_the_recipes_and_says_why(tmp_path: Path, data: Path, tokenizer) -> None:
    bundle, watcher = tiny_bundle(tokenizer), Recorder()
    bundle.recipe["batch_size"] = 3
    run(options(data, batch_size=0, epochs=1), bundle, tmp_path / "run", watcher)
    assert any("Batch size 3: on a CPU more is not faster" in text for text in messages(watcher))
    assert read_yaml(tmp_path / "run" / "config.yaml")["batch_size"] == 3


def test_auto_is_read_for_this_option_alone() -> None:
    given = {"data": "d", "batch_size": "auto"}
    assert train_config(given, None, {}).batch_size == 0
    assert train_config({"data": "d", "batch_size": "6"}, None, {}).batch_size == 6
    with pytest.raises(ConfigError, match="--epochs: expected a whole number, got 'auto'"):
        train_config({"data": "d", "epochs": "auto"}, None, {})
