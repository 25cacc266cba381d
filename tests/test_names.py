"""Class names from data to every result: byte for byte, never merged silently, phrases remembered."""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import coco, write
from engine_runs import SWIN, scenes, tiny_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from groundtune import api as gt
from groundtune.api import Model
from groundtune.config import DATA_FORMATS as FORMATS
from groundtune.data.combine import add_extra_data, recall_phrases, rename_classes, with_rehearsal
from groundtune.data.formats.convert import convert
from groundtune.data.formats.detect import load_splits, read_splits
from groundtune.data.reading import read_data
from groundtune.errors import ConfigError, DataError
from groundtune.exporting.runtime import ExportMetadata, metadata_props
from groundtune.model.bundle import ModelBundle

ODD = ["A/B", "1.0", "Cat", "N/A", "bolt (M6)", "bolt (M8)", "nut", "box, big", "St. Bernard"]
SIMILAR = "cat,Cat,CAT, cat,cat (a),cat (A),(cat),c.a.t,c_a_t,c a t,cat?,café,cafe,猫,ไทย,_,\x1bcat,cat\n"
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
    | st.sampled_from(SIMILAR.split(",")),
    min_size=1,
    max_size=60,
    unique=True,
)


def data_of(folder: Path, names: list[str], split: str = "train") -> Path:
    """A COCO split of one image with a box of each of the first classes."""
    boxes = [(1, number, [2, 3, 10 + number, 12]) for number in range(1, min(len(names), 9) + 1)]
    content = coco(boxes=boxes, categories=list(enumerate(names, start=1)))
    write(folder / split / "_annotations.coco.json", content, folder / split)
    return folder


