"""Processes of one training run on one machine: `train --devices N` runs its own command line N times.

They get the variables that torchrun would set. Its agent itself is not used: it kills whoever needs more than 30 seconds to
save after a signal, and reports one mistake of the user once per process. Under torchrun, `accelerate launch` and srun
nothing is started; srun's names are translated.

The processes are in sessions of their own, so that a signal reaches each of them once: Ctrl-C goes to a whole group. What
they say of errors goes to a file each, but for the main one's errors in words; of one that failed first the file is shown.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from groundtune.device import pick_device
from groundtune.errors import ConfigError

_ERRORS = "GROUNDTUNE_ERRORS"  # the variable that names a started process's file
_GRACE = 15.0  # seconds that the others have to end by themselves when one has failed
_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  # as accelerate's variables name them
_SAVING = (0, 130, 143)  # after these ends the others may still be saving, as long as it takes
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def launched() -> bool:
    """Whether a launcher has started this process."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def join() -> None:
    """Takes this process's place among those that srun or `launch` has started."""
    os.environ |= slurm_variables(os.environ)
    if _ERRORS in os.environ:
        file = Path(os.environ[_ERRORS])
        sys.excepthook = lambda *error: _append(file, "".join(traceback.format_exception(*error)))
        if sys.platform == "linux":  # the one that waits may be killed without a word
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def refuse_launch(devices: int) -> None:
    """Refuses to train in another way than was asked for.

    Raises:
        ConfigError: `devices` processes are asked for and nobody has started them, or accelerate was told to cut the model
            into parts, where every process has the whole of it.
    """
    if devices > 1 and not launched():
        start = f"torchrun --nproc-per-node {devices} SCRIPT"
        raise ConfigError(f"devices: only the command line starts processes. Start the script itself by {start}.")
    if asked := [name for name in _SHARDING if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1")]:
        raise ConfigError(
            f"accelerate launch asks for {asked[0]}, and here every process has the whole model: the largest needs 5 GB "
            "with its gradients and AdamW's state. Launch without it; --recompute and --micro-batch save memory."
        )


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables, for a task of a SLURM step of several; otherwise none.

    A batch script has SLURM_NTASKS and SLURM_PROCID too, but is no step: it would wait for tasks that nobody starts.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1" or "RANK" in environment:
        return {}
    first = re.match(r"([^\[,]+)(?:\[([^-,\]]+))?", environment["SLURM_STEP_NODELIST"])  # node[07-09,12],other
    assert first is not None
    found = {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": tasks,
        "MASTER_ADDR": first[1] + (first[2] or ""),
        "MASTER_PORT": str(20000 + int(environment["SLURM_JOB_ID"]) % 10000),  # several jobs may share a node
    }
    return {name: value for name, value in found.items() if name not in environment}


def launch(count: int, device: str, threads: int) -> int:
    """Runs this process's own command line `count` times, as the processes of one run, and waits for them.

    Args:
        count: processes, one per GPU; on a CPU they divide its threads.
        device: as users write it.
        threads: of each process; 0 divides torch's own number.

    Returns:
        The exit code of the process that failed first, otherwise 0; 128 + n where signal n has ended it.

    Raises:
        ConfigError: the machine has fewer devices than that, or a single one was named.
    """
    _refuse_devices(count, device)
    threads = threads or max(1, torch.get_num_threads() // count)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | address
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(count)]
        processes = [_start(rank, environment, file) for rank, file in enumerate(files)]
        with _forwarding(processes):
            first = _wait(processes)
        codes = [_exit_code(process) for process in processes]
        said = codes[first] in _SAVING or (1 < codes[first] < 128 and codes[first] == codes[0])  # by the main process
        if not said and (text := files[first].read_text(encoding="utf-8", errors="replace").strip()):
            _, words, error = text.rpartition("groundtune: error: ")
            print(words + error, file=sys.stderr)
        elif not said:
            print(f"groundtune: error: process {first} of {count} ended with {_end(codes[first])}.", file=sys.stderr)
    return codes[first]


def _refuse_devices(count: int, name: str) -> None:
    device = pick_device(name)
    if device.type == "cpu":
        return
    here = torch.accelerator.device_count()
    if ":" in name:
        raise ConfigError(f"devices: {count} processes cannot share {name}; leave its number out of --device.")
    if count > here:
        raise ConfigError(f"devices: {count} were asked for, and torch sees {here} ({device.type}).")


def _start(rank: int, environment: Mapping[str, str], file: Path) -> subprocess.Popen[bytes]:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), _ERRORS: str(file)}
    command = [sys.executable, *sys.orig_argv[1:]]
    with file.open("ab") as errors:
        hidden: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": errors} if rank else {}
        return subprocess.Popen(
            command, env={**environment, **own}, stdin=subprocess.DEVNULL, start_new_session=True, **hidden
        )


@contextmanager
def _forwarding(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Passes on the signals that ask for an end, but for those that were ignored: nohup means it."""

    def forward(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)

    known = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")]
    before = {number: signal.signal(number, forward) for number in known if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all, and gives the place of the one that failed first; 0 where none did."""
    first = None
    with ThreadPoolExecutor(len(processes)) as pool:
        running = {pool.submit(process.wait): rank for rank, process in enumerate(processes)}
        while running:
            ended, _ = wait(running, None if first is None else _GRACE, FIRST_COMPLETED)
            if not ended:
                for rank in running.values():
                    processes[rank].kill()
            for future in ended:
                rank = running.pop(future)
                if first is None and _exit_code(processes[rank]) not in _SAVING:
                    first = rank
    stopped = (rank for rank, process in enumerate(processes) if process.returncode)
    return next(stopped, 0) if first is None else first


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    code = process.returncode
    return 128 - code if code < 0 else code


def _end(code: int) -> str:
    return f"signal {signal.Signals(code - 128).name}" if code > 128 else f"exit code {code}"


def _append(file: Path, text: str) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)
