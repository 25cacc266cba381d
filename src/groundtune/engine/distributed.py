"""The processes of one training run: shared work and errors, and the launch of several processes.

`train --devices N` runs its own command line N times, with the environment variables that
torchrun sets. torchrun's agent is not used: it kills a process that needs more than 30 seconds to
save after a signal, and prints a user's mistake once per process. Under torchrun, `accelerate
launch` and srun nothing is launched; srun's variables are translated.
"""

import ctypes
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from groundtune.device import pick_device
from groundtune.engine.signals import STOP_SIGNALS, handled_signals
from groundtune.errors import ConfigError, GroundtuneError, first_line

_T = TypeVar("_T")
_ERROR = "groundtune: error: "  # how the command line begins its messages
_PATIENCE = timedelta(hours=12)  # for the main process to compute the metrics
_ERROR_FILE = "GROUNDTUNE_ERRORS"  # environment variable: the file for a launched process's errors
_GRACE = 15.0  # seconds in which the others may end by themselves after one has failed
_SAVING = (0, 130, 143)  # exit codes after which the others may still be saving, for any time
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_FORWARDED = [*STOP_SIGNALS, *(number for number in signal.Signals if number.name == "SIGHUP")]


def processes() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) if not distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own_device(name: str) -> torch.device:
    """Choose this process's device, and make it torch's current one before anything computes.

    Of several processes on a machine each has a GPU of its own, as in accelerate.
    """
    device = pick_device(name)
    if device.type in ("cuda", "xpu"):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            device = pick_device(device.type)
        if device.index is not None:
            torch.get_device_module(device).set_device(device)
    return device


def own_images(total: int, batch_size: int) -> list[int]:
    """Return the indices of the images that this process computes: every n-th whole batch."""
    rank, count = processes()
    starts = range(rank * batch_size, total, count * batch_size)
    return [index for start in starts for index in range(start, min(start + batch_size, total))]


def gather(work: Callable[[], _T]) -> list[_T]:
    """Return the results of all processes by rank in the main process, and an empty list elsewhere.

    Raises:
        GroundtuneError: error of the first process that raised one; raised in all processes.
    """
    rank, count = processes()
    if count == 1:
        return [work()]
    outcomes: list[_T | GroundtuneError] = [GroundtuneError("")] * count if rank == 0 else []
    outcome = _outcome(work)
    with _others_alive():
        dist.gather_object(outcome, outcomes or None, group=_cpu_group(dist.group.WORLD))
    results: list[_T] = []
    from_main(lambda: results.extend(map(_result, outcomes)))
    return results


def from_main(work: Callable[[], _T]) -> _T:
    """Return the main process's result, or raise its `GroundtuneError`, in all processes."""
    rank, count = processes()
    if count == 1:
        return work()
    outcome: list[_T | GroundtuneError] = [_outcome(work) if rank == 0 else GroundtuneError("")]
    with _others_alive():
        dist.broadcast_object_list(outcome, group=_cpu_group(dist.group.WORLD))
    return _result(outcome[0])


def share(value: _T) -> list[_T]:
    """Return the values of all processes by rank, in each of them. No GPU takes part."""
    values = [value] * processes()[1]
    if len(values) > 1:
        with _others_alive():
            dist.all_gather_object(values, value, group=_cpu_group(dist.group.WORLD))
    return values


