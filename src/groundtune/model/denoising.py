"""Contrastive denoising queries (Zhang et al., 2023, section 3.3; MMDetection `CdnQueryGenerator`).

In training the decoder gets extra queries that start at noised ground-truth boxes. Positives, moved
by less than half a side, must return to their box; negatives, moved by more, must predict nothing.
A group is M positives, then M negatives, where M is the largest number of boxes of an image; groups
repeat this with new noise. Query i belongs to box i; queries past an image's own boxes are
background. M counts the full batch, however it is split over micro-batches or processes.

Deviation: the noise of an image comes from the image's own seed rather than from one stream over
the batch, so that it does not depend on which images share the batch.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundtune.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from groundtune.contracts import Target
from groundtune.device import to_device

LABEL_FLIP_PROBABILITY = 0.25
NUM_DENOISING = 100


@dataclass
class DenoisingQueries:
    """Queries that are put before the matching queries."""

    content: Tensor  # (B, G·2M + padding, D)
    boxes_cxcywh: Tensor  # (B, G·2M + padding, 4) in [0, 1]
    num_groups: int  # G
    group_size: int  # 2M
    padding: int = 0  # queries at the end that no other query sees, and that no loss counts


def denoising_queries(
    targets: list[Target], label_embedding: nn.Embedding, max_boxes: int | None = None
) -> DenoisingQueries | None:
    """Make noised copies of the ground truth; None if no image of the batch has a box.

    The label embedding has a row per class of the data set; class ids past its end wrap around.
    `max_boxes` is the M of the whole batch; None takes the maximum of these images.
    """
    max_boxes = max(len(target.boxes_cxcywh) for target in targets) if max_boxes is None else max_boxes
    if max_boxes == 0:
        return None
    groups = max(1, NUM_DENOISING // max_boxes)
    device, dtype = label_embedding.weight.device, label_embedding.weight.dtype
    labels = torch.zeros(len(targets), groups, 2, max_boxes, dtype=torch.long)
    boxes = torch.full((len(targets), groups, 2, max_boxes, 4), 0.5)
    used = torch.zeros(len(targets), 1, 1, max_boxes, dtype=torch.bool)
    for row, target in enumerate(targets):
        count = len(target.boxes_cxcywh)
        generator = torch.Generator().manual_seed(target.noise_seed)
        noised = _noised(target.host or target, groups, label_embedding.num_embeddings, generator)
        labels[row, ..., :count], boxes[row, ..., :count, :] = noised
        used[row, ..., :count] = True
    labels, used, boxes = to_device([labels, used[..., None], boxes.to(dtype)], device)
    content = (label_embedding(labels) * used).flatten(1, 3)
    return DenoisingQueries(content, boxes.flatten(1, 3), groups, 2 * max_boxes)


def pad_denoising(denoising: DenoisingQueries, num_queries: int) -> DenoisingQueries:
    """Pad up to 100 boxes per image to one number of queries, so that batches have few shapes.

    With the matching queries their number is a multiple of 8, as the attention of GPUs wants it.
    """
    count = denoising.content.shape[1]
    fill = -(-(max(count, 2 * NUM_DENOISING) + num_queries) // 8) * 8 - num_queries - count
    content = F.pad(denoising.content, (0, 0, 0, fill))
    boxes = F.pad(denoising.boxes_cxcywh, (0, 0, 0, fill), value=0.5)
    return replace(denoising, content=content, boxes_cxcywh=boxes, padding=fill)


def _noised(
    target: Target, groups: int, num_labels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return labels (G, 2, N), a quarter flipped, and boxes (G, 2, N, 4), positives first."""
    shape = (groups, 2, len(target.boxes_cxcywh))
    labels = (target.class_ids.cpu() % num_labels).expand(shape)
    flip = torch.rand(shape, generator=generator) < LABEL_FLIP_PROBABILITY
    labels = torch.where(flip, torch.randint(num_labels, shape, generator=generator), labels)
    boxes = target.boxes_cxcywh.cpu().float()
    half_sides = (boxes[:, 2:] / 2).repeat(1, 2)  # of both corners
    amount = torch.rand((*shape, 4), generator=generator)
    amount[:, 1] += 1.0  # negatives
    sign = torch.randint(2, (*shape, 4), generator=generator) * 2 - 1
    corners = (cxcywh_to_xyxy(boxes) + sign * amount * half_sides).clamp(0, 1)
    return labels, xyxy_to_cxcywh(corners).clamp(min=0)  # corners of a negative may pass each other


def denoising_attention(denoising: DenoisingQueries, num_queries: int, device: torch.device) -> Tensor:
    """Return who may attend to whom: (Qdn + Q, Qdn + Q) bool, True = may.

    Matching queries never see denoising queries, which see them; groups never see each other.
    """
    total_denoising = denoising.num_groups * denoising.group_size + denoising.padding
    index = torch.arange(total_denoising + num_queries, device=device)
    group, matching = index // denoising.group_size, index >= total_denoising
    return matching[None] | (~matching[:, None] & (group[:, None] == group[None]))


def allowed_attention(
    absent: Tensor | None, denoising: DenoisingQueries | None, num_queries: int, device: torch.device
) -> Tensor | None:
    """Return the decoder's self-attention mask, broadcastable to (B, heads, Qdn + Q, Qdn + Q)."""
    allowed = denoising_attention(denoising, num_queries, device) if denoising is not None else None
    if absent is None:
        return allowed
    total = num_queries if allowed is None else len(allowed)
    present = F.pad(~absent, (total - num_queries, 0), value=True)[:, None, None]
    itself = torch.eye(total, dtype=torch.bool, device=device)
    return (present if allowed is None else present & allowed) | itself
