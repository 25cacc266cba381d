"""LVIS's average precision: of many classes, each looked for in some of the pictures only (Gupta et al. 2019).

A detection counts where its class was looked for: where an object of it is, or where it is known to be absent. Where not
all objects of a class are annotated, a detection too many is no error. The counting is faster-coco-eval's; a test holds it
equal to LVIS's own code. What is counted is *fixed AP* (Dave et al. 2021): the best 10,000 detections of each class in all
pictures together, in place of 300 per picture, where common classes crowd out rare ones.

Deviation: a model's answer to a picture is its 300 best detections (`postprocess`), as in the published numbers of the
MM-Grounding-DINO family. As with COCO's numbers an object's area is that of its box.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from groundtune.data.sample import Dataset
from groundtune.metrics.coco import CocoMetrics, Prediction, average_precision, coco_dict, mean_of, precision_recall

_MOST_OF_CLASS = 10_000


def lvis_metrics(
    dataset: Dataset, predictions: Sequence[Prediction], class_indices: Sequence[int] | None = None
) -> CocoMetrics:
    """Scores detections by LVIS's rules.

    Args:
        dataset: with `lvis`.
        predictions: the detections of all pictures together, any number in a picture.
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
        category["frequency"] = rules.frequencies.get(category["id"], "r")  # a class of other splits has no object here
    precision, _ = precision_recall(truth, _best_of_classes(predictions), [_MOST_OF_CLASS], lvis=True)
    found = average_precision(truth, precision)
    group = np.array([category["frequency"] for category in truth["categories"]])
    found.metrics |= {f"AP{letter}": mean_of(precision[:, :, group == letter, 0]) for letter in "rcf"}
    return found


def _best_of_classes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The best detections of each class in all pictures together."""
    taken: Counter[int] = Counter()
    kept = []
    for prediction in sorted(predictions, key=lambda p: -p["score"]):
        taken[prediction["category_id"]] += 1
        if taken[prediction["category_id"]] <= _MOST_OF_CLASS:
            kept.append(prediction)
    return kept
