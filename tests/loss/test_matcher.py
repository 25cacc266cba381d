"""Matching costs by hand and by an independent loop; broken rows are loud."""

import itertools
import math
from threading import get_ident
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment as assign

from groundtune.errors import GroundtuneError
from groundtune.loss import matcher
from groundtune.loss.matcher import Head, MatchingCost, NonFiniteCost, cost_matrix, match

COST = MatchingCost(cls=2.0, bbox=5.0, giou=2.0, alpha=0.25, gamma=2.0)


def _target(boxes, token_lists):
    positive_map = torch.zeros(len(boxes), 256, dtype=torch.bool)
    for row, tokens in enumerate(token_lists):
        positive_map[row, tokens] = True
    return SimpleNamespace(
        boxes_cxcywh=torch.tensor(boxes).reshape(-1, 4), positive_map=positive_map, confidence=None
    )


def _random_case(seed, counts, sizes, length=6):
    generator = torch.Generator().manual_seed(seed)
    images = len(counts)
    mask = torch.arange(length) < torch.randint(2, length + 1, (images, 1), generator=generator)
    heads = []
    for size in sizes:
        logits = torch.full((images, size, 256), -math.inf)
        logits[..., :length] = (3 * torch.randn(images, size, length, generator=generator)).masked_fill(
            ~mask.unsqueeze(1), -math.inf
        )
        heads.append(Head(logits, torch.rand(images, size, 4, generator=generator)))
    targets = [
        _target(torch.rand(n, 4, generator=generator).tolist(), [[int(mask[i].sum()) - 1]] * n)
        for i, n in enumerate(counts)
    ]
    return heads, mask, targets


def _plain_cost(logits, boxes, mask, target):
    """The matching cost (docs/semantics.md, rule 14) as loops over Python floats."""
    rows = []
    for q in range(len(boxes)):
        row = []
        for n in range(len(target.boxes_cxcywh)):
            focal = 0.0
            for t in range(len(mask)):
                if mask[t]:
                    p = 1 / (1 + math.exp(-logits[q, t].item()))
                    positive = target.positive_map[n, t]
                    focal += (
                        0.25 * (1 - p) ** 2 * -math.log(p) if positive else 0.75 * p**2 * -math.log(1 - p)
                    )
            l1 = sum(
                abs(x - y) for x, y in zip(boxes[q].tolist(), target.boxes_cxcywh[n].tolist(), strict=True)
            )
            row.append(2 * focal + 5 * l1 - 2 * _giou(boxes[q].tolist(), target.boxes_cxcywh[n].tolist()))
        rows.append(row)
    return torch.tensor(rows)


def _giou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    left, right = max(ax - aw / 2, bx - bw / 2), min(ax + aw / 2, bx + bw / 2)
    top, bottom = max(ay - ah / 2, by - bh / 2), min(ay + ah / 2, by + bh / 2)
    overlap = max(0, right - left) * max(0, bottom - top)
    union = aw * ah + bw * bh - overlap
    width = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    height = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    return overlap / union - (width * height - union) / (width * height)


def test_cost_of_every_pair_against_a_plain_loop():
    (head,), mask, targets = _random_case(0, [3, 1, 2], [5])
    cost = cost_matrix(head.logits[..., :6], head.boxes_cxcywh, mask, targets, COST)
    assert cost.dtype == torch.float32
    for image, target in enumerate(targets):
        expected = _plain_cost(head.logits[image], head.boxes_cxcywh[image], mask[image], target)
        torch.testing.assert_close(cost[image, :, : len(expected[0])], expected, rtol=1e-4, atol=1e-4)


def test_a_query_that_fires_on_every_token_does_not_win():
    box = [0.5, 0.5, 0.2, 0.2]
    logits = torch.full((1, 2, 256), -math.inf)
    logits[0, 0, :4] = 4.0  # fires on everything
    logits[0, 1, :4] = torch.tensor([-4.0, 2.0, -4.0, -4.0])  # weaker on the right token, silent elsewhere
    heads = [Head(logits, torch.tensor([[box, box]]))]
    (matched,) = match(heads, torch.ones(1, 4, dtype=torch.bool), [_target([box], [[1]])], COST)
    assert matched.query.tolist() == [1]


