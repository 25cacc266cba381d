"""Too little memory outside of a training step: the batch is halved with the same results, or the
command ends with exit code 6 and one sentence.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CLASSES, Recorder, evaluated, options, run, scenes, skip_evaluation, tiny_bundle
from PIL import Image
from predict_fakes import make_predictor

from groundtune import cli
from groundtune.data.formats.detect import load_splits
from groundtune.data.scenes import write_captioned_scenes
from groundtune.engine import validate
from groundtune.engine.forgetting import detect_groups
from groundtune.errors import OutOfMemory
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.save import save_bundle
from groundtune.model.detector import GroundingDINO
from groundtune.predict import detect

CPU = torch.device("cpu")
MANY = [f"{color} {shape}" for color in ("red", "blue", "green", "white") for shape in ("ring", "dot", "cup")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("memory") / "data", train=4, valid=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    save_bundle(tiny_bundle(tokenizer), folder)
    return folder


@pytest.fixture
def bundle(tokenizer) -> ModelBundle:
    return tiny_bundle(tokenizer)


def limit_memory(patch: Any, most: int) -> list[int]:
    """Passes without gradient of more than `most` (image, prompt) pairs fail; return their sizes."""
    seen: list[int] = []
    forward = GroundingDINO.forward_features

    def limited(self: Any, features: Any, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            seen.append(len(features))
            if len(features) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")
        return forward(self, features, *args)

    patch.setattr(GroundingDINO, "forward_features", limited)
    return seen


@pytest.mark.parametrize("kind", ["classes", "captions"])
def test_an_evaluation_is_halved_and_stays_so(
    tmp_path: Path, data: Path, bundle: ModelBundle, kind: str, monkeypatch, caplog
) -> None:
    if kind == "captions":
        data = tmp_path / "captions"
        write_captioned_scenes(data, train=1, valid=5, size=64, seed=0)
    valid = load_splits(data)["valid"]
    expected = evaluated(bundle, valid, batch_size=1)
    seen = limit_memory(monkeypatch, most=1)
    found = evaluated(bundle, valid, batch_size=4)
    assert seen == [4, 2, 1, 1, 1, 1, 1]  # the last one is the second batch
    assert found == expected
    first, second = caplog.messages
    assert (
        "4 images or prompts at a time (CUDA out of memory. Tried to allocate 2.00 GiB.): from now on 2"
        in first
    )
    assert "from now on 1" in second


def test_many_prompts_of_one_image_are_halved_too(tmp_path: Path, bundle: ModelBundle, monkeypatch) -> None:
    monkeypatch.setattr(detect, "chunk_names", lambda names, *_: [[i] for i in range(len(names))])
    images = [Image.new("RGB", (64, 48), color) for color in ("red", "blue", "white")]
    expected = make_predictor(bundle, MANY, threshold=0.0).find(images)
    seen = limit_memory(monkeypatch, most=2)
    found = make_predictor(bundle, MANY, threshold=0.0).find(images)
    assert seen[:4] == [8, 4, 2, 2] and max(seen[2:]) == 2 and seen.count(2) == 3 * len(MANY) // 2
    for one, other in zip(expected, found, strict=True):
        assert len(one) == len(other) > 0
        assert one.confidence == pytest.approx(other.confidence, rel=1e-4)


def test_one_image_and_prompt_too_many_is_an_error(bundle: ModelBundle, monkeypatch) -> None:
    limit_memory(monkeypatch, most=0)
    with pytest.raises(OutOfMemory, match="--device cpu") as error:
        make_predictor(bundle, ["cat"]).find([Image.new("RGB", (64, 48))] * 3)
    assert error.value.exit_code == 6 and "\n" not in str(error.value)


def test_other_errors_are_raised_as_they_are(bundle: ModelBundle, monkeypatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("The size of tensor a (3) must match")

    monkeypatch.setattr(GroundingDINO, "forward_features", broken)
    with pytest.raises(RuntimeError, match="size of tensor a"):
        make_predictor(bundle, ["cat"]).find([Image.new("RGB", (64, 48))])


def test_the_detections_for_self_distillation_are_halved(
    data: Path, bundle: ModelBundle, monkeypatch
) -> None:
    valid = load_splits(data)["valid"]
    groups = [CLASSES, ["cat", "dog"]]
    expected = detect_groups(bundle, valid, groups, CPU, 1, Recorder(), "fp32")
    seen = limit_memory(monkeypatch, most=1)
    found = detect_groups(bundle, valid, groups, CPU, 4, Recorder(), "fp32")
    assert seen == [4, 2] + [1] * 10
    for of_group, other in zip(found, expected, strict=True):
        for one, two in zip(of_group, other, strict=True):
            assert torch.equal(one.boxes_xyxy, two.boxes_xyxy) and torch.equal(one.scores, two.scores)


def test_evaluations_of_a_run_begin_with_the_images_that_its_step_had_room_for(
    tmp_path: Path, data: Path, bundle: ModelBundle, monkeypatch
) -> None:
    """Two of four images have room in a training step, and all in an evaluation."""
    forward, evaluate, seen = GroundingDINO.forward, validate.run_task, []

    def limited(self: Any, images: Any, *args: Any) -> Any:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, *args)

    monkeypatch.setattr(GroundingDINO, "forward", limited)
    monkeypatch.setattr(validate, "run_task", lambda *given: seen.append(given[2]) or evaluate(*given))
    run(options(data, epochs=2, batch_size=4), bundle, tmp_path / "run")
    assert seen == [4, 2, 2]  # zero-shot, and after each epoch
    seen.clear()
    monkeypatch.setattr(GroundingDINO, "forward", forward)
    run(options(data, epochs=1, batch_size=4, micro_batch_size=3), bundle, tmp_path / "micro")
    assert seen == [3, 3]


@pytest.mark.parametrize("verb", ["predict", "evaluate", "label", "train"])
@pytest.mark.parametrize("most", [1, 0])
def test_commands_halve_or_end_with_one_sentence(
    tmp_path: Path, data: Path, model: Path, monkeypatch, capsys, caplog, verb: str, most: int
) -> None:
    images = [str(path) for path in sorted((data / "valid").rglob("*.jpg"))]
    short = ["--threads", "1", "--device", "cpu"]
    few = ["--epochs", "1", "--batch-size", "2", "--report-to", "none", "--self-distillation"]
    argv = {
        "predict": ["predict", str(model), *images, "--classes", "red circle"],
        "evaluate": ["evaluate", str(model), str(data)],
        "label": ["label", str(model), *images, "--classes", "red circle", "-o", str(tmp_path / "labels")],
        "train": ["train", str(data), "--model", str(model), "-o", str(tmp_path / "run"), *few],
    }[verb]
    limit_memory(monkeypatch, most)
    code, error = cli.main([*argv, *short]), capsys.readouterr().err
    assert "Traceback" not in error
    if most:
        assert code == 0 and "from now on 1" in caplog.text
    else:
        assert code == 6 and error.splitlines()[-1].startswith(
            "groundtune: error: Out of memory with a single"
        )


def test_the_optimizer_has_no_room_for_its_state(
    tmp_path: Path, data: Path, model: Path, monkeypatch, capsys
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    skip_evaluation(monkeypatch)
    command = f"train {data} --model {model} -o {tmp_path / 'run'} --device cpu --report-to none"
    assert cli.main([*command.split(), "--retention-data", "none"]) == 6
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("groundtune: error: Out of memory in the optimizer in step 1 (CUDA out of memory.")
    assert "--tune lora" in last


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nMore")])
def test_an_export_without_room_ends_with_one_sentence(
    tmp_path: Path, model: Path, monkeypatch, capsys, error: Exception
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.onnx, "export", full)
    assert cli.main(["export", str(model), "--format", "onnx", "-o", str(tmp_path / "x.onnx")]) == 6
    (line,) = capsys.readouterr().err.strip().splitlines()
    reason = str(error).split("\n")[0] or "MemoryError"
    assert line == f"groundtune: error: Out of memory ({reason}). Use a smaller model or a larger machine."
    assert list(tmp_path.iterdir()) == []
