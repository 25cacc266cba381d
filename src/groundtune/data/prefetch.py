"""Decode images ahead of their use, in order, whatever the number of threads.

The way from a path to a tensor is `images`, `transforms` and this file. An unreadable image is
returned as a `DataError`, and the caller decides; too little memory is raised.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from groundtune.contracts import ImageFormat
from groundtune.data.batch import EvalBatch
from groundtune.data.images import load_image
from groundtune.data.sample import Dataset, Sample
from groundtune.data.transforms import ImageView, resize_keep_ratio, to_tensor
from groundtune.device import is_out_of_memory
from groundtune.errors import DataError, OutOfMemory

THREAD_NAME = "groundtune-prefetch"

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def decode_threads(device: torch.device, on_cpu: int) -> int:
    """Return how many threads decode images ahead: one per core, at most 8, for an accelerator.

    The cores are those that this process may use, shared with the others of its machine.
    """
    if device.type == "cpu":
        return on_cpu
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError):  # the limit of a container; "max" is none
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, int(quota) / int(period))
    return max(1, min(8, int(cores) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def read_ahead(items: Iterable[_Job], count: int) -> Iterator[_Job]:
    """Iterate in a thread, up to `count` items ahead of the caller; errors come in their turn."""
    iterator, end = iter(items), object()
    pool, waiting = ThreadPoolExecutor(1, THREAD_NAME), deque[Future[Any]]()
    try:
        while True:
            waiting.extend(pool.submit(next, iterator, end) for _ in range(count - len(waiting)))
            if (item := waiting.popleft().result()) is end:
                return
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def decode_view(sample: Sample, view: ImageView, fmt: ImageFormat, raw: bool = False) -> Tensor | DataError:
    """Return the (3, h, w) pixels of a view as `to_tensor`, or an error that names the image.

    Raises:
        OutOfMemory: the image does not fit into memory; the message names it.
    """
    try:
        return to_tensor(view.image(load_image(sample.image_path, sample.size_hw)), fmt, raw)
    except DataError as error:
        return error
    except Exception as error:  # of a decoder
        if not is_out_of_memory(error):
            return DataError(f"Cannot load the image {sample.image_path}: {type(error).__name__}: {error}.")
        height, width = sample.size_hw
        raise OutOfMemory(
            f"Not enough memory to load the image {sample.image_path} ({width} × {height} pixels). "
            "Use fewer --workers, a smaller --batch-size or a smaller image."
        ) from error


def prefetch(
    prepare: Callable[[_Job], Callable[[], _Result] | None], groups: Iterable[Sequence[_Job]], threads: int
) -> Iterator[list[_Result | None]]:
    """Yield the results of groups of jobs in order; threads work up to `threads` groups ahead.

    Threads, not processes: Pillow and NumPy release the GIL, and nothing has to be copied.

    `prepare` returns the work of a job, or None; it is called in the caller's thread. So is the
    work if `threads` is 0. An error of a job is raised when its group is due.
    """
    if threads <= 0:
        for group in groups:
            yield [None if (work := prepare(job)) is None else work() for job in group]
        return
    waiting: deque[list[Future[_Result] | None]] = deque()
    pool = ThreadPoolExecutor(threads, THREAD_NAME)
    try:
        for group in groups:
            works = [prepare(job) for job in group]
            waiting.append([None if work is None else pool.submit(work) for work in works])
            if len(waiting) > threads:
                yield [None if future is None else future.result() for future in waiting.popleft()]
        while waiting:
            yield [None if future is None else future.result() for future in waiting.popleft()]
    finally:  # also where the caller stopped early, or a job failed
        pool.shutdown(cancel_futures=True)


def evaluation_images(
    dataset: Dataset,
    image_format: ImageFormat,
    batch_size: int,
    needs_pixels: Callable[[int], bool] | None = None,
    *,
    threads: int,
    unreadable: dict[str, str] | None = None,
    raw: bool = False,
) -> Iterator[EvalBatch]:
    """Yield all images in the order of the data set, whole and at the model's image size.

    Args:
        needs_pixels: returns whether to decode the image of an index. None: decode all.
        threads: number of threads that decode ahead.
        raw: whether images are uint8, to be normalized on their device.
        unreadable: receives path and reason of unreadable images, which are skipped. None: raise.

    Raises:
        DataError: an image is unreadable; the message names it.
        OutOfMemory: an image does not fit into memory; the message names it.
    """
    indices = range(len(dataset.samples))
    plan = [list(indices[begin : begin + batch_size]) for begin in range(0, len(indices), batch_size)]
    views = [resize_keep_ratio(sample.size_hw, image_format) for sample in dataset.samples]

    def prepare(index: int) -> Callable[[], Tensor | DataError] | None:
        if needs_pixels is not None and not needs_pixels(index):
            return None
        return partial(decode_view, dataset.samples[index], views[index], image_format, raw)

    for planned, results in zip(plan, prefetch(prepare, plan, threads), strict=True):
        batch = EvalBatch([], [], [], [])
        for index, pixels in zip(planned, results, strict=True):
            sample = dataset.samples[index]
            if isinstance(pixels, DataError):
                if unreadable is None:
                    raise pixels
                unreadable[str(sample.image_path)] = str(pixels)
                continue
            batch.samples.append(sample)
            batch.images.append(pixels)
            batch.sizes_hw.append(views[index].size_hw)
            batch.indices.append(index)
        if batch.indices:
            yield batch
