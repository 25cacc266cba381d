"""Runs small enough for tests: a real Grounding DINO of a few thousand weights, drawn images, and a
recording watcher.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tiny_models import BERT, SIZES, SWIN, tiny_bundle  # noqa: F401
from torch.optim.optimizer import register_optimizer_step_pre_hook

from groundtune.config import OptimizerConfig, ParamGroup, TrainConfig
from groundtune.data.reading import read_data, read_retention_data
from groundtune.data.sample import Dataset
from groundtune.data.scenes import write_scenes
from groundtune.engine.evaluate import Evaluation, eval_task, run_task
from groundtune.engine.train import RunResult, train
from groundtune.model.bundle import ModelBundle

CPU = torch.device("cpu")
CLASSES = ["red circle", "blue star", "green triangle"]
TOWERS = [ParamGroup(["backbone"], 0.0), ParamGroup(["language_model"], 0.0)]


class Recorder:
    """A `Progress` that remembers what it was told, and raises `stop` when that step is done."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, Any]] = []
        self.stop_at = stop_at

    def start(self, total_steps: int) -> None:
        self.events.append(("start", total_steps))

    def batches(self, batches: Any) -> Any:
        return batches

    def step(self, done: int, losses: dict[str, float], lr: float, memory_bytes: int) -> None:
        self.events.append(("step", done))
        if done == self.stop_at:
            raise KeyboardInterrupt

    def evaluation(self, done: int, total: int, what: str = "evaluating") -> None:
        self.events.append(("evaluation", done))

    def metrics(self, ap: float | None, best: float | None) -> None:
        self.events.append(("metrics", (ap, best)))

    def message(self, text: str) -> None:
        self.events.append(("message", text))

    def close(self) -> None:
        self.events.append(("close", None))


def steady_bundle(tokenizer) -> ModelBundle:
    """A bundle whose gradients hardly change where other last bits come in.

    Without the fourth level: a group norm over one cell of two channels makes much of them. With
    noise on the weights: at their start all boxes lie on a grid, and the last bits would decide
    which one is matched.
    """
    bundle, generator = tiny_bundle(tokenizer, num_levels=3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bundle.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return bundle


@contextmanager
def gradients_of(bundle: ModelBundle) -> Iterator[list[dict[str, torch.Tensor]]]:
    """The gradients that the optimizer gets, by step and name. Comparing them later: AdamW divides
    their scale away.
    """
    found: list[dict[str, torch.Tensor]] = []

    def remember(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        names = {id(parameter): name for name, parameter in bundle.network.named_parameters()}
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found.append({names[id(p)]: p.grad.clone() for p in parameters})

    hook = register_optimizer_step_pre_hook(remember)
    try:
        yield found
    finally:
        hook.remove()


def same_gradients(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    """Asserts that they are equal to 1e-5 of the largest one of each step."""
    assert len(found) == len(expected)
    for step, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert own.keys() == other.keys()
        largest = max(float(gradient.abs().max()) for gradient in other.values())
        for name in own:
            off = float((own[name] - other[name]).abs().max())
            assert off <= 1e-5 * largest, f"step {step}, {name}: off by {off}, largest {largest}"


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that training wrote."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def scenes(
    folder: Path, train: int = 5, valid: int = 3, size: int = 64, classes: list[str] = CLASSES
) -> Path:
    write_scenes(folder, train=train, valid=valid, classes=classes, size=size)
    return folder


def options(data: Path, **changed: Any) -> TrainConfig:
    lr = changed.pop("lr", 1e-3)
    values = {
        "epochs": 2,
        "batch_size": 2,
        "warmup_steps": 2,
        "log_steps": 1,
        "device": "cpu",
        "precision": "fp32",
        "report_to": [],
        "retention_data": [],
    } | changed
    return TrainConfig(data=str(data), optimizer=OptimizerConfig(lr=lr), **values)


def evaluated(
    bundle: ModelBundle,
    dataset: Dataset,
    *,
    classes: list[int] | None = None,
    batch_size: int = 8,
    progress: Any = None,
    features: Any = None,
    skip_unreadable: bool = False,
) -> Evaluation:
    """The evaluation in float32 on the CPU."""
    task = eval_task(bundle, dataset, classes, "fp32")
    return run_task(task, dataset, batch_size, CPU, progress, features, skip_unreadable)


RUN_TASK = "groundtune.engine.validate.run_task"  # every evaluation of a training run


def skip_evaluation(patch: Any) -> None:
    """Training runs evaluate nothing; each AP is 0."""
    patch.setattr(RUN_TASK, lambda *_: Evaluation({"AP": 0.0}, {}, []))


def messages(watcher: Recorder) -> list[str]:
    return [value for name, value in watcher.events if name == "message"]


def steps(watcher: Recorder) -> list[int]:
    return [value for name, value in watcher.events if name == "step"]


def run(config: TrainConfig, bundle: ModelBundle, out: Path, progress: Recorder | None = None) -> RunResult:
    limits = {"train": config.max_train_images, "valid": config.max_valid_images}
    incomplete = tuple(config.incomplete) if config.exhaustive else None
    splits = read_data(config.data, config.extra_data, config.rename, limits, incomplete_sets=incomplete)
    return train(
        config, bundle, splits, out, progress or Recorder(), read_retention_data(config.retention_data)
    )


def weights(bundle: ModelBundle) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in bundle.network.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
