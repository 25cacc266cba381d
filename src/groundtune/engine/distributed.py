"""Work that the processes of a training run share, and its errors, which all of them meet.

An error of one process alone would leave the others waiting for it until a timeout.

Processes of one training run on one machine: `train --devices N` runs its own command line N times.

They get the variables that torchrun would set. Its agent itself is not used: it kills whoever needs more than 30 seconds to
save after a signal, and reports one mistake of the user once per process. Under torchrun, `accelerate launch` and srun
nothing is started; srun's names are translated.

The processes are in sessions of their own, so that a signal reaches each of them once: Ctrl-C goes to a whole group. What
they say of errors goes to a file each, but for the main one's errors in words; of one that failed first the file is shown.

SIGINT, SIGTERM and SIGUSR1 as a wish to stop, which a run follows where its state is whole.

SLURM sends SIGTERM, or with `--signal=USR1@120` SIGUSR1, some time before it kills. A signal that was ignored when the run
began stays ignored: a shell that starts a job in the background means it.
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
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

from groundtune.device import pick_device
from groundtune.errors import ConfigError, GroundtuneError, Interrupted

_PATIENCE = timedelta(hours=12)  # of those who wait while the main process scores

_T = TypeVar("_T")


def processes() -> tuple[int, int]:
    """This process's number, and how many share the work: (0, 1) outside a run of several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(work: Callable[[], _T]) -> list[_T]:
    """What `work` gives in each process, in their order; in the main one only, the others get an empty list.

    Raises:
        GroundtuneError: that of the first process that met one, in all of them.
    """
    rank, count = processes()
    if count == 1:
        return [work()]
    outcomes: list[_T | GroundtuneError] = []
    if rank == 0:
        outcomes = [GroundtuneError("")] * count
    dist.gather_object(_outcome(work), outcomes or None, group=_group(dist.group.WORLD))
    found: list[_T] = []
    from_main(lambda: found.extend(map(_given, outcomes)))
    return found


def from_main(work: Callable[[], _T]) -> _T:
    """What `work` gives in the main process, in all of them; its error too."""
    rank, count = processes()
    if count == 1:
        return work()
    outcome: list[_T | GroundtuneError] = [_outcome(work) if rank == 0 else GroundtuneError("")]
    dist.broadcast_object_list(outcome, group=_group(dist.group.WORLD))
    return _given(outcome[0])


def _outcome(work: Callable[[], _T]) -> _T | GroundtuneError:
    try:
        return work()
    except GroundtuneError as error:
        return error


def _given(outcome: _T | GroundtuneError) -> _T:
    if isinstance(outcome, GroundtuneError):
        raise outcome
    return outcome


@functools.cache
def _group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group on the CPU: objects need no GPU memory, and those who wait no ten minutes' limit of NCCL."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


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


def check_launcher(devices: int) -> None:
    """Refuses to train in another way than was asked for.

    Raises:
        ConfigError: `devices` processes are asked for and nobody has started them, or accelerate was told to cut the model
            into parts, where every process has the whole of it.
    """
    if devices > 1 and not launched():
        start = f"torchrun --nproc-per-node {devices} SCRIPT"
        raise ConfigError(
            f"devices: only the command line starts processes. Start the script itself by {start}."
        )
    if asked := [
        name for name in _SHARDING if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1")
    ]:
        raise ConfigError(
            f"accelerate launch asks for {asked[0]}, and here every process has the whole model: the largest needs 5 GB "
            "with its gradients and AdamW's state. Launch without it; --gradient-checkpointing and --micro-batch-size save memory."
        )


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables, for a task of a SLURM step of several; otherwise none.

    A batch script has SLURM_NTASKS and SLURM_PROCID too, but is no step: it would wait for tasks that nobody starts.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1" or "RANK" in environment:
        return {}
    first = re.match(
        r"([^\[,]+)(?:\[([^-,\]]+))?", environment["SLURM_STEP_NODELIST"]
    )  # node[07-09,12],other
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
        address = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": str(count),
        }
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | address
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(count)]
        processes = [_start(rank, environment, file) for rank, file in enumerate(files)]
        with _forwarding(processes):
            first = _wait(processes)
        codes = [_exit_code(process) for process in processes]
        said = codes[first] in _SAVING or (
            1 < codes[first] < 128 and codes[first] == codes[0]
        )  # by the main process
        if not said and (text := files[first].read_text(encoding="utf-8", errors="replace").strip()):
            _, words, error = text.rpartition("groundtune: error: ")
            print(words + error, file=sys.stderr)
        elif not said:
            print(
                f"groundtune: error: process {first} of {count} ended with {_end(codes[first])}.",
                file=sys.stderr,
            )
    return codes[first]


def _refuse_devices(count: int, name: str) -> None:
    device = pick_device(name)
    if device.type == "cpu":
        return
    here = torch.accelerator.device_count()
    if ":" in name:
        raise ConfigError(
            f"devices: {count} processes cannot share {name}; leave its number out of --device."
        )
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
    before = {
        number: signal.signal(number, forward)
        for number in known
        if signal.getsignal(number) != signal.SIG_IGN
    }
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


_SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGUSR1")]
_STOPPING = b"\nStopping when this step is done; Ctrl-C again ends at once, without saving.\n"


class StopRequest:
    """Remembers the first signal. It is looked at after each step; a second SIGINT raises KeyboardInterrupt anywhere."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._raises = False

    def follow(self, accelerator: Accelerator) -> None:
        """Stop if a signal has come to any of the processes, which all must call this.

        Raises:
            Interrupted: one has.
        """
        if self._number is not None:
            accelerator.set_trigger()
        if accelerator.check_trigger():
            raise self._interrupted()

    @contextmanager
    def at_once(self, accelerator: Accelerator) -> Iterator[None]:
        """Inside, a signal raises Interrupted wherever it meets the work, which must be safe to leave half done.

        Several processes do their work to the end: they would wait for each other in the middle of it.
        """
        self._raises = accelerator.num_processes == 1
        try:
            if self._raises and self._number is not None:
                raise self._interrupted()
            yield
        finally:
            self._raises = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self._number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number is None and number == signal.SIGINT:
            os.write(
                2, _STOPPING
            )  # print is not safe here: the signal may have come in the middle of another
        self._number = self._number or number
        if self._raises:
            self._raises = False
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        return Interrupted("stopped", 130 if self._number == signal.SIGINT else 143)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Handle the signals inside, and give them back to their handlers afterwards; only in the main thread."""
    request = StopRequest()
    mine = _SIGNALS if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.getsignal(number) for number in mine}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, request.receive)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
