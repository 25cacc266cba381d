"""Training commands that are killed, and runs of two processes.

The commands are forked from a process that has imported torch.
"""

import io
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from engine_runs import scenes, tiny_bundle

from groundtune import cli
from groundtune.model.checkpoint.save import save_bundle

_OPTIONS = (
    "--epochs 2 --batch-size 2 --save-steps 2 --log-steps 4 --ema-decay 0.9 --lr 1e-3 --warmup-steps 2 "
    "--device cpu --precision fp32 --threads 1 --report-to none"
)
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["groundtune.engine.train", "groundtune.report.build", "groundtune.data.check.run"]
)


class Blow(NamedTuple):
    """A signal that a process gives itself at the n-th of its file events of that kind, just before
    it happens.

    The events are Python's audit events: "open" (to write), "os.rename", "os.mkdir", "os.remove";
    "half" is in the middle of writing a state.
    """

    event: str
    path_has: str = ""
    number: int = 1
    signal: int = signal.SIGKILL


def prepare(folder: Path, tokenizer: Any) -> list[str]:
    """Images and a model with dropout; the command line that trains it, without --output-dir."""
    save_bundle(tiny_bundle(tokenizer, dropout=0.1, fusion_droppath=0.1), folder / "model")
    return ["train", str(scenes(folder / "data")), "--model", str(folder / "model"), *_OPTIONS.split()]


def start(argv: Sequence[str], blow: Blow | None, stderr: Path) -> Any:
    """The process of a command line; its exit code is the command's, or minus the signal that
    killed it.
    """
    process = _PROCESSES.Process(target=_command, args=(list(argv), blow, stderr))
    process.start()
    return process


def ended(argv: Sequence[str], blow: Blow | None, stderr: Path) -> int:
    """The exit code of a command line."""
    process = start(argv, blow, stderr)
    process.join()
    return process.exitcode


def outcome(run: Path) -> dict[str, Any]:
    """What a run came to, without times and memory."""
    numbers = json.loads((run / "metrics.json").read_text())
    assert numbers.pop("seconds") > 0 and numbers.pop("memory_bytes") > 0
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    found = {
        f"{part} {name}": tensor.tolist()
        for part in ("network", "average")
        for name, tensor in state[part].items()
    }
    for name in ("metrics.jsonl", "predictions_valid.json", "model/model.safetensors"):
        found[name] = (run / name).read_bytes()
    return found | {"metrics.json": numbers}


def leftovers(run: Path) -> list[Path]:
    return list(run.rglob(".*"))


def _command(argv: list[str], blow: Blow | None, stderr: Path) -> None:
    file = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    os.dup2(file, 1)
    if blow is not None and blow.event == "half":
        torch.save = _half_written(blow, torch.save)
    elif blow is not None:
        sys.addaudithook(_counter(blow))
    sys.exit(cli.main(argv))


def _counter(blow: Blow) -> Callable[[str, tuple[Any, ...]], None]:
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event != blow.event or blow.path_has not in str(args[0]):
            return
        if event == "open" and not (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            return
        seen += 1
        if seen == blow.number:
            os.kill(os.getpid(), blow.signal)

    return hook


def _half_written(blow: Blow, save: Callable[..., None]) -> Callable[..., None]:
    seen = 0

    def half(state: Any, file: Any) -> None:
        nonlocal seen
        seen += 1
        whole = io.BytesIO()
        save(state, whole)
        content = whole.getvalue()
        file.write(content[: len(content) // 2])
        if seen == blow.number:
            file.flush()
            os.kill(os.getpid(), blow.signal)
        file.write(content[len(content) // 2 :])

    return half


def in_two_processes(work: Callable[[int], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What `work(rank)` returns in each of the two processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    context = torch.multiprocessing.start_processes(
        _of_two, (port, work, folder), nprocs=2, join=False, start_method="spawn"
    )
    try:
        for _ in range(30):
            if context.join(timeout=10):
                return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
        raise AssertionError("the processes wait for each other")
    finally:
        for process in context.processes:
            process.kill()


def _of_two(rank: int, port: int, work: Callable[[int], dict[str, Any]], folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    torch.save(work(rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
