"""Work that is done a little ahead of its use, with results in order and independent of the number of threads.

Decoded images: of one view, and batch by batch those of an evaluation.

An image that cannot be read is a `DataError` that is given in place of raised: what to do about it is the business of who
asked. An error that nobody expects of a decoder is the same; too little memory is not the image's fault.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from torch import Tensor

from groundtune.contracts import ImageFormat
from groundtune.data.batch import EvalBatch
from groundtune.data.images import load_image
from groundtune.data.sample import Dataset, Sample
from groundtune.data.transforms import ImageView, resize_keep_ratio, to_tensor
from groundtune.device import is_out_of_memory
from groundtune.errors import DataError, OutOfMemory

Job = TypeVar("Job")
Done = TypeVar("Done")


def prefetch(
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
        finally:  # the caller stopped early, or an image failed
            for future in (future for futures in waiting for future in futures if future is not None):
                future.cancel()


def decoded(sample: Sample, view: ImageView, fmt: ImageFormat) -> Tensor | DataError:
    """Give the normalized pixels of a view, or why there are none.

    Raises:
        OutOfMemory: the image does not fit into memory. This and the error that is given name the image.
    """
    try:
        return to_tensor(view.image(load_image(sample.image_path, sample.size_hw)), fmt)
    except DataError as error:
        return error
    except Exception as error:
        if is_out_of_memory(error):
            height, width = sample.size_hw
            raise OutOfMemory(
                f"Not enough memory to load the image {sample.image_path} ({width} × {height} pixels). Use fewer --workers "
                "or a smaller --batch-size, or make it smaller."
            ) from error
        return DataError(f"Cannot load the image {sample.image_path}: {type(error).__name__}: {error}.")


def evaluation_images(
    dataset: Dataset,
    image_format: ImageFormat,
    batch_size: int,
    needs_pixels: Callable[[int], bool] | None = None,
    workers: int = 0,
    unreadable: dict[str, str] | None = None,
) -> Iterator[EvalBatch]:
    """Give all images in the order of the data set, whole and at the model's size.

    Args:
        dataset: no images give no batches.
        image_format: the model's image format.
        batch_size: images per batch; the last one may be smaller.
        needs_pixels: sample index -> whether to decode the image. None decodes all.
        workers: threads that decode ahead.
        unreadable: gets the path of each image that cannot be read, and why; the image is left out, and a batch of nothing
            else too. None: such an image is an error.

    Raises:
        DataError: an image cannot be decoded; the message names it.
        OutOfMemory: one does not fit into memory.
    """
    every = range(len(dataset.samples))
    plan = [list(every[begin : begin + batch_size]) for begin in range(0, len(every), batch_size)]
    views = [resize_keep_ratio(sample.size_hw, image_format) for sample in dataset.samples]

    def pixels(index: int) -> Callable[[], Tensor | DataError] | None:
        if needs_pixels is not None and not needs_pixels(index):
            return None
        return partial(decoded, dataset.samples[index], views[index], image_format)

    for indices, images in zip(plan, prefetch(pixels, plan, workers), strict=True):
        kept: list[int] = []
        tensors: list[Tensor | None] = []
        for index, found in zip(indices, images, strict=True):
            if not isinstance(found, DataError):
                kept.append(index)
                tensors.append(found)
            elif unreadable is None:
                raise found
            else:
                unreadable[str(dataset.samples[index].image_path)] = str(found)
        if kept:
            yield EvalBatch(
                [dataset.samples[i] for i in kept], tensors, [views[i].size_hw for i in kept], kept
            )
