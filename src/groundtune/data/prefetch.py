"""Work that is done a little ahead of its use, with results in order and independent of the number of threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Done = TypeVar("Done")


def in_background(
    prepare: Callable[[Job], Callable[[], Done] | None], jobs: Iterable[Sequence[Job]], workers: int
) -> Iterator[list[Done | None]]:
    """Do groups of jobs, in order, with threads that are a few groups ahead.

    Threads and not processes: Pillow and numpy release the interpreter lock, and nothing has to be copied.

    Args:
        prepare: called in the caller's thread; gives the work to do, or None where there is none.
        jobs: groups of jobs.
        workers: threads, and groups to be ahead. 0 does each group when it is asked for.

    Returns:
        The results, group by group. An error of a job is raised where its group is due.
    """
    if workers <= 0:
        for group in jobs:
            yield [None if (work := prepare(job)) is None else work() for job in group]
        return
    waiting: deque[list[Future[Done] | None]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for group in jobs:
                works = [prepare(job) for job in group]
                waiting.append([None if work is None else pool.submit(work) for work in works])
                if len(waiting) > workers:
                    yield [None if future is None else future.result() for future in waiting.popleft()]
            while waiting:
                yield [None if future is None else future.result() for future in waiting.popleft()]
        finally:  # the caller stopped early, or a picture failed
            for future in (future for futures in waiting for future in futures if future is not None):
                future.cancel()
