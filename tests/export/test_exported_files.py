"""Exported files against their models: ONNX Runtime and OpenVINO, open vocabulary and fixed
classes.
"""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_runs import SWIN, scenes, tiny_bundle

from groundtune import api
from groundtune.cli import main
from groundtune.contracts import ImageFormat
from groundtune.data.images import load_image
from groundtune.data.transforms import resize_keep_ratio, to_tensor
from groundtune.errors import CheckpointError, ConfigError, DataError, ExportError
from groundtune.exporting import graph, runtime, write
from groundtune.exporting.runtime import open_exported
from groundtune.model.bundle import companion
from groundtune.model.config import ModelConfig
from groundtune.model.prompt_tuning import PhraseOffsets
from groundtune.predict.detect import class_prompts, inference_mode

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")
NAMES = ["red circle", "blue star", "green triangle"]
STANDALONE = Path(__file__).parents[2] / "examples/onnx_standalone.py"


@pytest.fixture(scope="module")
def model(tokenizer):
    """A random Swin + BERT detector for images of 96 to 128 pixels, whose outputs depend on the
    image.

    Its second stage has shifted windows, which do not fit images of 101 x 96 and 127 x 97, so that
    its maps are padded.
    """
    patch = pytest.MonkeyPatch()
    patch.setitem(SWIN, "depths", [1, 2, 1, 1])
    patch.setitem(SWIN, "window_size", 2)
    patch.setitem(SWIN, "image_size", 128)
    bundle = tiny_bundle(tokenizer, num_levels=3)
    patch.undo()
    bundle.image_format = ImageFormat((0.5,) * 3, (0.25,) * 3, short_side=96, max_side=128)
    bundle.classes = NAMES
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bundle.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    bundle.network.language_model.forget()
    return api.Model(bundle, "cpu", "fp32")


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """`files(format, fixed)`: the file, written once."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def file(format, fixed):
        path = folder / f"{'fixed' if fixed else 'open'}.{'onnx' if format == 'onnx' else 'xml'}"
        assert api.export(model, path, format=format, classes=NAMES if fixed else None) == []
        return path

    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes(tmp_path_factory.mktemp("scenes") / "data", train=4, valid=2)


def noise(h, w):
    return torch.randn(1, 3, h, w, generator=torch.Generator().manual_seed(1))


def outputs(bundle, images, names):
    """Logits of the prompt's tokens and boxes for normalized images (B, 3, h, w); of one without B."""
    text, count = class_prompts(bundle.tokenizer, names, 256).text, len(images)
    with inference_mode(bundle.network, "fp32"):
        network = bundle.network
        features = network.extract_features(images, [tuple(images.shape[2:])] * count)
        output = network.forward_features(features, text.rows([0] * count))
    logits, boxes = output["pred_logits"][..., : text.input_ids.shape[1]], output["pred_boxes"]
    return (logits, boxes) if count > 1 else (logits[0], boxes[0])


SHAPES = [(64, 64), (400, 120), (120, 400), (640, 64), (30, 400), (1500, 30), (30, 1500), (3, 150), (1, 1)]


def scene_images(data, shapes):
    """RGB images of those (width, height), from generated scenes."""
    paths = sorted(path for path in data.rglob("*") if path.suffix in (".jpg", ".png"))
    sources = zip(shapes, paths * len(shapes), strict=False)
    return [load_image(path).resize(shape) for shape, path in sources]


def assert_close(actual, expected):
    """Compare logits and boxes."""
    torch.testing.assert_close(actual[0], expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(actual[1], expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("format", "fixed"),
    [
        pytest.param("onnx", False, id="onnx-open"),
        pytest.param("onnx", True, id="onnx-fixed"),
        pytest.param("openvino", False, id="openvino-open", marks=[openvino, pytest.mark.slow]),
        pytest.param("openvino", True, id="openvino-fixed", marks=openvino),
    ],
)
def test_files_equal_the_network_in_any_size(format, fixed, model, files):
    written = open_exported(files(format, fixed))
    for size_hw in ((96, 128), (101, 96), (127, 97)):
        image = noise(*size_hw)
        for names in (NAMES, ["cat", "small white blood cell", "x", "y"]):
            if not fixed or names is NAMES:
                assert_close(outputs(written, image, names), outputs(model.bundle, image, names))


@pytest.mark.parametrize("fixed", [False, True], ids=["open", "fixed"])
@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=[openvino, pytest.mark.slow])])
def test_files_equal_the_model_in_any_shape_and_number(format, fixed, model, files, data):
    """From 1:1 to 1:50, both ways; also with fewer positions than queries."""
    written, image_format = open_exported(files(format, fixed)), model.bundle.image_format
    for shape in SHAPES:
        images = scene_images(data, [shape] * 5)
        view = resize_keep_ratio(shape[::-1], image_format)
        batch = torch.stack([to_tensor(view.image(image), image_format) for image in images])
        for count in (1, 2, 5):
            found, expected = (outputs(b, batch[:count], NAMES) for b in (written, model.bundle))
            assert found[0].shape == expected[0].shape
            assert_close(found, expected)