@contextmanager
def refused(names: list[str]) -> Iterator[None]:
    """Allow an error about some of the names that gives two of them, or one without text."""
    try:
        yield
    except DataError as error:
        named = [
            name
            for name in names
            if ascii(repr(name))[1:-1].replace("\\\\", "\\") in ascii(str(error)).replace("\\\\", "\\")
        ]
        assert named, error


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return Model(tiny_bundle(tokenizer), "cpu")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(names=NAMES)
def test_every_format_returns_the_names_or_refuses_them(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = data_of(Path(folder) / "data", names)
        assert read_splits(data)["train"].class_names == names
        for format in FORMATS:
            with refused(names):
                convert(data, Path(folder) / format, format, link=False, input_format=None)
                assert read_splits(Path(folder) / format)["train"].class_names == names


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(names=NAMES)
def test_predict_evaluate_label_and_files_return_the_names_or_refuse_them(
    model: Model, names: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder, refused(names):
        data = data_of(Path(folder) / "data", names)
        own = Model(ModelBundle(**vars(model.bundle) | {"classes": names}), "cpu")
        predictor = own.predictor(threshold=0)
        assert predictor.names == names
        assert len(set(own.bundle.phrases_of(names))) == len(names)
        (found,) = predictor.each([Path(data / "train/a.png")])
        assert {names[i] for i in found.class_id} == set(found.data["class_name"])
        result = gt.evaluate(own, data, split="train", precision="fp32")
        assert list(result.per_class) == names
        gt.label(own, str(data / "train/a.png"), output_dir=Path(folder) / "labels", threshold=0)
        assert read_splits(Path(folder) / "labels")["train"].class_names == names
        phrases = dict(zip(names, own.bundle.phrases_of(names), strict=True))
        image_format = own.bundle.image_format
        metadata = ExportMetadata(names, [], [], 256, image_format, "fp32", "x", phrases)
        stored = json.loads(metadata_props(metadata, own.bundle.tokenizer)["groundtune"])
        assert stored["classes"] == names and stored["class_phrases"] == phrases


def test_indistinguishable_classes_are_errors_that_name_them_and_the_cure(
    model: Model, tmp_path: Path
) -> None:
    for number, names in enumerate((["Cat", "cat", "dog"], ["ไทย", "ไท", "dog"], ["cat", "cat ", "dog"])):
        data = data_of(data_of(tmp_path / str(number), names), names, "valid")
        calls: list[Any] = [
            lambda data=data: gt.train(model, data, output_dir=tmp_path / "run", epochs=1, quiet=True),
            lambda data=data: gt.evaluate(model, data),
            lambda names=names: model.predict(np.zeros((40, 40, 3), np.uint8), names),
            lambda data=data: gt.label(model, data=data, output_dir=tmp_path / "out"),
        ]
        for call in calls:
            with pytest.raises(DataError) as error:
                call()
            assert all(repr(name) in str(error.value) for name in names[:2])
            assert "--rename" in str(error.value) and "'dog'" not in str(error.value)
        assert not (tmp_path / "run").exists()
        rename = {names[0]: "cat|house cat", names[1]: "cat"}
        assert list(gt.evaluate(model, data, rename=rename).per_class) == ["cat", "dog"]


def test_unreadable_letters_are_named_on_stderr(model: Model, tmp_path: Path, capsys) -> None:
    names = ["ᏣᎳᎩ", "dog"]
    data = data_of(data_of(tmp_path / "data", names), names, "valid")
    gt.evaluate(model, data, quiet=False)
    assert "'ᏣᎳᎩ'" in capsys.readouterr().err
    own = Model(ModelBundle(**vars(model.bundle) | {"classes": ["DOG"]}), "cpu")
    gt.evaluate(own, data, quiet=False)
    assert "The model was not fine-tuned on 'ᏣᎳᎩ'." in capsys.readouterr().err
    list(gt.predict(model, data / "train/a.png", classes=names, quiet=False))
    assert "'ᏣᎳᎩ'" in capsys.readouterr().err
    gt.label(model, data / "train/a.png", classes=names, output_dir=tmp_path / "out", quiet=False)
    assert "'ᏣᎳᎩ'" in capsys.readouterr().err
    model.predictor(names)
    assert "'ᏣᎳᎩ'" in capsys.readouterr().err


def test_typed_names_are_the_same_in_every_form(model: Model) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    expected = model.predict(image, ["red cup", "dog"], threshold=0)
    array = np.array(["red cup", "dog"])
    for typed in (
        "red cup . dog .",
        "red cup. dog.",
        "red cup, dog",
        "red cup;dog",
        array,
        ["red cup . dog ."],
        iter(["red cup", "dog"]),
    ):
        found = model.predict(image, typed, threshold=0)
        assert found.data["class_name"].tolist() == expected.data["class_name"].tolist()
        assert np.array_equal(found.xyxy, expected.xyxy) and np.array_equal(
            found.confidence, expected.confidence
        )
    assert model.predictor("box").names == ["box"]
    phrases = model.predictor(phrase=["a cat. a dog."]).names
    assert phrases == ["a cat", "a dog"] == model.predictor(phrase=["a cat", "a dog"]).names
    with pytest.raises(ConfigError, match="classes: expected a list"):
        model.predictor({"cat", "dog"})


def test_rename_works_on_the_written_names_before_any_merging(tmp_path: Path) -> None:
    data = data_of(tmp_path, ["bolt (M6)", "bolt (M8)", "Cat", "cat"])
    (dataset,) = splits = [load_splits(data)["train"]]
    rename_classes(splits, {"bolt (M6)": "small bolt", "bolt (M8)": "big bolt", "Cat": "lynx (wild)"})
    assert dataset.class_names == ["bolt (M6)", "bolt (M8)", "Cat", "cat"]
    assert dataset.phrases == ["small bolt", "big bolt", "lynx", "cat"]
    assert dataset.samples[0].class_ids.tolist() == [0, 1, 2, 3]
    (dataset,) = splits = [load_splits(data)["train"]]
    rename_classes(splits, {"bolt (M6)": "screw", "bolt (M8)": "Screw", "Cat": "cat"})
    assert dataset.class_names == ["screw", "cat"] and dataset.category_ids == [1, 3]
    assert dataset.samples[0].class_ids.tolist() == [0, 0, 1, 1]
    assert "'bolt (M6)' and 'bolt (M8)' are one class, 'screw'" in dataset.messages[-1]
    (again,) = [load_splits(data)["train"]]
    recall_phrases([again], dataset.renamed)  # as a model remembers it
    assert again.class_names == ["screw", "cat"] and again.phrases == ["screw", "cat"]


def test_other_splits_and_data_are_matched_by_name_then_by_their_words(tmp_path: Path) -> None:
    data = data_of(tmp_path / "a", ["Cat", "bolt (M6)", "dog"])
    data_of(data, ["dog", "cat", "bolt (M8)"], "valid")
    splits = load_splits(data)
    for dataset in splits.values():
        assert dataset.class_names == ["Cat", "bolt (M6)", "dog", "bolt (M8)"]
        assert dataset.phrases == ["cat", "bolt m6", "dog", "bolt m8"]
    assert splits["valid"].samples[0].class_ids.tolist() == [2, 0, 3]
    assert "'cat' is 'Cat'" in " ".join(splits["valid"].messages)
    extra = data_of(tmp_path / "b", ["CAT", "crane (bird)", "DOG"])
    add_extra_data(splits, [(extra, 1.0)])
    assert splits["train"].class_names == ["Cat", "bolt (M6)", "dog", "bolt (M8)", "crane (bird)"]
    assert splits["train"].samples[1].class_ids.tolist() == [0, 4, 2]
    assert splits["train"].samples[1].exhaustive == {0, 2, 4}
    assert "'CAT' is 'Cat', 'DOG' is 'dog'" in " ".join(splits["train"].messages)
    rehearsal = data_of(tmp_path / "c", ["crane (machine)", "x"])
    joined = with_rehearsal(splits["train"], [(rehearsal, 0.2)])
    assert joined.phrases[:5] == splits["train"].phrases == ["cat", "bolt m6", "dog", "bolt m8", "crane"]
    assert joined.phrases[5:] == ["crane machine", "x"]


def test_a_model_remembers_its_phrases(tokenizer, tmp_path: Path) -> None:
    """What training prints is what `evaluate` measures, with the names of the data, no option
    repeated.
    """
    data = scenes(tmp_path / "data", classes=["red circle", "blue star"])
    for path in data.glob("*/_annotations.coco.json"):
        path.write_text(path.read_text().replace("red circle", "R.C (old)").replace("blue star", "B/S, new"))
    rename = {"R.C (old)": "red moon", "B/S, new": "blue tool|blue thing"}
    names, options = (
        ["R.C (old)", "B/S, new"],
        {"epochs": 2, "warmup_steps": 1, "retention_data": [], "lr": 1e-3},
    )
    run = gt.train(
        Model(tiny_bundle(tokenizer), "cpu"),
        data,
        output_dir=tmp_path / "run",
        rename=rename,
        quiet=True,
        precision="fp32",
        report_to=["none"],
        **options,
    )
    assert list(run.per_class) == names
    loaded = gt.load(run.folder)
    assert loaded.classes == names
    assert loaded.bundle.phrases == {"R.C (old)": "red moon", "B/S, new": "blue tool"}
    again = gt.evaluate(run.folder, data)
    assert {f"valid/{name}": value for name, value in again.metrics.items()} == run.metrics
    assert again.per_class == run.per_class
    metrics = json.loads((run.folder / "metrics.json").read_text())
    changed = json.dumps(metrics).replace("R.C (old)", "red moon").replace("B/S, new", "blue tool")
    gt.write_report(run.folder)
    report = (run.folder / "report.html").read_text()
    (run.folder / "metrics.json").write_text(changed)  # as older versions wrote it
    gt.write_report(run.folder)
    rows = re.compile(r"<tr><td>(?:R.C|B/S).*", re.MULTILINE)
    assert rows.findall((run.folder / "report.html").read_text()) == rows.findall(report) != []
    other = gt.evaluate(run.folder, data, rename={"R.C (old)": "x", "B/S, new": "y"})
    assert other.predictions != again.predictions
    image = next((data / "valid").glob("*.*g"))
    found = loaded.predict(image, threshold=0)
    asked = [
        loaded.predict(image, typed, threshold=0)
        for typed in ("Red moon; blue tool", ["r c (OLD)", "b/s, new"])
    ]
    for part in asked:  # by the phrase, and by the same words
        assert (
            np.array_equal(part.confidence, found.confidence)
            and part.class_id.tolist() == found.class_id.tolist()
        )
    assert asked[1].data["class_name"].tolist() == [["r c (OLD)", "b/s, new"][i] for i in found.class_id]
    assert loaded.predictor("B/S, new").names == ["B/S, new"]  # a known name is not split
    (lines,) = list(
        gt.predict(
            run.folder, image, output_dir=tmp_path / "p", save_as=["json", "coco", "yolo"], threshold=0
        )
    )
    assert {row["class"] for row in lines["detections"]} <= set(names)
    assert json.loads((tmp_path / "p/predictions.json").read_text())["classes"] == names
    assert [row["name"] for row in json.loads((tmp_path / "p/coco.json").read_text())["categories"]] == names
    assert (tmp_path / "p/classes.txt").read_text().splitlines() == names
    gt.label(run.folder, image, output_dir=tmp_path / "l", threshold=0)
    assert read_splits(tmp_path / "l")["train"].class_names == names
    assert "R.C (old)" in (run.folder / "report.html").read_text()
    thresholds = loaded.predictor(thresholds={"red moon": 0.9, "B/S, new": 0.1})._thresholds.tolist()
    assert thresholds == pytest.approx([0.9, 0.1])
    continued = gt.train(
        run.folder,
        data,
        output_dir=tmp_path / "more",
        quiet=True,
        precision="fp32",
        report_to=["none"],
        **options,
    )
    assert gt.load(continued.folder).bundle.phrases == loaded.bundle.phrases


def test_a_model_of_an_older_version_has_the_phrases_of_its_names(tokenizer, tmp_path: Path) -> None:
    bundle = tiny_bundle(tokenizer)
    bundle.classes = ["cat", "red blood cell"]
    Model(bundle).save(tmp_path / "model")
    meta = json.loads((tmp_path / "model/groundtune.json").read_text())
    del meta["phrases"]
    (tmp_path / "model/groundtune.json").write_text(json.dumps(meta))
    old = gt.load(tmp_path / "model").bundle
    assert old.classes == bundle.classes and old.phrases_of(["cat", "Red_Blood_Cell"]) == bundle.classes


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True])
def test_exported_files_know_names_and_phrases(tokenizer, tmp_path: Path, fixed: bool) -> None:
    pytest.importorskip("onnxruntime")
    sizes = {"backbone_config": SWIN | {"window_size": 2, "image_size": 128}, "num_levels": 3}
    bundle = tiny_bundle(tokenizer, **sizes)
    bundle.image_format = replace(bundle.image_format, short_side=96, max_side=128)
    bundle.classes, bundle.phrases = (
        ODD[:6],
        dict(zip(ODD[:6], "red tool,one,cat,two,bolt m6,bolt m8".split(","), strict=True)),
    )
    gt.export(Model(bundle), tmp_path / "m.onnx", format="onnx", fixed_classes=fixed)
    exported = gt.load(tmp_path / "m.onnx")
    assert exported.classes == ODD[:6] and exported.bundle.phrases == bundle.phrases
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    options = {"threshold": 0, "precision": "fp32"}
    expected, found = (each.predict(image, **options) for each in (Model(bundle, "cpu"), exported))
    np.testing.assert_allclose(found.confidence[:5], expected.confidence[:5], atol=1e-3)
    assert set(found.data["class_name"]) <= set(ODD[:6])
    asked = exported.predict(image, ["bolt m6", "cat"], **options)  # a phrase, and another spelling
    same = exported.predict(image, ["bolt (M6)", "Cat"], **options)
    assert np.array_equal(asked.confidence, same.confidence)
    assert set(asked.data["class_name"]) <= {"bolt m6", "cat"}


def test_data_of_the_cases_keeps_three_classes_of_three(tmp_path: Path) -> None:
    data = data_of(tmp_path, ODD)
    dataset = read_data(str(data), [], {})["train"]
    assert dataset.class_names == ODD
    assert dataset.phrases == [
        "a/b",
        "1 0",
        "cat",
        "n/a",
        "bolt m6",
        "bolt m8",
        "nut",
        "box, big",
        "st bernard",
    ]
