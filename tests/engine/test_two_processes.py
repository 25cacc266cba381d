"""Two processes compute what one does, whatever goes wrong in one of them, and only the first of
them writes.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_processes import in_two_processes
from engine_runs import (
    Recorder,
    gradients_of,
    logged,
    options,
    run,
    same_gradients,
    scenes,
    steady_bundle,
    weights,
)

from groundtune.config import TrainConfig
from groundtune.data.batch import Batch
from groundtune.data.loader import TrainLoader
from groundtune.errors import GroundtuneError
from groundtune.model.detector import GroundingDINO

pytestmark = pytest.mark.slow


def one_of_two(
    rank: int, config: TrainConfig, tokenizer: Any, out: Path, trouble: Callable[[int], None]
) -> dict[str, Any]:
    """What a process of a run saw and wrote."""
    written: list[str] = []
    sys.addaudithook(lambda event, args: _note_write(written, out, event, args))
    trouble(rank)
    return observe(config, tokenizer, out) | {"written": written}


def _note_write(written: list[str], folder: Path, event: str, args: tuple[Any, ...]) -> None:
    writes = event in ("os.mkdir", "os.rename", "os.remove") or (
        event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    if writes and str(args[0]).startswith(str(folder)):
        written.append(f"{event} {args[0]}")


def observe(config: TrainConfig, tokenizer: Any, out: Path) -> dict[str, Any]:
    """A run, with the clipped gradients of every step, and how it ended."""
    bundle, watcher, error = steady_bundle(tokenizer), Recorder(), ""
    with gradients_of(bundle) as gradients:
        try:
            run(config, bundle, out, watcher)
        except GroundtuneError as raised:
            error = f"{type(raised).__name__}: {raised}"
    told = [name for name, _ in watcher.events]
    return {"gradients": gradients, "weights": weights(bundle), "told": told, "error": error}


def no_trouble(rank: int) -> None: ...


def poison(name: str, rank: int) -> None:
    """The image of that name makes its process's predictions NaN."""
    epoch = TrainLoader.epoch

    def poisoned(self: TrainLoader, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        for batch in epoch(self, *args, **kwargs):
            for image, sample in zip(batch.images, batch.samples, strict=True):
                if sample.image_path.name == name:
                    image.fill_(float("nan"))
            yield batch

    TrainLoader.epoch = poisoned


def short_of_memory(rank: int) -> None:
    """The second process has no room for two images."""
    forward = GroundingDINO.forward

    def limited(self: Any, images: Any, *args: Any) -> Any:
        if rank == 1 and len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, *args)

    GroundingDINO.forward = limited


def observe_two(
    config: TrainConfig, tokenizer: Any, folder: Path, trouble: Callable[[int], None] = no_trouble
) -> list[dict[str, Any]]:
    given = {"config": config, "tokenizer": tokenizer, "out": folder / "run", "trouble": trouble}
    return in_two_processes(partial(one_of_two, **given), folder)


