"""Steps that are not finite: skipped, explained in train.log, and too many of them end the run."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_files import coco, write
from engine_runs import (
    Recorder,
    differing,
    messages,
    options,
    run,
    skip_evaluation,
    steps,
    tiny_bundle,
    weights,
)
from tiny_models import KINDS
from torch import Tensor

from groundtune.engine import train as engine
from groundtune.errors import TrainingDiverged
from groundtune.loss.criterion import GroundingDINOCriterion
from groundtune.model.bundle import ModelBundle


@pytest.fixture
def bundle(tokenizer) -> ModelBundle:
    return tiny_bundle(tokenizer)


def break_loss(monkeypatch, bad_calls: set[int], value: float = float("nan")) -> None:
    """Multiplies the loss of these calls, counted from 1."""
    calls = 0

    class Broken(GroundingDINOCriterion):
        def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            nonlocal calls
            calls += 1
            terms = super().__call__(*args, **kwargs)
            return terms | {"loss_cls": terms["loss_cls"] * value} if calls in bad_calls else terms

    monkeypatch.setattr("groundtune.engine.setup.GroundingDINOCriterion", Broken)


def bad_lines(out: Path) -> list[str]:
    return [line for line in (out / "train.log").read_text().splitlines() if "Step skipped" in line]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_stops_after_too_many_with_the_weights_unharmed(
    tmp_path: Path, data: Path, bundle: ModelBundle, monkeypatch, value: float
) -> None:
    at_start: dict[str, Tensor] = {}

    class Watcher(Recorder):
        def start(self, total_steps: int) -> None:
            at_start.update(weights(bundle))

    break_loss(monkeypatch, set(range(1, 100)), value)
    with pytest.raises(
        TrainingDiverged, match=r"(?s)4 steps in a row .*step 4 of epoch 2 .*train\.log"
    ) as error:
        run(options(data, epochs=9, max_nonfinite_steps=4), bundle, tmp_path / "run", Watcher())
    assert error.value.exit_code == 5
    assert differing(at_start, weights(bundle)) == [] and not bundle.network.training
    assert all(parameter.grad is None for parameter in bundle.network.parameters())
    assert len(bad_lines(tmp_path / "run")) == 4


def test_one_good_step_resets_the_count(tmp_path: Path, data: Path, bundle: ModelBundle, monkeypatch) -> None:
    """Three epochs of three steps, of which two in a row are bad three times; the schedule waits
    for good ones.
    """
    break_loss(monkeypatch, {1, 2, 4, 5, 7, 8})
    watcher = Recorder()
    run(options(data, epochs=3, max_nonfinite_steps=3), bundle, tmp_path / "run", watcher)
    assert steps(watcher) == [3, 6, 9]
    assert len(bad_lines(tmp_path / "run")) == 6
    assert sum("Step skipped" in text for text in messages(watcher)) == 6
    assert all(tensor.isfinite().all() for tensor in weights(bundle).values() if tensor.is_floating_point())


@pytest.mark.parametrize(
    ("module", "expected"), [("neck.convs.1.conv", "neck.convs.1.conv"), ("decoder.norm", "decoder.norm")]
)
def test_names_the_images_and_the_first_module(
    tmp_path: Path, data: Path, bundle: ModelBundle, monkeypatch, module: str, expected: str
) -> None:
    """NaN in the network reaches the matcher's costs first, which raises (NonFiniteCost)."""

    class Breaker(Recorder):
        def start(self, total_steps: int) -> None:
            with torch.no_grad():
                bundle.network.get_submodule(module).weight.view(-1)[0] = float("nan")

    seen: list[list[str]] = []
    step = engine.optimizer_step

    def watched(setup: Any, state: Any, batch: Any) -> Any:
        seen.append([str(sample.image_path) for sample in batch.samples])
        return step(setup, state, batch)

    monkeypatch.setattr(engine, "optimizer_step", watched)
    skip_evaluation(monkeypatch)
    with pytest.raises(TrainingDiverged):
        run(options(data, max_nonfinite_steps=2), bundle, tmp_path / "run", Breaker())
    found = bad_lines(tmp_path / "run")
    assert len(found) == len(seen) == 2
    for line, paths in zip(found, seen, strict=True):
        assert (
            f"first module whose output is not finite is {expected}." in line + "."
        )  # to the end of the path
        assert line.endswith("Images: " + ", ".join(paths))


