"""COCO numbers equal pycocotools' on random detections, and what happens at the edges."""

import contextlib
import copy
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from made_samples import made_sample
from PIL import Image
from pycocotools.cocoeval import COCOeval
from random_detections import coco_api, random_dataset, random_predictions

from groundtune.data.formats.coco import write_coco
from groundtune.data.formats.detect import load_splits
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


@pytest.mark.parametrize("seed", range(3))
def test_the_area_of_the_file_decides_the_size_as_in_pycocotools(seed: int, tmp_path: Path) -> None:
    """Areas as masks have them, smaller than the boxes; some rows have none or nonsense."""
    rng = np.random.default_rng(seed)
    dataset = random_dataset(rng)
    predictions = random_predictions(rng, dataset)
    truth, _ = coco_api(dataset, predictions)
    for number, row in enumerate(truth.dataset["annotations"]):
        box_area = row["area"]
        row["area"] = box_area * rng.uniform(0.1, 1.2)
        if number % 5 == 4:  # pycocotools needs a number, which is that of the box
            row["area"] = box_area
    folder = tmp_path / "valid"
    folder.mkdir()
    for row in truth.dataset["images"]:
        row["file_name"] = f"{row['id']}.png"
        Image.new("1", (500, 400)).save(folder / row["file_name"])
    content = copy.deepcopy(truth.dataset)
    for row, wrong in zip(
        content["annotations"][4::5], itertools.cycle([None, "9", -1, True, 1e400]), strict=False
    ):
        row["area"] = wrong
        if wrong is None:
            del row["area"]
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    read = load_splits(tmp_path)["valid"]
    ours = coco_metrics(read, predictions).metrics
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(p) for p in predictions]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    for key, theirs in zip(KEYS, evaluation.stats[:9], strict=True):
        assert (-1 if ours[key] is None else ours[key]) == pytest.approx(theirs, abs=1e-6), key
    by_boxes = coco_metrics(dataset, predictions).metrics
    assert (ours["AP"], ours["APs"]) != (by_boxes["AP"], by_boxes["APs"]) and ours["AP"] == by_boxes["AP"]
    write_coco(read, [f"{s.image_id}.png" for s in read.samples], folder / "_annotations.coco.json")
    again = load_splits(tmp_path)["valid"]
    assert coco_metrics(again, predictions).metrics == ours
