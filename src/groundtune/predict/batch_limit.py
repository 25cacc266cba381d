"""Compute a batch of images in smaller parts where the memory is too small for all at once."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from groundtune.device import is_out_of_memory, release_memory
from groundtune.errors import OutOfMemory, first_line
from groundtune.predict.detect import PAIRS_PER_BATCH, checked

T = TypeVar("T")


@dataclass
class BatchLimit:
    """How many (image, prompt) pairs have room in the memory; every failure halves it, for good.

    An image's results do not depend on the images beside it (but for rounding), so neither do they
    on this limit.
    """

    pairs: int = sys.maxsize

    def run(
        self, compute: Callable[[slice, int], list[T]], images: int, prompts: int, device: torch.device
    ) -> list[T]:
        """Return the results of a batch of images with so many prompts each.

        `compute` returns one result for each image of a slice, and computes at most so many pairs
        at a time. It is `checked`.

        Raises:
            OutOfMemory: there is no room for one image with one prompt.
        """
        results: list[T] = []
        while len(results) < images:
            part = slice(len(results), min(images, len(results) + self.pairs))
            try:
                results += checked(partial(compute, part, self.pairs), device)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # out of the handler: the error refers to all tensors of the failed part
            count = part.stop - part.start
            self._halve(min(self.pairs, max(count, min(count * prompts, PAIRS_PER_BATCH))), reason)
        return results

    def _halve(self, pairs: int, reason: str) -> None:
        release_memory()
        if pairs == 1:
            raise OutOfMemory(
                f"Out of memory with a single image and prompt ({reason}): save memory with --precision "
                "bf16 or a model of a smaller image size, or use --device cpu."
            )
        self.pairs = pairs // 2
        logging.getLogger("groundtune").warning(
            f"Out of memory with {pairs} images or prompts at a time ({reason}): from now on {self.pairs}, "
            "with the same results. A smaller --batch-size avoids this message."
        )
