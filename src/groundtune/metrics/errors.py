"""Where a detector is wrong: which boxes it missed, and what each false detection is.

The split of the errors follows TIDE (Bolya et al., 2020): at an IoU of 0.5 a detection is right, or it is a *duplicate* of
an object that a better one found, has the wrong *class*, the wrong *location* (IoU 0.1 to 0.5 with its class), *both*, or
lies on *background*. What no detection found is *missed*. Deviation: errors are counted at one score threshold per class;
TIDE weighs each kind by the AP that mending it would give.

Detections are matched as COCO does it: class by class, the best score first, each to the free object that it overlaps
most. Crowd regions are neither found nor missed, and a detection mostly inside one is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from groundtune.data.sample import Dataset, Sample
from groundtune.metrics.coco import Prediction

KINDS = ("duplicate", "class", "location", "both", "background")
MATCHED, CROWD = "matched", "crowd"
IOU, NEAR = 0.5, 0.1
_BINS = 10


@dataclass
class ImageMatches:
    """An image's detections beside its boxes, and what became of each.

    Attributes:
        sample: the image with its N boxes.
        boxes_xyxy: (K, 4) detections in original pixels, best first.
        scores: (K,) in [0, 1], falling.
        class_ids: (K,) index into the data set's classes.
        kinds: for each detection "matched", "crowd" or one of `KINDS`.
        matches: (K,) index of the matched box, −1 without.
        ious: (K,) IoU with the matched box; without, the largest IoU with any box.
    """

    sample: Sample
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    kinds: list[str]
    matches: np.ndarray
    ious: np.ndarray

    def missed(self, thresholds: np.ndarray) -> np.ndarray:
        """Indices of the boxes that no detection at or above its class's threshold (C,) found; crowds left out."""
        unseen = ~self.sample.crowd
        used = self.scores >= thresholds[self.class_ids]
        unseen[self.matches[used & (self.matches >= 0)]] = False
        return np.flatnonzero(unseen)


