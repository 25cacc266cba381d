"""COCO numbers equal pycocotools' on random detections, and what happens at the edges."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from groundtune.data.sample import Dataset, Sample
from groundtune.metrics.coco import coco_metrics

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"]


def random_dataset(rng: np.random.Generator, images: int = 12, crowds: bool = True) -> Dataset:
    """Pictures of 400 x 500 with 0 to 6 boxes of all sizes, three classes with scattered, unsorted category ids."""
    samples = []
    for index in range(images):
        count = int(rng.integers(0, 7))
        corner = rng.uniform(0, 200, (count, 2))
        side = 10 ** rng.uniform(1, 2.3, (count, 2))
        samples.append(
            Sample(
                image_path=Path(f"{index}.jpg"),
                image_id=100 + 7 * index,
                size_hw=(400, 500),
                boxes_xyxy=np.concatenate([corner, corner + side], 1).astype(np.float32),
                class_ids=rng.integers(0, 3, count),
                crowd=(rng.random(count) < 0.2) & crowds,
            )
        )
    return Dataset(
        name="valid",
        root=Path(),
        class_names=["cat", "dog", "red fox"],
        samples=samples,
        category_ids=[40, 7, 13],
        messages=[],
    )


def random_predictions(rng: np.random.Generator, dataset: Dataset) -> list[dict]:
    """Each box found about twice with jitter, sometimes under the wrong class, and some detections of nothing."""
    found = []
    for sample in dataset.samples:
        for box, class_id in zip(sample.boxes_xyxy.tolist(), sample.class_ids.tolist(), strict=True):
            for _ in range(int(rng.integers(0, 4))):
                size = np.array([box[2] - box[0], box[3] - box[1]])
                x, y = np.array(box[:2]) + rng.normal(0, 0.12, 2) * size
                w, h = size * rng.uniform(0.75, 1.3, 2)
                named = int(rng.integers(0, 3)) if rng.random() < 0.2 else class_id
                found.append((sample.image_id, dataset.category_ids[named], [x, y, w, h]))
        for _ in range(int(rng.integers(0, 15))):
            x, y, w, h = rng.uniform(5, 200, 4)
            found.append((sample.image_id, dataset.category_ids[int(rng.integers(0, 3))], [x, y, w, h]))
    return [
        {"image_id": image, "category_id": category, "bbox": [float(v) for v in box], "score": float(rng.random())}
        for image, category, box in found
    ]


def pycocotools_numbers(dataset: Dataset, predictions: list[dict]) -> tuple[dict, dict]:
    annotations = []
    for sample in dataset.samples:
        for (x0, y0, x1, y1), c, crowd in zip(sample.boxes_xyxy.tolist(), sample.class_ids, sample.crowd, strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": int(crowd)}
            annotations.append(
                box | {"id": len(annotations) + 1, "image_id": sample.image_id, "category_id": dataset.category_ids[c]}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": s.image_id, "height": s.size_hw[0], "width": s.size_hw[1]} for s in dataset.samples],
            "annotations": annotations,
            "categories": [
                {"id": i, "name": n} for i, n in zip(dataset.category_ids, dataset.class_names, strict=True)
            ],
        }
        truth.createIndex()
        found = truth.loadRes([dict(p) for p in predictions])
        numbers = []
        for only in [None, *dataset.category_ids]:
            evaluation = COCOeval(truth, found, "bbox")
            if only is not None:
                evaluation.params.catIds = [only]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            numbers.append(evaluation.stats)
    per_class = {name: {"AP": s[0], "AP50": s[1]} for name, s in zip(dataset.class_names, numbers[1:], strict=True)}
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
        assert (ours.metrics[key] if ours.metrics[key] is not None else -1) == pytest.approx(theirs[key], abs=1e-6), key
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

    empty = [
        Sample(
            s.image_path, s.image_id, s.size_hw, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        )
        for s in dataset.samples
    ]
    dataset.samples = empty
    found = [{"image_id": empty[0].image_id, "category_id": 40, "bbox": [1.0, 1.0, 5.0, 5.0], "score": 0.5}]
    no_objects = coco_metrics(dataset, found)
    assert set(no_objects.metrics.values()) == {None}
    assert no_objects.per_class["red fox"] == {"AP": None, "AP50": None}
