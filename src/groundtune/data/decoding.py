"""Decoded pictures: of one view, and batch by batch those of an evaluation.

A picture that cannot be read is a `DataError` that is given in place of raised: what to do about it is the business of who
asked. An error that nobody expects of a decoder is the same; too little memory is not the picture's fault.
"""

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from groundtune.data.batch import EvalBatch
from groundtune.data.prefetch import in_background
from groundtune.data.sample import Dataset, Sample
from groundtune.data.transforms import PictureFormat, PictureView, load_picture, resize_keep_ratio, to_tensor
from groundtune.device import is_out_of_memory
from groundtune.errors import DataError, OutOfMemory


def decoded(sample: Sample, view: PictureView, fmt: PictureFormat) -> Tensor | DataError:
    """Give the normalised pixels of a view, or why there are none.

    Raises:
        OutOfMemory: the picture does not fit into memory. This and the error that is given name the picture.
    """
    try:
        return to_tensor(view.picture(load_picture(sample.image_path, sample.size_hw)), fmt)
    except DataError as error:
        return error
    except Exception as error:
        if is_out_of_memory(error):
            height, width = sample.size_hw
            raise OutOfMemory(
                f"Not enough memory to load the picture {sample.image_path} ({width} × {height} pixels). Use fewer --workers "
                "or a smaller --batch-size, or make it smaller."
            ) from error
        return DataError(f"Cannot load the picture {sample.image_path}: {type(error).__name__}: {error}.")


def evaluation_pictures(
    dataset: Dataset,
    picture: PictureFormat,
    batch_size: int,
    needs_pixels: Callable[[int], bool] | None = None,
    workers: int = 0,
    unreadable: dict[str, str] | None = None,
) -> Iterator[EvalBatch]:
    """Give all pictures in the order of the data set, whole and at the model's size.

    Args:
        dataset: no pictures give no batches.
        picture: the model's picture format.
        batch_size: pictures per batch; the last one may be smaller.
        needs_pixels: sample index -> whether to decode the picture. None decodes all.
        workers: threads that decode ahead.
        unreadable: gets the path of each picture that cannot be read, and why; the picture is left out, and a batch of nothing
            else too. None: such a picture is an error.

    Raises:
        DataError: a picture cannot be decoded; the message names it.
        OutOfMemory: one does not fit into memory.
    """
    every = range(len(dataset.samples))
    plan = [list(every[begin : begin + batch_size]) for begin in range(0, len(every), batch_size)]
    views = [resize_keep_ratio(sample.size_hw, picture) for sample in dataset.samples]

    def pixels(index: int) -> Callable[[], Tensor | DataError] | None:
        if needs_pixels is not None and not needs_pixels(index):
            return None
        return partial(decoded, dataset.samples[index], views[index], picture)

    for indices, pictures in zip(plan, in_background(pixels, plan, workers), strict=True):
        kept: list[int] = []
        tensors: list[Tensor | None] = []
        for index, found in zip(indices, pictures, strict=True):
            if not isinstance(found, DataError):
                kept.append(index)
                tensors.append(found)
            elif unreadable is None:
                raise found
            else:
                unreadable[str(dataset.samples[index].image_path)] = str(found)
        if kept:
            yield EvalBatch([dataset.samples[i] for i in kept], tensors, [views[i].size_hw for i in kept], kept)