def test_images_of_different_shapes_are_detected_together(model, files, data):
    images = scene_images(data, [*SHAPES, *SHAPES[::-1]])
    file = api.load(files("onnx", True))
    found = file.predict(images, NAMES, threshold=0.0, batch_size=5)
    for one, expected in zip(found, model.predict(images, NAMES, threshold=0.0, batch_size=3), strict=True):
        assert len(one) == len(expected) > 0
        np.testing.assert_allclose(one.confidence, expected.confidence, atol=1e-3)
        np.testing.assert_allclose(one.xyxy[0], expected.xyxy[0], atol=0.1)


@pytest.mark.parametrize(("opset", "ir"), [(16, 8), (17, 8), (18, 8), (19, 9), (20, 9)])
def test_the_opset_of_a_file_can_be_chosen(opset, ir, model, tmp_path):
    api.export(model, tmp_path / "x.onnx", format="onnx", classes=NAMES, opset=opset)
    written, image = onnx.load(tmp_path / "x.onnx"), noise(96, 128)
    assert [(each.domain, each.version) for each in written.opset_import] == [("", opset)]
    assert written.ir_version == ir
    expected = outputs(model.bundle, image, NAMES)
    assert_close(outputs(open_exported(tmp_path / "x.onnx"), image, NAMES), expected)


@openvino
def test_a_frequent_size_gets_its_own_compiled_graph(model, files, monkeypatch):
    from openvino import Core

    path, is_fixed, compile_model = files("openvino", True), [], Core.compile_model

    def compiled(core, graph, *rest):
        is_fixed.append(not graph.is_dynamic())
        return compile_model(core, graph, *rest)

    monkeypatch.setattr(Core, "compile_model", compiled)
    monkeypatch.setattr(runtime, "_IMAGES_UNTIL_COMPILED", 2)
    monkeypatch.setattr(runtime, "_MAX_COMPILED", 1)
    written = open_exported(path)
    for size_hw in ((101, 96), (96, 128), (101, 96), (101, 96), (96, 128), (96, 128)):
        image = noise(*size_hw)
        assert_close(outputs(written, image, NAMES), outputs(model.bundle, image, NAMES))
    assert is_fixed == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True], ids=["open", "fixed"])
@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=openvino)])
def test_nanos_files_equal_nano_on_real_images(format, fixed, shared, tmp_path):
    nano, names = api.load("nano", device="cpu"), ["red blood cell", "white blood cell", "platelet"]
    path = tmp_path / ("nano.onnx" if format == "onnx" else "nano.xml")
    api.export(nano, path, format=format, classes=names if fixed else None)
    for data in ("bccd", "amenity"):
        original = load_image(next((shared / f"data/{data}/valid").glob("*.jpg")))
        view = resize_keep_ratio((original.height, original.width), nano.bundle.image_format)
        image = to_tensor(view.image(original), nano.bundle.image_format)[None]
        assert_close(outputs(open_exported(path), image, names), outputs(nano.bundle, image, names))


@pytest.mark.slow
def test_the_ap_of_a_file_is_that_of_the_model(shared, tmp_path):
    nano = api.load("nano", device="cpu")
    api.export(nano, tmp_path / "nano.onnx", format="onnx")
    expected = api.evaluate(nano, shared / "data/bccd").metrics["AP"]
    assert expected > 0.1
    assert api.evaluate(tmp_path / "nano.onnx", shared / "data/bccd").metrics["AP"] == pytest.approx(
        expected, abs=1e-3
    )


