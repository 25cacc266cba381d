"""Several processes: each has its own GPU from the start, all end with the same data, and none
waits for one that is lost.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_runs import CPU, Recorder, options, run, scenes, tiny_bundle

from groundtune.data.formats.detect import load_splits
from groundtune.engine import forgetting
from groundtune.engine import train as training
from groundtune.engine.distributed import from_main, gather, own_device
from groundtune.errors import GroundtuneError, OutOfMemory
from groundtune.model.checkpoint.save import save_bundle
from groundtune.predict.postprocess import ImageDetections

FORK = torch.multiprocessing.get_context("fork")


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two GPUs; returns the devices that are made the current one."""
    chosen: list[torch.device] = []
    accelerator = SimpleNamespace(
        current_accelerator=lambda check_available=False: torch.device("cuda"),
        device_count=lambda: 2,
        is_available=lambda: True,
    )
    monkeypatch.setattr(torch, "accelerator", accelerator)
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(set_device=chosen.append))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return chosen


@pytest.mark.parametrize(
    ("name", "environment", "expected"),
    [
        ("auto", {}, "cuda"),
        ("cuda:1", {}, "cuda:1"),
        ("auto", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:1"),
        ("cuda", {"WORLD_SIZE": "8", "LOCAL_RANK": "3"}, "cuda:1"),  # each task sees some GPUs only
        ("cuda:0", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:1"),
        ("cuda:1", {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "cuda:1"),
        ("auto", {"LOCAL_RANK": "1"}, "cuda:1"),
        ("cpu", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cpu"),
    ],
)
def test_each_process_has_its_own_card(
    two_cards: list[torch.device], monkeypatch, name: str, environment: dict[str, str], expected: str
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert own_device(name) == torch.device(expected)
    assert two_cards == ([torch.device(expected)] if ":" in expected else [])


@pytest.mark.parametrize(
    "changed", [{"retention_data": ["self"]}, {"self_distillation": True, "precision": "bf16"}]
)
def test_the_first_computation_of_a_run_is_on_it(
    tmp_path: Path, tokenizer, two_cards: list[torch.device], monkeypatch, changed: dict[str, Any]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen: list[Any] = []

    def compute(*given: Any) -> None:
        seen.extend([part for part in given if isinstance(part, torch.device)])
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "start_processes", lambda *_: seen.append("processes"))
    monkeypatch.setattr(forgetting, "detect_groups", compute)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    config = options(scenes(tmp_path / "data", train=1, valid=1), device="auto", **changed)
    with pytest.raises(KeyboardInterrupt):
        run(config, tiny_bundle(tokenizer), tmp_path / "run")
    assert seen == ["processes", torch.device("cuda", 1)] and set(two_cards) == {torch.device("cuda", 1)}


def in_two(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)` returns in each of two processes, or None where one is lost."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    processes = [FORK.Process(target=_one_of_two, args=(rank, port, work, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    end = time.monotonic() + 60
    for process in processes:
        process.join(timeout=max(0, end - time.monotonic()))
    waits = [process.pid for process in processes if process.is_alive()]
    for process in processes:
        process.kill()
    assert waits == []
    files = [folder / f"{rank}.pt" for rank in range(2)]
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


def _one_of_two(rank: int, port: int, work: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    sys.stderr = (folder / f"{rank}.txt").open("w")
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    torch.distributed.destroy_process_group()


def test_processes_that_detect_slightly_different_things_train_on_the_same(
    tmp_path: Path, tokenizer, monkeypatch
) -> None:
    """The second one sees other scores, of which some pass the threshold only there."""
    data = load_splits(scenes(tmp_path / "data", train=7, valid=3))
    bundle = tiny_bundle(tokenizer)
    detect = forgetting.detect_batch
    watchers = [Recorder(), Recorder()]

    def work(rank: int) -> Any:
        images: list[int] = []

        def perturbed(network: Any, features: Any, *given: Any, **named: Any) -> list[ImageDetections]:
            images.append(len(features))
            generator = torch.Generator().manual_seed(rank)
            found = detect(network, features, *given, **named)
            for part in found:
                part.scores.copy_(torch.rand(part.scores.shape, generator=generator).sort(descending=True)[0])
            return found

        monkeypatch.setattr(forgetting, "detect_batch", perturbed)
        added = forgetting.add_self_distillation(bundle, data["train"], CPU, 2, watchers[rank], "fp32")
        base = forgetting.base_detections(bundle, data["valid"], CPU, 2, watchers[rank])
        return added, base, sum(images), [text for kind, text in watchers[rank].events if kind == "message"]

    main, other = in_two(work, tmp_path / "two")
    assert main[2] == 2 * 4 + 2 and other[2] == 2 * 3 + 1  # two groups; each image in one process
    assert len(main[3]) == 1 and other[3] == []
    for one, two in [(main[0], other[0]), *zip(main[1].values(), other[1].values(), strict=True)]:
        assert one.class_names == two.class_names and one.category_ids == two.category_ids
        assert len(one.class_names) > 0
        for sample, same in zip(one.samples, two.samples, strict=True):
            assert sample.boxes_xyxy.tobytes() == same.boxes_xyxy.tobytes()
            assert sample.class_ids.tolist() == same.class_ids.tolist()
    alone = forgetting.add_self_distillation(bundle, data["train"], CPU, 2, Recorder(), "fp32")
    assert [s.image_path for s in main[0].samples] == [s.image_path for s in alone.samples]


@pytest.mark.parametrize("way", ["exception", "memory", "killed"])
@pytest.mark.parametrize("lost", [0, 1])
def test_no_process_waits_for_one_that_is_lost(tmp_path: Path, way: str, lost: int) -> None:
    def work(rank: int) -> str:
        def share() -> int:
            if rank == lost:
                if way == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OutOfMemory("no room") if way == "memory" else ZeroDivisionError("by hand")
            return rank

        from_main(lambda: None)  # as at the start of a run
        try:
            gather(share)
            from_main(lambda: None)
        except GroundtuneError as error:
            return f"{type(error).__name__} {error}"
        return "nothing happened"

    found = in_two(work, tmp_path / "two")
    if way == "memory":
        assert found == ["OutOfMemory no room"] * 2
    else:
        assert found[lost] is None
        assert found[1 - lost].startswith("GroundtuneError Another process of the run has ended.")
        assert ("by hand" in (tmp_path / f"two/{lost}.txt").read_text()) == (way == "exception")


SCRIPT = """
import os, signal, sys
from groundtune import cli
from groundtune.model.detector import GroundingDINO
forward = GroundingDINO.forward
def lost(*given):
    if os.environ["RANK"] == "1":
        WAY
    return forward(*given)
GroundingDINO.forward = lost
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "code", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "process 1 of 2 ended with signal SIGKILL."),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "process 1 of 2 ended with signal SIGSEGV."),
        ("raise ZeroDivisionError('by hand')", 1, "ZeroDivisionError: by hand"),
        ("import torch; raise torch.OutOfMemoryError('CUDA out of memory')", 6, "images at a time: 1"),
    ],
)
def test_a_command_ends_when_a_step_of_one_process_fails(
    tmp_path: Path, tokenizer, way: str, code: int, message: str
) -> None:
    save_bundle(tiny_bundle(tokenizer), tmp_path / "model")
    data = scenes(tmp_path / "data", train=4, valid=1)
    command = f"train {data} --model {tmp_path / 'model'} -o {tmp_path / 'run'} --epochs 2 --batch-size 2"
    command += " --devices 2 --device cpu --threads 1 --report-to none --retention-data none"
    began = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("WAY", way), *command.split()],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert found.returncode == code, found.stderr[-3000:]
    assert message in found.stderr and not re.search("Traceback.*Traceback", found.stderr, re.DOTALL)
    assert time.monotonic() - began < 150  # with the start of both; the end itself takes 15 s at most
