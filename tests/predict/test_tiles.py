"""Tiles cover a large image, and their detections become one box per object."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundtune.predict.postprocess import ImageDetections
from groundtune.predict.tiles import Tiles, merge


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(64, 900), st.sampled_from([0.05, 0.2, 0.5, 0.8])
)
@settings(max_examples=60, deadline=None)
def test_tiles_cover_the_image_with_the_given_overlap(height, width, side, overlap):
    whole, *tiles = Tiles(side, overlap).regions((height, width))
    assert whole == (0, 0, width, height)
    if max(height, width) <= side:
        assert not tiles
        return
    for axis, length in ((0, width), (1, height)):
        spans = sorted({(tile[axis], tile[axis + 2]) for tile in tiles})
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(end - begin == min(side, length) for begin, end in spans)
        assert all(
            this[1] - following[0] >= side * overlap - 1
            for this, following in zip(spans, spans[1:], strict=False)
        )
        assert len(tiles) % len(spans) == 0
    assert len(set(tiles)) == len(tiles)


def perfect_detections(objects, size_hw, tiles, in_whole):
    """Per region the visible part of each object, unless it is too small; `in_whole` are the
    indices in the whole image.
    """
    regions = tiles.regions(size_hw)
    parts = []
    for number, (x0, y0, x1, y1) in enumerate(regions):
        boxes, scores, ids = [], [], []
        for index, box in enumerate(objects):
            part = np.clip(box, [x0, y0, x0, y0], [x1, y1, x1, y1]) - [x0, y0, x0, y0]
            if min(part[2:] - part[:2]) >= 3 and (number or index in in_whole):
                boxes.append(part)
                scores.append(0.3 + 0.001 * number + 0.02 * (index % 7))
                ids.append(0)
        order = np.argsort(scores)[::-1].copy()
        parts.append(
            ImageDetections(
                torch.tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4))[order],
                torch.tensor(scores)[order],
                torch.tensor(ids, dtype=torch.long)[order],
            )
        )
    return parts, regions


def rounded(detections):
    return sorted(
        (int(c), *(round(float(x)) for x in box))
        for c, box in zip(detections.class_indices, detections.boxes_xyxy, strict=True)
    )


def scattered(rng, size_hw, count, least, most):
    """Boxes that do not touch each other, of any size, in whole pixels."""
    height, width = size_hw
    boxes = []
    for _ in range(50 * count):
        w, h = rng.integers(least, most, 2)
        if w < width and h < height and len(boxes) < count:
            x, y = rng.integers(0, width - w), rng.integers(0, height - h)
            if all(x + w + 6 < a or c + 6 < x or y + h + 6 < b or d + 6 < y for a, b, c, d in boxes):
                boxes.append((x, y, x + w, y + h))
    return np.array(boxes, dtype=float)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("least", "most"), [(12, 50), (12, 400)])
def test_every_object_is_detected_once_whatever_borders_cut_it(seed, least, most):
    """Objects smaller than the overlap, and of up to twice a tile, in one class."""
    rng, size_hw, tiles = np.random.default_rng(seed), (500, 730), Tiles(256, 0.25)
    objects = scattered(rng, size_hw, 25, least, most)
    assert len(objects) > 8
    large = {i for i, box in enumerate(objects) if max(box[2:] - box[:2]) > 180}
    for seen in (set(), large):
        parts, regions = perfect_detections(objects, size_hw, tiles, seen)
        merged = merge(parts, regions, size_hw)
        assert rounded(merged) == sorted((0, *map(round, box)) for box in objects.tolist())
        assert (merged.scores.diff() <= 0).all()


def test_one_object_on_a_seam_by_hand():
    """Tiles of 100 with an overlap of 20, in an image of 180: x from 0 to 100, and from 80 to 180."""
    tiles = Tiles(100, 0.2)
    regions = tiles.regions((100, 180))
    assert regions == [(0, 0, 180, 100), (0, 0, 100, 100), (80, 0, 180, 100)]

    def part(*rows):
        boxes, scores, ids = zip(*rows, strict=True) if rows else ((), (), ())
        return ImageDetections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(scores),
            torch.tensor(ids, dtype=torch.long),
        )

    # cut by the first tile, whole in the second: the whole one, whatever its class and score
    merged = merge(
        [part(), part(((85, 10, 100, 40), 0.9, 0)), part(((5, 10, 40, 40), 0.4, 1))], regions, (100, 180)
    )
    assert rounded(merged) == [(1, 85, 10, 120, 40)] and merged.scores.tolist() == pytest.approx([0.4])
    # longer than the overlap, cut by both: united, with the better score
    merged = merge(
        [part(), part(((50, 10, 100, 40), 0.6, 0)), part(((0, 10, 60, 41), 0.7, 0))], regions, (100, 180)
    )
    assert rounded(merged) == [(0, 50, 10, 140, 41)] and merged.scores.tolist() == pytest.approx([0.7])
    # but not with another class
    merged = merge(
        [part(), part(((50, 10, 100, 40), 0.6, 0)), part(((0, 10, 60, 41), 0.7, 1))], regions, (100, 180)
    )
    assert rounded(merged) == [(0, 50, 10, 100, 40), (1, 80, 10, 140, 41)]
    # nor with another object
    merged = merge(
        [part(), part(((50, 10, 100, 40), 0.6, 0)), part(((0, 60, 60, 90), 0.7, 0))], regions, (100, 180)
    )
    assert len(merged.scores) == 2
    # detected in the whole image: its pieces are dropped, whatever their score
    whole = ((50, 10, 140, 40), 0.5, 0)
    merged = merge(
        [part(whole), part(((50, 10, 100, 42), 0.6, 0)), part(((0, 9, 60, 40), 0.7, 0))], regions, (100, 180)
    )
    assert rounded(merged) == [(0, 50, 10, 140, 40)] and merged.scores.tolist() == pytest.approx([0.7])
    # the border of the image does not cut: the better one of two whole boxes
    merged = merge(
        [part(), part(((85, 0, 95, 40), 0.9, 0)), part(((4, 0, 16, 42), 0.5, 0))], regions, (100, 180)
    )
    assert rounded(merged) == [(0, 85, 0, 95, 40)]
    # two boxes of one tile stay two
    duplicates = ((0, 0, 30, 40), 0.9, 0), ((1, 0, 31, 40), 0.5, 0)
    assert len(merge([part(), part(*duplicates), part()], regions, (100, 180)).scores) == 2
    # a small object in front of a large one of its class stays
    merged = merge(
        [part(((0, 0, 170, 90), 0.8, 0)), part(((10, 10, 30, 30), 0.6, 0)), part()], regions, (100, 180)
    )
    assert len(merged.scores) == 2
    assert len(merge([part(), part(), part()], regions, (100, 180)).scores) == 0


def one_class(*rows):
    """Detections of class 0, of rows of a box and a score."""
    boxes, scores = zip(*rows, strict=True) if rows else ((), ())
    return ImageDetections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.zeros(len(rows), dtype=torch.long),
    )


def test_a_fragment_is_dropped_beside_the_whole_object_whatever_its_score():
    """Tiles: x from 0 to 100, and from 80 to 180. The object is an arrow with a thin shaft."""
    regions, size_hw = Tiles(100, 0.2).regions((100, 180)), (100, 180)
    arrow, shaft = ((20, 20, 160, 80), 0.31), ((22, 42, 100, 58), 0.61)
    merged = merge([one_class(arrow), one_class(shaft), one_class()], regions, size_hw)
    assert rounded(merged) == [(0, 20, 20, 160, 80)] and merged.scores.tolist() == pytest.approx([0.31])
    # less than 70 % inside: another object
    beside = ((22, 62, 100, 90), 0.61)
    assert len(merge([one_class(arrow), one_class(beside), one_class()], regions, size_hw).scores) == 2
    # whole in its tile: another object in front of it
    whole = ((22, 42, 90, 58), 0.61)
    assert len(merge([one_class(arrow), one_class(whole), one_class()], regions, size_hw).scores) == 2
    # two pieces that make a whole: another object in front of it
    pieces = one_class(((75, 40, 100, 60), 0.6)), one_class(((0, 40, 25, 60), 0.7))
    merged = merge([one_class(arrow), *pieces], regions, size_hw)
    assert rounded(merged) == [(0, 20, 20, 160, 80), (0, 75, 40, 105, 60)]
    # a fragment of another class is an object
    shaft_of_another = one_class(shaft)
    shaft_of_another.class_indices += 1
    assert len(merge([one_class(arrow), shaft_of_another, one_class()], regions, size_hw).scores) == 2
    # without the whole object the fragment stays
    assert len(merge([one_class(), one_class(shaft), one_class()], regions, size_hw).scores) == 1


@pytest.mark.parametrize("side", [160, 200, 320])
@pytest.mark.parametrize("seed", range(3))
def test_small_objects_in_front_of_a_large_one_of_their_class_stay(side, seed):
    """72 of 50 x 34 pixels, more than the overlap of the smaller tiles, over one of 660 x 470."""
    rng, tiles = np.random.default_rng(seed), Tiles(side, 0.2)
    corners = [(30 + 108 * i, 20 + 84 * j) + rng.integers(0, 45, 2) for j in range(8) for i in range(9)]
    objects = np.array([(150, 110, 810, 580), *((x, y, x + 50, y + 34) for x, y in corners)], float)
    parts, regions = perfect_detections(objects, (700, 1000), tiles, {0})
    merged = merge(parts, regions, (700, 1000))
    assert rounded(merged) == sorted((0, *map(round, box)) for box in objects.tolist())
