"""Find a detector's errors: missed boxes, and the type of each false detection.

The types are TIDE's (Bolya et al., 2020). At an IoU of 0.5 a detection is correct, or a *duplicate*
of an object that a better one matched, or has a *classification* error (another class), a
*localization* error (IoU 0.1 to 0.5 with its class), *both*, or is on the *background*. A box
without a detection is *missed*. Deviation: errors are counted at one score threshold per class;
TIDE weighs each type by the AP that mending it would give.

Matching follows COCO: class by class, the best score first, each to the unmatched box with the
largest IoU. Crowd boxes count neither way, and a detection mostly inside one is ignored, as is one
of a class whose objects may have no box in the image, unless it matches one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from groundtune.data.sample import Dataset, Sample
from groundtune.metrics.coco import Prediction

ERROR_TYPES = ("classification", "localization", "both", "duplicate", "background")
MATCHED, CROWD, MISSED = "matched", "crowd", "missed"
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
_BINS = 10


@dataclass
class ImageMatches:
    """Detections of an image, and the outcome of each."""

    sample: Sample  # the image with its N boxes
    boxes_xyxy: np.ndarray  # (K, 4) detections in original pixels, best first
    scores: np.ndarray  # (K,) in [0, 1], descending
    class_ids: np.ndarray  # (K,) index into the data set's classes
    types: list[str]  # "matched", "crowd" or one of `ERROR_TYPES`
    matches: np.ndarray  # (K,) index of the matched box, -1 without
    ious: np.ndarray  # (K,) IoU with the matched box, otherwise the largest IoU with any box

    def shown(self, thresholds: np.ndarray) -> np.ndarray:
        """Return the indices of detections at their class's threshold (C,), except on crowds."""
        is_crowd = np.array([kind == CROWD for kind in self.types], bool)
        return np.flatnonzero((self.scores >= thresholds[self.class_ids]) & ~is_crowd)

    def missed(self, thresholds: np.ndarray) -> np.ndarray:
        """Return the indices of boxes that no detection matches at its class's threshold (C,)."""
        unmatched = ~self.sample.crowd
        used = self.scores >= thresholds[self.class_ids]
        unmatched[self.matches[used & (self.matches >= 0)]] = False
        return np.flatnonzero(unmatched)


