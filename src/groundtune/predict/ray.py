"""A stream of jobs through Ray Data's actors: on this machine, or on a cluster.

The work, with its model in it, is put into Ray's object store once; each actor takes it from there when it starts, and then
does job after job. A model travels as the files of its folder: a network does not pickle once it was used, since transformers
hangs functions into it. A job is a whole batch, so that its images have the company that they have in one process.
What an actor had in hand when it died is given to another; an error in words comes back to the caller.

Ray asks nobody for usage statistics and shows no dashboard here; it may only be imported through this module, which says so
before.
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

_PART = 20_000  # jobs that are put into Ray's object store at a time; there may be any number
_RETRIES = 3  # of jobs whose actor has died: an image that always kills it must not go round for ever

_Job = TypeVar("_Job")
_Done = TypeVar("_Done")


@dataclass(frozen=True)
class RayPool:
    """Where Ray works.

    Attributes:
        address: "local" starts Ray on this machine; otherwise a cluster's, as "auto", "HOST:PORT" or "ray://HOST:PORT".
        workers: actors; 0 is one per GPU of the cluster, or where it has none one per `threads` cores.
        threads: of torch in each actor; 0 is one.
        gpus: whether to use them.
    """

    address: str
    workers: int = 0
    threads: int = 0
    gpus: bool = True


def on_ray(work: Callable[[_Job], _Done], jobs: Iterable[_Job], pool: RayPool) -> Iterator[tuple[int, _Done]]:
    """Does jobs as they come, and gives each result with the job's number as soon as it is there, in any order.

    Args:
        work: what to do, found by its module on the workers.
        jobs: what to do it with; paths in them must mean the same on all machines.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
        GroundtuneError: one that `work` raised; or a job whose worker has died again and again.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, pool)
    try:
        yield from _stream(ray, work, iter(jobs), pool)
    finally:
        if started:
            ray.shutdown()


def pack(bundle: ModelBundle) -> dict[str, bytes]:
    """The files of a model's folder, by name."""
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(bundle, Path(folder) / "model")
        return {path.name: path.read_bytes() for path in (Path(folder) / "model").iterdir()}


def unpack(files: dict[str, bytes]) -> ModelBundle:
    """The model whose folder had these files."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return load_bundle(folder)


class _Worker:
    """An actor of Ray Data: a row has a job's number and the job, pickled because Arrow does not know its types."""

    def __init__(self, work: Any, threads: int) -> None:
        torch.set_num_threads(threads)
        self._work = _ray().get(work)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            done = self._work(pickle.loads(row["job"]))
        except GroundtuneError as error:
            done = error
        return {"number": row["number"], "done": pickle.dumps(done)}


def _stream(ray: Any, work: Any, jobs: Iterator[Any], pool: RayPool) -> Iterator[tuple[int, Any]]:
    there = ray.cluster_resources()
    gpus, threads = int(there.get("GPU", 0)) if pool.gpus else 0, pool.threads or 1
    actors = pool.workers or gpus or max(1, int(there.get("CPU", 1)) // threads)
    options = {"num_gpus": 1} if gpus else {"num_cpus": threads}
    settings = {"fn_constructor_args": [ray.put(work), threads], "max_task_retries": _RETRIES, **options}
    first = 0
    while part := list(islice(jobs, _PART)):
        rows = [{"number": number, "job": pickle.dumps(job)} for number, job in enumerate(part, first)]
        first += len(part)
        strategy = ray.data.ActorPoolStrategy(size=min(actors, len(part)))
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker, compute=strategy, **settings
        )
        try:
            for row in results.iter_rows():
                done = pickle.loads(row["done"])
                if isinstance(done, GroundtuneError):
                    raise done
                yield row["number"], done
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise GroundtuneError(
                f"ray: the workers could not go on: {reason}. Is their memory too small?"
            ) from error


def _connect(ray: Any, pool: RayPool) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if pool.address == "local":
            cores = pool.workers * (pool.threads or 1) or None
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
        else:
            _knock(pool.address)
            ray.init(address=pool.address, **quiet)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"ray: no cluster answers at {pool.address!r} ({reason}). Name one, or local."
        ) from error


def _knock(address: str) -> None:
    """An `OSError` or a `ValueError` where nobody listens at HOST:PORT: Ray would try for minutes."""
    if address != "auto":
        place = urlsplit(address if "//" in address else f"//{address}")
        socket.create_connection((place.hostname or "", place.port or 0), timeout=10).close()


def _ray() -> Any:
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
