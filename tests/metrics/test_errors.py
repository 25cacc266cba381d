"""Error split, best thresholds, confusion matrix and calibration on detections made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_samples import made_sample
from pycocotools.cocoeval import COCOeval
from random_detections import coco_api, random_dataset, random_predictions

from groundtune.data.sample import Dataset
from groundtune.metrics.errors import best_thresholds, calibration, collect, confusion, error_counts, overlaps

CAT, DOG = 0, 1


def dataset(boxes: list[tuple[int, list[float]]], crowd: tuple[int, ...] = ()) -> Dataset:
    """One image of 100 x 100; ids 7 and 3 are cat and dog."""
    crowds = [i in crowd for i in range(len(boxes))]
    sample = made_sample([box for _, box in boxes], [c for c, _ in boxes], crowds, image_id=5)
    return Dataset("valid", Path("."), ["cat", "dog"], [sample], [7, 3])


def detection(class_id: int, xyxy: list[float], score: float) -> dict:
    x0, y0, x1, y1 = xyxy
    bbox = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": 5, "category_id": [7, 3][class_id], "bbox": bbox, "score": score}


BOX, FAR = [10, 10, 30, 30], [60, 60, 80, 80]


@pytest.mark.parametrize(
    ("class_id", "box", "kind"),
    [
        (CAT, [10, 10, 30, 29], "matched"),  # IoU 0.95
        (DOG, [10, 10, 30, 29], "classification"),
        (CAT, [20, 10, 40, 30], "localization"),  # half of each: IoU 1/3
        (DOG, [20, 10, 40, 30], "both"),
        (CAT, [28, 10, 48, 30], "background"),  # IoU 40 / 760 = 0.05
        (CAT, FAR, "background"),
    ],
)
def test_each_kind_of_a_single_detection(class_id: int, box: list[float], kind: str) -> None:
    result = collect(dataset([(CAT, BOX)]), [detection(class_id, box, 0.9)])[0]
    assert result.types == [kind]
    assert list(result.missed(np.zeros(2))) == ([] if kind == "matched" else [0])


def test_the_better_of_two_is_matched_and_the_other_a_duplicate() -> None:
    found = [detection(CAT, BOX, 0.4), detection(CAT, [10, 10, 30, 28], 0.8)]
    (result,) = collect(dataset([(CAT, BOX)]), found)
    assert result.types == ["matched", "duplicate"]
    assert list(result.scores) == [0.8, 0.4]
    assert result.ious[0] == pytest.approx(0.9)


def test_crowds_are_neither_found_nor_missed() -> None:
    data = dataset([(CAT, BOX), (CAT, [50, 50, 100, 100])], crowd=(1,))
    results = collect(data, [detection(CAT, BOX, 0.9), detection(CAT, FAR, 0.8), detection(DOG, FAR, 0.7)])
    assert results[0].types == ["matched", "crowd", "background"]
    assert list(results[0].missed(np.zeros(2))) == []
    assert best_thresholds(results, 2)[CAT].f1 == 1.0


def test_overlaps_by_hand_and_of_nothing() -> None:
    ious, inside = overlaps(np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 0, 10, 20], [10.0, 0, 20, 10]]))
    assert ious.tolist() == [[0.5, 0.0]] and inside.tolist() == [[1.0, 0.0]]
    assert overlaps(np.zeros((0, 4)), np.zeros((3, 4)))[0].shape == (0, 3)


def test_best_threshold_by_hand() -> None:
    """Two cats. Scores .9 right, .8 wrong, .7 right, .1 wrong: F1 is 2/3, 1/2, 4/5, 2/3 from top."""
    boxes = {0.9: BOX, 0.8: [0, 90, 9, 99], 0.7: FAR, 0.1: [90, 0, 99, 9]}
    found = [detection(CAT, box, score) for score, box in boxes.items()]
    cat, dog = best_thresholds(collect(dataset([(CAT, BOX), (CAT, FAR)]), found), 2)
    assert (cat.threshold, cat.f1, cat.precision, cat.recall) == pytest.approx((0.7, 0.8, 2 / 3, 1.0))
    assert (dog.threshold, dog.f1, dog.precision, dog.recall) == (1.0, None, None, None)


def test_a_threshold_does_not_cut_between_equal_scores() -> None:
    results = collect(dataset([(CAT, BOX)]), [detection(CAT, BOX, 0.5), detection(CAT, FAR, 0.5)])
    assert best_thresholds(results, 2)[CAT].f1 == pytest.approx(2 / 3)


def test_counts_add_up_over_an_image_with_everything() -> None:
    found = [
        detection(CAT, BOX, 0.9),
        detection(CAT, FAR, 0.8),  # a dog called a cat
        detection(DOG, [40, 0, 50, 10], 0.7),  # nothing there
        detection(DOG, [0, 80, 10, 90], 0.2),  # right, but below the threshold
    ]
    results = collect(dataset([(CAT, BOX), (DOG, FAR), (DOG, [0, 80, 10, 90])]), found)
    counts = error_counts(results, np.array([0.5, 0.5]), 2)
    expected = {"matched": [1, 0], "classification": [1, 0], "background": [0, 1], "missed": [0, 2]}
    assert {name: row.tolist() for name, row in counts.items() if row.any()} == expected
    assert confusion(results, np.array([0.5, 0.5]), 2).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_calibration_by_hand() -> None:
    """In the bin of .9: one right of one. In the bin of .5: one right of two. Gap (|.95 − 1| + 2 ·
    |.55 − .5|) / 3.
    """
    data = dataset([(CAT, BOX), (CAT, FAR)])
    found = [(BOX, 0.95), (FAR, 0.55), ([0, 90, 9, 99], 0.55)]
    rows, gap = calibration(collect(data, [detection(CAT, *one) for one in found]))
    numbers = [(round(row["score"], 2), row["precision"], row["count"]) for row in rows]
    assert numbers == [(0.55, 0.5, 2.0), (0.95, 1.0, 1.0)]
    assert gap == pytest.approx((0.05 + 2 * 0.05) / 3)
    assert calibration(collect(data, [])) == ([], None)


def test_an_image_without_boxes_and_without_detections() -> None:
    results = collect(dataset([]), [])
    assert confusion(results, np.zeros(2), 2).sum() == 0
    assert all(count.sum() == 0 for count in error_counts(results, np.zeros(2), 2).values())


@pytest.mark.parametrize("seed", range(4))
def test_what_is_matched_is_what_pycocotools_matches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = random_dataset(rng)
    predictions = random_predictions(rng, data)
    truth, found = coco_api(data, predictions)
    evaluation = COCOeval(truth, found, "bbox")
    params = evaluation.params
    params.iouThrs, params.areaRng, params.maxDets = [0.5], [[0, 1e10]], [1000]
    evaluation.evaluate()
    images = [entry for entry in evaluation.evalImgs if entry is not None]
    theirs = sum(int(((one["dtMatches"][0] > 0) & ~one["dtIgnore"][0].astype(bool)).sum()) for one in images)
    assert sum(result.types.count("matched") for result in collect(data, predictions)) == theirs > 0


def test_a_class_that_is_not_labeled_completely_makes_no_errors() -> None:
    """The cats of the image are not all labeled: the one with a box counts, a false one does not."""
    data = dataset([(CAT, BOX), (DOG, BOX)])
    data.samples = [replace(data.samples[0], exhaustive=frozenset({DOG}))]
    found = [detection(CAT, BOX, 0.9), detection(CAT, FAR, 0.8), detection(DOG, FAR, 0.7)]
    results = collect(data, found)
    assert results[0].types == ["matched", "crowd", "background"]
    assert best_thresholds(results, 2)[CAT].precision == 1
    counts = error_counts(results, np.zeros(2), 2)
    assert counts["background"].tolist() == [0, 1] and counts["matched"].tolist() == [1, 0]