def test_fixed_classes_can_be_detected_in_part_and_in_any_order(files):
    written, image = open_exported(files("onnx", True)), noise(96, 128)
    logits, boxes = outputs(written, image, NAMES)  # [CLS] red circle . blue star . green triangle . [SEP]
    assert logits.shape[1] == 11
    turned, again = outputs(written, image, ["green triangle", "red circle"])
    assert torch.equal(turned, logits[:, [0, 7, 8, 9, 1, 2, 3, 10]]) and torch.equal(again, boxes)
    with pytest.raises(
        DataError, match="fixed.onnx has the fixed classes red circle, .* got cat, blue. Use some"
    ):
        outputs(written, image, ["cat", "red circle", "blue"])


def test_predict_and_evaluate_take_a_file(model, files, data, capsys):
    path, image = str(files("onnx", True)), str(next(data.rglob("*.jpg"), None) or next(data.rglob("*.png")))
    expected = model.predict(image, NAMES, threshold=0.0)
    assert main(["predict", path, image, "--json", "--threshold", "0"]) == 0  # with its own classes
    records = json.loads(capsys.readouterr().out)[0]["detections"]
    assert len(records) == len(expected) > 10
    np.testing.assert_allclose([row["score"] for row in records], expected.confidence, atol=1e-4)
    np.testing.assert_allclose(sorted(records[0]["box_xyxy"]), sorted(expected.xyxy[0].tolist()), atol=0.05)
    options = {"threshold": 0.0, "agnostic_nms": True, "nms": 0.5, "max_detections": 7}
    selected = api.load(path).predict(image, **options)
    assert len(selected) <= 7 and len(selected.with_nms(0.5, class_agnostic=True)) == len(selected)
    np.testing.assert_allclose(selected.xyxy, model.predict(image, NAMES, **options).xyxy, atol=0.05)
    assert api.evaluate(path, data).metrics["AP"] == pytest.approx(
        api.evaluate(model, data).metrics["AP"], abs=1e-3
    )


def test_a_file_of_an_older_version_takes_one_image_and_stretches_narrow_ones(files, tmp_path):
    older = onnx.load(files("onnx", False))
    (entry,) = (entry for entry in older.metadata_props if entry.key == "groundtune")
    values = json.loads(entry.value)
    assert values.pop("batches") and values["smallest_side"] == 1
    entry.value = json.dumps(values | {"smallest_side": 68})
    onnx.save(older, tmp_path / "older.onnx")
    written, fed = open_exported(tmp_path / "older.onnx"), []
    network, run = written.network, written.network._run
    network._run = lambda feed, *given: fed.append(feed["image"]) or run(feed, *given)
    image = torch.rand(2, 3, 128, 20)
    logits, boxes = outputs(written, image, ["cat"])
    assert [part.shape for part in fed] == [(1, 3, 128, 68)] * 2
    np.testing.assert_array_equal(fed[0][0, :, :, 0], image[0, :, :, 0])
    assert logits.isfinite().all() and boxes.isfinite().all()


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=[openvino, pytest.mark.slow])])
def test_fp16_halves_the_weights_and_is_measured(format, model, files, data, tmp_path):
    path = tmp_path / ("half.onnx" if format == "onnx" else "half.xml")
    (note,) = api.export(model, path, format=format, classes=NAMES, precision="fp16", data=data)
    assert note.startswith("AP on valid: 0.") and f" {format} fp16 (" in note
    full, weights = files(format, True), path if format == "onnx" else path.with_suffix(".bin")
    full = full if format == "onnx" else full.with_suffix(".bin")
    assert weights.stat().st_size < 0.8 * full.stat().st_size  # the vocabulary does not shrink
    image = noise(96, 128)
    logits = outputs(open_exported(path), image, NAMES)[0]
    exact = outputs(model.bundle, image, NAMES)[0]
    difference = (logits - exact).abs().amax(1)  # rounding may exchange two queries of nearly equal score
    assert 0 < difference.median() < 0.01 * exact.abs().max()


@pytest.mark.slow
def test_int8_quantizes_the_towers_and_leaves_coordinates_alone(model, data, tmp_path):
    (note,) = api.export(
        model,
        tmp_path / "int8.onnx",
        format="onnx",
        classes=NAMES,
        precision="int8",
        data=data,
        max_ap_drop=100,
    )
    assert " onnx int8 (" in note
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    assert {name for node in nodes if node.op_type == "Constant" for name in node.output} <= {
        name for node in nodes for name in node.input
    }
    dequantized = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    layers = [
        node.name
        for node in nodes
        if node.op_type in ("Conv", "MatMul", "Gemm") and set(node.input) & dequantized
    ]
    assert any("backbone" in name for name in layers) and any("ffn" in name for name in layers)
    assert not any(part in name for name in layers for part in ("sampling_offsets", "bbox_head", "decoder"))


