"""Too little memory: the step is repeated in smaller parts, with the same result, and one image too
many ends the run.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import (
    Recorder,
    differing,
    logged,
    messages,
    options,
    run,
    scenes,
    skip_evaluation,
    tiny_bundle,
    weights,
)

from groundtune.device import is_out_of_memory
from groundtune.errors import OutOfMemory
from groundtune.model.bundle import ModelBundle
from groundtune.model.detector import GroundingDINO

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried ..."
    ),
    RuntimeError("could not create a primitive"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("memory") / "data", train=8, valid=2)


@pytest.fixture
def bundle(tokenizer) -> ModelBundle:
    return dropping(tokenizer)


def dropping(tokenizer) -> ModelBundle:
    """A network that throws dice while it trains."""
    return tiny_bundle(tokenizer, fusion_droppath=0.5)


def short_of_memory(monkeypatch, most: int, error: Exception = ERRORS[0], late: bool = False) -> list[int]:
    """Forward passes of more than `most` images fail at their end; `late` ones only where all parts
    before are done.

    Returns:
        The numbers of images of the passes, also those to come.
    """
    seen: list[int] = []
    forward = GroundingDINO.forward

    def limited(self: Any, images: Any, *args: Any) -> Any:
        seen.append(len(images))
        output = forward(self, images, *args)  # draws random numbers, also where it fails
        if len(images) > most and not (late and len(seen) % 2):
            raise error
        return output

    monkeypatch.setattr(GroundingDINO, "forward", limited)
    skip_evaluation(monkeypatch)
    return seen


def said(watcher: Recorder) -> list[str]:
    return [text for text in messages(watcher) if "memory" in text]


@pytest.mark.parametrize("error", ERRORS)
def test_what_is_known_as_too_little_memory(error: Exception) -> None:
    assert is_out_of_memory(error) and not is_out_of_memory(ValueError(str(error)))


def test_the_step_is_repeated_in_halves_and_equals_one_of_that_size(
    tmp_path: Path, data: Path, bundle: ModelBundle, tokenizer, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        seen = short_of_memory(patch, most=8)
        run(options(data, epochs=2, batch_size=8, micro_batch_size=2), bundle, tmp_path / "small")
        assert seen == [2] * 8
    seen = short_of_memory(monkeypatch, most=3)
    found, watcher = dropping(tokenizer), Recorder()
    run(options(data, epochs=2, batch_size=8), found, tmp_path / "halved", watcher)
    assert seen == [8, 4] + [2] * 8  # and never again larger
    assert differing(weights(bundle), weights(found)) == []
    assert logged(tmp_path / "halved") == logged(tmp_path / "small")
    first, second = said(watcher)
    assert "step 1, images at a time: 8 (64 × " in first and "from now on 4 at a time" in first
    assert "step 1, images at a time: 4 (64 × " in second and "from now on 2 at a time" in second
    assert (tmp_path / "halved/train.log").read_text().count("Out of memory") == 2


def test_what_earlier_parts_of_the_failed_step_added_is_gone(
    tmp_path: Path, data: Path, bundle: ModelBundle, tokenizer, monkeypatch
) -> None:
    """The second half of the first step fails, after the backward pass of the first."""
    with monkeypatch.context() as patch:
        short_of_memory(patch, most=8)
        run(options(data, epochs=1, batch_size=8, micro_batch_size=2), bundle, tmp_path / "small")
    seen = short_of_memory(monkeypatch, most=2, late=True)
    found = dropping(tokenizer)
    run(options(data, epochs=1, batch_size=8, micro_batch_size=4), found, tmp_path / "halved")
    assert seen == [4, 4] + [2] * 4 and differing(weights(bundle), weights(found)) == []


def test_a_resumed_run_begins_with_what_there_was_room_for(
    tmp_path: Path, data: Path, bundle: ModelBundle, tokenizer, monkeypatch
) -> None:
    seen = short_of_memory(monkeypatch, most=3)
    config = options(data, epochs=2, batch_size=8)

    class Stop(Recorder):
        def step(self, done: int, *args: Any) -> None:
            super().step(done, *args)
            if done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, bundle, tmp_path / "run", Stop())
    assert seen[:6] == [8, 4, 2, 2, 2, 2]
    del seen[:]
    run(dataclasses.replace(config, resume=str(tmp_path / "run")), dropping(tokenizer), tmp_path / "run")
    assert seen == [2] * 4


def test_no_room_for_one_image_ends_the_run_and_leaves_the_checkpoint(
    tmp_path: Path, data: Path, bundle: ModelBundle, tokenizer, monkeypatch
) -> None:
    config = options(data, epochs=2, batch_size=4)
    with monkeypatch.context() as patch:
        short_of_memory(patch, most=9)
        run(config, bundle, tmp_path / "whole")
    watcher, found = Recorder(), dropping(tokenizer)
    with monkeypatch.context() as patch:
        seen = short_of_memory(patch, most=9)

        class Full(Recorder):
            def step(self, done: int, *args: Any) -> None:
                if done == 3:
                    short_of_memory(patch, most=0)

        watcher = Full()
        with pytest.raises(
            OutOfMemory,
            match=r"step 4, images at a time: 1 \(.*64.* pixels; .*\).*--short-side, --gradient-checkpointing",
        ) as error:
            run(config, found, tmp_path / "run", watcher)
    assert error.value.exit_code == 6 and seen[:3] == [4, 4, 4] and len(said(watcher)) == 2
    assert error.value.__cause__ is None and not found.network.training
    short_of_memory(monkeypatch, most=9)
    resumed = dropping(tokenizer)
    run(dataclasses.replace(config, resume=str(tmp_path / "run")), resumed, tmp_path / "run")
    assert differing(weights(bundle), weights(resumed)) == []


def test_other_errors_are_not_taken_for_it(
    tmp_path: Path, data: Path, bundle: ModelBundle, monkeypatch
) -> None:
    short_of_memory(monkeypatch, most=1, error=RuntimeError("The size of tensor a (3) must match"))
    with pytest.raises(RuntimeError, match="size of tensor a"):
        run(options(data), bundle, tmp_path / "run")


@pytest.mark.slow
def test_a_real_limit_of_the_address_space(tmp_path: Path) -> None:
    """In a process of its own: a step of eight images does not fit into what is left, one of fewer
    does.
    """
    here = Path(__file__).parent
    command = [sys.executable, str(here / "memory_limit.py"), str(tmp_path), "620"]
    paths = {"PYTHONPATH": f"{here.parents[1] / 'src'}:{here}:{here.parent}"}
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | paths)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "Out of memory in step 1, images at a time: 8 (" in found.stdout
    assert found.stdout.splitlines()[-1] == "steps [1, 2]"
