"""Stream jobs through Ray Data actors, on this machine or a cluster.

The work object, with its model, is put into Ray's object store once. A job is a whole batch, so
that its images are batched as in one process. Jobs of an actor that died are repeated by another
one. All imports of Ray are here, after its usage statistics and progress bars are switched off.
"""

import logging
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch

from groundtune.errors import ConfigError, GroundtuneError
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.load import load_bundle
from groundtune.model.checkpoint.save import save_bundle

_MAX_QUEUED = 20_000  # jobs in Ray's object store at a time
_RETRIES = 3  # of a job whose actor died

_Job = TypeVar("_Job")
_Done = TypeVar("_Done")


@dataclass(frozen=True)
class RayPool:
    """Where Ray works."""

    address: str  # "local" starts Ray here; or a cluster: "auto", "HOST:PORT" or "ray://HOST:PORT"
    workers: int  # number of actors; 0: one per GPU, or one per `threads` cores without a GPU
    threads: int  # torch threads per actor; 0: one
    gpus: bool  # whether to use GPUs


def on_ray(work: Callable[[_Job], _Done], jobs: Iterable[_Job], pool: RayPool) -> Iterator[tuple[int, _Done]]:
    """Yield (job number, result) in the order of completion; paths must exist on all machines.

    Raises:
        ConfigError: Ray is not installed, or no cluster responds.
        GroundtuneError: raised by `work`, or a job's actors died repeatedly.
    """
    ray = import_ray()
    own = not ray.is_initialized()
    if own:
        connect(ray, pool)
    try:
        yield from _stream(ray, work, iter(jobs), pool)
    finally:
        if own:
            ray.shutdown()


def pack(bundle: ModelBundle) -> dict[str, bytes]:
    """Return the files of a model directory; a used network cannot be pickled."""
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(bundle, Path(folder) / "model")
        return {path.name: path.read_bytes() for path in (Path(folder) / "model").iterdir()}


def unpack(files: dict[str, bytes]) -> ModelBundle:
    """Load the model of `pack`."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return load_bundle(folder)


class _Worker:
    """An actor of Ray Data; jobs and results are pickled, as Arrow does not know their types."""

    def __init__(self, work: Any, threads: int) -> None:
        torch.set_num_threads(threads)
        self._work = import_ray().get(work)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            done = self._work(pickle.loads(row["job"]))
        except GroundtuneError as error:
            done = error
        return {"number": row["number"], "done": pickle.dumps(done)}


def _stream(ray: Any, work: Any, jobs: Iterator[Any], pool: RayPool) -> Iterator[tuple[int, Any]]:
    resources = ray.cluster_resources()
    gpus, threads = int(resources.get("GPU", 0)) if pool.gpus else 0, pool.threads or 1
    actors = pool.workers or gpus or max(1, int(resources.get("CPU", 1)) // threads)
    options: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": threads}
    options |= {"fn_constructor_args": [ray.put(work), threads], "max_task_retries": _RETRIES}
    first = 0
    while part := list(islice(jobs, _MAX_QUEUED)):
        rows = [{"number": number, "job": pickle.dumps(job)} for number, job in enumerate(part, first)]
        first += len(part)
        strategy = ray.data.ActorPoolStrategy(size=min(actors, len(part)))
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        try:
            for row in data.map(_Worker, compute=strategy, **options).iter_rows():
                done = pickle.loads(row["done"])
                if isinstance(done, GroundtuneError):
                    raise done
                yield row["number"], done
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            why = f"{reason}. They may have too little memory."
            raise GroundtuneError(f"ray: workers failed: {why}") from error


def connect(ray: Any, pool: RayPool) -> None:
    """Start Ray here, or connect to a cluster."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if pool.address == "local":
            cores = pool.workers * (pool.threads or 1) or None
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
        else:
            if pool.address != "auto":  # Ray itself would try for minutes
                target = urlsplit(pool.address if "//" in pool.address else f"//{pool.address}")
                socket.create_connection((target.hostname or "", target.port or 0), timeout=10).close()
            ray.init(address=pool.address, **quiet)
    except (OSError, ValueError) as error:
        where = f"{pool.address!r} ({str(error).strip().splitlines()[0]})"
        raise ConfigError(f"ray: no cluster at {where}. Expected its address, or local.") from error


def import_ray() -> Any:
    """Import Ray without usage statistics, progress bars and messages."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError('ray: not installed. Install it: pip install "groundtune[ray]".') from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray
