"""COCO's average precision and recall of detections against a data set, over all classes and per class.

The counting is faster-coco-eval's (pycocotools' rules in C++; a test holds the two equal). Two things are ours:

* An object's area, which sorts it into small, medium and large, is that of its box. COCO's own numbers use the area of the
  mask, which a detection data set does not have; AP, AP50, AP75 and AR are not touched by it, APs, APm and APl are.
* A number that has no ground truth to stand on is None (COCO prints -1), so that no one takes a mean over -1.

LVIS's average precision: of many classes, each looked for in some of the images only (Gupta et al. 2019).

A detection counts where its class was looked for: where an object of it is, or where it is known to be absent. Where not
all objects of a class are annotated, a detection too many is no error. The counting is faster-coco-eval's; a test holds it
equal to LVIS's own code. What is counted is *fixed AP* (Dave et al. 2021): the best 10,000 detections of each class in all
images together, in place of 300 per image, where common classes crowd out rare ones.

Deviation: a model's answer to an image is its 300 best detections (`postprocess`), as in the published numbers of the
MM-Grounding-DINO family. As with COCO's numbers an object's area is that of its box.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from groundtune.data.sample import Dataset

_CLASSES_AT_ONCE = 100  # the evaluator keeps a list per image and class: gigabytes for all of LVIS's

Prediction = dict[str, Any]
"""One detection in COCO's result format: image_id, category_id, bbox [x, y, width, height] in original pixels, score."""


@dataclass
class CocoMetrics:
    """Shares between 0 and 1, or None where the data set holds no object to count.

    Attributes:
        metrics: AP (mean over IoU .50 to .95), AP50, AP75, APs, APm, APl (by box area: < 32², < 96², above), AR1, AR10
            and AR100 (recall with that many detections per image).
        per_class: AP and AP50 of each class, by its name.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]


def coco_metrics(
    dataset: Dataset, predictions: Sequence[Prediction], class_indices: Sequence[int] | None = None
) -> CocoMetrics:
    """Scores detections by COCO's rules: at most 100 per image and class, crowd boxes neither found nor missed.

    Args:
        dataset: the images with their boxes in original pixels. An image without boxes counts: every detection in it
            is false.
        predictions: the detections of all images together; without any, every number is 0.
        class_indices: classes of the data set to count, others are left out on both sides; None counts all.

    Returns:
        The numbers; all None when there is no object at all.
    """
    counted = range(len(dataset.class_names)) if class_indices is None else sorted(set(class_indices))
    truth = coco_dict(dataset, counted)
    precision, recall = precision_recall(truth, predictions, [1, 10, 100])
    found = average_precision(truth, precision)
    found.metrics |= {
        f"AR{limit}": mean_of(recall[:, :, 0, place]) for place, limit in enumerate((1, 10, 100))
    }
    return found


def precision_recall(
    truth: dict[str, Any], predictions: Sequence[Prediction], limits: list[int], *, lvis: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Counts detections class by class.

    Args:
        truth: from `coco_dict`; for LVIS with its fields.
        predictions: the detections of all images together.
        limits: how many detections of a class count in an image, rising.
        lvis: whether detections of a class count only in images where it was looked for.

    Returns:
        Precision (10 IoUs, 101 recalls, C, 4 areas, limits) and recall (10 IoUs, C, 4 areas, limits), the C classes in the
        order of `truth`; -1 where a class has no object.
    """
    ids = [category["id"] for category in truth["categories"]]
    api = COCO(truth)
    found = api.loadRes([dict(prediction) for prediction in predictions])
    parts = []
    for start in range(0, len(ids), _CLASSES_AT_ONCE):
        evaluation = COCOeval_faster(api, found, iouType="bbox", print_function=_silent, lvis_style=lvis)
        evaluation.params.catIds = ids[start : start + _CLASSES_AT_ONCE]
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        # evaluate() sorts the category ids, so the column of a class is its id's rank.
        columns = np.argsort(np.argsort(ids[start : start + _CLASSES_AT_ONCE]))
        parts.append((evaluation.eval["precision"][:, :, columns], evaluation.eval["recall"][:, columns]))
    return np.concatenate([part[0] for part in parts], 2), np.concatenate([part[1] for part in parts], 1)


def average_precision(truth: dict[str, Any], precision: np.ndarray) -> CocoMetrics:
    """AP over all classes, at two IoUs, by area, and of each class, with the largest of the limits."""
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
    """A data set's boxes and the classes to count, as the content of a COCO file."""
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
    categories = [
        {"id": dataset.category_ids[index], "name": dataset.class_names[index]} for index in class_indices
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def mean_of(values: np.ndarray) -> float | None:
    """The mean of what is counted; None where nothing is."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None


def _silent(*_: object) -> None:
    """The evaluator's print function: nothing but the command line prints."""


_MOST_OF_CLASS = 10_000


def lvis_metrics(
    dataset: Dataset, predictions: Sequence[Prediction], class_indices: Sequence[int] | None = None
) -> CocoMetrics:
    """Scores detections by LVIS's rules.

    Args:
        dataset: with `lvis`.
        predictions: the detections of all images together, any number in an image.
        class_indices: classes of the data set to count; None counts all.

    Returns:
        AP, AP50, AP75, APs, APm, APl, and APr, APc and APf of the rare, common and frequent classes; AP and AP50 of each
        class. None where there is no object to count.
    """
    rules = dataset.lvis
    assert rules is not None
    counted = range(len(dataset.class_names)) if class_indices is None else sorted(set(class_indices))
    truth = coco_dict(dataset, counted)
    for image in truth["images"]:
        image["neg_category_ids"] = rules.absent.get(image["id"], [])
        image["not_exhaustive_category_ids"] = rules.incomplete.get(image["id"], [])
    for category in truth["categories"]:
        category["frequency"] = rules.frequencies.get(
            category["id"], "r"
        )  # a class of other splits has no object here
    precision, _ = precision_recall(truth, _best_of_classes(predictions), [_MOST_OF_CLASS], lvis=True)
    found = average_precision(truth, precision)
    group = np.array([category["frequency"] for category in truth["categories"]])
    found.metrics |= {f"AP{letter}": mean_of(precision[:, :, group == letter, 0]) for letter in "rcf"}
    return found


def _best_of_classes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The best detections of each class in all images together."""
    taken: Counter[int] = Counter()
    kept = []
    for prediction in sorted(predictions, key=lambda p: -p["score"]):
        taken[prediction["category_id"]] += 1
        if taken[prediction["category_id"]] <= _MOST_OF_CLASS:
            kept.append(prediction)
    return kept