@contextmanager
def _others_alive() -> Iterator[None]:
    """Turn the error of a connection whose other process has ended into a sentence."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        raise GroundtuneError(
            "Another process of the run has ended. Its own message says why; without one it was killed, "
            f"perhaps for lack of memory ({first_line(error)})."
        ) from error


def _outcome(work: Callable[[], _T]) -> _T | GroundtuneError:
    try:
        return work()
    except GroundtuneError as error:
        return error


def _result(outcome: _T | GroundtuneError) -> _T:
    if isinstance(outcome, GroundtuneError):
        raise outcome
    return outcome


@functools.cache
def _cpu_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """Make a group on the CPU: no GPU memory for objects, and no NCCL limit of ten minutes."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def launched() -> bool:
    """Whether a launcher has started this process."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def is_main() -> bool:
    """Whether this process prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def init_distributed_env() -> None:
    """Prepare a process that srun or `launch` has started; of the command line only.

    A launched process writes its traceback to a file, through `sys.excepthook`.
    """
    os.environ |= slurm_variables(os.environ)
    if _ERROR_FILE in os.environ:
        file = Path(os.environ[_ERROR_FILE])
        sys.excepthook = lambda *error: _append(file, "".join(traceback.format_exception(*error)))
        if sys.platform == "linux":  # SIGTERM when the launching process dies, even by SIGKILL
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _append(file: Path, text: str) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return torchrun's variables for a task of a SLURM step with several tasks, otherwise {}.

    A batch script has SLURM_NTASKS and SLURM_PROCID too, but is no step of several tasks.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1" or "RANK" in environment:
        return {}
    nodes = environment["SLURM_STEP_NODELIST"]  # for example node[07-09,12],other
    first_node = re.match(r"([^\[,]+)(?:\[([^-,\]]+))?", nodes)
    assert first_node is not None
    variables = {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": tasks,
        "MASTER_ADDR": first_node[1] + (first_node[2] or ""),
        "MASTER_PORT": str(20000 + int(environment["SLURM_JOB_ID"]) % 10000),  # one for each job
    }
    return {name: value for name, value in variables.items() if name not in environment}


def launch(count: int, device: str, threads: int) -> int:
    """Run this process's command line in `count` processes and wait for them.

    Each process has its own session, so that Ctrl-C, which goes to a whole process group, reaches
    it once. The errors of all but the main process go to files; the first failed one's are printed.
    With 0 `threads` they divide torch's number.

    Returns:
        The exit code of the process that failed first, otherwise 0; 128 + n if signal n ended it.

    Raises:
        ConfigError: the machine has fewer devices, or `device` names a single one.
    """
    _check_devices(count, device)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = threads or max(1, torch.get_num_threads() // count)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(count)]
        started = [_start(rank, environment, file) for rank, file in enumerate(files)]

        def forward(number: int, _: object) -> None:
            for process in started:
                process.send_signal(number)

        with handled_signals(forward, _FORWARDED):
            first = _wait_for_all(started)
        codes = [_exit_code(process) for process in started]
        code = codes[first]
        died = started[first].returncode < 0
        if died or (code not in _SAVING and not (1 < code < 128 and code == codes[0])):  # else printed
            errors = files[first].read_text(encoding="utf-8", errors="replace").strip()
            _, prefix, error = errors.rpartition(_ERROR)
            print(prefix + error or f"{_ERROR}process {first} of {count} {_end(code)}.", file=sys.stderr)
    return code


def _check_devices(count: int, name: str) -> None:
    device = pick_device(name)
    available = torch.accelerator.device_count()
    if device.type != "cpu" and ":" in name:
        raise ConfigError(f"devices: {count} processes cannot share {name}. Use --device {device.type}.")
    if device.type != "cpu" and count > available:
        raise ConfigError(
            f"devices: expected at most {available} ({device.type}, seen by torch), got {count}."
        )


def _start(rank: int, environment: Mapping[str, str], file: Path) -> "subprocess.Popen[bytes]":
    variables = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), _ERROR_FILE: str(file)}
    with file.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if rank else None,
            stderr=errors if rank else None,
            start_new_session=True,
        )


def _wait_for_all(started: "Sequence[subprocess.Popen[bytes]]") -> int:
    """Wait for all processes and return the rank of the one that failed first; 0 if none did."""
    first = None
    with ThreadPoolExecutor(len(started)) as pool:
        running = {pool.submit(process.wait): rank for rank, process in enumerate(started)}
        while running:
            ended, _ = wait(running, None if first is None else _GRACE, FIRST_COMPLETED)
            if not ended:
                for rank in running.values():
                    started[rank].kill()
            for future in ended:
                rank = running.pop(future)
                died = started[rank].returncode < 0  # by a signal that it did not handle
                if first is None and (died or _exit_code(started[rank]) not in _SAVING):
                    first = rank
    interrupted = (rank for rank, process in enumerate(started) if process.returncode)
    return next(interrupted, 0) if first is None else first


def _exit_code(process: "subprocess.Popen[bytes]") -> int:
    return 128 - process.returncode if process.returncode < 0 else process.returncode


def _end(code: int) -> str:
    names = {128 + number: number.name for number in signal.Signals}
    return f"ended with signal {names[code]}" if code in names else f"ended with exit code {code}"
