"""Work that the processes of a training run share, and its errors, which all of them meet.

An error of one process alone would leave the others waiting for it until a timeout.
"""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from groundtune.errors import GroundtuneError

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
