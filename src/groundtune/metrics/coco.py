"""COCO's average precision and recall of detections against a data set, over all classes and per class.

The counting is faster-coco-eval's (pycocotools' rules in C++; a test holds the two equal). Two things are ours:

* An object's area, which sorts it into small, medium and large, is that of its box. COCO's own numbers use the area of the
  mask, which a detection data set does not have; AP, AP50, AP75 and AR are not touched by it, APs, APm and APl are.
* A number that has no ground truth to stand on is None (COCO prints -1), so that no one takes a mean over -1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from groundtune.data.sample import Dataset

Prediction = dict[str, Any]
"""One detection in COCO's result format: image_id, category_id, bbox [x, y, width, height] in original pixels, score."""


@dataclass
class CocoMetrics:
    """Shares between 0 and 1, or None where the data set holds no object to count.

    Attributes:
        metrics: AP (mean over IoU .50 to .95), AP50, AP75, APs, APm, APl (by box area: < 32², < 96², above), AR1, AR10
            and AR100 (recall with that many detections per picture).
        per_class: AP and AP50 of each class, by its name.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]


def coco_metrics(
    dataset: Dataset, predictions: Sequence[Prediction], class_indices: Sequence[int] | None = None
) -> CocoMetrics:
    """Scores detections by COCO's rules: at most 100 per picture and class, crowd boxes neither found nor missed.

    Args:
        dataset: the pictures with their boxes in original pixels. A picture without boxes counts: every detection in it
            is false.
        predictions: the detections of all pictures together; without any, every number is 0.
        class_indices: classes of the data set to count, others are left out on both sides; None counts all.

    Returns:
        The numbers; all None when there is no object at all.
    """
    counted = range(len(dataset.class_names)) if class_indices is None else sorted(set(class_indices))
    category_ids = [dataset.category_ids[index] for index in counted]
    truth = COCO(_coco_dict(dataset, counted))
    found = truth.loadRes([dict(prediction) for prediction in predictions])
    evaluation = COCOeval_faster(truth, found, iouType="bbox", print_function=_silent)
    evaluation.params.catIds = category_ids
    evaluation.params.maxDets = [1, 10, 100]
    evaluation.evaluate()
    evaluation.accumulate()

    precision = evaluation.eval[
        "precision"
    ]  # (10 IoUs, 101 recalls, classes, 4 areas, 3 limits), -1 where no object is
    recall = evaluation.eval["recall"]  # (10 IoUs, classes, 4 areas, 3 limits)
    metrics = {"AP": _mean(precision[:, :, :, 0, 2])}
    metrics |= {"AP50": _mean(precision[0, :, :, 0, 2]), "AP75": _mean(precision[5, :, :, 0, 2])}
    metrics |= {f"AP{letter}": _mean(precision[:, :, :, area, 2]) for area, letter in enumerate("sml", start=1)}
    metrics |= {f"AR{limit}": _mean(recall[:, :, 0, place]) for place, limit in enumerate((1, 10, 100))}
    # evaluate() sorts the category ids, so the column of a class is its id's rank.
    column = {category_id: rank for rank, category_id in enumerate(sorted(category_ids))}
    per_class = {}
    for index, category_id in zip(counted, category_ids, strict=True):
        own = precision[:, :, column[category_id], 0, 2]
        per_class[dataset.class_names[index]] = {"AP": _mean(own), "AP50": _mean(own[0])}
    return CocoMetrics(metrics, per_class)


def _coco_dict(dataset: Dataset, class_indices: Sequence[int]) -> dict[str, Any]:
    counted = set(class_indices)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in dataset.samples:
        height, width = sample.size_hw
        images.append({"id": sample.image_id, "height": height, "width": width})
        for box, class_id, crowd in zip(sample.boxes_xyxy, sample.class_ids, sample.crowd, strict=True):
            if int(class_id) not in counted:
                continue
            x0, y0, x1, y1 = (float(value) for value in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # from 1: id 0 means "unmatched" inside the evaluator
                    "image_id": sample.image_id,
                    "category_id": dataset.category_ids[int(class_id)],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": dataset.category_ids[index], "name": dataset.class_names[index]} for index in class_indices]
    return {"images": images, "annotations": annotations, "categories": categories}


def _mean(values: np.ndarray) -> float | None:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None


def _silent(*_: object) -> None:
    """The evaluator's print function: nothing but the command line prints."""
