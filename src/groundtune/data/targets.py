"""What a picture should be detected as: the target of the loss and of the denoising queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from groundtune.data.sample import Sample
from groundtune.data.transforms import PictureView


@dataclass
class Target:
    """Ground truth of one picture in the frame that the network predicts in.

    Attributes:
        boxes_cxcywh: (N, 4) float32 in [0, 1], relative to the resized, unpadded picture (semantics 8).
        labels: (N,) int64, index of each box's phrase in the picture's prompt.
        class_ids: (N,) int64, index of each box's class in the data set (of a caption its phrase), for the denoising labels
            only.
        positive_map: (N, max_text_len) bool, the tokens of each box's phrase.
        noise_seed: seeds this picture's denoising noise.
        confidence: (N,) float32 in (0, 1]: what the class of each box is taught as, and the weight of its box loss. 1 for
            boxes that people drew, below for a model's own detections. None where all are 1.
    """

    boxes_cxcywh: Tensor
    labels: Tensor
    class_ids: Tensor
    positive_map: Tensor
    noise_seed: int
    confidence: Tensor | None = None

    def to(self, device: torch.device) -> Target:
        """The same target with its tensors on `device`."""
        return Target(
            self.boxes_cxcywh.to(device),
            self.labels.to(device),
            self.class_ids.to(device),
            self.positive_map.to(device),
            self.noise_seed,
            None if self.confidence is None else self.confidence.to(device),
        )


def make_target(
    sample: Sample, geometry: PictureView, prompt_classes: Sequence[int], phrase_map: Tensor, noise_seed: int
) -> Target:
    """Say what is to be found in a view of a picture under a prompt.

    Args:
        sample: the picture; crowd boxes are left out.
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
    height, width = geometry.size_hw  # of this picture alone, not of the batch's canvas
    corners = (boxes_xyxy.astype(np.float64) / [width, height, width, height]).clip(0.0, 1.0)
    boxes_cxcywh = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
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


def trained_boxes(sample: Sample, geometry: PictureView) -> np.ndarray:
    """Say which of the picture's N boxes are trained on in a view: (N,) bool, False for crowds and what is cropped away."""
    trained: np.ndarray = geometry.boxes(sample.boxes_xyxy)[1] & ~sample.crowd
    return trained