def test_a_nan_is_an_error_that_names_the_image_not_a_cheap_row():
    for break_it in (
        lambda heads, targets: heads[1].logits[2, 3].fill_(math.nan),
        lambda heads, targets: heads[0].boxes_cxcywh[2, 0].fill_(math.nan),
        lambda heads, targets: heads[1].boxes_cxcywh[2, 0].fill_(math.inf),
        lambda heads, targets: targets[2].boxes_cxcywh[0].fill_(math.nan),
    ):
        heads, mask, targets = _random_case(1, [2, 0, 1], [4, 4])
        match(heads, mask, targets, COST)
        break_it(heads, targets)
        with pytest.raises(NonFiniteCost, match="image 2 of the batch") as error:
            match(heads, mask, targets, COST)
        assert error.value.image_indices == (2,)
        assert isinstance(error.value, GroundtuneError) and isinstance(error.value, FloatingPointError)


def test_values_outside_the_text_mask_are_not_read():
    heads, mask, targets = _random_case(2, [2, 3], [5])
    before = match(heads, mask, targets, COST)
    heads[0].logits[..., :6].masked_fill_(~mask.unsqueeze(1), math.nan)
    heads[0].logits[..., 6:] = 7.0
    after = match(heads, mask, targets, COST)
    assert all(torch.equal(x, y) for x, y in zip(before[0], after[0], strict=True))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_matches_are_optimal_one_to_one_and_each_head_is_on_its_own(seed, counts, sizes):
    heads, mask, targets = _random_case(seed, counts, sizes)
    matches = match(heads, mask, targets, COST)
    first_of = [sum(counts[:i]) for i in range(len(counts))]
    for head, matched in zip(heads, matches, strict=True):
        size = head.boxes_cxcywh.shape[1]
        for image, target in enumerate(targets):
            of_image = matched.image == image
            boxes = (matched.box[of_image] - first_of[image]).tolist()
            pairs = list(zip(matched.query[of_image].tolist(), boxes, strict=True))
            assert len(pairs) == min(size, counts[image])
            assert len({q for q, _ in pairs}) == len({n for _, n in pairs}) == len(pairs)
            if pairs:
                cost = _plain_cost(head.logits[image], head.boxes_cxcywh[image], mask[image], target)
                best = _cheapest(cost)
                assert sum(cost[q, n].item() for q, n in pairs) == pytest.approx(best, rel=1e-4, abs=1e-4)


def _cheapest(cost):
    queries, boxes = cost.shape
    if queries < boxes:
        return _cheapest(cost.T)
    return min(
        sum(cost[q, n].item() for n, q in enumerate(chosen))
        for chosen in itertools.permutations(range(queries), boxes)
    )


def test_threads_assign_the_same_boxes(monkeypatch):
    heads, mask, targets = _random_case(4, [3, 0, 2, 4], [5, 3])
    alone = match(heads, mask, targets, COST)
    started = []
    monkeypatch.setattr(matcher, "_THREADED_FROM", 4)
    monkeypatch.setattr(
        matcher, "linear_sum_assignment", lambda cost: started.append(get_ident()) or assign(cost)
    )
    for own, other in zip(match(heads, mask, targets, COST), alone, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(own, other, strict=True))
    assert len(started) == 2 * 4 and get_ident() not in started


def test_cost_is_float32_under_autocast():
    heads, mask, targets = _random_case(3, [3, 2], [6])
    plain = cost_matrix(heads[0].logits[..., :6], heads[0].boxes_cxcywh, mask, targets, COST)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = cost_matrix(heads[0].logits[..., :6], heads[0].boxes_cxcywh, mask, targets, COST)
    assert torch.equal(plain, mixed)
