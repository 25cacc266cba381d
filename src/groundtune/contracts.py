"""The data that rooms exchange: training targets, image formats, and outputs of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from groundtune.device import move


@dataclass
class Target:
    """Ground truth of one image.

    Attributes:
        boxes_cxcywh: (N, 4) float32 in [0, 1], relative to the resized, unpadded image.
        labels: (N,) int64, index of each box's phrase in the prompt.
        class_ids: (N,) int64, index of each box's class in the data set, or of its phrase in a
            caption; the denoising queries take their labels from it.
        positive_map: (N, max_text_len) bool, the tokens of each box's phrase.
        noise_seed: random seed of the denoising queries.
        confidence: (N,) float32 in (0, 1], the class target and the weight of the box loss: below 1
            for detections of a model that serve as labels. None means 1.
        unlabeled_tokens: (max_text_len,) bool, the tokens of phrases whose objects may have no box.
            None means none.
        host: the target before it was moved to another device.
    """

    boxes_cxcywh: Tensor
    labels: Tensor
    class_ids: Tensor
    positive_map: Tensor
    noise_seed: int
    confidence: Tensor | None = None
    unlabeled_tokens: Tensor | None = None
    host: Target | None = field(default=None, repr=False)

    def to(self, device: torch.device) -> Target:
        """Return the same target with its tensors on a device."""
        return move([self], device)[0]


@dataclass
class ImageFormat:
    """Size and normalization of a model's images; saved with the model.

    Attributes:
        mean: mean of each RGB channel, where white is 1.
        std: standard deviation of each RGB channel.
        short_side: short side in pixels.
        max_side: maximum long side in pixels; it wins over `short_side`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int
    max_side: int


class LayerOutput(TypedDict):
    """Prediction of one layer: `pred_logits` and `pred_boxes` as in `Output`."""

    pred_logits: Tensor
    pred_boxes: Tensor


class Output(LayerOutput):
    """Prediction of the network for B images, Q queries and a prompt of T tokens.

    `pred_logits` is (B, Q, 256) float, −inf outside the text mask. `pred_boxes` is (B, Q, 4) cxcywh
    in [0, 1], relative to the resized, unpadded image. `text_token_mask` is (B, T) bool.
    `aux_outputs` are those of the earlier decoder layers. `enc_outputs` are those of the selected
    encoder proposals, with gradient. Training with denoising and at least one box adds
    `dn_outputs`, one per decoder layer, and `dn_meta` with `num_groups` and `group_size`.
    """

    text_token_mask: Tensor
    aux_outputs: list[LayerOutput]
    enc_outputs: LayerOutput
    dn_outputs: NotRequired[list[LayerOutput]]
    dn_meta: NotRequired[dict[str, int]]
