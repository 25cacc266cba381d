"""Arguments of Python functions are checked like options: one table of wrong values, one of numbers
in other types.
"""

import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image
from tiny_models import tiny_bundle

import groundtune as gt
from groundtune import api
from groundtune import config as configs
from groundtune.data.scenes import write_scenes
from groundtune.errors import ConfigError

IMAGE = np.zeros((64, 64, 3), np.uint8)
NAMES = ["red circle", "blue star"]


@pytest.fixture()
def model(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> gt.Model:
    """A small model in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    bundle = tiny_bundle(tokenizer)
    bundle.classes = list(NAMES)
    return gt.Model(bundle, "cpu")


WRONG = [
    ("precision", "half", "expected auto, fp32, tf32, bf16 or fp16, got 'half'"),
    ("precision", "fp8", "expected auto, fp32, tf32, bf16 or fp16, got 'fp8'"),
    ("precision", 16, "expected auto, fp32, tf32, bf16 or fp16, got '16'"),
    ("precision", ["bf16"], "expected text, got ['bf16']"),
    ("device", "gpu", "'gpu' is not a device; expected auto, cpu"),
    ("device", -1, "'-1' is not a device"),
    ("device", True, "'True' is not a device"),
    ("threshold", "high", "expected a number, got 'high'"),
    ("threshold", float("nan"), "expected a number, got nan"),
    ("threshold", np.float32("inf"), "expected a number"),
    ("threshold", True, "expected a number, got True"),
    ("threshold", np.True_, "expected a number"),
    ("threshold", -0.1, "expected a number between 0 and 1, got -0.1"),
    ("threshold", np.float64(1.5), "expected a number between 0 and 1, got 1.5"),
    ("threshold", np.array([0.1, 0.2]), "expected a number"),
    ("thresholds", 0.5, "got 0.5"),
    ("thresholds", {"red circle": "high"}, "expected a number for every name"),
    ("thresholds", {"red circle": 2}, "expected a number between 0 and 1, got 2"),
    ("thresholds", {"red circle": float("nan")}, "expected a number for every name"),
    ("thresholds", {None: 0.5}, "for every name"),
    ("thresholds", {"red circel": 0.5}, "'red circel'. Did you mean red circle?"),
    ("thresholds", "red circel=.5,blue=0.1", "'red circel'. Did you mean red circle? 'blue'."),
    ("thresholds", "red circle=high", "expected a number for every name"),
    ("thresholds", "red circle=.5,blue star", "expected cat=0.5,dog=0.3"),
    ("thresholds", Path("missing.yaml"), "expected cat=0.5,dog=0.3"),
    ("batch_size", 0, "expected a whole number of at least 1, got 0"),
    ("batch_size", 2.5, "expected a whole number, got 2.5"),
    ("batch_size", "many", "expected a whole number, got 'many'"),
    ("batch_size", True, "expected a whole number, got True"),
    ("batch_size", np.True_, "expected a whole number"),
    ("tiles", 10, "expected a whole number of at least 64, got 10"),
    ("tiles", (640, 640), "expected a whole number, got (640, 640)"),
    ("tiles", np.array([640, 640]), "expected a whole number"),
    ("tile_overlap", 1, "expected a number between 0.05 and 0.8, got 1"),
    ("nms", 1.1, "expected a number between 0 and 1, got 1.1"),
    ("nms", True, "expected a number, got True"),
    ("nms", "class", "expected a number, got 'class'"),
    ("agnostic_nms", "maybe", "expected true or false, got 'maybe'"),
    ("max_detections", 0, "expected a whole number of at least 1, got 0"),
    ("max_detections", -1, "expected a whole number of at least 1, got -1"),
    ("classes", 5, "expected a list, got 5"),
    ("classes", [], "expected at least one item, got []"),
    ("classes", (), "expected at least one item"),
    ("classes", "", "expected at least one item"),
    ("classes", [None], "expected a list, each item text"),
    ("classes", ["red circle", ""], "expected a list, each item text"),
    ("classes", {"red circle": 1}, "expected a list, got {"),
    ("classes", {"red circle"}, "expected a list, got {"),
    ("classes", b"cat", "expected a list, got b'cat'"),
    ("iou", 0.5, "there is no such option. Did you mean nms?"),
    ("conf", 0.5, "there is no such option. Did you mean threshold?"),
    ("max_det", 5, "there is no such option. Did you mean max_detections?"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_arguments_of_a_prediction(model: gt.Model, name: str, value: object, message: str) -> None:
    Image.fromarray(IMAGE).save("a.png")
    for call in (
        lambda: model.predict(IMAGE, **{name: value}),
        lambda: model.predictor(**{name: value}),
        lambda: list(api.predict(model, "a.png", **{name: value})),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            call()
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", "0.5"),
        ("threshold", np.float32(0.5)),
        ("threshold", Fraction(1, 2)),
        ("threshold", torch.tensor(0.5)),
        ("batch_size", np.int64(2)),
        ("batch_size", "2"),
        ("batch_size", 2.0),
        ("nms", np.float16(0.5)),
        ("max_detections", np.uint8(3)),
        ("thresholds", {"Red_Circle": np.float32(0.25)}),
        ("thresholds", "red circle = .5, blue star=0.1"),
        ("device", torch.device("cpu")),
        ("classes", ("red circle", "blue star")),
        ("classes", np.array(["red circle", "blue star"])),
        ("classes", (name for name in NAMES)),
        ("classes", None),
        ("tiles", None),
    ],
)
def test_other_types_of_numbers_and_lists_are_read(model: gt.Model, name: str, value: object) -> None:
    found = model.predict(IMAGE, **{"threshold": 0, name: value})
    assert isinstance(found, sv.Detections)


def test_attributes_of_a_model_are_checked_when_they_are_used(model: gt.Model) -> None:
    for name, value, message in WRONG[:7]:
        changed = gt.Model(model.bundle, "cpu")
        setattr(changed, name, value)
        with pytest.raises(ConfigError, match=re.escape(message)):
            changed.predict(IMAGE)
    model.save("tiny")
    for name, value, message in WRONG[:7]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            gt.load("tiny", **{name: value})
    assert gt.load(Path("tiny"), precision="bf16", seed=np.int64(3)).precision == "bf16"


TABLE: list[tuple[Callable[[gt.Model], Any], str]] = [
    (lambda m: gt.load("nano", precison="fp32"), "load(): precison: there is no such option. Did you mean"),
    (lambda m: gt.load(None), "load(): source: missing"),
    (lambda m: gt.load(["nano"]), "load(): source: expected text, got ['nano']"),
    (lambda m: gt.load("nano", seed=-1), "load(): seed: expected a whole number between 0"),
    (lambda m: m.save(None), "output: missing"),
    (lambda m: m.save([]), "save(): output: expected text, got []"),
    (
        lambda m: gt.train(m, "data", batch_size=True),
        "train(): batch_size: expected a whole number, got True",
    ),
    (lambda m: gt.train(m, "data", lr=float("nan")), "train(): lr: expected a number, got nan"),
    (
        lambda m: gt.train(m, "data", precision="half"),
        "train(): precision: expected auto, fp32, tf32, bf16 or fp16",
    ),
    (lambda m: gt.train(config=configs.TrainConfig(data="d", epochs=0)), "epochs: expected a whole number"),
    (lambda m: gt.train(config=configs.TrainConfig(data="d"), lr=1), "config has all options; remove lr"),
    (
        lambda m: gt.evaluate(m, "data", precision="half"),
        "evaluate(): precision: expected auto, fp32, tf32, bf16 or fp16",
    ),
    (
        lambda m: gt.evaluate(m, "data", batch_size=np.float32(0.5)),
        "evaluate(): batch_size: expected a whole",
    ),
    (lambda m: gt.evaluate(m, "data", classes=[]), "evaluate(): classes: expected at least one item"),
    (lambda m: gt.evaluate(m, 5.5), "evaluate(): data: expected text, got 5.5"),
    (
        lambda m: gt.evaluate(config=configs.PredictConfig(model="x", images=["a"])),
        "expected EvaluateConfig, got PredictConfig",
    ),
    (
        lambda m: gt.evaluate(config=configs.EvaluateConfig(model="x", data="y", batch_size=0)),
        "evaluate(): batch_size: expected a whole number of at least 1, got 0",
    ),
    (lambda m: api.predict(m), "predict(): images: missing"),
    (lambda m: api.predict(m, [IMAGE]), "predict(): images: expected a list, each item text"),
    (lambda m: api.predict(m, "a.png", save_as="pdf"), "predict(): save_as: expected annotated, json"),
    (
        lambda m: gt.label(m, "a.png", output_dir="o", nms=2),
        "label(): nms: expected a number between 0 and 1",
    ),
    (
        lambda m: gt.label(m, "a.png", output_dir="o", clases=["a"]),
        "label(): clases: there is no such option",
    ),
    (lambda m: gt.blend("a", "b", "c", alphas=[2]), "blend(): alphas: expected a number between 0 and 1"),
    (lambda m: gt.check("x", fast=2), "check(): fast: expected true or false, got 2"),
    (
        lambda m: gt.convert("x", "y", format=1),
        "convert(): format: expected coco, yolo, voc, odvg, csv or hf, got '1'",
    ),
    (lambda m: gt.export(m, "x", precision="half"), "export(): precision: expected fp32, fp16 or int8"),
    (lambda m: gt.export(m, "x", max_ap_drop=-1), "export(): max_ap_drop: expected a number of at least 0"),
    (lambda m: gt.push_to_hub(m, None), "output: missing"),
    (lambda m: gt.push_to_hub(m, "a/b", private="perhaps"), "push_to_hub(): private: expected true or false"),
    (lambda m: gt.write_report("x", max_images=-1), "write_report(): max_images: expected a whole number"),
    (lambda m: gt.compare_runs(5), "compare_runs(): runs: expected a list, got 5"),
    (lambda m: gt.compare_runs("run"), "two or more run directories to compare, got 1"),
]


@pytest.mark.parametrize(("call", "message"), TABLE)
def test_wrong_arguments_of_every_function(model: gt.Model, call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        call(model)
    assert list(Path().iterdir()) == []


def test_detections_and_metrics_are_plain_json(model: gt.Model) -> None:
    Image.fromarray(IMAGE).save("a.png")
    rows = json.loads(json.dumps(list(api.predict(model, "a.png", threshold=0, max_detections=3))))
    assert len(rows[0]["detections"]) == 3 and set(rows[0]["detections"][0]) == {"class", "score", "box_xyxy"}
    found = model.predict(IMAGE, threshold=0, max_detections=3)
    with sv.JSONSink("found.json") as sink:
        sink.append(found, {"image": "a.png"})
    saved = json.loads(Path("found.json").read_text())
    assert [row["class_name"] for row in saved] == [row["class"] for row in rows[0]["detections"]]
    assert json.loads(json.dumps(found.data["class_name"].tolist())) == [row["class_name"] for row in saved]
    write_scenes(Path("data"), train=1, valid=2, classes=NAMES, size=64)
    result = gt.evaluate(model, "data")
    assert json.loads(json.dumps(vars(result)))["predictions"] == result.predictions
    assert json.dumps(gt.check("data", fast=True).as_dict())