def test_a_gradient_that_is_not_finite(tmp_path: Path, data: Path, bundle: ModelBundle, monkeypatch) -> None:
    """The loss itself is finite: the root has an infinite slope at 0."""

    class Broken(GroundingDINOCriterion):
        def __call__(self, outputs: Any, *args: Any) -> dict[str, Tensor]:
            terms = super().__call__(outputs, *args)
            return terms | {"loss_bbox": terms["loss_bbox"] + (outputs["pred_boxes"].sum() * 0).sqrt()}

    monkeypatch.setattr("groundtune.engine.setup.GroundingDINOCriterion", Broken)
    with pytest.raises(TrainingDiverged, match="gradient norm nan"):
        run(options(data, max_nonfinite_steps=1), bundle, tmp_path / "run")
    line = bad_lines(tmp_path / "run")[0]
    assert "all outputs are finite, the gradient of " in line and "is not. Images: " in line


def test_bad_steps_are_counted_over_the_end_of_an_epoch_and_a_resume(
    tmp_path: Path, data: Path, bundle: ModelBundle, tokenizer, monkeypatch
) -> None:
    """Steps 3 and 4 are bad and two are too many; between them the run was stopped and resumed."""
    config = options(data, epochs=3, max_nonfinite_steps=2)

    class Stop(Recorder):
        def metrics(self, ap: float | None, best: float | None) -> None:
            if self.events.count(("stop", None)):
                raise KeyboardInterrupt
            self.events.append(("stop", None))

    break_loss(monkeypatch, {3})
    with pytest.raises(KeyboardInterrupt):
        run(config, bundle, tmp_path / "run", Stop())
    break_loss(monkeypatch, {1})
    again = dataclasses.replace(config, resume=str(tmp_path / "run"))
    with pytest.raises(TrainingDiverged, match="step 4 of epoch 2"):
        run(again, tiny_bundle(tokenizer), tmp_path / "run")


def spoil_bfloat16(bundle: ModelBundle, monkeypatch) -> None:
    """The neck gives NaN under autocast only."""
    forward = bundle.detector.neck.forward

    def spoilt(*args: Any) -> list[Tensor]:
        maps = forward(*args)
        return [maps[0] * float("nan"), *maps[1:]] if torch.is_autocast_enabled("cpu") else maps

    monkeypatch.setattr(bundle.detector.neck, "forward", spoilt)


def test_a_step_that_fails_in_bfloat16_is_that_of_float32(
    tmp_path: Path, data: Path, bundle: ModelBundle, tokenizer, monkeypatch
) -> None:
    exact, watcher = tiny_bundle(tokenizer), Recorder()
    run(options(data, epochs=1), exact, tmp_path / "fp32")
    spoil_bfloat16(bundle, monkeypatch)
    run(options(data, epochs=1, precision="bf16"), bundle, tmp_path / "bf16", watcher)
    assert differing(weights(exact), weights(bundle)) == []
    told = [text for text in messages(watcher) if "float32" in text]
    assert len(told) == 2 and "Step 1 is not finite in bf16" in told[0]
    assert told[1] == "3 of 3 steps were computed again in float32."
    assert bad_lines(tmp_path / "bf16") == []


def test_a_run_tells_its_skipped_steps_and_fails_without_a_step(
    tmp_path: Path, data: Path, bundle: ModelBundle, tokenizer, monkeypatch
) -> None:
    break_loss(monkeypatch, {2})
    watcher = Recorder()
    run(options(data, epochs=1), bundle, tmp_path / "one", watcher)
    assert "1 of 3 steps were skipped, because they were not finite." in messages(watcher)
    break_loss(monkeypatch, set(range(1, 100)))
    with pytest.raises(TrainingDiverged, match="3 of 3 steps were skipped") as error:
        run(options(data, epochs=1, max_nonfinite_steps=9), tiny_bundle(tokenizer), tmp_path / "none")
    assert error.value.exit_code == 5


@pytest.mark.parametrize("width", [20, 40, 60, 100])
def test_tall_images_train_in_bfloat16(tmp_path: Path, tokenizer, monkeypatch, width: int) -> None:
    boxes = [(i, 1, [2, 100 * i, width - 4, 90]) for i in range(1, 5)]
    content = coco([f"{i}.png" for i in range(1, 5)], boxes, size=(width, 2000))
    for split in ("train", "valid"):
        write(tmp_path / "data" / split / "_annotations.coco.json", content, tmp_path / "data" / split)
    skip_evaluation(monkeypatch)
    watcher = Recorder()
    bundle = tiny_bundle(tokenizer, **KINDS["nano"])
    run(options(tmp_path / "data", epochs=1, precision="bf16"), bundle, tmp_path / "run", watcher)
    assert steps(watcher) == [1, 2] and not any("float32" in text for text in messages(watcher))
