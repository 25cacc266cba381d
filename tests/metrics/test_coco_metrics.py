"""COCO numbers equal pycocotools' on random detections, and what happens at the edges."""

import contextlib
import io

import numpy as np
import pytest
from made_samples import made_sample
from pycocotools.cocoeval import COCOeval
from random_detections import coco_api, random_dataset, random_predictions

from groundtune.data.sample import Dataset
from groundtune.metrics.coco import coco_metrics

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"]


def pycocotools_numbers(dataset: Dataset, predictions: list[dict]) -> tuple[dict, dict]:
    truth, found = coco_api(dataset, predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        numbers = []
        for only in [None, *dataset.category_ids]:
            evaluation = COCOeval(truth, found, "bbox")
            if only is not None:
                evaluation.params.catIds = [only]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            numbers.append(evaluation.stats)
    per_class = {
        name: {"AP": s[0], "AP50": s[1]} for name, s in zip(dataset.class_names, numbers[1:], strict=True)
    }
    return dict(zip(KEYS, numbers[0][:9], strict=True)), per_class


@pytest.mark.parametrize("seed", range(5))
def test_equals_pycocotools_overall_and_per_class(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(seed)
    dataset = random_dataset(rng)
    predictions = random_predictions(rng, dataset)
    ours = coco_metrics(dataset, predictions)
    assert capsys.readouterr() == ("", "")
    theirs, theirs_per_class = pycocotools_numbers(dataset, predictions)
    assert set(ours.metrics) == set(KEYS)
    for key in KEYS:
        assert (ours.metrics[key] if ours.metrics[key] is not None else -1) == pytest.approx(
            theirs[key], abs=1e-6
        ), key
    for name in dataset.class_names:
        assert ours.per_class[name] == pytest.approx(theirs_per_class[name], abs=1e-6)


def test_a_subset_of_the_classes_counts_only_them() -> None:
    rng = np.random.default_rng(3)
    dataset = random_dataset(rng)
    predictions = random_predictions(rng, dataset)
    everything = coco_metrics(dataset, predictions)
    subset = coco_metrics(dataset, predictions, class_indices=[2, 0])
    assert subset.per_class == {name: everything.per_class[name] for name in ("cat", "red fox")}
    assert subset.metrics["AP"] == pytest.approx(sum(c["AP"] for c in subset.per_class.values()) / 2)


def test_no_predictions_are_zero_and_no_objects_are_none() -> None:
    dataset = random_dataset(np.random.default_rng(0), crowds=False)
    nothing_found = coco_metrics(dataset, [])
    assert nothing_found.metrics["AP"] == 0 and nothing_found.metrics["AR100"] == 0
    assert nothing_found.per_class["cat"] == {"AP": 0, "AP50": 0}

    empty = [made_sample(image_id=s.image_id, size_hw=s.size_hw) for s in dataset.samples]
    dataset.samples = empty
    found = [{"image_id": empty[0].image_id, "category_id": 40, "bbox": [1.0, 1.0, 5.0, 5.0], "score": 0.5}]
    no_objects = coco_metrics(dataset, found)
    assert set(no_objects.metrics.values()) == {None}
    assert no_objects.per_class["red fox"] == {"AP": None, "AP50": None}
