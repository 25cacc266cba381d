"""Training batches and evaluation batches: images, prompts and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from groundtune.contracts import ImageFormat, Target
from groundtune.data.sample import Sample
from groundtune.data.transforms import ImageView, normalize
from groundtune.device import move, to_device
from groundtune.text.prompt import Prompt
from groundtune.text.tokens import TextInput

_Image = TypeVar("_Image", Tensor, Tensor | None)


@dataclass
class Batch:
    """B entries of an image, its prompt and its target. All lists have length B, which can be 0."""

    images: list[Tensor | None]  # (3, h, w) unpadded, float32 normalized or uint8; None if not needed
    sizes_hw: list[tuple[int, int]]  # pixels of the unpadded images, known for all
    text: TextInput  # the prompts, padded to the longest
    prompts: list[Prompt]
    targets: list[Target]
    samples: list[Sample]
    indices: list[int]  # of the images in `Dataset.samples`
    views: list[int]  # number of the view of each image
    unreadable: dict[str, str] = field(default_factory=dict)  # path of an image, and the reason

    def split(self, size: int) -> list[Batch]:
        """Split into batches of at most `size` entries, each with its own padding."""
        lists = ("images", "sizes_hw", "prompts", "targets", "samples", "indices", "views")
        parts = [slice(begin, begin + size) for begin in range(0, len(self.targets), size)]
        return [
            replace(
                self,
                text=self.text.rows(part),
                unreadable={},
                **{name: getattr(self, name)[part] for name in lists},
            )
            for part in parts
        ]

    def canvas(self) -> Tensor:
        """Return the padded images, (B, 3, H, W), as `pad_images`."""
        return pad_images(self.images)

    def unlabeled_tokens(self) -> Tensor | None:
        """Return (B, T) bool, `Target.unlabeled_tokens` of all images; None if no image has any."""
        mask = self.text.text_token_mask
        rows = [target.unlabeled_tokens for target in self.targets]
        if all(row is None for row in rows):
            return None
        return torch.stack(
            [torch.zeros_like(mask[0]) if row is None else row[: mask.shape[1]] for row in rows]
        )

    def normalized(self, fmt: ImageFormat) -> Batch:
        """Return the batch with its uint8 images normalized."""
        return replace(self, images=normalize_images(self.images, fmt))

    def to(self, device: torch.device) -> Batch:
        """Return the batch with all tensors on `device`."""
        return replace(
            self,
            images=move_images(self.images, device),
            text=self.text.to(device),
            targets=move(self.targets, device),
        )


class EvalBatch(NamedTuple):
    """Whole, unflipped images in the order of the data set. The fields are those of `Batch`."""

    samples: list[Sample]
    images: list[Tensor | None]
    sizes_hw: list[tuple[int, int]]
    indices: list[int]


def move_images(images: Sequence[_Image], device: torch.device) -> list[_Image]:
    """Return images on a device, as `to_device`; None stays."""
    moved = iter(to_device([image for image in images if image is not None], device))
    return [None if image is None else next(moved) for image in images]


def normalize_images(images: Sequence[_Image], fmt: ImageFormat) -> list[_Image]:
    """Normalize the images that are uint8; None stays."""
    return [None if image is None else normalize(image, fmt) for image in images]


def pad_images(images: Sequence[Tensor | None]) -> Tensor:
    """Pad B > 0 images (3, h, w) with zeros, at the right and the bottom, to (B, 3, H, W).

    Raises:
        ValueError: an image was not decoded (None).
    """
    decoded = [image for image in images if image is not None]
    if len(decoded) < len(images):
        raise ValueError("An image of this batch was not decoded, because `needs_pixels` returned False.")
    height, width = (max(image.shape[axis] for image in decoded) for axis in (1, 2))
    padded = decoded[0].new_zeros(len(decoded), 3, height, width)
    for row, image in zip(padded, decoded, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return padded


def make_target(
    sample: Sample, view: ImageView, prompt_classes: Sequence[int], phrase_map: Tensor, noise_seed: int
) -> Target:
    """Make the target of a view of an image under a prompt; N = 0 gives empty tensors.

    Crowd boxes are ignored, and boxes of other classes than the `prompt_classes` of the C phrases.
    `phrase_map` is (C, max_text_len) bool, the tokens of each phrase.
    """
    label_of = {c: label for label, c in enumerate(prompt_classes)}
    used = trained_boxes(sample, view) & np.isin(sample.class_ids, list(label_of))
    boxes_xyxy, _ = view.boxes(sample.boxes_xyxy[used])
    height, width = view.size_hw  # of this image alone, without the padding of its batch
    corners = (boxes_xyxy.astype(np.float64) / [width, height, width, height]).clip(0.0, 1.0)
    low, high = corners[:, :2], corners[:, 2:]
    boxes_cxcywh = np.concatenate([(low + high) / 2, high - low], axis=1)
    class_ids = sample.class_ids[used]
    labels = torch.tensor([label_of[int(c)] for c in class_ids], dtype=torch.long)
    unlabeled = None
    if sample.exhaustive is not None and sample.grounding is None:
        unlabeled = phrase_map[[c not in sample.exhaustive for c in prompt_classes]].any(0)
    return Target(
        boxes_cxcywh=torch.from_numpy(boxes_cxcywh.astype(np.float32)),
        labels=labels,
        class_ids=torch.from_numpy(class_ids.astype(np.int64)),
        positive_map=phrase_map[labels],
        noise_seed=noise_seed,
        confidence=None if sample.confidence is None else torch.from_numpy(sample.confidence[used]),
        unlabeled_tokens=unlabeled,
    )


def trained_boxes(sample: Sample, view: ImageView) -> np.ndarray:
    """Return (N,) bool, True for the boxes that are neither crowds nor cropped away."""
    return view.boxes(sample.boxes_xyxy)[1] & ~sample.crowd
