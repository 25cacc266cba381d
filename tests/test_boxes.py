"""Box formats and overlaps against hand calculations and counted grid cells."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundtune.boxes import (
    box_area,
    cxcywh_to_xyxy,
    paired_giou,
    pairwise_giou,
    pairwise_iou,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

corner = st.integers(0, 12)
boxes_on_grid = st.tuples(corner, corner, corner, corner).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


def _cells(box):
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def test_formats_by_hand():
    xyxy = torch.tensor([[1.0, 2.0, 5.0, 10.0]])
    assert xyxy_to_cxcywh(xyxy).tolist() == [[3, 6, 4, 8]]
    assert cxcywh_to_xyxy(torch.tensor([3.0, 6.0, 4.0, 8.0])).tolist() == [1, 2, 5, 10]
    assert xyxy_to_xywh(xyxy).tolist() == [[1, 2, 4, 8]]
    assert xywh_to_xyxy(torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])).tolist() == [[[1, 2, 5, 10]]]
    assert box_area(torch.tensor([[1.0, 2.0, 5.0, 10.0], [5.0, 5.0, 4.0, 4.0]])).tolist() == [32, 0]


@pytest.mark.parametrize("function", [xyxy_to_cxcywh, cxcywh_to_xyxy, xyxy_to_xywh, xywh_to_xyxy])
def test_no_boxes_give_no_boxes(function):
    assert function(torch.zeros(2, 0, 4)).shape == (2, 0, 4)
    assert pairwise_giou(torch.zeros(3, 4), torch.zeros(0, 4)).shape == (3, 0)


@given(st.lists(boxes_on_grid, min_size=1, max_size=4), st.lists(boxes_on_grid, min_size=1, max_size=4))
def test_iou_and_giou_against_counted_cells(first, second):
    a, b = torch.tensor(first).double(), torch.tensor(second).double()
    iou, giou = pairwise_iou(a, b), pairwise_giou(a, b)
    for i, box in enumerate(first):
        for j, other in enumerate(second):
            overlap, union = len(_cells(box) & _cells(other)), len(_cells(box) | _cells(other))
            enclosing = (max(box[2], other[2]) - min(box[0], other[0])) * (
                max(box[3], other[3]) - min(box[1], other[1])
            )
            expected = overlap / union if union else 0.0
            assert iou[i, j].item() == pytest.approx(expected, abs=1e-6)
            penalty = (enclosing - union) / enclosing if enclosing else 0.0
            assert giou[i, j].item() == pytest.approx(expected - penalty, abs=1e-6)
            assert paired_giou(a[i], b[j]).item() == pytest.approx(giou[i, j].item())


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.3], [0.5, 0.5, 0.3, 0.0]])
def test_a_box_without_area_has_a_finite_giou_and_gradient(box):
    predicted = torch.tensor([box], requires_grad=True)
    giou = paired_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(torch.tensor([box])))
    giou.sum().backward()
    assert giou.item() == 0
    assert torch.isfinite(predicted.grad).all()
