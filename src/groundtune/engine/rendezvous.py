"""The start of several processes: what their launcher must set, and waiting until all are running.

The waiting is done in Python, which handles signals, and says what is missing. torch waits in C++,
for half an hour.
"""

import functools
import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist

from groundtune.engine.distributed import launched
from groundtune.errors import ConfigError

_TIMEOUT = "GROUNDTUNE_START_TIMEOUT"  # environment variable: seconds


def check_launcher(devices: int) -> None:
    """Check that this process was launched in a way that can train; wait until all are running.

    Raises:
        ConfigError: nothing launched the `devices` processes, accelerate would shard the model, a
            variable of the launcher is wrong, or a process is missing.
    """
    if devices > 1 and not launched():
        raise ConfigError(
            f"devices: only the command line starts {devices} processes. Start a script with "
            f"torchrun --nproc-per-node {devices} SCRIPT."
        )
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate launch asks for {name}, which shards the model. Expected no sharding: each "
                "process has the whole model, at most 5 GB in training. Launch without it; "
                "--gradient-checkpointing and --micro-batch-size save memory."
            )
    count = _variable("WORLD_SIZE", 1, 10**6) if "WORLD_SIZE" in os.environ else 1
    rank = _variable("RANK", 0, count - 1) if count > 1 or "RANK" in os.environ else 0
    if count > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun has waited
        address, port = os.environ.get("MASTER_ADDR", ""), _variable("MASTER_PORT", 1, 65535)
        _meet(rank, count, address, port, _variable(_TIMEOUT, 1, 86400) if _TIMEOUT in os.environ else 30)


def _variable(name: str, low: int, high: int) -> int:
    value = os.environ.get(name, "")
    if not (value.isdecimal() and low <= int(value) <= high):
        expected = f"expected a whole number between {low} and {high}, got {value!r}"
        raise ConfigError(f"The environment variable {name}: {expected}.")
    return int(value)


@functools.cache  # once in a process, and the store lives as long
def _meet(rank: int, count: int, address: str, port: int, seconds: int) -> dist.Store:
    """Wait until all processes have joined a store."""
    end, limit = time.monotonic() + seconds, timedelta(seconds=seconds)
    if rank == 0:
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            problem = f"Cannot use MASTER_PORT {port}: {os.strerror(error.errno or 0)}"
            raise ConfigError(f"{problem}. Set it to a free port, for all processes.") from None
    else:
        _wait_for_answer(address, port, end)
    try:
        host = address if rank else "127.0.0.1"
        store = dist.TCPStore(host, port, count, rank == 0, limit, wait_for_workers=False, multi_tenant=True)
        _wait_for_answer(address, port, end)
        if store.add(f"groundtune {rank}", 1) > 1:
            raise ConfigError(f"Two processes have RANK {rank}. Each needs its own, from 0 to {count - 1}.")
        store.set(f"groundtune size {rank}", str(count))
        while missing := [
            str(other) for other in range(count) if not store.check([f"groundtune size {other}"])
        ]:
            if time.monotonic() > end:
                raise ConfigError(
                    f"After {seconds} s the processes with RANK {', '.join(missing)} of WORLD_SIZE {count} "
                    f"are missing. Start all together, or set {_TIMEOUT} to more seconds."
                )
            time.sleep(0.1)
        sizes = {int(store.get(f"groundtune size {other}")) for other in range(count)}
    except dist.DistError as error:
        problem = "A process ended before all had started; its own error says why"
        raise ConfigError(f"{problem}. Start all processes again.") from error
    if sizes != {count}:
        raise ConfigError(f"WORLD_SIZE: expected the same in all processes, got {sorted(sizes)}.")
    return store


def _wait_for_answer(address: str, port: int, end: float) -> None:
    while True:
        try:
            return socket.create_connection((address, port), 5).close()
        except (OSError, UnicodeError) as error:  # UnicodeError: no host has such a name
            if time.monotonic() > end:
                problem = f"Nothing answers at MASTER_ADDR {address!r}, MASTER_PORT {port} ({error})"
                fix = "Expected the machine of the process with RANK 0; is that running?"
                raise ConfigError(f"{problem}. {fix}") from None
        time.sleep(0.1)
