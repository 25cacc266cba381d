"""A card computes what the CPU does: losses, predictions, resume, memory, fp16, the kernel.

    make test-gpu

Without a card all are skipped. GROUNDTUNE_TEST_DEVICE names another device: with "cpu" the tests run
on the CPU, which shows that they are right in themselves.
"""

import dataclasses
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import Recorder, gradients_of, logged, messages, options, run, scenes, steady_bundle, weights
from predict_fakes import make_predictor

from groundtune.engine import memory_fit
from groundtune.model import deformable
from groundtune.model.bundle import ModelBundle
from groundtune.model.detector import GroundingDINO

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("GROUNDTUNE_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "")
NAMES = ["red circle", "blue star", "green triangle"]


@pytest.fixture(autouse=True)
def device() -> str:
    if not DEVICE:
        pytest.skip("torch sees no NVIDIA card; GROUNDTUNE_TEST_DEVICE names another device")
    return DEVICE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("gpu") / "data", train=8, valid=3)


def trained(tokenizer, data: Path, out: Path, **changed: Any) -> tuple[ModelBundle, list[float]]:
    bundle = steady_bundle(tokenizer)
    run(options(data, epochs=1, **changed), bundle, out)
    return bundle, [line["loss"] for line in logged(out)]


@pytest.mark.parametrize("tune", ["full", "lora", "heads", "prompt"])
def test_losses_are_those_of_the_cpu(tmp_path: Path, data: Path, tokenizer, tune: str) -> None:
    runs = [("cpu", tmp_path / "cpu"), (DEVICE, tmp_path / "card")]
    losses = [trained(tokenizer, data, out, device=name, tune=tune)[1] for name, out in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and len(losses[0]) == 4
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)  # before weights can drift apart


def test_gradients_are_those_of_the_cpu(tmp_path: Path, data: Path, tokenizer) -> None:
    found = []
    for name, out in (("cpu", tmp_path / "cpu"), (DEVICE, tmp_path / "card")):
        bundle = steady_bundle(tokenizer)
        with gradients_of(bundle) as gradients:
            run(options(data, epochs=1, batch_size=8, device=name), bundle, out)
        found.append({key: value.cpu() for key, value in gradients[0].items()})
    largest = max(float(value.abs().max()) for value in found[0].values())
    assert found[0].keys() == found[1].keys()
    for key in found[0]:
        torch.testing.assert_close(found[1][key], found[0][key], rtol=0, atol=1e-4 * largest, msg=key)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_less_precision_is_close(tmp_path: Path, data: Path, tokenizer, monkeypatch, precision: str) -> None:
    """From the first step on: the scale of fp16 is one that this network bears."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=256))
    if DEVICE == "cuda" and precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this card emulates bf16")
    exact = trained(tokenizer, data, tmp_path / "fp32", device=DEVICE)[1]
    found = trained(tokenizer, data, tmp_path / precision, device=DEVICE, precision=precision)[1]
    assert found[0] == pytest.approx(exact[0], rel=0.03)


def test_detections_are_those_of_the_cpu(data: Path, tokenizer) -> None:
    images = sorted((data / "valid").glob("*.[pj][np]g"))
    found = []
    for name in ("cpu", DEVICE):
        predictor = make_predictor(steady_bundle(tokenizer), NAMES, threshold=0.0, precision="fp32")
        predictor = dataclasses.replace(predictor, device=torch.device(name))
        found.append(list(predictor.each(images)))
    for own, other in zip(*found, strict=True):
        assert own.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert own.xyxy == pytest.approx(other.xyxy, abs=0.05)


def test_a_deterministic_run_is_equal_again_and_after_a_resume(tmp_path: Path, data: Path, tokenizer) -> None:
    config = options(data, epochs=2, device=DEVICE, deterministic=True)
    bundles = {name: steady_bundle(tokenizer) for name in ("first", "second", "resumed")}
    run(config, bundles["first"], tmp_path / "first")
    run(config, bundles["second"], tmp_path / "second")
    with pytest.raises(KeyboardInterrupt):
        stopped = dataclasses.replace(config, save_steps=1)
        run(stopped, steady_bundle(tokenizer), tmp_path / "part", Recorder(stop_at=3))
    again = dataclasses.replace(config, resume=str(tmp_path / "part"))
    run(again, bundles["resumed"], tmp_path / "part")
    first, *others = (weights(bundle) for bundle in bundles.values())
    for other in others:
        assert [name for name in first if not torch.equal(first[name].cpu(), other[name].cpu())] == []


def test_a_step_without_memory_is_halved(tmp_path: Path, data: Path, tokenizer, monkeypatch) -> None:
    """Real memory on a card: the process may use only a little more than a step of two images needs."""
    forward = GroundingDINO.forward

    def limited(self: Any, images: Any, *args: Any) -> Any:
        if len(images) > 2:
            if DEVICE.startswith("cuda"):
                torch.empty(2**50, dtype=torch.uint8, device=DEVICE)  # the allocator's own error
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images, *args)

    expected = trained(tokenizer, data, tmp_path / "whole", device=DEVICE, batch_size=8)[1]
    monkeypatch.setattr(GroundingDINO, "forward", limited)
    watcher, bundle = Recorder(), steady_bundle(tokenizer)
    run(options(data, epochs=1, batch_size=8, device=DEVICE), bundle, tmp_path / "halved", watcher)
    assert any("from now on 2 at a time" in text for text in messages(watcher))
    assert logged(tmp_path / "halved")[0]["loss"] == pytest.approx(expected[0], rel=1e-4)


def test_the_largest_batch_is_found(tmp_path: Path, data: Path, tokenizer, monkeypatch) -> None:
    forward = GroundingDINO.forward

    def limited(self: Any, images: Any, *args: Any) -> Any:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images, *args)

    monkeypatch.setattr(GroundingDINO, "forward", limited)
    monkeypatch.setattr(memory_fit, "OVERCOMMITTED", set())
    watcher, bundle = Recorder(), steady_bundle(tokenizer)
    run(options(data, epochs=1, batch_size=0, device=DEVICE), bundle, tmp_path / "run", watcher)
    assert any("Batch size 3: the most that fits" in text for text in messages(watcher))


def test_the_form_of_sampling_is_that_of_the_reference() -> None:
    """The Triton kernel where there is one, values and gradients, with points outside the maps."""
    if DEVICE.startswith("cuda") and find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    generator, shapes = torch.Generator().manual_seed(0), [(6, 9), (3, 5), (1, 2)]
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(2, cells, 4, 8, generator=generator)
    locations = torch.rand(2, 70, 4, 3, 2, 2, generator=generator) * 1.4 - 0.2
    shares = torch.rand(2, 70, 4, 3, 2, generator=generator)
    direction = torch.randn(2, 70, 32, generator=generator)

    def results(name: str, sample: Any) -> list[torch.Tensor]:
        inputs = [tensor.to(name).requires_grad_() for tensor in (value, locations, shares)]
        output = sample(inputs[0], shapes, *inputs[1:])
        output.backward(direction.to(name))
        return [output.detach().cpu(), *(tensor.grad.cpu() for tensor in inputs)]

    expected = results("cpu", deformable.sample_levels)
    for own, other in zip(results(DEVICE, deformable.sample_by_device), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
