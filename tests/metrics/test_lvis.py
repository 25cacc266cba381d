"""LVIS numbers: by hand, equal to COCO's where every class was looked for, and equal to LVIS's own
code.
"""

import copy
import logging
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_samples import made_sample
from random_detections import random_dataset, random_predictions
from test_coco_metrics import pycocotools_numbers

from groundtune.data.sample import Dataset, LvisRules, Sample
from groundtune.metrics import coco
from groundtune.metrics import coco as lvis
from groundtune.metrics.coco import lvis_metrics

CAT, DOG, FOX = 40, 7, 13  # the ids of `random_dataset`
FREQUENCIES = {CAT: "r", DOG: "f", FOX: "c"}
BOX, FAR = [10.0, 10, 20, 20], [60.0, 60, 20, 20]


def image(image_id: int, *class_ids: int) -> Sample:
    """An image with `BOX` for each of the classes."""
    return made_sample([[10, 10, 30, 30]] * len(class_ids), class_ids, image_id=image_id)


def animals(samples: list[Sample], absent: dict[int, list[int]], incomplete: dict[int, list[int]]) -> Dataset:
    rules = LvisRules(FREQUENCIES, absent, incomplete)
    return Dataset("valid", Path("."), ["cat", "dog", "red fox"], samples, [CAT, DOG, FOX], lvis=rules)


def said(image_id: int, category_id: int, bbox: list[float], score: float) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


@pytest.mark.parametrize(
    ("absent", "incomplete", "ap"),
    [
        ({}, {}, 1.0),  # nobody looked for cats in the second image: the detection there does not count
        ({2: [CAT]}, {}, 0.5),  # they are known not to be there: false, and it ranks first
        ({2: [CAT]}, {2: [CAT]}, 1.0),  # not all of them have boxes: no error
        ({2: [DOG]}, {1: [CAT]}, 1.0),
    ],
)
def test_a_detection_counts_where_its_class_was_looked_for(absent, incomplete, ap: float) -> None:
    """One cat, found; and a cat said with a higher score in an image without boxes."""
    data = animals([image(1, 0), image(2)], absent, incomplete)
    found = lvis_metrics(data, [said(1, CAT, BOX, 0.8), said(2, CAT, BOX, 0.9)])
    assert found.per_class["cat"] == pytest.approx({"AP": ap, "AP50": ap})
    assert found.metrics["APr"] == found.metrics["AP"] == pytest.approx(ap)
    assert found.metrics["APc"] is found.metrics["APf"] is found.per_class["dog"]["AP"] is None


@pytest.mark.parametrize(
    ("cats_known", "ap"),
    [
        ((True, False), 1.0),  # nobody looked for cats in the second image
        ((True, True), 0.5),  # they are known not to be there
        ((False, False), 1.0),
        (None, 0.5),
    ],
)
def test_incomplete_labels_without_frequencies_count_likewise_by_cocos_rules(cats_known, ap: float) -> None:
    samples = [image(1, 0), image(2)]
    if cats_known:
        known = [frozenset({0} if each else ()) for each in cats_known]
        samples = [replace(s, exhaustive=each) for s, each in zip(samples, known, strict=True)]
    data = Dataset("valid", Path("."), ["cat", "dog", "red fox"], samples, [CAT, DOG, FOX])
    found = coco.coco_metrics(data, [said(1, CAT, BOX, 0.8), said(2, CAT, BOX, 0.9)])
    assert found.per_class["cat"] == pytest.approx({"AP": ap, "AP50": ap}) and found.metrics["AR1"] == 1


