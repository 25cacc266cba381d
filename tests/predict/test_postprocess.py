"""Class scores and the ranking of detections by hand (docs/semantics.md, rules 23 and 24)."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundtune.predict.postprocess import ImageDetections, Selection, class_scores, top_detections

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    import supervision as sv

INF = float("inf")


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def phrase_map(*rows: list[int]) -> torch.Tensor:
    result = torch.zeros(len(rows), 256, dtype=torch.bool)
    for row, tokens in zip(result, rows, strict=True):
        row[tokens] = True
    return result


def test_score_is_the_mean_of_the_sigmoid_over_the_class_tokens() -> None:
    logits = torch.full((1, 2, 256), -INF)
    logits[0, 0, :5] = torch.tensor([logit(p) for p in (0.9, 0.2, 0.4, 0.9, 0.7)])
    logits[0, 1, :5] = torch.tensor([logit(p) for p in (0.5, 0.1, 0.1, 0.5, 0.3)])
    classes = phrase_map([1, 2], [4])
    assert class_scores(logits, classes)[0] == pytest.approx(torch.tensor([[0.3, 0.7], [0.1, 0.3]]))
    assert class_scores(logits, classes, "max")[0] == pytest.approx(torch.tensor([[0.4, 0.7], [0.1, 0.3]]))


@pytest.mark.parametrize("score_reduction", ["mean", "max"])
def test_a_class_without_a_token_scores_zero_not_nan(score_reduction) -> None:
    logits = torch.full((1, 3, 256), -INF)
    logits[..., :4] = 1.0
    scores = class_scores(logits, phrase_map([1, 2], []), score_reduction)
    assert scores.shape == (1, 3, 2)
    assert (scores[..., 1] == 0).all() and scores.isfinite().all()
    assert class_scores(logits, phrase_map(), score_reduction).shape == (1, 3, 0)


def test_boxes_are_original_pixels_xyxy_clipped() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.4, 0.4]])
    detections = top_detections([torch.tensor([[0.2], [0.8]])], [boxes], [[0]], (200, 400))
    assert detections.scores.tolist() == pytest.approx([0.8, 0.2])
    assert detections.boxes_xyxy.tolist() == [
        pytest.approx([280, 0, 400, 60], abs=1e-3),
        pytest.approx([100, 50, 300, 150]),
    ]


def test_one_query_may_be_several_classes_and_nothing_is_suppressed() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
    detections = top_detections([torch.tensor([[0.9, 0.8], [0.7, 0.1]])], [boxes], [[4, 2]], (10, 10))
    assert detections.class_indices.tolist() == [4, 2, 4, 2]
    assert detections.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.1])


def test_fewer_pairs_than_the_limit() -> None:
    detections = top_detections([torch.rand(7, 2)], [torch.rand(7, 4)], [[0, 1]], (10, 10))
    assert detections.scores.shape == (14,)
    many = top_detections([torch.rand(200, 2)], [torch.rand(200, 4)], [[0, 1]], (10, 10))
    assert many.scores.shape == (300,) and (many.scores.diff() <= 0).all()
    none = top_detections([torch.rand(7, 0)], [torch.rand(7, 4)], [[]], (10, 10))
    assert none.boxes_xyxy.shape == (0, 4)


def test_prompts_of_one_image_compete_in_one_ranking() -> None:
    torch.manual_seed(0)
    scores, boxes = torch.rand(90, 8), torch.rand(90, 4)
    whole = top_detections([scores], [boxes], [list(range(8))], (480, 640))
    chunked = top_detections(
        [scores[:, :5], scores[:, 5:]], [boxes, boxes], [list(range(5)), [5, 6, 7]], (480, 640)
    )
    assert len(chunked.scores) == 300
    assert torch.equal(whole.scores, chunked.scores)
    assert torch.equal(whole.class_indices, chunked.class_indices)
    assert torch.equal(whole.boxes_xyxy, chunked.boxes_xyxy)


def test_scores_are_float32_under_autocast_too() -> None:
    logits = torch.randn(5, 256)
    maps = torch.zeros(2, 256, dtype=torch.bool)
    maps[0, 1:3], maps[1, 4] = True, True
    plain = class_scores(logits, maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_scores(logits, maps), plain)
    assert plain.dtype == torch.float32


def found(boxes: list[list[float]], scores: list[float], classes: list[int]) -> ImageDetections:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return ImageDetections(rows, torch.tensor(scores), torch.tensor(classes, dtype=torch.long))


def kept(detections: ImageDetections, *selection: Any) -> list[float]:
    return [round(score, 3) for score in Selection(*selection).apply(detections).scores.tolist()]


def test_suppression_by_hand() -> None:
    """IoUs: a box of 10 x 10 with its left 6 x 10 has .6, with its left 8 x 10 .8; these two .75."""
    boxes = [[0, 0, 10, 10], [0, 0, 6, 10], [0, 0, 8, 10], [50, 50, 50, 60], [50, 50, 50, 60]]
    detections = found(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [0, 1, 0, 0, 0])
    assert kept(detections, None, False, None) == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert kept(detections, 0.7, False, None) == [0.9, 0.8, 0.6, 0.5]
    assert kept(detections, 0.8, False, None) == [0.9, 0.8, 0.7, 0.6, 0.5]  # an IoU of exactly .8 is kept
    assert kept(detections, 0.7, True, None) == [0.9, 0.8, 0.6, 0.5]
    assert kept(detections, 0.5, True, None) == [0.9, 0.6, 0.5]
    assert kept(detections, 0.5, True, 2) == [0.9, 0.6]  # the limit comes after the suppression
    assert kept(detections, None, False, 1) == [0.9]
    assert kept(found([], [], []), 0.5, True, 5) == []


def test_what_was_suppressed_suppresses_nothing() -> None:
    boxes = [[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]]  # neighbors .54, the outer ones .25
    assert kept(found(boxes, [0.9, 0.8, 0.7], [0, 0, 0]), 0.5, False, None) == [0.9, 0.7]


@given(st.integers(0, 10_000), st.floats(0, 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_suppression_equals_that_of_supervision(seed: int, threshold: float, agnostic: bool) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 60))
    corners = rng.uniform(0, 40, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 40, (count, 2))], 1).astype(np.float32)
    scores = np.sort(rng.permutation(1000)[:count])[::-1].astype(np.float32) / 1000
    classes = rng.integers(0, 3, count)
    theirs = sv.Detections(boxes, confidence=scores, class_id=classes).with_nms(threshold, agnostic)
    ours = Selection(threshold, agnostic, None).apply(
        ImageDetections(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes))
    )
    assert ours.scores.tolist() == sorted(theirs.confidence.tolist(), reverse=True)


def test_more_than_300_pairs_are_ranked_if_wanted() -> None:
    scores, boxes = torch.linspace(0, 1, 400)[:, None], torch.rand(400, 4)
    assert len(top_detections([scores], [boxes], [[0]], (10, 10)).scores) == 300
    assert len(top_detections([scores], [boxes], [[0]], (10, 10), 350).scores) == 350