def test_int8_that_loses_too_much_is_refused_with_its_loss(model, data, tmp_path, monkeypatch):
    scores = iter((0.5, 0.488, 0.5, 0.488))
    evaluation = lambda *_, **__: SimpleNamespace(score=next(scores), metrics={"AP": 0.0})  # noqa: E731
    monkeypatch.setattr(write, "run_task", evaluation)
    monkeypatch.setattr(write, "_quantize", lambda *_: None)
    out, loss = tmp_path / "out", "AP on valid: 0.500 with the model, 0.488 with onnx int8 (-1.2 points)."
    with pytest.raises(ExportError, match=rf"{re.escape(loss)} int8 may lose 1, so nothing was written"):
        api.export(model, out / "x.onnx", format="onnx", classes=NAMES, precision="int8", data=data)
    assert not list(out.iterdir())
    options = {"classes": NAMES, "precision": "int8", "data": data, "max_ap_drop": 1.3}
    (note,) = api.export(model, out / "x.onnx", format="onnx", **options)
    assert note == loss and [file.name for file in out.iterdir()] == ["x.onnx"]


def test_a_graph_that_differs_is_not_written(model, tmp_path, monkeypatch):
    def other(bundle, *rest):
        # of every second channel: layer norms would undo a change of all
        bias = bundle.network.neck.convs[0].gn.bias.data[::2]
        bias += 1.0
        try:
            graph.trace(bundle, *rest)
        finally:
            bias -= 1.0

    monkeypatch.setattr(write, "trace", other)
    with pytest.raises(ExportError, match=r"The graph differs from the model .* nothing was written"):
        api.export(model, tmp_path / "x.onnx", format="onnx", classes=NAMES)
    assert not list(tmp_path.iterdir())


def test_learned_class_name_embeddings_are_built_into_fixed_classes(model, tokenizer, tmp_path):
    network = model.bundle.network
    network.encoder.phrase_offsets = PhraseOffsets(NAMES, tokenizer, network.language_model.width)
    try:
        with torch.no_grad():
            network.encoder.phrase_offsets.vectors.fill_(0.7)
        with pytest.raises(ExportError, match="need fixed classes: add --classes"):
            api.export(model, tmp_path / "x.onnx", format="onnx")
        api.export(model, tmp_path / "x.onnx", format="onnx", classes=NAMES)
        image = noise(96, 128)
        expected = outputs(model.bundle, image, NAMES)
        assert_close(outputs(open_exported(tmp_path / "x.onnx"), image, NAMES), expected)
    finally:
        network.encoder.phrase_offsets = None
    assert (outputs(model.bundle, image, NAMES)[0] - expected[0]).abs().max() > 1e-3


