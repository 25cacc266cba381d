"""The precision of a run: fp16 with its loss scale, evaluation, and what must not change gradients."""

import dataclasses
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from engine_runs import (
    Recorder,
    differing,
    gradients_of,
    logged,
    options,
    run,
    scenes,
    steady_bundle,
    weights,
)
from torch import Tensor

from groundtune.device import float32_mode
from groundtune.engine import checkpoint, validate
from groundtune.engine.checkpoint import load_state
from groundtune.engine.optim import update_scale
from groundtune.engine.step import optimizer_step
from groundtune.errors import ConfigError, Interrupted


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("precision") / "data", train=6, valid=2)


@pytest.fixture(autouse=True)
def fp16(caplog, monkeypatch) -> None:
    """The CPU emulates fp16, and says so. The first scale is one that these networks bear."""
    caplog.set_level(logging.ERROR, "groundtune")
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=256))


def overflowing(bundle: Any, passes: set[int], value: float = float("inf")) -> list[int]:
    """The gradient of the neck's output is `value` in these backward passes, counted from 1.

    Returns:
        The numbers of the passes, also those to come.
    """
    seen: list[int] = []

    def spoil(gradient: Tensor) -> Tensor:
        seen.append(len(seen) + 1)
        return torch.full_like(gradient, value) if seen[-1] in passes else gradient

    def hook(module: Any, inputs: Any, maps: list[Tensor]) -> None:
        if maps[0].requires_grad:
            maps[0].register_hook(spoil)

    bundle.detector.neck.register_forward_hook(hook)
    return seen


def test_a_step_that_overflows_in_fp16_is_skipped_and_the_scale_halved(
    tmp_path: Path, data: Path, tokenizer
) -> None:
    bundle, watcher = steady_bundle(tokenizer), Recorder()
    overflowing(bundle, {2})
    with gradients_of(bundle) as gradients:
        run(options(data, epochs=1, precision="fp16"), bundle, tmp_path / "run", watcher)
    state = load_state(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state["scaler"]["scale"] == 128 and state["scaler"]["_growth_tracker"] == 1
    assert (state["state"]["bad_steps"], state["state"]["skipped_steps"]) == (0, 0)
    assert state["schedule"]["last_epoch"] == 2 and len(gradients) == 2  # of three steps
    assert "loss scale is now 128" in (tmp_path / "run" / "train.log").read_text()
    assert not any("finite" in text for name, text in watcher.events if name == "message")


def test_gradients_in_fp16_are_those_of_fp32(tmp_path: Path, data: Path, tokenizer) -> None:
    """Unscaled before the norm: the first step's gradients agree to fp16's three digits."""
    found = {}
    for precision in ("fp32", "fp16"):
        bundle = steady_bundle(tokenizer)
        with gradients_of(bundle) as gradients:
            config = options(data, epochs=1, precision=precision, denoising=False, batch_size=6)
            run(config, bundle, tmp_path / precision)
        found[precision] = torch.cat([g.flatten() for g in gradients[0].values()])
    norms = [logged(tmp_path / name)[0]["grad_norm"] for name in ("fp32", "fp16")]
    assert norms[1] == pytest.approx(norms[0], rel=0.02)
    assert torch.cosine_similarity(found["fp32"], found["fp16"], dim=0) > 0.999


def test_gradients_that_overflow_with_any_scale_are_a_bad_step(tmp_path: Path, data: Path, tokenizer) -> None:
    """The scale falls to 1; then the step is computed in float32, and skipped if that fails too."""
    bundle = steady_bundle(tokenizer)
    seen = overflowing(bundle, set(range(1, 30)), float("nan"))
    run(options(data, epochs=4, precision="fp16", save_steps=0, eval_epochs=4), bundle, tmp_path / "run")
    state = load_state(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state["scaler"]["scale"] == 1.0 and state["state"]["skipped_steps"] == 4  # after 8 halvings
    assert len(seen) == 8 + 2 * 4


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "overflowed", "after"),
    [
        (1.0, 1.0, 8.0, False, 8.0),
        (1.0, float("inf"), 8.0, True, 4.0),
        (1.0, float("nan"), 1.0, False, 1.0),
        (float("nan"), float("nan"), 8.0, False, 8.0),  # the forward pass is not scaled
    ],
)
def test_update_scale(loss: float, norm: float, scale: float, overflowed: bool, after: float) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight])
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(weight.sum()).backward()
    weight.grad = weight.grad * norm
    scaler.unscale_(optimizer)
    assert update_scale(scaler, loss, norm) is overflowed and scaler.get_scale() == after
    scaler.unscale_(optimizer)  # its state is clean: no "already called"


