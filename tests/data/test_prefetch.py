"""Work done ahead: in order, errors where they are due, and no thread left over."""

import random
import threading
import time

import pytest

from groundtune.data.prefetch import prefetch

GROUPS = [[1, 2, 3], [], [4], [5, 6]]


def doubled(job):
    def work():
        time.sleep(random.Random(job).random() / 100)
        return 2 * job

    return work


@pytest.mark.parametrize("workers", [-1, 0, 1, 2, 9])
def test_results_come_in_order(workers):
    assert list(prefetch(doubled, GROUPS, workers)) == [[2, 4, 6], [], [8], [10, 12]]
    assert list(prefetch(doubled, [], workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_where_there_is_no_work_there_is_none(workers):
    found = prefetch(lambda job: doubled(job) if job % 2 else None, GROUPS, workers)
    assert list(found) == [[2, None, 6], [], [None], [10, None]]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_is_raised_where_its_group_is_due(workers):
    def prepare(job):
        return (lambda: 1 / (job - 4)) if job == 4 else doubled(job)

    before = threading.active_count()
    found = prefetch(prepare, GROUPS, workers)
    assert [next(found), next(found)] == [[2, 4, 6], []]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert list(found) == [] and threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_jobs_themselves_leaves_no_threads(workers):
    def jobs():
        yield [1]
        raise OSError("gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="gone"):
        list(prefetch(doubled, jobs(), workers))
    assert threading.active_count() == before


def test_stopping_early_cancels_what_waits_and_leaves_no_threads():
    started = []

    def prepare(job):
        def work():
            started.append(job)
            time.sleep(0.001)

        return work

    before = threading.active_count()
    found = prefetch(prepare, ([job] * 50 for job in range(100)), 2)
    next(found)
    assert threading.active_count() > before
    found.close()
    assert threading.active_count() == before and len(started) < 2 * 50


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_no_more_groups_are_prepared_than_there_are_workers_ahead(workers):
    prepared, threads = [], set()

    def prepare(job):
        prepared.append(job)
        threads.add(threading.current_thread())
        return doubled(job)

    found = prefetch(prepare, ([job] for job in range(100)), workers)
    next(found)
    assert len(prepared) == workers + 1
    next(found)
    assert len(prepared) == workers + 2 and threads == {threading.current_thread()}
    found.close()


def test_the_work_is_done_by_as_many_threads_as_were_asked_for():
    together = threading.Barrier(3, timeout=10)  # broken unless three wait at the same time
    assert list(prefetch(lambda job: lambda: together.wait() >= 0, [[1, 2, 3]], 3)) == [[True] * 3]
