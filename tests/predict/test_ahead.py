"""Images are decoded ahead of the network in other threads, as uint8 for an accelerator; the model is
moved once.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predict_fakes import CPU, make_predictor
from tiny_models import tiny_bundle
from torch import nn

from groundtune import api
from groundtune.contracts import ImageFormat
from groundtune.data import prefetch
from groundtune.data.images import load_image
from groundtune.data.loader import TrainLoader
from groundtune.data.prefetch import decode_threads, evaluation_images, read_ahead
from groundtune.data.sample import Dataset, Sample
from groundtune.data.transforms import normalize, to_tensor
from groundtune.predict import inputs, label, sources

FORMAT = ImageFormat((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 48, 64)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for file in files:
        Image.fromarray(generator.integers(0, 256, (40, 60, 3), np.uint8)).save(file)
    return files


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that decode images."""
    seen: list[threading.Thread] = []

    def spy(*given: Any, **options: Any) -> Image.Image:
        seen.append(threading.current_thread())
        return load_image(*given, **options)

    for module in (inputs, label, sources, prefetch):
        monkeypatch.setattr(module, "load_image", spy)
    return seen


def in_background(threads: list[threading.Thread], count: int) -> bool:
    return len(threads) == count and threading.current_thread() not in threads


def test_predictors_and_labelers_decode_in_another_thread(
    tmp_path: Path, tokenizer, paths: list[Path], threads: list[threading.Thread]
) -> None:
    model = api.Model(tiny_bundle(tokenizer), "cpu", "fp32")
    found = model.predict(paths, "cat", threshold=0, batch_size=2)
    assert in_background(threads, 6)
    one_by_one = [model.predict(path, "cat", threshold=0, batch_size=2) for path in paths]
    for together, alone in zip(found, one_by_one, strict=True):
        assert together.confidence == pytest.approx(alone.confidence, rel=1e-4)
    threads.clear()
    list(model.predictor("cat", batch_size=2).each(iter(paths)))
    assert set(threads) == {threading.current_thread()}  # an iterator may depend on what it is told
    threads.clear()
    list(api.predict(model, [str(path) for path in paths], classes="cat"))
    assert in_background(threads, 6)
    threads.clear()
    api.label(model, [str(path) for path in paths], output_dir=tmp_path / "out", classes="cat")
    assert in_background(threads, 6)


def test_read_ahead_reads_so_far_and_raises_in_turn() -> None:
    read: list[int] = []

    def items() -> Any:
        for number in range(10):
            read.append(number)
            if number == 5:
                raise ZeroDivisionError
            yield number

    ahead = read_ahead(items(), 3)
    assert next(ahead) == 0 and len(read) <= 4
    found = []
    with pytest.raises(ZeroDivisionError):
        found.extend(iter(lambda: next(ahead), None))
    assert read == [0, 1, 2, 3, 4, 5] and list(read_ahead([], 3)) == []
    closed = read_ahead(iter(range(100)), 2)
    next(closed)
    closed.close()
    assert list(read_ahead("abc", 5)) == ["a", "b", "c"]


@pytest.mark.parametrize(("batches", "training"), [(1, False), (5, False), (3, True)])
def test_a_model_is_moved_once_and_not_switched(tokenizer, monkeypatch, batches: int, training: bool) -> None:
    bundle = tiny_bundle(tokenizer)
    bundle.network.train(training)
    before = [module.training for module in bundle.network.modules()]
    calls: dict[str, int] = {"to": 0, "train": 0}
    for name in calls:
        original = getattr(nn.Module, name)

        def count(self: nn.Module, *given: Any, _name: str = name, _call: Any = original) -> Any:
            calls[_name] += 1
            return _call(self, *given)

        monkeypatch.setattr(nn.Module, name, count)
    model = make_predictor(bundle, ["cat"], batch_size=1)
    found = list(model.each([np.zeros((40, 60, 3), np.uint8)] * batches))
    assert len(found) == batches and calls["to"] == 1 and bool(calls["train"]) == training
    assert [module.training for module in bundle.network.modules()] == before


def test_a_model_that_somebody_moved_is_moved_back(tokenizer) -> None:
    bundle = tiny_bundle(tokenizer)
    model, image = make_predictor(bundle, ["cat"], threshold=0), [Image.new("RGB", (60, 40))]
    (expected,) = model.find(image)
    bundle.network.to(torch.float64).to(torch.float32)
    moved: list[Any] = []
    bundle.to = lambda device: moved.append(device) or bundle.network  # type: ignore[method-assign]
    model._moved = torch.device("meta")  # as if it had been there
    (found,) = model.find(image)
    assert moved == [CPU] and found.confidence.tolist() == expected.confidence.tolist()


def test_uint8_images_normalize_to_the_same_bits() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image = Image.fromarray(values)
    raw, pixels = to_tensor(image, FORMAT, raw=True), to_tensor(image, FORMAT)
    assert raw.dtype == torch.uint8 and raw.is_contiguous() and pixels.is_contiguous()
    mean, std = (np.array(part, np.float32) for part in (FORMAT.mean, FORMAT.std))
    expected = (values.astype(np.float32) / np.float32(255) - mean) / std
    assert pixels.numpy().transpose(1, 2, 0).tobytes() == expected.tobytes()
    assert torch.equal(normalize(raw, FORMAT), pixels) and normalize(pixels, FORMAT) is pixels


def test_images_for_an_accelerator_are_uint8(tokenizer, paths: list[Path]) -> None:
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    samples = [Sample(path, number, (40, 60), *empty) for number, path in enumerate(paths)]
    data = Dataset("train", paths[0].parent, ["cat"], samples, [1])
    for raw in (False, True):
        (batch,) = evaluation_images(data, FORMAT, 6, threads=1, raw=raw)
        assert {image.dtype for image in batch.images} == {torch.uint8 if raw else torch.float32}
    from groundtune.config import TrainConfig

    found = []
    for raw in (False, True):
        loader = TrainLoader(data, tokenizer, FORMAT, TrainConfig(data="x"), 256)
        loader.raw = raw
        found.append(next(loader.epoch(0)))
        assert found[-1].images[0].dtype == (torch.uint8 if raw else torch.float32)
    for one, two in zip(found[0].images, found[1].normalized(FORMAT).images, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("cores", "limit", "environment", "expected"),
    [
        (3, "max 100000", {}, 3),
        (64, "max 100000", {}, 8),
        (64, "400000 100000", {}, 4),
        (64, "50000 100000", {}, 1),
        (64, "max 100000", {"LOCAL_WORLD_SIZE": "16"}, 4),
        (2, None, {"LOCAL_WORLD_SIZE": "8"}, 1),
    ],
)
def test_threads_for_an_accelerator(
    monkeypatch, cores: int, limit: str | None, environment: dict[str, str], expected: int
) -> None:
    def read(path: Path, **_: Any) -> str:
        if limit is None:
            raise FileNotFoundError
        return limit

    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert decode_threads(torch.device("cuda"), 0) == expected
    assert decode_threads(CPU, 2) == 2
