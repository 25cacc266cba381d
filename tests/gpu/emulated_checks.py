"""Checks on an emulated GPU, which `test_emulated.py` starts: devices are never mixed, values are
those of the CPU, and the host waits for the card and launches kernels no more often than promised.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated_cuda import CARD, DEVICE, Card, MixedDevices
from engine_runs import Recorder, logged, options, run, scenes, skip_evaluation, steady_bundle, tiny_bundle
from PIL import Image

from groundtune.api import Model
from groundtune.contracts import Target
from groundtune.data.reading import read_data
from groundtune.data.scenes import write_captioned_scenes
from groundtune.device import to_device
from groundtune.engine import train as training
from groundtune.engine.evaluate import eval_task, run_task
from groundtune.loss.criterion import BatchCounts, GroundingDINOCriterion, total


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("scenes") / "data", train=4, valid=3)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions") / "data"
    write_captioned_scenes(folder, train=4, valid=2, size=64)
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Counter[str]]]:
    """The images of each step of the following runs, and its waits."""
    seen: list[tuple[int, Counter[str]]] = []
    take_step = training.optimizer_step

    def counted(setup: Any, state: Any, batch: Any) -> Any:
        CARD.reset()
        result = take_step(setup, state, batch)
        seen.append((len(batch.targets), CARD.waits.copy()))
        return result

    monkeypatch.setattr(training, "optimizer_step", counted)
    return seen


def test_tensors_of_two_devices_do_not_meet(card: Card) -> None:
    """The emulator itself: what CUDA refuses, what it allows, and what makes the host wait."""
    on_card = torch.arange(3.0, device="cuda")
    with pytest.raises(MixedDevices):
        on_card + torch.ones(3)
    assert (on_card + torch.tensor(1.0)).tolist() == [1, 2, 3] and on_card.is_cuda
    card.reset()
    assert on_card[on_card > 0].cpu().tolist() == [1, 2]
    assert torch.ones(2).to("cuda", non_blocking=True).tolist() == [1, 1]
    assert {place.split(" at ")[0] for place in card.waits} == {"index", "copy to the host", "tolist"}


def test_packed_copies_keep_types_shapes_and_values(card: Card) -> None:
    tensors = [torch.tensor(True), torch.arange(5), torch.rand(2, 3).double().T, torch.zeros(0, 4)]
    tensors += [torch.rand(3).half(), torch.rand(2, device="cuda")]
    card.reset()
    moved = to_device(tensors, DEVICE)
    assert not card.waits and {tensor.device for tensor in moved} == {DEVICE}
    for found, expected in zip(moved, tensors, strict=True):
        assert found.dtype == expected.dtype and torch.equal(found.cpu(), expected.cpu())


@pytest.mark.parametrize("batch_size", [2, 4])
def test_budget_of_a_training_step(card, data, tokenizer, tmp_path, monkeypatch, waits, batch_size) -> None:
    """One wait for the matching and one for the loss, for any number of images."""
    skip_evaluation(monkeypatch)
    config = options(data, device="cuda", epochs=1, batch_size=batch_size)
    run(config, tiny_bundle(tokenizer), tmp_path / "run")
    assert [images for images, _ in waits] == [batch_size] * (4 // batch_size)
    assert all(of_step.total() == 2 for _, of_step in waits), waits


@pytest.mark.parametrize(("memory", "expected"), [(8 << 30, [4, 4, 2, 2]), (0, [10, 10, 2, 2])])
def test_budget_of_steps_with_a_feature_cache(
    card, data, tokenizer, tmp_path, monkeypatch, waits, memory, expected
) -> None:
    """The first epoch asks of each of two images whether its features are finite, and copies three
    maps of each where the card has no room for them.
    """
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory, 8 << 30))
    skip_evaluation(monkeypatch)
    run(
        options(data, device="cuda", cache_features=True, cache_views=1),
        tiny_bundle(tokenizer),
        tmp_path / "run",
    )
    assert [of_step.total() for _, of_step in waits] == expected, waits


def heads_of(images: int, tokens: int, boxes: int, device: str) -> tuple[dict[str, Any], list[Target]]:
    """Outputs of 6 + 1 matched and 6 denoising heads; the last prompt is two tokens shorter."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(tokens) < torch.tensor([tokens] * (images - 1) + [tokens - 2])[:, None]).to(device)
    groups = 4

    def head(queries: int) -> dict[str, torch.Tensor]:
        logits = torch.randn(images, queries, 256, generator=generator).to(device)
        padded = torch.nn.functional.pad(~mask, (0, 256 - tokens), value=True)
        logits = logits.masked_fill(padded[:, None], -torch.inf)
        predicted = (torch.rand(images, queries, 4, generator=generator) * 0.5 + 0.2).to(device)
        return {"pred_logits": logits.requires_grad_(), "pred_boxes": predicted.requires_grad_()}

    matched = [head(20) for _ in range(6)]
    outputs = {**matched[-1], "aux_outputs": matched[:-1], "enc_outputs": head(20), "text_token_mask": mask}
    outputs |= {"dn_outputs": [head(2 * groups * boxes) for _ in range(6)]}
    outputs |= {"dn_meta": {"num_groups": groups, "group_size": 2 * boxes}}
    targets = []
    for image in range(images):
        of_image = torch.rand(boxes - image, 4, generator=generator) * 0.5 + 0.2
        labels = torch.zeros(boxes - image, dtype=torch.long)
        phrases = (torch.arange(256) == 1).expand(boxes - image, -1)
        targets.append(Target(of_image, labels, labels, phrases, 0).to(torch.device(device)))
    return outputs, targets


