"""Compute COCO's and LVIS's average precision and recall, over all classes and per class.

faster-coco-eval does the counting (pycocotools' and LVIS's rules in C++; tests compare it with
both). Deviations:

- An object whose file has no `area` is small, medium or large by the area of its box.
- A number without ground truth is None instead of -1.
- LVIS's AP is the fixed AP (Dave et al. 2021): the best 10,000 detections of each class over all
  images count, instead of 300 per image. A model still predicts its 300 best detections per image,
  as in the published numbers of the MM-Grounding-DINO family.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from groundtune.data.formats.coco import annotation_rows, federated_fields
from groundtune.data.sample import Dataset

_CLASSES_AT_ONCE = 100  # the evaluator keeps a list per image and class: gigabytes for all of LVIS's classes
_MAX_PER_CLASS = 10_000  # detections of a class that LVIS's fixed AP counts

Prediction = dict[str, Any]
"""A detection in COCO's result format: image_id, category_id, bbox (xywh, pixels), score."""


@dataclass
class CocoMetrics:
    """Numbers between 0 and 1, or None without ground truth.

    Attributes:
        metrics: AP (mean over IoU .50 to .95), AP50, AP75, APs, APm, APl (area < 32², < 96²,
            larger), and AR1, AR10, AR100 (recall with that many detections per image) or, of LVIS,
            APr, APc, APf (rare, common, frequent classes).
        per_class: AP and AP50 by class name.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]


def coco_metrics(
    dataset: Dataset, predictions: Sequence[Prediction], class_indices: Sequence[int] | None = None
) -> CocoMetrics:
    """Evaluate detections by COCO's rules.

    At most 100 per image and class count; crowd boxes count neither way. Where the labels of an
    image are incomplete, a class counts as in `lvis_metrics`.

    Args:
        dataset: images with boxes in original pixels. In an image without boxes every detection is
            false.
        predictions: detections of all images; if there are none, every number is 0.
        class_indices: classes to evaluate; None means all.
    """
    counted = range(len(dataset.class_names)) if class_indices is None else sorted(set(class_indices))
    truth = coco_dict(dataset, counted)
    federated = any(sample.exhaustive is not None for sample in dataset.samples)
    for image, sample in zip(truth["images"], dataset.samples, strict=True) if federated else ():
        every = {"neg_category_ids": dataset.category_ids, "not_exhaustive_category_ids": []}
        image |= federated_fields(sample, dataset.category_ids) or every
    precision, recall = precision_recall(truth, predictions, [1, 10, 100], lvis=federated)
    result = average_precision(truth, precision)
    result.metrics |= {f"AR{limit}": mean_of(recall[:, :, 0, i]) for i, limit in enumerate((1, 10, 100))}
    return result


def precision_recall(
    truth: dict[str, Any], predictions: Sequence[Prediction], limits: list[int], *, lvis: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Compute precision and recall class by class.

    Args:
        truth: result of `coco_dict`, with LVIS's fields for LVIS.
        predictions: detections of all images.
        limits: how many detections of a class count per image, ascending.
        lvis: whether detections of a class count only in images that were annotated for it.

    Returns:
        Precision (10 IoUs, 101 recalls, C, 4 areas, limits) and recall (10 IoUs, C, 4 areas,
        limits), classes in the order of `truth`; -1 where a class has no object.
    """
    ids = [category["id"] for category in truth["categories"]]
    api = COCO(truth)
    results = api.loadRes([dict(prediction) for prediction in predictions])
    parts = []
    for start in range(0, len(ids), _CLASSES_AT_ONCE):
        evaluation = COCOeval_faster(
            api, results, iouType="bbox", print_function=lambda *_: None, lvis_style=lvis
        )
        evaluation.params.catIds = ids[start : start + _CLASSES_AT_ONCE]
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        # evaluate() sorts the category ids, so the column of a class is the rank of its id
        columns = np.argsort(np.argsort(ids[start : start + _CLASSES_AT_ONCE]))
        parts.append((evaluation.eval["precision"][:, :, columns], evaluation.eval["recall"][:, columns]))
    return np.concatenate([part[0] for part in parts], 2), np.concatenate([part[1] for part in parts], 1)


def average_precision(truth: dict[str, Any], precision: np.ndarray) -> CocoMetrics:
    """Average the precision over all classes, by area and per class, at the largest limit."""
    precision = precision[..., -1]
    metrics = {"AP": mean_of(precision[..., 0])}
    metrics |= {"AP50": mean_of(precision[0, ..., 0]), "AP75": mean_of(precision[5, ..., 0])}
    metrics |= {f"AP{letter}": mean_of(precision[..., area]) for area, letter in enumerate("sml", start=1)}
    per_class = {
        category["name"]: {"AP": mean_of(precision[:, :, c, 0]), "AP50": mean_of(precision[0, :, c, 0])}
        for c, category in enumerate(truth["categories"])
    }
    return CocoMetrics(metrics, per_class)


def coco_dict(dataset: Dataset, class_indices: Sequence[int]) -> dict[str, Any]:
    """Return the boxes of some classes as the content of a COCO file."""
    names = {dataset.category_ids[index]: dataset.class_names[index] for index in class_indices}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in dataset.samples:
        height, width = sample.size_hw
        images.append({"id": sample.image_id, "height": height, "width": width})
        rows = [row for row in annotation_rows(sample, dataset.category_ids) if row["category_id"] in names]
        # ids from 1: id 0 means "unmatched" inside the evaluator
        annotations += [{"id": number} | row for number, row in enumerate(rows, len(annotations) + 1)]
    # the evaluator requires a frequency
    categories = [{"id": number, "name": name, "frequency": "f"} for number, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def mean_of(values: np.ndarray) -> float | None:
    """Return the mean of the values that are not -1; None if there are none."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None


def lvis_metrics(
    dataset: Dataset, predictions: Sequence[Prediction], class_indices: Sequence[int] | None = None
) -> CocoMetrics:
    """Evaluate detections by LVIS's rules (Gupta et al. 2019), with the fixed AP.

    A detection counts only in images that contain its class or are known not to. Where not all
    objects of a class are annotated, a false detection is no error.

    Args:
        dataset: a data set whose `lvis` is not None.
        predictions: detections of all images, any number per image.
        class_indices: classes to evaluate; None means all.
    """
    rules = dataset.lvis
    assert rules is not None
    counted = range(len(dataset.class_names)) if class_indices is None else sorted(set(class_indices))
    truth = coco_dict(dataset, counted)
    for image in truth["images"]:
        image["neg_category_ids"] = rules.absent.get(image["id"], [])
        image["not_exhaustive_category_ids"] = rules.incomplete.get(image["id"], [])
    for category in truth["categories"]:
        # a class of another split has no object here
        category["frequency"] = rules.frequencies.get(category["id"], "r")
    precision, _ = precision_recall(truth, _best_per_class(predictions), [_MAX_PER_CLASS], lvis=True)
    result = average_precision(truth, precision)
    group = np.array([category["frequency"] for category in truth["categories"]])
    result.metrics |= {f"AP{letter}": mean_of(precision[:, :, group == letter, 0]) for letter in "rcf"}
    return result


def _best_per_class(predictions: Sequence[Prediction]) -> list[Prediction]:
    counts: Counter[int] = Counter()
    best = []
    for prediction in sorted(predictions, key=lambda p: -p["score"]):
        counts[prediction["category_id"]] += 1
        if counts[prediction["category_id"]] <= _MAX_PER_CLASS:
            best.append(prediction)
    return best
