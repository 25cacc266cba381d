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
    center, sides = boxes_cxcywh.split(2, dim=-1)
    half = 0.5 * sides
    return torch.cat([center - half, center + half], dim=-1)


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
    return _area(*boxes_xyxy.split(2, dim=-1))


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the IoU (..., N, M), in [0, 1], of all pairs of boxes (..., N, 4) and (..., M, 4)."""
    a_xyxy, b_xyxy = a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3)
    overlap, union = _overlap_and_union(*a_xyxy.split(2, dim=-1), *b_xyxy.split(2, dim=-1))
    return overlap / union


def pairwise_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the GIoU (..., N, M), in [-1, 1], of all pairs of (..., N, 4) and (..., M, 4)."""
    return paired_giou(a_xyxy.unsqueeze(-2), b_xyxy.unsqueeze(-3))


def paired_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the GIoU (...), in [-1, 1], of (..., 4) boxes at the same index, by broadcasting."""
    corners = *a_xyxy.split(2, dim=-1), *b_xyxy.split(2, dim=-1)
    overlap, union = _overlap_and_union(*corners)
    a_left_top, a_right_bottom, b_left_top, b_right_bottom = corners
    left_top = torch.minimum(a_left_top, b_left_top)
    right_bottom = torch.maximum(a_right_bottom, b_right_bottom)
    enclosing = _area(left_top, right_bottom).clamp(min=AREA_EPS)
    return overlap / union - (enclosing - union) / enclosing


def _overlap_and_union(
    a_left_top: Tensor, a_right_bottom: Tensor, b_left_top: Tensor, b_right_bottom: Tensor
) -> tuple[Tensor, Tensor]:
    left_top = torch.maximum(a_left_top, b_left_top)
    right_bottom = torch.minimum(a_right_bottom, b_right_bottom)
    overlap = _area(left_top, right_bottom)
    areas = _area(a_left_top, a_right_bottom) + _area(b_left_top, b_right_bottom)
    return overlap, (areas - overlap).clamp(min=AREA_EPS)


def _area(left_top: Tensor, right_bottom: Tensor) -> Tensor:
    width, height = (right_bottom - left_top).clamp(min=0).unbind(-1)
    return width * height