def test_an_image_with_all_labels_beside_others_counts_in_full() -> None:
    samples = [image(1, 0), image(2), replace(image(3), exhaustive=frozenset[int]())]
    data = Dataset("valid", Path("."), ["cat", "dog", "red fox"], samples, [CAT, DOG, FOX])
    found = [said(1, CAT, BOX, 0.7), said(2, CAT, BOX, 0.8), said(3, CAT, BOX, 0.9)]
    assert coco.coco_metrics(data, found).metrics["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(4))
def test_incomplete_labels_give_lvis_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = random_dataset(rng, crowds=False)
    found = random_predictions(rng, data)
    absent, incomplete, samples = {}, {}, []
    for sample in data.samples:
        boxes = set(sample.class_ids.tolist())
        known = {c for c in range(3) if rng.random() < 0.6}
        absent[sample.image_id] = [data.category_ids[c] for c in known - boxes]
        incomplete[sample.image_id] = [data.category_ids[c] for c in boxes - known]
        samples.append(replace(sample, exhaustive=frozenset(known)))
    rules = LvisRules(FREQUENCIES, absent, incomplete)
    expected = lvis_metrics(replace(data, lvis=rules), found)
    counted = coco.coco_metrics(replace(data, samples=samples), found)
    plain = coco.coco_metrics(data, found)
    for name, metrics in counted.per_class.items():
        assert metrics == pytest.approx(expected.per_class[name])
    assert counted.metrics["AP"] != pytest.approx(plain.metrics["AP"])


def test_frequencies_group_the_classes() -> None:
    """The cat is found, the dog behind a false one, the fox not at all."""
    data = animals([image(1, 0, 1, 2)], {}, {})
    found = [said(1, CAT, BOX, 0.9), said(1, DOG, FAR, 0.9), said(1, DOG, BOX, 0.8)]
    metrics = lvis_metrics(data, found).metrics
    assert metrics["APr"] == pytest.approx(1) and metrics["APf"] == pytest.approx(0.5) and metrics["APc"] == 0
    assert metrics["AP"] == metrics["AP50"] == metrics["APs"] == pytest.approx(0.5) and metrics["APl"] is None
    assert lvis_metrics(data, [], class_indices=[1]).metrics["AP"] == 0


def test_the_limit_is_of_a_class_in_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed AP: of three detections of cats two count, the one with the lowest score is the right
    one of image 2.
    """
    data = animals([image(1, 0), image(2, 0), image(3, 1)], {}, {})
    found = [said(2, CAT, BOX, 0.1), said(1, CAT, BOX, 0.9), said(1, CAT, FAR, 0.2), said(3, DOG, BOX, 0.05)]
    assert lvis_metrics(data, found).metrics["APr"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    monkeypatch.setattr(lvis, "_MAX_PER_CLASS", 2)
    metrics = lvis_metrics(data, found).metrics
    assert metrics["APr"] == pytest.approx(51 / 101)  # precision 1 up to recall .5, then 0
    assert metrics["APf"] == pytest.approx(1)


def test_an_image_has_no_limit() -> None:
    """The right one is the 1001st of its image: COCO's 100, LVIS's 300 would not see it."""
    found = [said(1, CAT, FAR, 0.9)] * 1000 + [said(1, CAT, BOX, 0.1)]
    assert lvis_metrics(animals([image(1, 0)], {}, {}), found).metrics["AP50"] == pytest.approx(1 / 1001)


@pytest.mark.parametrize("seed", range(3))
def test_equals_coco_where_all_was_looked_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = random_dataset(rng, crowds=False)
    predictions = random_predictions(rng, data)  # fewer than 100 of a class in an image
    data.lvis = LvisRules(FREQUENCIES, {sample.image_id: list(FREQUENCIES) for sample in data.samples}, {})
    theirs, per_class = pycocotools_numbers(data, predictions)
    ours = lvis_metrics(data, predictions)
    assert {name: ours.metrics[name] for name in ("AP", "AP50", "AP75")} == pytest.approx(
        {name: theirs[name] for name in ("AP", "AP50", "AP75")}, abs=1e-6
    )
    assert [ours.metrics[f"AP{letter}"] for letter in "rfc"] == pytest.approx(
        [per_class[name]["AP"] for name in data.class_names], abs=1e-6
    )


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Callable[[Dataset, list[dict]], dict[str, float]]:
    """The numbers of the package lvis, of 2020, made to run beside NumPy 2 and without OpenCV,
    which only draws.
    """
    monkeypatch.setattr(np, "float", float, raising=False)
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    theirs = pytest.importorskip("lvis", reason="needs LVIS's own code: pip install --no-deps lvis==0.5.3")
    logging.getLogger("lvis").setLevel(logging.ERROR)

    def numbers(data: Dataset, predictions: list[dict]) -> dict[str, float]:
        assert data.lvis is not None
        truth = object.__new__(theirs.LVIS)
        truth.logger = logging.getLogger("lvis")
        truth.dataset = coco.coco_dict(data, range(3))
        for image in truth.dataset["images"]:
            image["neg_category_ids"] = data.lvis.absent[image["id"]]
            image["not_exhaustive_category_ids"] = data.lvis.incomplete[image["id"]]
        for category in truth.dataset["categories"]:
            category["frequency"] = data.lvis.frequencies[category["id"]]
        truth._create_index()
        evaluation = theirs.LVISEval(
            truth, theirs.LVISResults(truth, copy.deepcopy(predictions), max_dets=-1), iou_type="bbox"
        )
        evaluation.run()
        return evaluation.get_results()

    return numbers


@pytest.mark.parametrize("at_once", [100, 2])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_package_lvis(seed: int, at_once: int, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "_CLASSES_AT_ONCE", at_once)
    rng = np.random.default_rng(seed)
    data = random_dataset(rng, images=30, crowds=False)
    predictions = random_predictions(rng, data)

    def some() -> dict[int, list[int]]:
        return {s.image_id: [c for c in (CAT, DOG, FOX) if rng.random() < 0.4] for s in data.samples}

    data.lvis = LvisRules(FREQUENCIES, some(), some())
    theirs, ours = reference(data, predictions), lvis_metrics(data, predictions).metrics
    assert len(ours) == 9
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=1e-6), name
