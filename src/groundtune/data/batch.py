"""What the loaders give out: pictures of several sizes, side by side until a canvas is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from groundtune.data.sample import Sample
from groundtune.data.targets import Target
from groundtune.text.prompt import Prompt
from groundtune.text.tokens import TextInput


@dataclass
class Batch:
    """B entries: a picture, its prompt and its target each. All lists have length B, which is 0 where a process has no share.

    Attributes:
        pictures: (3, h, w) float32 normalised, unpadded; None where `needs_pixels` said no.
        sizes_hw: pixels of the resized unpadded pictures, known for all.
        text: the B prompts, padded to the longest.
        phrase_maps: (C_b, max_text_len) bool each, the tokens of each phrase.
        prompts: the prompts as text.
        prompt_classes: for each phrase its index in the data set's class list; of a caption its number in the caption.
        targets: boxes, labels and noise seeds.
        samples: the records that the entries were made from.
        indices: their places in `Dataset.samples`.
        views: which view of the picture it is.
        unreadable: path of each picture that was to be in the batch and cannot be read, and why.
    """

    pictures: list[Tensor | None]
    sizes_hw: list[tuple[int, int]]
    text: TextInput
    phrase_maps: list[Tensor]
    prompts: list[Prompt]
    prompt_classes: list[Sequence[int]]
    targets: list[Target]
    samples: list[Sample]
    indices: list[int]
    views: list[int]
    unreadable: dict[str, str] = field(default_factory=dict)

    def split(self, size: int) -> list["Batch"]:
        """Give parts of `size` entries, the last one of what is left, each with its own padding."""
        return [self._rows(slice(begin, begin + size)) for begin in range(0, len(self.targets), size)]

    def _rows(self, rows: slice) -> "Batch":
        return Batch(
            pictures=self.pictures[rows],
            sizes_hw=self.sizes_hw[rows],
            text=self.text.rows(rows),
            phrase_maps=self.phrase_maps[rows],
            prompts=self.prompts[rows],
            prompt_classes=self.prompt_classes[rows],
            targets=self.targets[rows],
            samples=self.samples[rows],
            indices=self.indices[rows],
            views=self.views[rows],
        )

    def images(self) -> Tensor:
        """Pad the pictures into one (B, 3, H, W) float32 canvas. `ValueError` where one was not decoded."""
        return pad_pictures(self.pictures)

    def to(self, device: torch.device) -> "Batch":
        """Give the same batch with all tensors on `device`."""
        return replace(
            self,
            pictures=[None if picture is None else picture.to(device) for picture in self.pictures],
            text=self.text.to(device),
            phrase_maps=[phrase_map.to(device) for phrase_map in self.phrase_maps],
            targets=[target.to(device) for target in self.targets],
        )


class EvalBatch(NamedTuple):
    """Pictures in the order of the data set, whole and unflipped; the fields are as in `Batch`."""

    samples: list[Sample]
    pictures: list[Tensor | None]
    sizes_hw: list[tuple[int, int]]
    indices: list[int]


def pad_pictures(pictures: Sequence[Tensor | None]) -> Tensor:
    """Put pictures of different sizes on one canvas.

    Args:
        pictures: B of (3, h, w), at least one.

    Returns:
        (B, 3, H, W): each picture at the top left, zeros to its right and below.

    Raises:
        ValueError: a picture is None, that is, was not decoded.
    """
    decoded = [picture for picture in pictures if picture is not None]
    if len(decoded) < len(pictures):
        raise ValueError("a picture of this batch was not decoded: needs_pixels said that its pixels are not needed")
    height = max(picture.shape[1] for picture in decoded)
    width = max(picture.shape[2] for picture in decoded)
    canvas = decoded[0].new_zeros(len(decoded), 3, height, width)
    for place, picture in zip(canvas, decoded, strict=True):
        place[:, : picture.shape[1], : picture.shape[2]] = picture
    return canvas
