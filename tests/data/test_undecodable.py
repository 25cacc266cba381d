"""Images that become unreadable during training: they are skipped and reported, and too many of
them end the run.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import (
    Recorder,
    differing,
    evaluated,
    logged,
    options,
    run,
    scenes,
    skip_evaluation,
    tiny_bundle,
    weights,
)
from loader_files import FORMAT, loader_of, seven_images

from groundtune.data import prefetch
from groundtune.data.formats.detect import load_splits
from groundtune.data.prefetch import evaluation_images
from groundtune.data.scenes import write_captioned_scenes, write_scenes
from groundtune.errors import DataError, OutOfMemory
from groundtune.model.bundle import ModelBundle


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAK = {"missing": Path.unlink, "truncated": truncate, "not an image": lambda path: path.write_text("hello")}
SKIPPED = re.compile("left out|skipped")


@pytest.fixture
def images(tmp_path: Path):
    (tmp_path / "loader").mkdir()
    return seven_images(tmp_path / "loader")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return scenes(tmp_path / "data", train=6, valid=3)


@pytest.fixture
def bundle(tokenizer) -> ModelBundle:
    return tiny_bundle(tokenizer)


@pytest.fixture
def no_evaluation(monkeypatch) -> None:
    skip_evaluation(monkeypatch)


def image(data: Path, number: int, split: str = "train") -> Path:
    return next(data.rglob(f"{split}_{number:05}.jpg"))


def left_out(watcher: Recorder) -> list[str]:
    return [value for name, value in watcher.events if name == "message" and "is skipped" in value]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", BREAK)
def test_a_batch_skips_the_image_and_reports_it(images, tokenizer, fault: str, workers: int) -> None:
    whole = list(loader_of(images, tokenizer, batch_size=3).epoch(0))
    broken = images.samples[4].image_path
    BREAK[fault](broken)
    batches = list(loader_of(images, tokenizer, batch_size=3, workers=workers).epoch(0))
    for batch, expected in zip(batches, whole, strict=True):
        rows = [row for row, index in enumerate(expected.indices) if index != 4]
        assert batch.indices == [expected.indices[row] for row in rows]
        assert batch.prompts == [expected.prompts[row] for row in rows]
        for pixels, row in zip(batch.images, rows, strict=True):
            assert torch.equal(pixels, expected.images[row])
        assert [*batch.unreadable] == ([str(broken)] if 4 in expected.indices else [])
        assert all(str(broken) in reason for reason in batch.unreadable.values())


def test_a_batch_of_unreadable_images_is_empty(images, tokenizer) -> None:
    images.samples[4].image_path.unlink()
    batches = list(loader_of(images, tokenizer, batch_size=1).epoch(0))
    (empty,) = [batch for batch in batches if batch.unreadable]
    assert empty.indices == empty.targets == empty.images == empty.split(3) == [] and len(batches) == 7
    assert empty.text.input_ids.shape == (0, 0)
    assert empty.to(torch.device("cpu")).text.phrase_mask.shape == (0, 0, 0)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_evaluation_can_skip_unreadable_images(images, threads: int) -> None:
    for index in (1, 3, 4, 5):
        images.samples[index].image_path.unlink()
    unreadable: dict[str, str] = {}
    batches = list(evaluation_images(images, FORMAT, 3, threads=threads, unreadable=unreadable))
    assert [batch.indices for batch in batches] == [[0, 2], [6]]
    assert [[own.image_id - 100 for own in batch.samples] for batch in batches] == [[0, 2], [6]]
    assert [*unreadable] == [str(images.samples[index].image_path) for index in (1, 3, 4, 5)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stage", ["load_image", "to_tensor"])
def test_every_error_names_the_image(images, tokenizer, monkeypatch, workers: int, stage: str) -> None:
    """Unexpected errors make the image unreadable; too little memory ends the run."""
    path, real = images.samples[2].image_path, getattr(prefetch, stage)
    size = loader_of(images, tokenizer).geometry(2, 0).size_hw
    shapes = [sample.size_hw for sample in images.samples]
    assert shapes.count(shapes[2]) == 1

    def failing(error: Exception) -> Any:
        def fail(first: Any, *args: Any) -> Any:
            if first == path or (stage == "to_tensor" and first.size == size[::-1]):
                raise error
            return real(first, *args)

        return fail

    monkeypatch.setattr(prefetch, stage, failing(ZeroDivisionError("odd")))
    batches = loader_of(images, tokenizer, workers=workers, cache_views=1).epoch(0)
    (reason,) = [reason for batch in batches for reason in batch.unreadable.values()]
    assert str(path) in reason and "ZeroDivisionError: odd" in reason
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr(prefetch, stage, failing(error))
        with pytest.raises(OutOfMemory, match=f"{path.name} .*pixels.*--workers"):
            list(loader_of(images, tokenizer, workers=workers, cache_views=1).epoch(0))


@pytest.mark.parametrize("changed", [{}, {"cache_features": True}], ids=["", "feature cache"])
def test_training_continues_and_reports_the_image_once(
    tmp_path: Path, data: Path, bundle: ModelBundle, no_evaluation, changed: dict[str, Any]
) -> None:
    """A batch of one unreadable image is no step, and no non-finite one."""
    broken = image(data, 2)
    truncate(broken)
    watcher = Recorder()
    run(
        options(data, epochs=3, batch_size=1, max_nonfinite_steps=1, **changed),
        bundle,
        tmp_path / "run",
        watcher,
    )
    (text,) = left_out(watcher)
    assert str(broken) in text and "train is skipped" in text
    assert (tmp_path / "run/train.log").read_text().count("is skipped") == 1
    assert len([name for name, _ in watcher.events if name == "step"]) == 3 * 5
    assert len(logged(tmp_path / "run")) == 15


@pytest.mark.parametrize(
    ("share", "broken", "ends"),
    [(0.01, 1, False), (0.01, 2, True), (0.5, 3, False), (0.5, 4, True), (0.0, 1, True)],
)
def test_too_many_unreadable_images_end_the_run(
    tmp_path: Path, data: Path, bundle: ModelBundle, no_evaluation, share: float, broken: int, ends: bool
) -> None:
    """Of six images; at least one is allowed, except by a share of 0."""
    for number in range(broken):
        image(data, number).write_text("hello")
    config = options(data, epochs=2, batch_size=2, max_unreadable_share=share)
    if not ends:
        run(config, bundle, tmp_path / "run")
        return
    with pytest.raises(DataError, match=rf"{broken} of 6 .*train.*train_0.*--max-unreadable-share") as error:
        run(config, bundle, tmp_path / "run")
    assert error.value.exit_code == 3


def test_the_terminal_shows_five_of_them(tmp_path: Path, bundle: ModelBundle, no_evaluation) -> None:
    data, watcher = scenes(tmp_path / "more", train=8, valid=1), Recorder()
    for number in range(7):
        truncate(image(data, number))
    run(options(data, epochs=1, max_unreadable_share=1.0), bundle, tmp_path / "run", watcher)
    told = left_out(watcher)
    assert (
        len(told) == 5 and "train.log only" in told[-1] and not any("train.log" in text for text in told[:-1])
    )
    assert (tmp_path / "run/train.log").read_text().count("is skipped") == 7


def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, data: Path, bundle: ModelBundle, tokenizer, no_evaluation
) -> None:
    truncate(image(data, 3))
    config = options(data, epochs=3, batch_size=1)
    run(config, bundle, tmp_path / "whole")
    again = tiny_bundle(tokenizer)
    with pytest.raises(KeyboardInterrupt):
        run(config, again, tmp_path / "run", Recorder(stop_at=9))
    again = tiny_bundle(tokenizer)
    run(dataclasses.replace(config, resume=str(tmp_path / "run")), again, tmp_path / "run")
    assert differing(weights(bundle), weights(again)) == []
    assert logged(tmp_path / "whole") == logged(tmp_path / "run")


@pytest.mark.parametrize("captions", [False, True])
def test_a_validation_image_counts_as_one_without_detections(
    tmp_path: Path, bundle: ModelBundle, captions: bool
) -> None:
    """A run continues, `evaluate` by itself does not."""
    write = write_captioned_scenes if captions else write_scenes
    write(tmp_path / "data", train=2, valid=3, size=64)
    valid = load_splits(tmp_path / "data")["valid"]
    broken = valid.samples[1]
    whole = evaluated(bundle, valid, batch_size=1)
    truncate(broken.image_path)
    without = evaluated(bundle, valid, batch_size=1, skip_unreadable=True)
    assert [*without.unreadable] == [str(broken.image_path)] and str(broken.image_path) in str(
        without.unreadable
    )
    assert without.predictions == [
        answer for answer in whole.predictions if answer["image_id"] != broken.image_id
    ]
    if captions:  # a phrase is answered with nothing: all of them are still counted
        boxes = sum(len({*sample.class_ids.tolist()}) for sample in valid.samples)
        answered = sum(len({*sample.class_ids.tolist()}) for sample in valid.samples if sample is not broken)
        assert without.metrics["T-acc"] is not None and without.metrics["T-acc"] <= answered / boxes
    with pytest.raises(DataError, match=broken.image_path.name):
        evaluated(bundle, valid, batch_size=1)
    watcher = Recorder()
    run(options(tmp_path / "data", epochs=2), bundle, tmp_path / "run", watcher)
    (text,) = left_out(watcher)
    assert str(broken.image_path) in text and "of valid is skipped" in text
    truncate(valid.samples[2].image_path)
    with pytest.raises(DataError, match=r"2 of 3 .*valid"):
        run(options(tmp_path / "data"), bundle, tmp_path / "other")


def test_too_little_memory_to_decode_is_not_the_images_fault(images, tokenizer, monkeypatch) -> None:
    def no_room(self: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_room)
    with pytest.raises(OutOfMemory, match=r"\.png "):
        next(loader_of(images, tokenizer).epoch(0))