@pytest.mark.parametrize("tokens", [4, 200])
def test_budget_of_the_loss(card, tokens) -> None:
    """Forward and backward of 13 heads; the terms and gradients of the heads one by one on a CPU."""
    found = {}
    for device in ("cpu", "cuda"):
        outputs, targets = heads_of(2, tokens, 3, device)
        heads = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"], *outputs["dn_outputs"]]
        leaves = [head[name] for head in heads for name in ("pred_logits", "pred_boxes")]
        card.reset()
        terms = GroundingDINOCriterion()(outputs, targets, BatchCounts([3, 2, 5], 3 * tokens))
        gradients = torch.autograd.grad(total(terms), leaves)
        kernels, waited = card.kernels, card.waits.copy()
        found[device] = {name: term.item() for name, term in terms.items()}, [g.cpu() for g in gradients]
    assert waited.total() == 1 and kernels <= 300, (kernels, waited)
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-6)
    for of_card, of_cpu in zip(found["cuda"][1], found["cpu"][1], strict=True):
        torch.testing.assert_close(of_card, of_cpu, rtol=1e-5, atol=1e-7)


def test_budget_of_an_evaluation(card, data, tokenizer) -> None:
    """Of a batch of three images, which repeats."""
    bundle, split = tiny_bundle(tokenizer), read_data(str(data), [], {})["valid"]
    task = eval_task(bundle, split, None, "fp32")
    run_task(task, split, 3, DEVICE, None)
    card.reset()
    run_task(task, split, 3, DEVICE, None)
    assert card.waits.total() <= 6, card.waits


def test_budget_of_an_evaluation_of_captions(card, captions, tokenizer) -> None:
    bundle, split = tiny_bundle(tokenizer), read_data(str(captions), [], {})["valid"]
    task = eval_task(bundle, split, None, "fp32")
    run_task(task, split, 2, DEVICE, None)
    card.reset()
    run_task(task, split, 2, DEVICE, None)
    assert card.waits.total() <= 6, card.waits


def test_budget_of_a_prediction(card, data, tokenizer) -> None:
    """Six waits at most for one image, and none for each further image of the batch."""
    predictor = Model(tiny_bundle(tokenizer)).predictor(
        ["red circle", "blue star"], device="cuda", threshold=0.1
    )
    images = [Image.open(path).convert("RGB") for path in sorted((data / "valid").rglob("*.jpg"))]
    predictor.find(images)
    waited = []
    for count in (1, 3):
        card.reset()
        predictor.find(images[:count])
        waited.append(card.waits.copy())
    assert waited[0].total() <= 6 and waited[0] == waited[1], waited


RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"tune": "lora"},
    "heads": {"tune": "heads"},
    "prompt": {"tune": "prompt"},
    "averaged micro-batches": {"ema_decay": 0.9, "micro_batch_size": 1},
    "feature cache": {"cache_features": True, "epochs": 2},
    "both sets of weights": {"keep_base": True},
    "blend": {"blend": 0.5},
    "self-distillation": {"self_distillation": True},
    "recomputed activations": {"gradient_checkpointing": True},
}


def same_runs(tmp_path: Path, tokenizer: Any, **changed: Any) -> None:
    """Asserts that runs of the CPU and of the card have the same losses and detections."""
    found = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        run(options(device=device, lr=1e-4, **{"epochs": 1} | changed), steady_bundle(tokenizer), out)
        found[device] = logged(out), json.loads((out / "predictions_valid.json").read_text())
    assert len(found["cpu"][0]) == len(found["cuda"][0]) > 0
    for of_cpu, of_card in zip(found["cpu"][0], found["cuda"][0], strict=True):
        rates = of_cpu.pop("lr"), of_card.pop("lr")
        assert rates[0] == rates[1] and of_card == pytest.approx(of_cpu, rel=1e-5)
    for own, other in zip(*(rows for _, rows in found.values()), strict=True):
        assert own["score"] == pytest.approx(other["score"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_equals_that_of_the_cpu(card, data, tokenizer, tmp_path, name) -> None:
    same_runs(tmp_path, tokenizer, data=data, **RUNS[name])


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_on_captions_equals_that_of_the_cpu(card, data, captions, tokenizer, tmp_path, mixed):
    """On captions alone, and along with classes."""
    sets = {"data": data, "extra_data": [str(captions)]} if mixed else {"data": captions}
    same_runs(tmp_path, tokenizer, **sets)


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(card, data, tokenizer, tmp_path) -> None:
    config = options(data, device="cuda")
    run(config, tiny_bundle(tokenizer), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tiny_bundle(tokenizer), tmp_path / "stopped", Recorder(stop_at=3))
    run(replace(config, resume=str(tmp_path / "stopped")), tiny_bundle(tokenizer), tmp_path / "stopped")
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")


@pytest.mark.slow
def test_predictions_equal_those_of_the_cpu(card, data, tokenizer) -> None:
    paths = sorted((data / "valid").rglob("*.jpg"))
    by_device = [
        Model(steady_bundle(tokenizer)).predict(
            paths, ["red circle", "blue star"], device=device, precision="fp32", threshold=0.0
        )
        for device in ("cpu", "cuda")
    ]
    for of_cpu, of_card in zip(*by_device, strict=True):
        assert len(of_cpu) == len(of_card) > 0
        assert of_card.confidence == pytest.approx(of_cpu.confidence, abs=1e-5)