def collect(dataset: Dataset, predictions: Sequence[Prediction]) -> list[ImageMatches]:
    """Sort detections in COCO's result format by image, and match them: one result an image, in the data set's order.

    Predictions of unknown images or categories are left out.
    """
    class_of = {category_id: index for index, category_id in enumerate(dataset.category_ids)}
    by_image: dict[int, list[Prediction]] = {sample.image_id: [] for sample in dataset.samples}
    for prediction in predictions:
        if prediction["image_id"] in by_image and prediction["category_id"] in class_of:
            by_image[prediction["image_id"]].append(prediction)
    results = []
    for sample in dataset.samples:
        own = sorted(by_image[sample.image_id], key=lambda p: -p["score"])
        boxes = np.array([p["bbox"] for p in own], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([class_of[p["category_id"]] for p in own], dtype=np.int64)
        scores = np.array([p["score"] for p in own], dtype=np.float64)
        results.append(ImageMatches(sample, boxes, scores, classes, *match(sample, boxes, classes)))
    return results


def match(
    sample: Sample, boxes_xyxy: np.ndarray, class_ids: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Match one image's detections, best first; gives kinds, matches and IoUs as in `ImageMatches`."""
    ious, inside = overlaps(boxes_xyxy, sample.boxes_xyxy.astype(np.float64))
    objects = ~sample.crowd
    free = objects.copy()
    kinds: list[str] = []
    matches = np.full(len(boxes_xyxy), -1)
    best = np.zeros(len(boxes_xyxy))
    for place, class_id in enumerate(class_ids):
        same = sample.class_ids == class_id
        wanted = np.where(free & same, ious[place], 0.0)
        if wanted.size and wanted.max() >= IOU:
            matches[place] = int(wanted.argmax())
            free[matches[place]] = False
            best[place] = wanted.max()
            kinds.append(MATCHED)
            continue
        of_class = ious[place][objects & same].max(initial=0.0)
        of_others = ious[place][objects & ~same].max(initial=0.0)
        best[place] = max(of_class, of_others)
        in_crowd = (inside[place][sample.crowd & same] >= IOU).any()
        kinds.append(CROWD if in_crowd else _kind(of_class, of_others))
    return kinds, matches, best


def _kind(of_class: float, of_others: float) -> str:
    """What an unmatched detection is, by its largest IoU with objects of its class and of other classes."""
    if of_class >= IOU:
        return "duplicate"
    if of_others >= IOU:
        return "class"
    if of_class >= NEAR:
        return "location"
    return "both" if of_others >= NEAR else "background"


def overlaps(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU (K, N), and the share of each of the K boxes that lies inside each of the N."""
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a_xyxy, b_xyxy))
    union = area_a[:, None] + area_b[None] - common
    return common / np.maximum(union, 1e-9), common / np.maximum(area_a[:, None], 1e-9)


@dataclass
class ClassThreshold:
    """The score from which on a class's F1 is best: the smallest that counts, 1.0 where no detection is right.

    F1, precision and recall are those there: None without a box of the class (precision: without a right detection).
    """

    threshold: float
    f1: float | None
    precision: float | None
    recall: float | None


def best_thresholds(results: Sequence[ImageMatches], num_classes: int) -> list[ClassThreshold]:
    """The threshold of each class with the best F1 at an IoU of 0.5 over all images."""
    totals = box_totals(results, num_classes)
    return [
        _best_threshold(*scored(results, class_id), int(totals[class_id])) for class_id in range(num_classes)
    ]


def box_totals(results: Sequence[ImageMatches], num_classes: int) -> np.ndarray:
    """(C,) int: the boxes of each class, crowds left out."""
    ids = [result.sample.class_ids[~result.sample.crowd] for result in results]
    return np.bincount(np.concatenate([np.empty(0, np.int64), *ids]), minlength=num_classes)


def scored(results: Sequence[ImageMatches], class_id: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores (K,) of a class's (or all) detections outside crowds, the best first, and which of them are right (K,) bool."""
    pairs = [
        (float(score), kind == MATCHED)
        for r in results
        for score, c, kind in zip(r.scores, r.class_ids, r.kinds, strict=True)
        if class_id in (None, c) and kind != CROWD
    ]
    pairs.sort(reverse=True)
    return np.array([score for score, _ in pairs]), np.array([right for _, right in pairs], bool)


def _best_threshold(scores: np.ndarray, matched: np.ndarray, total: int) -> ClassThreshold:
    if not total or not matched.any():
        none = 0.0 if total else None
        return ClassThreshold(1.0, none, None, none)
    right, shown = np.cumsum(matched), np.arange(1, len(scores) + 1)
    f1 = 2 * right / (shown + total)
    f1[:-1][scores[:-1] == scores[1:]] = -1.0  # a threshold cannot cut between equal scores
    place = int(f1.argmax())
    precision, recall = float(right[place] / shown[place]), float(right[place] / total)
    return ClassThreshold(float(scores[place]), float(f1[place]), precision, recall)


def error_counts(
    results: Sequence[ImageMatches], thresholds: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """How many detections of each class at or above its threshold (C,) are right or an error, and how many boxes missed.

    Returns:
        "matched", each of `KINDS` and "missed" → (C,) int.
    """
    counts = {name: np.zeros(num_classes, int) for name in (MATCHED, *KINDS, "missed")}
    for result in results:
        for score, class_id, kind in zip(result.scores, result.class_ids, result.kinds, strict=True):
            if score >= thresholds[class_id] and kind != CROWD:
                counts[kind][class_id] += 1
        np.add.at(counts["missed"], result.sample.class_ids[result.missed(thresholds)], 1)
    return counts


def confusion(results: Sequence[ImageMatches], thresholds: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion matrix (C + 1, C + 1) int: rows are what is there, columns what was said; the last of each is background.

    Objects and detections are paired whatever their class, the largest IoU of at least 0.5 first.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    for result in results:
        sample = result.sample
        used = (result.scores >= thresholds[result.class_ids]) & (np.array(result.kinds) != CROWD)
        said, there = result.class_ids[used], sample.class_ids[~sample.crowd]
        ious, _ = overlaps(result.boxes_xyxy[used], sample.boxes_xyxy[~sample.crowd].astype(np.float64))
        free_said, free_there = set(range(len(said))), set(range(len(there)))
        for flat in np.argsort(-ious, axis=None, kind="stable"):
            row, column = divmod(int(flat), len(there))
            if ious[row, column] < IOU:
                break
            if row in free_said and column in free_there:
                matrix[there[column], said[row]] += 1
                free_said.remove(row)
                free_there.remove(column)
        np.add.at(matrix[num_classes], said[list(free_said)], 1)
        np.add.at(matrix[:, num_classes], there[list(free_there)], 1)
    return matrix


def calibration(results: Sequence[ImageMatches]) -> tuple[list[dict[str, float]], float | None]:
    """How far a score can be read as a probability of being right.

    Returns:
        For each tenth of the score range with detections in it "score" (their mean), "right" (the matched share) and
        "count"; and the expected calibration error, the mean gap weighted by count. No detections: an empty list, None.
    """
    scores, right = scored(results)
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    rows = []
    for inside in (bins == number for number in np.unique(bins)):
        means = {"score": float(scores[inside].mean()), "right": float(right[inside].mean())}
        rows.append({**means, "count": float(inside.sum())})
    gap = sum(row["count"] * abs(row["score"] - row["right"]) for row in rows)
    return rows, gap / len(scores) if rows else None