def test_the_standalone_example_gives_the_same_detections(model, files, data):
    source = STANDALONE.read_text(encoding="utf-8")
    imported = {
        a.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for a in node.names
    }
    imported |= {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"} and len(source.splitlines()) <= 70
    image = next(path for path in sorted(data.rglob("*")) if path.suffix in (".jpg", ".png"))
    command = [sys.executable, str(STANDALONE), str(files("onnx", True)), str(image), "0.0"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = model.predict(image, NAMES, threshold=0.0)
    assert len(lines) == len(expected)
    scores = [float(line.split("  ")[1]) for line in lines]
    np.testing.assert_allclose(scores, expected.confidence, atol=1e-3)
    best = [float(value) for value in lines[0].split("  ")[2].split()]
    np.testing.assert_allclose(best, expected.xyxy[0], atol=0.2)


def test_the_standalone_example_takes_several_images_of_different_sizes(model, files, data, tmp_path):
    images = scene_images(data, [SHAPES[0], SHAPES[1], SHAPES[0], SHAPES[5], SHAPES[6]])
    paths = [str(tmp_path / f"{number}.png") for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    command = [sys.executable, str(STANDALONE), str(files("onnx", True)), *paths, "0.0"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    blocks = dict(zip(paths, re.split(r"^/.*\n", printed, flags=re.MULTILINE)[1:], strict=True))
    assert [line for line in printed.splitlines() if line.startswith("/")] == paths
    for path, expected in zip(paths, model.predict(paths, NAMES, threshold=0.0), strict=True):
        scores = [float(line.split("  ")[1]) for line in blocks[path].splitlines()]
        np.testing.assert_allclose(scores, expected.confidence, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"path": "x.xml", "format": "openvino", "opset": 18},
            ConfigError,
            "opset: only for the format onnx",
        ),
        ({"opset": 21}, ConfigError, "opset: expected a whole number between 16 and 20, got 21"),
        ({"path": "x.xml", "format": "onnx"}, ConfigError, r"output: .* ends in .onnx for onnx, got .*x.xml"),
        ({"precision": "int8"}, ConfigError, "data: int8 is calibrated and measured on images"),
        ({"precision": "bf16"}, ConfigError, "precision: expected fp32, fp16 or int8, got 'bf16'"),
        ({"format": "hf", "classes": ["cat"]}, ConfigError, "classes.* onnx .*openvino"),
        ({"classes": [f"name{n}" for n in range(200)]}, ExportError, r"the 200 names need \d prompts of 256"),
        ({"classes": ["cat"], "data": True}, DataError, "The data has none of the classes cat; it has "),
    ],
)
def test_conflicting_options_are_refused(options, error, message, model, data, tmp_path):
    options = {"path": "x.onnx", "format": "onnx"} | options
    if "data" in options:
        options["data"] = data
    with pytest.raises(error, match=message):
        api.export(model, tmp_path / options.pop("path"), **options)


def test_fixed_classes_of_a_model_without_classes(capsys, tmp_path):
    options = ["--format", "onnx", "--fixed-classes", "--output", str(tmp_path / "x.onnx")]
    assert main(["export", "nano", *options]) == 2
    assert "model nano has no classes of its own" in capsys.readouterr().err


def test_a_model_of_small_images_can_be_exported(tokenizer, tmp_path):
    small, image = tiny_bundle(tokenizer, num_levels=3), noise(64, 60)
    api.export(api.Model(small), tmp_path / "x.onnx", format="onnx", classes=NAMES)
    expected = outputs(small, image, NAMES)
    assert_close(outputs(open_exported(tmp_path / "x.onnx"), image, NAMES), expected)


def test_a_missing_package_names_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setattr(write.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ExportError, match=r'pip install "groundtune\[openvino\]"'):
        api.export(model, tmp_path / "x.xml", format="openvino")


def test_other_files_are_refused(tmp_path, files):
    broken, other = tmp_path / "broken.onnx", tmp_path / "other.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(ExportError, match="Cannot open .*broken.onnx"):
        api.load(broken)
    read = onnx.load(files("onnx", True))
    del read.metadata_props[:]
    onnx.save(read, other)
    with pytest.raises(ExportError, match="other.onnx was not exported by groundtune"):
        api.load(other)


def test_a_file_has_no_weights_to_train_save_or_export(files, data, tmp_path):
    written = api.load(files("onnx", True))
    for use, call in (
        ("trained", lambda: api.train(written, data, output_dir=tmp_path / "run")),
        ("saved", lambda: written.save(tmp_path / "model")),
        ("exported", lambda: api.export(written, tmp_path / "x.onnx", format="onnx")),
    ):
        with pytest.raises(CheckpointError, match=f"is an exported file, .*{use}"):
            call()
    assert not list(tmp_path.iterdir())


def test_the_config_of_a_file_has_only_the_prompt_length(files):
    assert open_exported(files("onnx", False)).config == ModelConfig(max_text_len=256)


def test_a_model_with_a_base_network_is_exported_with_one_of_its_networks(model, tmp_path):
    bundle = replace(model.bundle, base_network=companion(model.bundle.network))
    with torch.no_grad():
        bundle.base_network.encoder.level_embed.add_(1.0)
    both, image = api.Model(bundle, "cpu", "fp32"), noise(96, 128)
    for names in (None, [NAMES[0], "cat"]):
        with pytest.raises(ExportError, match="two sets of weights .* with --classes"):
            api.export(both, tmp_path / "x.onnx", format="onnx", classes=names)
    for names, network in ((NAMES[:2], bundle.network), (["cat"], bundle.base_network)):
        api.export(both, tmp_path / "x.onnx", format="onnx", classes=names)
        expected = outputs(replace(bundle, network=network), image, names)
        assert_close(outputs(open_exported(tmp_path / "x.onnx"), image, names), expected)
