"""Work that is done ahead: in order, with errors where they are due, and no thread left over."""

import random
import threading
import time

import pytest

from groundtune.data.prefetch import THREAD_NAME, prefetch

GROUPS = [[1, 2, 3], [], [4], [5, 6]]


def doubled(job):
    def work():
        time.sleep(random.Random(job).random() / 100)
        return 2 * job

    return work


def running():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 9])
def test_results_are_in_order(threads):
    assert list(prefetch(doubled, GROUPS, threads)) == [[2, 4, 6], [], [8], [10, 12]]
    assert list(prefetch(doubled, [], threads)) == []
    odd = prefetch(lambda job: doubled(job) if job % 2 else None, GROUPS, threads)
    assert list(odd) == [[2, None, 6], [], [None], [10, None]]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_is_raised_where_its_group_is_due(threads):
    def prepare(job):
        return (lambda: 1 / (job - 4)) if job == 4 else doubled(job)

    results = prefetch(prepare, GROUPS, threads)
    assert [next(results), next(results)] == [[2, 4, 6], []]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == [] and not running()


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_of_the_jobs_themselves_leaves_no_threads(threads):
    def jobs():
        yield [1]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(prefetch(doubled, jobs(), threads))
    assert not running()


def test_stopping_early_cancels_waiting_work_and_leaves_no_threads():
    started = []

    def prepare(job):
        def work():
            started.append(job)
            time.sleep(0.001)

        return work

    results = prefetch(prepare, ([job] * 50 for job in range(100)), 2)
    next(results)
    assert running()
    results.close()
    assert not running() and len(started) < 2 * 50


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_as_many_groups_are_prepared_ahead_as_there_are_threads(threads):
    prepared, callers = [], set()

    def prepare(job):
        prepared.append(job)
        callers.add(threading.current_thread())
        return doubled(job)

    results = prefetch(prepare, ([job] for job in range(100)), threads)
    next(results)
    assert len(prepared) == threads + 1
    next(results)
    assert len(prepared) == threads + 2 and callers == {threading.current_thread()}
    results.close()


def test_the_work_is_done_by_the_given_number_of_threads():
    together = threading.Barrier(3, timeout=10)  # broken unless three wait at the same time
    assert list(prefetch(lambda job: lambda: together.wait() >= 0, [[1, 2, 3]], 3)) == [[True] * 3]
