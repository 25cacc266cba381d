"""Results are finite, or an error; the same image gives the same result in every call."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import CPU, scenes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from predict_fakes import make_predictor
from tiny_models import KINDS, tiny_bundle

from groundtune.data.reading import read_data
from groundtune.engine.evaluate import eval_task, run_task
from groundtune.engine.forgetting import detect_groups
from groundtune.errors import CheckpointError
from groundtune.exporting.runtime import ExportedNetwork, ExportMetadata
from groundtune.model.bundle import ModelBundle
from groundtune.predict.detect import NonFiniteOutput, check_finite, warn_of_float32
from groundtune.progress import Progress

NAMES = ["red circle", "blue star"]


@pytest.fixture
def bundle(tokenizer) -> ModelBundle:
    """With the nano preset's backbone."""
    warn_of_float32.cache_clear()
    return tiny_bundle(tokenizer, **KINDS["nano"])


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def spoil(bundle: ModelBundle, where: str, always: bool, value: float = float("nan")) -> None:
    """The module's output has a NaN: always, or under autocast only."""

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if always or torch.is_autocast_enabled("cpu"):
            output = output.clone()
            output[(0,) * output.dim()] = value
        return output

    bundle.detector.get_submodule(where).register_forward_hook(hook)


def detections(bundle: ModelBundle, precision: str, images: list[Image.Image]) -> list[tuple[Any, ...]]:
    predictor = make_predictor(bundle, NAMES, threshold=0.0, precision=precision)
    found = [predictor.find([image])[0] for image in images]
    return [(d.xyxy.tolist(), d.confidence.tolist(), d.class_id.tolist()) for d in found]


MODULES = [
    ("backbone.stages.6.0.project.conv", float("inf")),
    ("neck.extra_convs.0.conv", float("nan")),
    ("neck.extra_convs.0.conv", float("inf")),
    ("decoder.norm", float("nan")),
    ("bbox_head.reg_branches.1", float("nan")),
]


@pytest.mark.parametrize(("where", "value"), MODULES)
def test_nan_in_bfloat16_gives_the_result_of_float32_and_is_told_once(bundle, caplog, where, value) -> None:
    images = [noise(60, 40), noise(64, 64)]
    expected = detections(bundle, "fp32", images)
    spoil(bundle, where, always=False, value=value)
    with caplog.at_level(logging.WARNING):
        assert detections(bundle, "bf16", images) == expected
    assert all(len(scores) > 0 for _, scores, _ in expected)
    told = [record.getMessage() for record in caplog.records if record.name == "groundtune"]
    assert len(told) == 1 and "float32" in told[0]


def test_nan_in_float32_is_an_error_of_the_model(bundle) -> None:
    spoil(bundle, "decoder.norm", always=True)
    for precision in ("fp32", "bf16"):
        with pytest.raises(CheckpointError, match="not finite") as error:
            detections(bundle, precision, [noise(60, 40)])
        assert error.value.exit_code == 4


def test_evaluation_and_self_distillation_do_the_same(tmp_path: Path, bundle) -> None:
    dataset = read_data(str(scenes(tmp_path / "data")), [], {}, {})["valid"]

    def results(precision: str) -> tuple[Any, Any]:
        evaluation = run_task(eval_task(bundle, dataset, None, precision), dataset, 2, CPU, None)
        groups = detect_groups(bundle, dataset, [NAMES, ["cat"]], CPU, 2, Progress(quiet=True), precision)
        boxes = [[detected.boxes_xyxy.tolist() for detected in group] for group in groups]
        return evaluation.predictions, boxes

    expected = results("fp32")
    assert expected[0] and all(map(len, expected[1]))
    spoil(bundle, "backbone.stages.6.0.project.conv", always=False)
    assert results("bf16") == expected
    spoil(bundle, "decoder.norm", always=True)
    for call in (lambda: results("fp32"), lambda: results("bf16")):
        with pytest.raises(NonFiniteOutput):
            call()


def test_an_exported_file_with_nan_is_an_error(tokenizer, bundle) -> None:
    def run(feed: dict[str, np.ndarray], *_: object) -> list[np.ndarray]:
        tokens = feed["input_ids"].shape[1]
        return [np.full((1, 4, tokens), np.nan, np.float32), np.full((1, 4, 4), 0.5, np.float32)]

    metadata = ExportMetadata([], [], [], 256, 32, bundle.image_format, "fp16", "")
    exported = replace(bundle, network=ExportedNetwork(Path("a.onnx"), run, metadata, tokenizer))
    for precision in ("fp32", "bf16"):
        with pytest.raises(NonFiniteOutput):
            detections(exported, precision, [noise(60, 40)])


def test_minus_infinity_is_an_error_within_the_phrases_only() -> None:
    phrase_map = torch.tensor([[False, True, False, False], [False, False, False, True]])
    logits, boxes = torch.full((1, 2, 6), float("-inf")), torch.zeros(1, 2, 4)
    logits[:, :, [1, 3]] = 0.0
    check_finite({"pred_logits": logits, "pred_boxes": boxes}, [phrase_map])
    for broken, index in ((logits, (0, 1, 3)), (boxes, (0, 1, 2))):
        for value in (float("-inf"), float("inf"), float("nan")):
            changed = broken.clone()
            changed[index] = value
            output = {"pred_logits": logits, "pred_boxes": boxes}
            output["pred_logits" if broken is logits else "pred_boxes"] = changed
            with pytest.raises(NonFiniteOutput):
                check_finite(output, [phrase_map])


SIZES = [(1, 1), (1, 50), (50, 1), (7, 350), (350, 7), (100, 2000), (2000, 100), (1080, 6000), (90, 110)]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_image_gives_the_same_result_in_20_calls(tokenizer, precision: str, threads: int) -> None:
    """Within one number of threads bit for bit, whatever was in memory before. Against one thread
    in float32 rounding only: oneDNN's and MKL's products are summed in another order.
    """
    bundle, before = tiny_bundle(tokenizer, **KINDS["nano"]), torch.get_num_threads()
    images = [noise(*size) for size in SIZES]
    try:
        torch.set_num_threads(1)
        single = detections(bundle, precision, images)
        torch.set_num_threads(threads)
        first = detections(bundle, precision, images)
        for call in range(19):
            junk = [
                torch.full((1 << s,), (float("nan"), 1e4)[call % 2], dtype=torch.bfloat16) for s in (12, 20)
            ]
            del junk
            assert detections(bundle, precision, images) == first
    finally:
        torch.set_num_threads(before)
    for one, other in zip(single, first, strict=True):
        assert np.sort(one[1]) == pytest.approx(np.sort(other[1]), abs=1e-5 if precision == "fp32" else 0.02)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(1, 50), st.booleans())
def test_images_of_any_shape_have_finite_results_close_to_float32(tokenizer, short, ratio, tall) -> None:
    bundle = tiny_bundle(tokenizer, **KINDS["nano"])
    image = noise(short * ratio, short) if tall else noise(short, short * ratio)
    (exact,), (rounded,) = (detections(bundle, precision, [image]) for precision in ("fp32", "bf16"))
    assert np.isfinite(rounded[0]).all() and len(rounded[1]) == len(exact[1])
    assert np.sort(rounded[1]) == pytest.approx(np.sort(exact[1]), abs=0.02)
