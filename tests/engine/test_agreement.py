"""Forgetting measured without other data: the model's own detections of common things, before and after."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from engine_runs import CPU, Recorder, options, run, scenes, tiny_bundle
from test_replay import A, B, C, detections, image

from groundtune.data.sample import Dataset
from groundtune.engine import forgetting as agreement
from groundtune.text.prompt import COMMON_NAMES


def measured_on(found, monkeypatch, names=("cat",)) -> dict[str, Dataset]:
    asked: list[list[str]] = []

    def detect(bundle, dataset, groups, *_):
        asked.extend(groups)
        return [found]

    monkeypatch.setattr(agreement, "detect_groups", detect)
    valid = Dataset("valid", Path("."), list(names), [image(n, [A], [0]) for n in range(len(found))], [1])
    made = agreement.base_detections(SimpleNamespace(), valid, CPU, 4, Recorder())
    assert not set(asked[0]) & set(names)
    return made


def test_confident_detections_become_the_boxes(monkeypatch) -> None:
    others = [name for name in COMMON_NAMES if name != "cat"]
    found = [detections((B, 0.9, 7), (C, 0.2, 3), (A, 0.19, 5)), detections()]
    made = measured_on(found, monkeypatch)[agreement.AGREEMENT]
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

    monkeypatch.setattr(agreement, "detect_groups", detect)
    valid = Dataset("valid", Path("."), ["cat"], [image(n, [A], [0]) for n in range(120)], [1])
    agreement.base_detections(SimpleNamespace(), valid, CPU, 4, Recorder())
    assert len(shown) == 50 == len(set(shown)) and (shown[0], shown[-1]) == (0, 119)
    assert np.ptp(np.diff(shown)) <= 1


def test_it_is_measured_before_and_after_a_run(tmp_path: Path, tokenizer, monkeypatch) -> None:
    """Untrained scores are low; so everything counts as sure here. The model agrees with itself before."""
    monkeypatch.setattr(agreement, "UNSURE", 0.0)
    monkeypatch.setattr(agreement, "COMMON_NAMES", ("dog", "tree"))
    torch.manual_seed(0)
    data = scenes(tmp_path / "data", train=2, valid=2)
    result = run(options(data, retention_data=["own"], epochs=1), tiny_bundle(tokenizer), tmp_path / "run")
    numbers = result.retained[agreement.AGREEMENT]
    assert numbers["before"]["AP"] > 0.99 > numbers["after"]["AP"]
