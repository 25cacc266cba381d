"""Convert box formats, and compute IoU and GIoU (Rezatofighi et al., 2019).

`xyxy` is (left, top, right, bottom), `xywh` (left, top, width, height), `cxcywh` (center x, center
y, width, height). All functions take any leading dimensions, any unit, and also no boxes.

Deviation from torchvision and transformers: union and enclosing area are at least `AREA_EPS`, so
that two equal boxes without area give 0 with a finite gradient instead of 0 / 0. MMDetection does
the same at 1e-6 square pixels. Boxes are in [0, 1] here, where `AREA_EPS` is less than a twentieth
of a pixel in an image of 1333 pixels.
"""

import torch
from torch import Tensor

AREA_EPS = 1e-9


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert (..., 4) boxes from center and size to corners."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert (..., 4) boxes from corners to center and size."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """Convert (..., 4) boxes from left top corner and size to corners."""
    x, y, w, h = boxes_xywh.unbind(-1)
    return torch.stack([x, y, x + w, y + h], dim=-1)


def xyxy_to_xywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert (..., 4) boxes from corners to left top corner and size."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack([x1, y1, x2 - x1, y2 - y1], dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Return the areas (...) of (..., 4) boxes, 0 where a side is negative."""
    width_height = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return width_height[..., 0] * width_height[..., 1]


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the IoU (..., N, M), in [0, 1], of all pairs of boxes (..., N, 4) and (..., M, 4)."""
    overlap, union = _overlap_and_union(a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3))
    return overlap / union


def pairwise_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the GIoU (..., N, M), in [-1, 1], of all pairs of (..., N, 4) and (..., M, 4)."""
    return paired_giou(a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3))


def paired_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the GIoU (...), in [-1, 1], of (..., 4) boxes at the same index, by broadcasting."""
    overlap, union = _overlap_and_union(a_xyxy, b_xyxy)
    left_top = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    right_bottom = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    enclosing = box_area(torch.cat([left_top, right_bottom], dim=-1)).clamp(min=AREA_EPS)
    return overlap / union - (enclosing - union) / enclosing


def _overlap_and_union(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    left_top = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    right_bottom = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    overlap = box_area(torch.cat([left_top, right_bottom], dim=-1))
    union = (box_area(a_xyxy) + box_area(b_xyxy) - overlap).clamp(min=AREA_EPS)
    return overlap, union
