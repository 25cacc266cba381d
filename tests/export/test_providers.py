"""Where ONNX Runtime computes: where `--device` says, and with TensorRT only where that is named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import tiny_bundle

from groundtune import api, cli
from groundtune.errors import ConfigError
from groundtune.exporting.runtime import ExportedNetwork, onnx_providers

pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

ON_GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("providers") / "x.onnx"
    api.export(api.Model(tiny_bundle(tokenizer), "cpu", "fp32"), path, format="onnx")
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The providers of all sessions; each computes on the CPU and says that it has the first one."""
    seen: list[Any] = []
    session = onnxruntime.InferenceSession

    def fake(path: str, options: Any, providers: list[Any]) -> Any:
        seen.append(providers)
        real = session(path, options, providers=[CPU])
        first = providers[0] if isinstance(providers[0], str) else providers[0][0]
        return SimpleNamespace(
            run=real.run, get_modelmeta=real.get_modelmeta, get_providers=lambda: [first, CPU]
        )

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ON_GPU)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fake)
    return seen


@pytest.mark.parametrize(
    ("available", "device", "provider", "expected"),
    [
        (ON_GPU, "cpu", "auto", [CPU]),
        (ON_GPU, "cuda", "auto", [(CUDA, {"device_id": 0}), CPU]),
        (ON_GPU, "cuda:1", "auto", [(CUDA, {"device_id": 1}), CPU]),
        ([CPU], "cuda:1", "auto", [CPU]),
        (["CoreMLExecutionProvider", CPU], "mps", "auto", [CPU]),
        (ON_GPU, "cuda:1", "tensorrt", [(TENSORRT, {"device_id": 1}), (CUDA, {"device_id": 1}), CPU]),
    ],
)
def test_providers(available: list[str], device: str, provider: str, expected: list[Any]) -> None:
    assert onnx_providers(available, torch.device(device), provider) == expected


@pytest.mark.parametrize(("available", "device"), [(ON_GPU, "cpu"), ([CUDA, CPU], "cuda:0")])
def test_tensorrt_that_is_not_there_is_an_error(available: list[str], device: str) -> None:
    with pytest.raises(ConfigError, match="provider: tensorrt needs --device cuda"):
        onnx_providers(available, torch.device(device), "tensorrt")


def predict(file: Path, **options: Any) -> Any:
    images = [Image.new("RGB", size, "red") for size in ((64, 48), (64, 48), (48, 64))]
    return api.load(file, device="cpu").predict(images, "cat, dog", threshold=0, batch_size=1, **options)


def test_a_cpu_is_asked_for_on_a_machine_with_a_gpu(
    file: Path, opened: list[Any], tmp_path: Path, capsys
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    argv = ["predict", str(file), str(tmp_path / "a.png"), "--classes", "cat", "--device", "cpu"]
    assert cli.main(argv) == 0 and opened == [[CPU]]


def test_a_session_opens_on_the_device_of_the_network(
    file: Path, opened: list[Any], monkeypatch, caplog
) -> None:
    """One for all images; messages name each size that TensorRT is made for once."""
    expected = predict(file)
    monkeypatch.setattr(ExportedNetwork, "device", torch.device("cuda", 1))
    opened.clear()
    assert [len(d) for d in predict(file)] == [len(d) for d in expected]
    assert opened == [[CPU], [(CUDA, {"device_id": 1}), CPU]]  # the first one reads what the file is
    assert caplog.messages == []
    predict(file, provider="tensorrt")
    assert [name for name, _ in opened[-1][:2]] == [TENSORRT, CUDA]
    sizes = [text.split("engine for ")[1].split(" pixels")[0] for text in caplog.messages]
    assert len(sizes) == 2 and sizes[0] != sizes[1] and all("1 image(s) of" in size for size in sizes)


def test_a_gpu_without_its_package_is_told(file: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(ExportedNetwork, "device", torch.device("cuda", 0))
    predict(file)
    (text,) = caplog.messages
    assert "cuda:0" in text and "onnxruntime-gpu" in text


def test_a_model_with_weights_has_no_provider(tokenizer) -> None:
    with pytest.raises(ConfigError, match="provider: only exported"):
        api.Model(tiny_bundle(tokenizer), "cpu", "fp32").predictor("cat", provider="tensorrt")


def test_too_little_memory_in_the_runtime_halves_the_batch(file: Path, monkeypatch) -> None:
    """As ONNX Runtime words it, with a type of its own."""
    session, seen = onnxruntime.InferenceSession, []

    class Fail(Exception):
        pass

    def limited(*given: Any, **options: Any) -> Any:
        real = session(*given, **options)

        def run(names: list[str], feed: dict[str, Any]) -> Any:
            seen.append(len(feed["image"]))
            if len(feed["image"]) > 1:
                raise Fail("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for 1024")
            return real.run(names, feed)

        return SimpleNamespace(run=run, get_modelmeta=real.get_modelmeta, get_providers=real.get_providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", limited)
    model = api.load(file, device="cpu")
    found = model.predict([Image.new("RGB", (64, 48), "red")] * 3, "cat", threshold=0, batch_size=3)
    assert len(found) == 3 and seen == [3, 1, 1, 1]
