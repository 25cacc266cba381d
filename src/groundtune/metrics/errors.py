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
class PictureResult:
    """A picture's detections beside its boxes, and what became of each.

    Attributes:
        sample: the picture with its N boxes.
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
        used = self.scores >= thresholds[self.class_ids] if len(self.scores) else np.zeros(0, bool)
        found = set(self.matches[used & (self.matches >= 0)].tolist())
        return np.array(
            [i for i in range(len(self.sample.boxes_xyxy)) if i not in found and not self.sample.crowd[i]], int
        )


def collect(dataset: Dataset, predictions: Sequence[Prediction]) -> list[PictureResult]:
    """Sort detections in COCO's result format by picture, and match them.

    Args:
        dataset: the pictures, with their boxes.
        predictions: of all pictures; those of unknown pictures or categories are left out.

    Returns:
        One result a picture, in the order of the data set.
    """
    class_of = {category_id: index for index, category_id in enumerate(dataset.category_ids)}
    by_picture: dict[int, list[Prediction]] = {sample.image_id: [] for sample in dataset.samples}
    for prediction in predictions:
        if prediction["image_id"] in by_picture and prediction["category_id"] in class_of:
            by_picture[prediction["image_id"]].append(prediction)
    results = []
    for sample in dataset.samples:
        own = sorted(by_picture[sample.image_id], key=lambda p: -p["score"])
        boxes = np.array([p["bbox"] for p in own], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([class_of[p["category_id"]] for p in own], dtype=np.int64)
        scores = np.array([p["score"] for p in own], dtype=np.float64)
        results.append(PictureResult(sample, boxes, scores, classes, *match(sample, boxes, classes)))
    return results


def match(sample: Sample, boxes_xyxy: np.ndarray, class_ids: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Match one picture's detections, best first; gives kinds, matches and IoUs as in `PictureResult`."""
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
        best[place] = ious[place][objects].max(initial=0.0)
        if (inside[place][sample.crowd & same] >= IOU).any():
            kinds.append(CROWD)
            continue
        of_class = ious[place][objects & same].max(initial=0.0)
        of_others = ious[place][objects & ~same].max(initial=0.0)
        kinds.append(_kind(of_class, of_others))
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
    """The score from which on a class's F1 is best.

    Attributes:
        threshold: smallest score that counts; 1.0 where no detection is right.
        f1: there, 0 to 1; None without a box of the class.
        precision: there; None without a detection.
        recall: there; None without a box.
    """

    threshold: float
    f1: float | None
    precision: float | None
    recall: float | None


def best_thresholds(results: Sequence[PictureResult], num_classes: int) -> list[ClassThreshold]:
    """The threshold of each class with the best F1 at an IoU of 0.5 over all pictures."""
    found = []
    for class_id in range(num_classes):
        total = sum(int(((r.sample.class_ids == class_id) & ~r.sample.crowd).sum()) for r in results)
        scored = [
            (float(score), kind == MATCHED)
            for r in results
            for score, c, kind in zip(r.scores, r.class_ids, r.kinds, strict=True)
            if c == class_id and kind != CROWD
        ]
        found.append(_best_threshold(sorted(scored, reverse=True), total))
    return found


def _best_threshold(scored: list[tuple[float, bool]], total: int) -> ClassThreshold:
    if not scored or not total:
        return ClassThreshold(1.0, 0.0 if total else None, None, 0.0 if total else None)
    scores = np.array([score for score, _ in scored])
    right = np.cumsum([matched for _, matched in scored])
    shown = np.arange(1, len(scored) + 1)
    f1 = 2 * right / (shown + total)
    f1[:-1][scores[:-1] == scores[1:]] = -1.0  # a threshold cannot cut between equal scores
    place = int(f1.argmax())
    if right[place] == 0:
        return ClassThreshold(1.0, 0.0, None, 0.0)
    return ClassThreshold(
        float(scores[place]), float(f1[place]), float(right[place] / shown[place]), float(right[place] / total)
    )


def error_counts(results: Sequence[PictureResult], thresholds: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """How many detections of each class are matched or an error of each kind, and how many boxes are missed.

    Args:
        results: of `collect`.
        thresholds: (C,) smallest score of each class.
        num_classes: C.

    Returns:
        "matched", each of `KINDS` and "missed" → (C,) int.
    """
    counts = {name: np.zeros(num_classes, int) for name in (MATCHED, *KINDS, "missed")}
    for result in results:
        for score, class_id, kind in zip(result.scores, result.class_ids, result.kinds, strict=True):
            if score >= thresholds[class_id] and kind != CROWD:
                counts[kind][class_id] += 1
        for index in result.missed(thresholds):
            counts["missed"][result.sample.class_ids[index]] += 1
    return counts


def confusion(results: Sequence[PictureResult], thresholds: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion matrix (C + 1, C + 1) int: rows are what is there, columns what was said; the last of each is background.

    Objects and detections are paired whatever their class, the largest IoU of at least 0.5 first.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    for result in results:
        sample = result.sample
        shown = [
            place
            for place, class_id in enumerate(result.class_ids)
            if result.scores[place] >= thresholds[class_id] and result.kinds[place] != CROWD
        ]
        objects = np.flatnonzero(~sample.crowd)
        ious, _ = overlaps(result.boxes_xyxy[shown], sample.boxes_xyxy[objects].astype(np.float64))
        free_shown, free_objects = set(range(len(shown))), set(range(len(objects)))
        for flat in np.argsort(-ious, axis=None, kind="stable"):
            row, column = divmod(int(flat), max(1, len(objects)))
            if ious[row, column] < IOU:
                break
            if row in free_shown and column in free_objects:
                matrix[sample.class_ids[objects[column]], result.class_ids[shown[row]]] += 1
                free_shown.remove(row)
                free_objects.remove(column)
        for row in free_shown:
            matrix[num_classes, result.class_ids[shown[row]]] += 1
        for column in free_objects:
            matrix[sample.class_ids[objects[column]], num_classes] += 1
    return matrix


def calibration(results: Sequence[PictureResult]) -> tuple[list[dict[str, float]], float | None]:
    """How far a score can be read as a probability of being right.

    Returns:
        For each tenth of the score range with detections in it "score" (their mean), "right" (the matched share) and
        "count"; and the expected calibration error, the mean gap weighted by count. No detections: an empty list, None.
    """
    pairs = [(float(s), k == MATCHED) for r in results for s, k in zip(r.scores, r.kinds, strict=True) if k != CROWD]
    if not pairs:
        return [], None
    scores, right = np.array([s for s, _ in pairs]), np.array([m for _, m in pairs])
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    rows = []
    for number in np.unique(bins):
        inside = bins == number
        rows.append(
            {
                "score": float(scores[inside].mean()),
                "right": float(right[inside].mean()),
                "count": float(inside.sum()),
            }
        )
    gap = sum(row["count"] * abs(row["score"] - row["right"]) for row in rows) / len(pairs)
    return rows, float(gap)