def collect(dataset: Dataset, predictions: Sequence[Prediction]) -> list[ImageMatches]:
    """Match detections in COCO's result format with the boxes of each image, in order.

    Predictions of unknown images or categories are ignored.
    """
    class_of = {category_id: index for index, category_id in enumerate(dataset.category_ids)}
    by_image: dict[int, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction["category_id"] in class_of:
            by_image[prediction["image_id"]].append(prediction)
    results = []
    for sample in dataset.samples:
        ranked = sorted(by_image[sample.image_id], key=lambda p: -p["score"])
        boxes = np.array([p["bbox"] for p in ranked], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([class_of[p["category_id"]] for p in ranked], dtype=np.int64)
        scores = np.array([p["score"] for p in ranked], dtype=np.float64)
        results.append(ImageMatches(sample, boxes, scores, classes, *match(sample, boxes, classes)))
    return results


def match(
    sample: Sample, boxes_xyxy: np.ndarray, class_ids: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Match one image's detections, best first; return types, matches, IoUs (`ImageMatches`)."""
    ious, inside = overlaps(boxes_xyxy, sample.boxes_xyxy.astype(np.float64))
    objects = ~sample.crowd
    free = objects.copy()
    types: list[str] = []
    matches = np.full(len(boxes_xyxy), -1)
    best = np.zeros(len(boxes_xyxy))
    for index, class_id in enumerate(class_ids):
        same = sample.class_ids == class_id
        candidates = np.where(free & same, ious[index], 0.0)
        if candidates.size and candidates.max() >= FOREGROUND_IOU:
            matches[index] = int(candidates.argmax())
            free[matches[index]] = False
            best[index] = candidates.max()
            types.append(MATCHED)
            continue
        of_class = ious[index][objects & same].max(initial=0.0)
        of_others = ious[index][objects & ~same].max(initial=0.0)
        best[index] = max(of_class, of_others)
        in_crowd = (inside[index][sample.crowd & same] >= FOREGROUND_IOU).any()
        unknown = sample.exhaustive is not None and int(class_id) not in sample.exhaustive
        types.append(CROWD if in_crowd or unknown else _error_type(of_class, of_others))
    return types, matches, best


def _error_type(of_class: float, of_others: float) -> str:
    """Return the error type for the largest IoU with objects of its class and of other classes."""
    if of_class >= FOREGROUND_IOU:
        return "duplicate"
    if of_others >= FOREGROUND_IOU:
        return "classification"
    if of_class >= BACKGROUND_IOU:
        return "localization"
    return "both" if of_others >= BACKGROUND_IOU else "background"


def overlaps(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU (K, N), and the share of each of the K boxes that is inside each of the N."""
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a_xyxy, b_xyxy))
    union = area_a[:, None] + area_b[None] - common
    return common / np.maximum(union, 1e-9), common / np.maximum(area_a[:, None], 1e-9)


@dataclass
class ClassThreshold:
    """The score threshold with the best F1 of a class; 1.0 if no detection is correct.

    F1, precision and recall at this threshold are None without boxes of the class (precision also
    without a correct detection).
    """

    threshold: float
    f1: float | None
    precision: float | None
    recall: float | None


def best_thresholds(results: Sequence[ImageMatches], num_classes: int) -> list[ClassThreshold]:
    """Return the best-F1 threshold of each class at an IoU of 0.5 over all images."""
    totals = box_totals(results, num_classes)
    return [_best_threshold(*scored_detections(results, c), int(totals[c])) for c in range(num_classes)]


def box_totals(results: Sequence[ImageMatches], num_classes: int) -> np.ndarray:
    """Count the boxes of each class without crowds: (C,) int."""
    ids = [result.sample.class_ids[~result.sample.crowd] for result in results]
    return np.bincount(np.concatenate([np.empty(0, np.int64), *ids]), minlength=num_classes)


def scored_detections(
    results: Sequence[ImageMatches], class_id: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (K,) of a class's (or all) detections, best first, and which are right."""
    pairs = [
        (float(score), kind == MATCHED)
        for result in results
        for score, c, kind in zip(result.scores, result.class_ids, result.types, strict=True)
        if class_id in (None, c) and kind != CROWD
    ]
    pairs.sort(reverse=True)
    return np.array([score for score, _ in pairs]), np.array([correct for _, correct in pairs], bool)


def _best_threshold(scores: np.ndarray, matched: np.ndarray, total: int) -> ClassThreshold:
    if not total or not matched.any():
        zero = 0.0 if total else None
        return ClassThreshold(1.0, zero, None, zero)
    correct, detected = np.cumsum(matched), np.arange(1, len(scores) + 1)
    f1 = 2 * correct / (detected + total)
    f1[:-1][scores[:-1] == scores[1:]] = -1.0  # no threshold separates equal scores
    best = int(f1.argmax())
    precision, recall = float(correct[best] / detected[best]), float(correct[best] / total)
    return ClassThreshold(float(scores[best]), float(f1[best]), precision, recall)


def error_counts(
    results: Sequence[ImageMatches], thresholds: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """Count "matched", each of `ERROR_TYPES`, and "missed" at each class's threshold: (C,) int."""
    counts = {name: np.zeros(num_classes, int) for name in (MATCHED, *ERROR_TYPES, MISSED)}
    for result in results:
        for index in result.shown(thresholds):
            counts[result.types[index]][result.class_ids[index]] += 1
        np.add.at(counts[MISSED], result.sample.class_ids[result.missed(thresholds)], 1)
    return counts


def confusion(results: Sequence[ImageMatches], thresholds: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix (C + 1, C + 1) int, background last.

    Rows are ground truth, columns are predictions. Boxes and detections are paired regardless of
    class, the largest IoU of at least 0.5 first.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    for result in results:
        sample = result.sample
        used = result.shown(thresholds)
        predicted, true = result.class_ids[used], sample.class_ids[~sample.crowd]
        ious, _ = overlaps(result.boxes_xyxy[used], sample.boxes_xyxy[~sample.crowd].astype(np.float64))
        free_predicted, free_true = set(range(len(predicted))), set(range(len(true)))
        for flat in np.argsort(-ious, axis=None, kind="stable"):
            row, column = divmod(int(flat), len(true))
            if ious[row, column] < FOREGROUND_IOU:
                break
            if row in free_predicted and column in free_true:
                matrix[true[column], predicted[row]] += 1
                free_predicted.remove(row)
                free_true.remove(column)
        np.add.at(matrix[num_classes], predicted[list(free_predicted)], 1)
        np.add.at(matrix[:, num_classes], true[list(free_true)], 1)
    return matrix


def calibration(results: Sequence[ImageMatches]) -> tuple[list[dict[str, float]], float | None]:
    """Compare scores with the precision of the detections that have them.

    Returns:
        For each tenth of the score range with detections: "score" (their mean), "precision" and
        "count"; and the expected calibration error, the mean gap weighted by count. No detections
        give an empty list and None.
    """
    scores, correct = scored_detections(results)
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    rows = []
    for inside in (bins == number for number in np.unique(bins)):
        means = {"score": float(scores[inside].mean()), "precision": float(correct[inside].mean())}
        rows.append({**means, "count": float(inside.sum())})
    gap = sum(row["count"] * abs(row["score"] - row["precision"]) for row in rows)
    return rows, gap / len(scores) if rows else None
