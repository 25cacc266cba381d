"""The data structures that data, model and loss share, so that these need not know each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor


@dataclass
class Target:
    """Ground truth of one image with N boxes, in the frame of the predictions.

    Attributes:
        boxes_cxcywh: (N, 4) float32 in [0, 1], relative to the resized, unpadded image.
        labels: (N,) int64, index of each box's phrase in the image's prompt.
        class_ids: (N,) int64, index of each box's class in the data set (or of its phrase in a caption), for denoising.
        positive_map: (N, max_text_len) bool, True on the tokens of the box's phrase.
        noise_seed: seed of this image's denoising noise.
        confidence: (N,) float32 in (0, 1], class target and box loss weight of each box: 1 for annotated boxes, less for
            the model's own detections. None if all are 1.
    """

    boxes_cxcywh: Tensor
    labels: Tensor
    class_ids: Tensor
    positive_map: Tensor
    noise_seed: int
    confidence: Tensor | None = None

    def to(self, device: torch.device) -> Target:
        """Return the target with its tensors on `device`."""
        return Target(
            self.boxes_cxcywh.to(device),
            self.labels.to(device),
            self.class_ids.to(device),
            self.positive_map.to(device),
            self.noise_seed,
            None if self.confidence is None else self.confidence.to(device),
        )


@dataclass
class ImageFormat:
    """Input format of a model; stored with the model.

    Attributes:
        mean: of each RGB channel, where white is 1.
        std: of each RGB channel.
        short_side: length of the short side in pixels after resizing,
        max_side: unless the long side would become longer than this.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int
    max_side: int


class LayerOutput(TypedDict):
    """Prediction of one layer: `pred_logits` (B, Q, 256) and `pred_boxes` (B, Q, 4) as in `Output`."""

    pred_logits: Tensor
    pred_boxes: Tensor


class Output(LayerOutput):
    """Prediction of the network.

    `pred_logits` (B, Q, 256) float, −inf outside the text mask; `pred_boxes` (B, Q, 4) cxcywh in [0, 1] relative to the
    resized, unpadded image; `text_token_mask` (B, T) bool; `aux_outputs` of the L − 1 earlier decoder layers;
    `enc_outputs` of the selected encoder proposals, with gradient. In training with denoising and at least one box:
    `dn_outputs`, one per decoder layer, and `dn_meta` with `num_groups` and `group_size`.
    """

    text_token_mask: Tensor
    aux_outputs: list[LayerOutput]
    enc_outputs: LayerOutput
    dn_outputs: NotRequired[list[LayerOutput]]
    dn_meta: NotRequired[dict[str, int]]
