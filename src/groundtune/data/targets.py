"""What a picture should be detected as: the target of the loss and of the denoising queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Target:
    """Ground truth of one picture in the frame that the network predicts in.

    Attributes:
        boxes_cxcywh: (N, 4) float32 in [0, 1], relative to the resized, unpadded picture (semantics 8).
        labels: (N,) int64, index of each box's phrase in the picture's prompt.
        class_ids: (N,) int64, index of each box's class in the data set, for the denoising labels only.
        positive_map: (N, max_text_len) bool, the tokens of each box's phrase.
        noise_seed: seeds this picture's denoising noise.
    """

    boxes_cxcywh: Tensor
    labels: Tensor
    class_ids: Tensor
    positive_map: Tensor
    noise_seed: int

    def to(self, device: torch.device) -> Target:
        """The same target with its tensors on `device`."""
        return Target(
            self.boxes_cxcywh.to(device),
            self.labels.to(device),
            self.class_ids.to(device),
            self.positive_map.to(device),
            self.noise_seed,
        )
