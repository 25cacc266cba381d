"""COCO's numbers of a data set: by name whatever the ids, for some classes or all, in batches, with
cached features.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_files import coco, write
from engine_fakes import FakeNetwork
from engine_runs import CLASSES, TOWERS, Recorder, evaluated, scenes, tiny_bundle
from PIL import Image

from groundtune.contracts import ImageFormat
from groundtune.data.formats.detect import load_splits
from groundtune.data.sample import Dataset
from groundtune.engine.optim import freeze
from groundtune.errors import DataError
from groundtune.model.bundle import ModelBundle
from groundtune.model.config import ModelConfig
from groundtune.predict.features import FeatureCache

# Image i is grey with brightness 50 * i. Two images of 40 x 30 pixels; xywh boxes.
TRUTH = [[("cat", [0, 0, 20, 15]), ("dog", [20, 15, 20, 15])], [("bird", [10, 6, 20, 15])]]
FALSE_DOG = [10, 0, 10, 15]


class Oracle(FakeNetwork):
    """Knows the boxes by the image's brightness and the classes by their token; it also sees a dog
    too many.
    """

    def __init__(self, tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def _run_backbone(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images.mean((1, 2, 3), keepdim=True)]

    def forward_features(self, features, text, targets=None) -> Any:
        logits = torch.full((len(features), 2, 256), -8.0)
        boxes = torch.tensor([0.25, 0.25, 0.5, 0.5]).repeat(len(features), 2, 1)
        for row, maps in enumerate(features):
            image = round(float(maps[0]) * 255 / 50) - 1
            seen = [(3.0, *truth) for truth in TRUTH[image]] + [(4.0, "dog", FALSE_DOG)] * (image == 1)
            for query, (logit, name, (x, y, w, h)) in enumerate(seen):
                places = text.input_ids[row] == self.tokenizer.convert_tokens_to_ids(name)
                logits[row, query, : len(places)][places] = logit
                boxes[row, query] = torch.tensor([(x + w / 2) / 40, (y + h / 2) / 30, w / 40, h / 30])
        return {"pred_logits": logits, "pred_boxes": boxes}


@pytest.fixture
def oracle(tokenizer) -> ModelBundle:
    image = ImageFormat(mean=(0.0,) * 3, std=(1.0,) * 3, short_side=48, max_side=64)
    return ModelBundle(Oracle(tokenizer).eval(), tokenizer, ModelConfig(), image)


def dataset(folder: Path, ids: dict[str, int], order: list[str]) -> Dataset:
    """The two images as COCO files whose categories have these ids and this order."""
    boxes = [(image, ids[name], box) for image, found in enumerate(TRUTH, 1) for name, box in found]
    content = coco(["1.png", "2.png"], boxes, [(ids[name], name) for name in order])
    for split in ("train", "valid"):
        write(folder / split / "_annotations.coco.json", content)
        for number in (1, 2):
            Image.new("RGB", (40, 30), (50 * number,) * 3).save(folder / split / f"{number}.png")
    return load_splits(folder)["valid"]


@pytest.mark.parametrize(
    ("ids", "order"),
    [
        ({"cat": 1, "dog": 2, "bird": 3}, ["cat", "dog", "bird"]),
        ({"cat": 907, "dog": 4, "bird": 55}, ["cat", "dog", "bird"]),
        ({"cat": 2, "dog": 3, "bird": 1}, ["dog", "bird", "cat"]),
        ({"cat": 0, "dog": 10**6, "bird": 7}, ["bird", "cat", "dog"]),
    ],
)
def test_any_category_ids_give_the_same_ap(
    tmp_path: Path, oracle: ModelBundle, ids: dict[str, int], order: list[str]
) -> None:
    """By hand: cat and bird are perfect. The false dog ranks above the true one: precision 1/2 at
    every recall.
    """
    found = evaluated(oracle, dataset(tmp_path, ids, order))
    assert {name: found.per_class[name]["AP"] for name in ids} == pytest.approx(
        {"cat": 1.0, "dog": 0.5, "bird": 1.0}
    )
    assert found.metrics["AP"] == found.metrics["AP50"] == pytest.approx(2.5 / 3)
    best = sorted(found.predictions, key=lambda prediction: -prediction["score"])[:4]
    assert [(p["image_id"], p["category_id"]) for p in best[:1]] == [(2, ids["dog"])]
    assert sorted((p["image_id"], p["category_id"]) for p in best[1:]) == sorted(
        [(1, ids["cat"]), (1, ids["dog"]), (2, ids["bird"])]
    )
    boxes = {(p["image_id"], p["category_id"]): p["bbox"] for p in best}
    assert boxes[1, ids["dog"]] == pytest.approx([20, 15, 20, 15], abs=1e-4)
    json.dumps(found.predictions)


@pytest.mark.parametrize(
    ("classes", "ap"), [(["cat"], 1.0), (["dog"], 0.5), (["bird", "dog"], 0.75), (["dog", "bird"], 0.75)]
)
def test_some_classes(tmp_path: Path, oracle: ModelBundle, classes: list[str], ap: float) -> None:
    """The others are not asked for and not counted, also where the indices come in another order."""
    data = dataset(tmp_path, {"cat": 9, "dog": 4, "bird": 6}, ["cat", "dog", "bird"])
    indices = [data.class_names.index(name) for name in classes]
    found = evaluated(oracle, data, classes=indices)
    assert found.per_class.keys() == set(classes) and found.metrics["AP"] == pytest.approx(ap)
    assert {p["category_id"] for p in found.predictions} == {data.category_ids[index] for index in indices}
    assert len(found.predictions) == 2 * 2 * len(classes)


@pytest.mark.parametrize(("negative", "dog"), [([], 1.0), ([4], 0.5)])
def test_a_data_set_with_frequencies_is_measured_by_lvis_rules(
    tmp_path: Path, oracle: ModelBundle, negative: list[int], dog: float
) -> None:
    """The false dog is in an image where only the bird has a box: it counts where dogs were looked
    for.
    """
    dataset(tmp_path, {"cat": 9, "dog": 4, "bird": 6}, ["cat", "dog", "bird"])
    path = tmp_path / "valid/_annotations.coco.json"
    content = json.loads(path.read_text())
    content["images"][1]["neg_category_ids"] = negative
    for category, frequency in zip(content["categories"], "rcf", strict=True):
        category["frequency"] = frequency
    path.write_text(json.dumps(content))
    found = evaluated(oracle, load_splits(tmp_path)["valid"])
    assert {name: found.metrics[name] for name in ("APr", "APc", "APf")} == pytest.approx(
        {"APr": 1.0, "APc": dog, "APf": 1.0}
    )
    assert found.score == pytest.approx((2 + dog) / 3) and found.per_class["dog"]["AP"] == pytest.approx(dog)


@pytest.mark.parametrize(("samples", "classes"), [(0, None), (2, [])])
def test_nothing_to_evaluate_on(
    tmp_path: Path, oracle: ModelBundle, samples: int, classes: list[int] | None
) -> None:
    data = dataset(tmp_path, {"cat": 1, "dog": 2, "bird": 3}, ["cat", "dog", "bird"])
    data.samples = data.samples[:samples]
    with pytest.raises(DataError, match=f"got {samples} images and {3 if classes is None else 0} classes"):
        evaluated(oracle, data, classes=classes)


def key(prediction: dict[str, Any]) -> tuple[int, int, float]:
    return prediction["image_id"], prediction["category_id"], -round(prediction["score"], 5)


def assert_same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert len(a) == len(b)
    for one, other in zip(sorted(a, key=key), sorted(b, key=key), strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=2e-5)


def test_batch_size_changes_nothing(tmp_path: Path, tokenizer) -> None:
    """Real network, images of several shapes, prompts that hold one class each."""
    data = load_splits(scenes(tmp_path / "data", valid=7))["valid"]
    assert len({sample.size_hw for sample in data.samples}) > 1
    bundle, watcher = tiny_bundle(tokenizer, max_text_len=6), Recorder()
    bundle.network.train()
    alone = evaluated(bundle, data, batch_size=1)
    batched = evaluated(bundle, data, batch_size=3, progress=watcher)
    assert bundle.network.training and watcher.events == [
        ("evaluation", 3),
        ("evaluation", 6),
        ("evaluation", 7),
    ]
    assert len(alone.predictions) == 7 * 20 * len(CLASSES)
    assert_same(alone.predictions, batched.predictions)
    assert alone.metrics == pytest.approx(batched.metrics, abs=1e-4)


def test_features_are_computed_once_and_images_not_opened_again(tmp_path: Path, tokenizer) -> None:
    data = load_splits(scenes(tmp_path / "data", valid=4))["valid"]
    network = FakeNetwork()
    freeze(network, TOWERS)
    image = ImageFormat(mean=(0.5,) * 3, std=(0.25,) * 3, short_side=64, max_side=64)
    bundle = ModelBundle(network.eval(), tokenizer, ModelConfig(), image)
    without = evaluated(bundle, data, batch_size=2)
    network.extracted = 0
    cache = FeatureCache(network, torch.float32)
    first = evaluated(bundle, data, batch_size=2, features=cache)
    assert_same(first.predictions, without.predictions)
    for sample in data.samples:
        sample.image_path.unlink()
    again = evaluated(bundle, data, batch_size=3, features=cache)
    assert network.extracted == 4
    assert_same(again.predictions, first.predictions)
