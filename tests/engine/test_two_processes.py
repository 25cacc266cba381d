"""Two processes compute what one does, and only the first of them writes."""

import dataclasses
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import Recorder, options, run, scenes, tiny_bundle, weights
from torch.optim.optimizer import register_optimizer_step_pre_hook

from groundtune.config import TrainConfig
from groundtune.errors import TrainingDiverged

pytestmark = pytest.mark.slow


def worker(rank: int, port: int, config: TrainConfig, tokenizer: Any, folder: Path, poison: str) -> None:
    """One process of a run in `folder/run`; what it saw goes to `folder/RANK.pt`.

    Args:
        poison: name of a picture that makes its process's predictions NaN.
    """
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    written: list[str] = []
    sys.addaudithook(lambda event, args: _note_write(written, folder / "run", event, args))
    seen = observe(config, tokenizer, folder / "run", poison)
    torch.save(seen | {"written": written}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _note_write(written: list[str], folder: Path, event: str, args: tuple[Any, ...]) -> None:
    writes = event in ("os.mkdir", "os.rename", "os.remove") or (
        event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    if writes and str(args[0]).startswith(str(folder)):
        written.append(f"{event} {args[0]}")


def observe(config: TrainConfig, tokenizer: Any, out: Path, poison: str = "") -> dict[str, Any]:
    """A run, with the clipped gradients of every step."""
    # without the fourth level: a group norm over one cell of two channels makes much of the last bits
    bundle, gradients, watcher = tiny_bundle(tokenizer, num_levels=3), [], Recorder()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # at their start all boxes lie on a grid: the last bits would decide which one is matched
        for parameter in bundle.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    names = {}

    def remember(optimizer: Any, *_: Any) -> None:
        names.update({id(parameter): name for name, parameter in bundle.network.named_parameters()})
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients.append({names[id(p)]: p.grad.clone() for p in parameters})

    if poison:
        from groundtune.data.loader import TrainLoader

        collate = TrainLoader._collate

        def poisoned(self: Any, *args: Any) -> Any:
            batch = collate(self, *args)
            for place, sample in enumerate(batch.samples):
                if sample.image_path.name == poison:
                    batch.pictures[place].fill_(float("nan"))
            return batch

        TrainLoader._collate = poisoned
    hook = register_optimizer_step_pre_hook(remember)
    diverged = False
    try:
        run(config, bundle, out, watcher)
    except TrainingDiverged:
        diverged = True
    finally:
        hook.remove()
    return {
        "gradients": gradients,
        "weights": weights(bundle),
        "told": [name for name, _ in watcher.events],
        "diverged": diverged,
    }


def in_two_processes(config: TrainConfig, tokenizer: Any, folder: Path, poison: str = "") -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    context = torch.multiprocessing.start_processes(
        worker, (port, config, tokenizer, folder, poison), nprocs=2, join=False, start_method="spawn"
    )
    try:
        for _ in range(12):
            if context.join(timeout=10):
                return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
        pytest.fail("the processes wait for each other")
    finally:
        for process in context.processes:
            process.kill()


@pytest.mark.parametrize("changed", [{}, {"cache_features": True, "ema": 0.9, "batch_size": 3}])
def test_pitfall_08_two_processes_equal_one(tmp_path: Path, tokenizer, changed: dict[str, Any]) -> None:
    """Pictures with one to six boxes, so that the processes' own counts differ; batch 3 is split into 2 and 1.

    Gradients are compared before AdamW divides their scale, and with it many a mistake, away.
    """
    data = scenes(tmp_path / "data", train=12, valid=2)
    config = options(data, epochs=1, batch_size=4, denoising=False, clip_grad=0.0, seed=3, lr=1e-4)
    config = dataclasses.replace(config, retain=[str(scenes(tmp_path / "other", train=1, valid=2))], **changed)
    expected = observe(config, tokenizer, tmp_path / "one")
    main, other = in_two_processes(config, tokenizer, tmp_path / "two")
    assert len(expected["gradients"]) == len(main["gradients"]) == (4 if changed else 3)
    for step, found in zip(expected["gradients"], main["gradients"], strict=True):
        assert step.keys() == found.keys()
        largest = max(float(gradient.abs().max()) for gradient in step.values())
        for name in step:
            torch.testing.assert_close(found[name], step[name], rtol=1e-3, atol=1e-5 * largest)
    for name, tensor in expected["weights"].items():
        assert torch.equal(main["weights"][name], other["weights"][name]), name
        if not name.endswith("k_proj.bias"):  # moves no output, so AdamW scales up noise there
            torch.testing.assert_close(main["weights"][name], tensor, rtol=0, atol=1e-5)

    assert other["written"] == [] and other["told"] == ["close"] and len(main["written"]) > 10
    of_one, of_two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two/run"))
    assert of_one["retained"]["other"]["before"] == pytest.approx(of_two["retained"]["other"]["before"])
    assert of_two["retained"]["other"].keys() == {"before", "after"}
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two/run")]
    for one, two in zip(*lines, strict=True):
        one, two = json.loads(one), json.loads(two)
        assert one["step"] == two["step"]
        for key in {"grad_norm", "loss"} & one.keys():
            assert one[key] == pytest.approx(two[key], rel=1e-4)


@pytest.mark.parametrize("poison", ["train_00000.jpg", "train_00005.jpg"])
def test_a_bad_picture_of_one_process_is_skipped_by_both_and_reported(tmp_path: Path, tokenizer, poison: str) -> None:
    data = scenes(tmp_path / "data", train=8, valid=2)
    config = options(data, epochs=2, batch_size=4, max_bad_steps=2)
    main, other = in_two_processes(config, tokenizer, tmp_path / "two", poison)
    assert not main["diverged"] and not other["diverged"]
    assert len(main["gradients"]) == len(other["gradients"]) == 2  # one of two steps in each epoch
    for name, tensor in main["weights"].items():
        assert torch.equal(tensor, other["weights"][name]) and tensor.isfinite().all(), name
    skipped = [line for line in (tmp_path / "two/run/train.log").read_text().splitlines() if "Step skipped" in line]
    assert len(skipped) == 4 and sum(poison in line for line in skipped) == 2
    assert all(("first module whose output is not finite" in line) == (poison in line) for line in skipped)