def same_numbers(folder: Path) -> None:
    """Asserts that the runs `one` and `two/run` logged the same losses, all terms of them."""
    one, two = logged(folder / "one"), logged(folder / "two/run")
    assert len(one) == len(two) > 0
    for expected, found in zip(one, two, strict=True):
        assert expected.keys() == found.keys() and "d0.dn_loss_giou" in found
        for name in expected.keys() - {"lr", "grad_norm"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-5), (found["step"], name)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "changed", [{"epochs": 5}, {"epochs": 4, "cache_features": True, "ema_decay": 0.9, "batch_size": 3}]
)
def test_two_processes_equal_one(tmp_path: Path, tokenizer, changed: dict[str, Any]) -> None:
    """20 steps with denoising; images with none to six boxes, so that the processes' own numbers
    differ.

    Batches of three are split into 2 and 1. The last batch of an epoch has one image, and the
    second process none.
    """
    data = scenes(tmp_path / "data", train=13, valid=2)
    config = options(data, batch_size=4, max_grad_norm=0.0, seed=3, lr=1e-4)
    config = dataclasses.replace(config, retention_data=[str(scenes(tmp_path / "other", train=1, valid=2))])
    config = dataclasses.replace(config, **changed)
    expected = observe(config, tokenizer, tmp_path / "one")
    main, other = observe_two(config, tokenizer, tmp_path / "two")
    assert len(main["gradients"]) == 20
    same_gradients(main["gradients"][:1], expected["gradients"][:1])
    same_numbers(tmp_path)
    for name, tensor in expected["weights"].items():
        assert torch.equal(main["weights"][name], other["weights"][name]), name
        if not name.endswith("k_proj.bias"):  # moves no output, so AdamW scales up noise there
            torch.testing.assert_close(main["weights"][name], tensor, rtol=0, atol=1e-4)

    assert other["written"] == [] and other["told"] == ["close"] and len(main["written"]) > 10
    of_one, of_two = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two/run")
    )
    assert of_one["retention"]["other"]["before"] == pytest.approx(of_two["retention"]["other"]["before"])
    assert of_two["retention"]["other"].keys() == {"before", "after"}


@pytest.mark.parametrize("image", ["train_00000.jpg", "train_00005.jpg"])
def test_a_bad_image_of_one_process_is_skipped_by_both_and_reported(
    tmp_path: Path, tokenizer, image: str
) -> None:
    data = scenes(tmp_path / "data", train=8, valid=2)
    config = options(data, epochs=2, batch_size=4, max_nonfinite_steps=2)
    main, other = observe_two(config, tokenizer, tmp_path / "two", partial(poison, image))
    assert not main["error"] and not other["error"]
    assert len(main["gradients"]) == len(other["gradients"]) == 2  # one of two steps in each epoch
    for name, tensor in main["weights"].items():
        assert torch.equal(tensor, other["weights"][name]) and tensor.isfinite().all(), name
    skipped = [
        line for line in (tmp_path / "two/run/train.log").read_text().splitlines() if "Step skipped" in line
    ]
    assert len(skipped) == 4 and sum(image in line for line in skipped) == 2
    assert all(("first module whose output is not finite" in line) == (image in line) for line in skipped)


def test_one_process_that_is_short_of_memory_halves_the_parts_of_both(tmp_path: Path, tokenizer) -> None:
    data = scenes(tmp_path / "data", train=8, valid=2)
    config = options(data, epochs=1, batch_size=4, max_grad_norm=0.0)
    expected = observe(config, tokenizer, tmp_path / "one")
    main, other = observe_two(config, tokenizer, tmp_path / "two", short_of_memory)
    assert not main["error"] and not other["error"]
    same_gradients(main["gradients"][:1], expected["gradients"][:1])
    same_numbers(tmp_path)
    assert (tmp_path / "two/run/train.log").read_text().count(
        "Out of memory in step 1, images at a time: 2"
    ) == 1


def test_an_unreadable_image_of_one_process_is_told_by_the_main_one(tmp_path: Path, tokenizer) -> None:
    """A process without an image takes the step of the other. A second unreadable image ends the
    run of both.
    """
    data = scenes(tmp_path / "data", train=5, valid=2)
    config = options(data, epochs=1, batch_size=2, max_grad_norm=0.0)
    next(data.rglob("train_00001.jpg")).write_text("hello")
    expected = observe(config, tokenizer, tmp_path / "one")
    main, other = observe_two(config, tokenizer, tmp_path / "two")
    assert not main["error"] and not other["error"]
    same_gradients(main["gradients"][:1], expected["gradients"][:1])
    same_numbers(tmp_path)
    assert (tmp_path / "two/run/train.log").read_text().count("is skipped") == 1
    next(data.rglob("train_00003.jpg")).write_text("hello")
    main, other = observe_two(config, tokenizer, tmp_path / "three")
    assert main["error"] == other["error"] and main["error"].startswith("DataError: 2 of 5 images of train")
