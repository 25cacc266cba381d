"""Self-distillation on detections away from the boxes, and retention measured by the base model's
own detections.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_runs import CLASSES, CPU, Recorder, messages, options, run, scenes, tiny_bundle
from made_samples import made_sample

from groundtune.config import TrainConfig
from groundtune.data.loader import TrainLoader
from groundtune.data.sample import Dataset, Sample
from groundtune.engine import forgetting
from groundtune.predict.postprocess import ImageDetections
from groundtune.text.prompt import COMMON_NAMES

# "white pawn" and "black rook" are likely
NAMES = ["white king", "white rook", "black king", "black pawn"]


def image(
    number: int, boxes: list[tuple[float, ...]], classes: list[int], crowd: list[bool] | None = None
) -> Sample:
    return made_sample(boxes, classes, crowd, path=f"{number}.png", image_id=number)


def detections(*rows: tuple[tuple[float, ...], float, int]) -> ImageDetections:
    boxes, scores, classes = zip(*rows, strict=True) if rows else ((), (), ())
    return ImageDetections(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(classes).long()
    )


A, B, C, D = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0), (60.0, 0.0, 70.0, 10.0)


def distilled(
    samples: list[Sample], own: list[ImageDetections], other: list[ImageDetections], monkeypatch
) -> Dataset:
    monkeypatch.setattr(forgetting, "detect_groups", lambda *_: [own, other])
    dataset = Dataset("train", Path("."), list(NAMES), samples, [3, 1, 7, 2])
    return forgetting.add_self_distillation(SimpleNamespace(), dataset, CPU, 4, Recorder(), "fp32")


def test_detections_away_from_the_boxes_join_with_their_relative_confidence(monkeypatch) -> None:
    """The labeled boxes score 0.8, 0.4 and 0.3 under their names: 0.4 counts as 1, below 0.2 is
    left out.
    """
    samples = [image(1, [A, B], [0, 1]), image(2, [A], [2])]
    own = [
        detections((A, 0.9, 1), (A, 0.8, 0), (B, 0.4, 1)),  # the best one of A has another name
        detections((A, 0.3, 2), (D, 0.2, 2)),
    ]
    common = 2  # after the two likely names
    other = [
        detections((A, 0.9, 0), (C, 0.6, common), (C, 0.3, 0), (D, 0.25, common + 4), (D, 0.19, 0)),
        detections((C, 0.1, 1)),
    ]
    found = distilled(samples, own, other, monkeypatch)
    assert found.class_names == [*NAMES, "white pawn", COMMON_NAMES[4]]
    assert found.category_ids == [3, 1, 7, 2, 8, 9]
    first, second = found.samples
    assert first.boxes_xyxy.tolist() == [list(box) for box in (A, B, C, D)]
    assert first.class_ids.tolist() == [0, 1, 4, 5]  # the likely name before a surer common one
    assert first.confidence.tolist() == pytest.approx([1, 1, 0.75, 0.625])
    assert first.annotated == {0, 1, 2, 3, 4, 5}
    assert second.class_ids.tolist() == [2] and second.annotated == {0, 1, 2, 3}


def test_a_name_that_was_found_is_asked_for_in_its_images_only(monkeypatch, tokenizer) -> None:
    samples = [image(1, [A], [0]), image(2, [A], [0])]
    own = [detections((A, 0.5, 0))] * 2
    found = distilled(samples, own, [detections((C, 0.5, 0)), detections()], monkeypatch)
    bundle = tiny_bundle(tokenizer)
    loader = TrainLoader(found, tokenizer, bundle.image_format, TrainConfig(data="", batch_size=2), 256)
    loader.needs_pixels = lambda *_: False
    asked: dict[int, set[str]] = {0: set(), 1: set()}
    for epoch in range(20):
        for batch in loader.epoch(epoch):
            for index, prompt, target in zip(batch.indices, batch.prompts, batch.targets, strict=True):
                asked[index] |= set(prompt.phrases)
                assert len(target.confidence) == len(target.boxes_cxcywh) == (2 if index == 0 else 1)
    assert "white pawn" in asked[0] and "white pawn" not in asked[1]
    assert asked[1] == set(NAMES)


def test_a_run_keeps_its_own_classes_and_measures_only_them(tmp_path: Path, tokenizer, monkeypatch) -> None:
    """Also where the detections add boxes of a new class to every image."""
    data = scenes(tmp_path / "data", train=4, valid=2)
    corners = detections(((0.0, 0.0, 1.0, 1.0), 0.9, 0), ((62.0, 62.0, 63.0, 63.0), 0.9, 1))
    monkeypatch.setattr(forgetting, "detect_groups", lambda *_: [[detections()] * 4, [corners] * 4])
    bundle, recorder = tiny_bundle(tokenizer), Recorder()
    result = run(options(data, self_distillation=True, epochs=1), bundle, tmp_path / "run", recorder)
    assert bundle.classes == CLASSES == list(result.per_class)
    assert any("8 detections of unlabeled objects" in text for text in messages(recorder))


def test_resuming_a_run_with_self_distillation_equals_the_uninterrupted_one(
    tmp_path: Path, tokenizer
) -> None:
    data = scenes(tmp_path / "data", train=4, valid=2)
    config = options(data, self_distillation=True)
    whole = run(config, tiny_bundle(tokenizer), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tiny_bundle(tokenizer), tmp_path / "cut", Recorder(stop_at=3))
    resumed = run(replace(config, resume=str(tmp_path / "cut")), tiny_bundle(tokenizer), tmp_path / "cut")
    assert resumed.final == whole.final


def measured_on(found, monkeypatch, names=("cat",)) -> dict[str, Dataset]:
    asked: list[list[str]] = []

    def detect(bundle, dataset, groups, *_):
        asked.extend(groups)
        return [found]

    monkeypatch.setattr(forgetting, "detect_groups", detect)
    valid = Dataset("valid", Path("."), list(names), [image(n, [A], [0]) for n in range(len(found))], [1])
    made = forgetting.base_detections(SimpleNamespace(), valid, CPU, 4, Recorder())
    assert not set(asked[0]) & set(names)
    return made


def test_confident_detections_become_the_boxes(monkeypatch) -> None:
    others = [name for name in COMMON_NAMES if name != "cat"]
    found = [detections((B, 0.9, 7), (C, 0.2, 3), (A, 0.19, 5)), detections()]
    made = measured_on(found, monkeypatch)[forgetting.BASE_DETECTIONS]
    assert made.class_names == [others[3], others[7]] and made.category_ids == [1, 2]
    first, second = made.samples
    assert first.boxes_xyxy.tolist() == [list(B), list(C)] and first.class_ids.tolist() == [1, 0]
    assert second.boxes_xyxy.shape == (0, 4)


def test_a_model_that_is_sure_of_nothing_has_nothing_to_keep(monkeypatch) -> None:
    assert measured_on([detections((A, 0.1, 0))], monkeypatch) == {}


def test_at_most_50_images_from_first_to_last(monkeypatch) -> None:
    shown: list[int] = []

    def detect(bundle, dataset, groups, *_):
        shown.extend(sample.image_id for sample in dataset.samples)
        return [[detections()] * len(dataset.samples)]

    monkeypatch.setattr(forgetting, "detect_groups", detect)
    valid = Dataset("valid", Path("."), ["cat"], [image(n, [A], [0]) for n in range(120)], [1])
    forgetting.base_detections(SimpleNamespace(), valid, CPU, 4, Recorder())
    assert len(shown) == 50 == len(set(shown)) and (shown[0], shown[-1]) == (0, 119)
    assert np.ptp(np.diff(shown)) <= 1


def test_it_is_measured_before_and_after_a_run(tmp_path: Path, tokenizer, monkeypatch) -> None:
    """Untrained scores are low; so everything counts as sure here. The model agrees with itself
    before.
    """
    monkeypatch.setattr(forgetting, "MIN_SURE_SCORE", 0.0)
    monkeypatch.setattr(forgetting, "COMMON_NAMES", ("dog", "tree"))
    torch.manual_seed(0)
    data = scenes(tmp_path / "data", train=2, valid=2)
    result = run(options(data, retention_data=["self"], epochs=1), tiny_bundle(tokenizer), tmp_path / "run")
    numbers = result.retention[forgetting.BASE_DETECTIONS]
    assert numbers["before"]["AP"] > 0.99 > numbers["after"]["AP"]
