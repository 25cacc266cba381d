"""What the loaders give out: images of several sizes, side by side until a canvas is asked for.

What an image should be detected as: the target of the loss and of the denoising queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from groundtune.contracts import Target
from groundtune.data.sample import Sample
from groundtune.data.transforms import ImageView
from groundtune.text.prompt import Prompt
from groundtune.text.tokens import TextInput


def make_target(
    sample: Sample, geometry: ImageView, prompt_classes: Sequence[int], phrase_map: Tensor, noise_seed: int
) -> Target:
    """Say what is to be found in a view of an image under a prompt.

    Args:
        sample: the image; crowd boxes are left out.
        geometry: the view.
        prompt_classes: for each of the C phrases its class. Boxes of other classes are left out.
        phrase_map: (C, max_text_len) bool.
        noise_seed: passed on.

    Returns:
        The N boxes that are left; N = 0 gives empty tensors of the right widths.
    """
    label_of = {c: label for label, c in enumerate(prompt_classes)}
    wanted = trained_boxes(sample, geometry) & np.isin(sample.class_ids, list(label_of))
    boxes_xyxy, _ = geometry.boxes(sample.boxes_xyxy[wanted])
    height, width = geometry.size_hw  # of this image alone, not of the batch's canvas
    corners = (boxes_xyxy.astype(np.float64) / [width, height, width, height]).clip(0.0, 1.0)
    boxes_cxcywh = np.concatenate(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1
    )
    class_ids = sample.class_ids[wanted]
    labels = torch.tensor([label_of[int(c)] for c in class_ids], dtype=torch.long)
    return Target(
        boxes_cxcywh=torch.from_numpy(boxes_cxcywh.astype(np.float32)),
        labels=labels,
        class_ids=torch.from_numpy(class_ids.astype(np.int64)),
        positive_map=phrase_map[labels],
        noise_seed=noise_seed,
        confidence=None if sample.confidence is None else torch.from_numpy(sample.confidence[wanted]),
    )


def trained_boxes(sample: Sample, geometry: ImageView) -> np.ndarray:
    """Say which of the image's N boxes are trained on in a view: (N,) bool, False for crowds and what is cropped away."""
    trained: np.ndarray = geometry.boxes(sample.boxes_xyxy)[1] & ~sample.crowd
    return trained


@dataclass
class Batch:
    """B entries: an image, its prompt and its target each. All lists have length B, which is 0 where a process has no share.

    Attributes:
        images: (3, h, w) float32 normalized, unpadded; None where `needs_pixels` said no.
        sizes_hw: pixels of the resized unpadded images, known for all.
        text: the B prompts, padded to the longest.
        phrase_maps: (C_b, max_text_len) bool each, the tokens of each phrase.
        prompts: the prompts as text.
        prompt_classes: for each phrase its index in the data set's class list; of a caption its number in the caption.
        targets: boxes, labels and noise seeds.
        samples: the records that the entries were made from.
        indices: their places in `Dataset.samples`.
        views: which view of the image it is.
        unreadable: path of each image that was to be in the batch and cannot be read, and why.
    """

    images: list[Tensor | None]
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

    def split(self, size: int) -> list[Batch]:
        """Give parts of `size` entries, the last one of what is left, each with its own padding."""
        return [self._rows(slice(begin, begin + size)) for begin in range(0, len(self.targets), size)]

    def _rows(self, rows: slice) -> Batch:
        return Batch(
            images=self.images[rows],
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

    def canvas(self) -> Tensor:
        """Pad the images into one (B, 3, H, W) float32 canvas. `ValueError` where one was not decoded."""
        return pad_images(self.images)

    def to(self, device: torch.device) -> Batch:
        """Give the same batch with all tensors on `device`."""
        return replace(
            self,
            images=[None if image is None else image.to(device) for image in self.images],
            text=self.text.to(device),
            phrase_maps=[phrase_map.to(device) for phrase_map in self.phrase_maps],
            targets=[target.to(device) for target in self.targets],
        )


class EvalBatch(NamedTuple):
    """Images in the order of the data set, whole and unflipped; the fields are as in `Batch`."""

    samples: list[Sample]
    images: list[Tensor | None]
    sizes_hw: list[tuple[int, int]]
    indices: list[int]


def pad_images(images: Sequence[Tensor | None]) -> Tensor:
    """Put images of different sizes on one canvas.

    Args:
        images: B of (3, h, w), at least one.

    Returns:
        (B, 3, H, W): each image at the top left, zeros to its right and below.

    Raises:
        ValueError: an image is None, that is, was not decoded.
    """
    decoded = [image for image in images if image is not None]
    if len(decoded) < len(images):
        raise ValueError(
            "an image of this batch was not decoded: needs_pixels said that its pixels are not needed"
        )
    height = max(image.shape[1] for image in decoded)
    width = max(image.shape[2] for image in decoded)
    canvas = decoded[0].new_zeros(len(decoded), 3, height, width)
    for place, image in zip(canvas, decoded, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return canvas