def test_an_fp16_run_resumes_exactly_with_its_scale(tmp_path: Path, data: Path, tokenizer) -> None:
    config = options(data, epochs=2, precision="fp16")
    whole, part = steady_bundle(tokenizer), steady_bundle(tokenizer)
    overflowing(whole, {2})
    run(config, whole, tmp_path / "whole")
    overflowing(part, {2})
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(dataclasses.replace(config, save_steps=1), part, tmp_path / "part", Recorder(stop_at=4))
    resumed = dataclasses.replace(config, resume=str(tmp_path / "part"))
    again = steady_bundle(tokenizer)
    run(resumed, again, tmp_path / "part")
    assert differing(weights(whole), weights(again)) == []
    scales = [load_state(tmp_path / n / "checkpoints" / "last.pt")["scaler"] for n in ("whole", "part")]
    assert scales[0] == scales[1] and scales[0]["scale"] == 128


def test_a_checkpoint_without_a_scale_is_resumed(tmp_path: Path, data: Path, tokenizer) -> None:
    config = options(data, epochs=1)
    run(config, steady_bundle(tokenizer), tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = load_state(last)
    assert state.pop("scaler") == {}
    checkpoint.save_state(state, last)
    again = dataclasses.replace(config, resume=str(tmp_path / "run"), epochs=2)
    run(again, steady_bundle(tokenizer), tmp_path / "run")
    assert load_state(last)["epoch"] == 2


def test_accelerates_variables_do_not_change_gradients(
    tmp_path: Path, data: Path, tokenizer, monkeypatch
) -> None:
    run(options(data, epochs=1), steady_bundle(tokenizer), tmp_path / "plain")
    variables = {"GRADIENT_ACCUMULATION_STEPS": "4", "DYNAMO_BACKEND": "inductor", "MIXED_PRECISION": "fp16"}
    for name, value in variables.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    run(options(data, epochs=1), steady_bundle(tokenizer), tmp_path / "set")
    norms = [[line["grad_norm"] for line in logged(tmp_path / name)] for name in ("plain", "set")]
    assert norms[0] == norms[1] and len(norms[0]) == 3


@pytest.mark.parametrize(("device", "expected"), [("cpu", "fp32"), ("cuda", "bf16")])
def test_evaluation_in_a_run_has_its_precision_but_on_a_cpu(monkeypatch, device: str, expected: str) -> None:
    found = []
    monkeypatch.setattr(validate, "eval_task", lambda *options: found.append(options[-1]))
    monkeypatch.setattr(validate, "run_task", lambda *_: None)
    setup = MagicMock(device=torch.device(device))
    setup.config.precision = "bf16"
    limits = MagicMock(micro_batch_size=1)
    setup.config.batch_size = setup.config.micro_batch_size = 1
    validate._evaluate(setup, limits, MagicMock(), MagicMock(), None, skip=False)
    assert found == [expected]


def test_the_whole_run_is_in_its_float32_mode(tmp_path: Path, data: Path, tokenizer, monkeypatch) -> None:
    seen = []

    def step(*args: Any) -> Any:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return optimizer_step(*args)

    monkeypatch.setattr("groundtune.engine.train.optimizer_step", step)
    monkeypatch.setattr("groundtune.engine.train.float32_mode", lambda _, name: float32_mode("cuda", name))
    for precision, expected in (("fp32", (False, False)), ("tf32", (True, True)), ("bf16", (False, False))):
        seen.clear()
        run(options(data, epochs=1, precision=precision), steady_bundle(tokenizer), tmp_path / precision)
        assert set(seen) == {expected}


def test_deterministic_runs_are_equal_and_leave_torch_as_it_was(
    tmp_path: Path, data: Path, tokenizer
) -> None:
    bundles = [steady_bundle(tokenizer) for _ in range(2)]
    for number, bundle in enumerate(bundles):
        run(options(data, epochs=1, deterministic=True), bundle, tmp_path / str(number))
    assert differing(weights(bundles[0]), weights(bundles[1])) == []
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_names_the_operation_that_is_not(
    tmp_path: Path, data: Path, tokenizer, monkeypatch
) -> None:
    def step(*args: Any) -> Any:
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"]
        raise RuntimeError(
            "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off …"
        )

    monkeypatch.setattr("groundtune.engine.train.optimizer_step", step)
    config = options(data, epochs=1, deterministic=True)
    with pytest.raises(ConfigError, match="no deterministic form of grid_sampler_2d_backward_cuda on this"):
        run(config, steady_bundle(tokenizer), tmp_path / "run")
    assert not torch.are_deterministic_algorithms_enabled()
