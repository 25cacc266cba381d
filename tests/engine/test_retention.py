"""Retained data sets: measured before and after training with the right weights, and kept through a
resume.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_files import coco, image, write
from engine_runs import CLASSES, RUN_TASK, Recorder, differing, options, run, scenes, tiny_bundle, weights

from groundtune import api
from groundtune.data.reading import read_retention_data
from groundtune.data.sample import Dataset
from groundtune.engine.evaluate import EvalTask, Evaluation, run_task
from groundtune.errors import DataError
from groundtune.metrics.grounding import retention


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that the run does not know, one that it does."""
    classes = ["yellow square", CLASSES[1], "purple cross"]
    return scenes(tmp_path_factory.mktemp("retention") / "other", train=3, valid=2, classes=classes)


class Watched:
    """The real `evaluate` with the APs of a list; remembers the sets that it was asked for, and the
    weights.
    """

    def __init__(self, aps: list[float]) -> None:
        self.aps = aps
        self.asked: list[tuple[str, list[str]]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def __call__(self, task: EvalTask, dataset: Dataset, *options: Any) -> Evaluation:
        found = run_task(task, dataset, *options)
        found.metrics["AP"] = self.aps[len(self.asked)]
        self.asked.append((dataset.root.name, dataset.class_names))
        self.weights.append(weights(task.bundle))
        return found


def test_before_the_first_step_and_with_the_best_weights(
    tmp_path: Path, data: Path, other: Path, tokenizer, monkeypatch
) -> None:
    """The first of two epochs is the best."""
    watched, bundle = Watched([0.5, 0.1, 0.4, 0.3, 0.2]), tiny_bundle(tokenizer)
    before = weights(bundle)
    monkeypatch.setattr(RUN_TASK, watched)
    result = run(options(data, retention_data=[str(other)]), bundle, tmp_path / "run")
    assert [name for name, _ in watched.asked] == ["other", "data", "data", "data", "other"]
    assert "purple cross" in watched.asked[0][1] and watched.asked[0] == watched.asked[4]
    assert [name for name in differing(watched.weights[0], before) if "label_embedding" not in name] == []
    assert differing(watched.weights[4], watched.weights[2]) == [] and differing(
        watched.weights[4], watched.weights[3]
    )
    numbers = json.loads((tmp_path / "run/metrics.json").read_text())["retention"]
    assert numbers == result.retention and list(numbers) == ["other"]
    assert numbers["other"]["before"]["AP"] == 0.5 and numbers["other"]["after"]["AP"] == 0.2
    assert numbers["other"]["after"].keys() == numbers["other"]["before"].keys() > {"AP50", "AR100"}
    log = (tmp_path / "run/train.log").read_text()
    assert (
        "retention on other, before training: AP 0.5," in log
        and "retention on other, after training: AP 0.2," in log
    )


def test_retaining_changes_nothing_of_the_training(
    tmp_path: Path, data: Path, other: Path, tokenizer
) -> None:
    without, retaining = tiny_bundle(tokenizer, dropout=0.1), tiny_bundle(tokenizer, dropout=0.1)
    assert run(options(data), without, tmp_path / "without").retention == {}
    run(options(data, retention_data=[str(other)]), retaining, tmp_path / "retaining")
    assert differing(weights(without), weights(retaining)) == []
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("without", "retaining")]
    assert lines[0] == lines[1]


def test_a_resumed_run_does_not_measure_the_start_again(
    tmp_path: Path, data: Path, other: Path, tokenizer, monkeypatch
) -> None:
    config, out = options(data, retention_data=[str(other)]), tmp_path / "run"
    whole = run(config, tiny_bundle(tokenizer), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tiny_bundle(tokenizer), out, Recorder(stop_at=5))
    asked: list[str] = []

    def watched(task: EvalTask, dataset: Dataset, *options: Any) -> Evaluation:
        asked.append(dataset.root.name)
        return run_task(task, dataset, *options)

    monkeypatch.setattr(RUN_TASK, watched)
    config.resume = str(out)
    assert run(config, tiny_bundle(tokenizer), out).retention == whole.retention
    assert asked == ["data", "other"]


def one_class(folder: Path, *splits: str, boxes: bool = True) -> Path:
    for split in splits:
        rows = [(1, 1, [1, 1, 5, 5])] if boxes else []
        write(folder / split / "_annotations.coco.json", coco([f"{split}.png"], rows, [(1, "cat")]))
        image(folder / split / f"{split}.png")
    return folder


@pytest.mark.parametrize(
    ("splits", "expected"),
    [(("train", "valid", "test"), "valid"), (("train", "test"), "test"), (("train",), "train")],
)
def test_the_split_to_measure(tmp_path: Path, splits: tuple[str, ...], expected: str) -> None:
    """No valid split is held out: the images of train would be only a part of them."""
    found = read_retention_data([str(one_class(tmp_path / "cats", *splits))])
    assert [(name, dataset.name) for name, dataset in found.items()] == [("cats", expected)]


def test_two_sets_of_one_name_and_a_file(tmp_path: Path) -> None:
    paths = [str(one_class(tmp_path / place / "cats", "test")) for place in ("a", "b")]
    file = f"{paths[0]}/test/_annotations.coco.json"
    assert list(read_retention_data([*paths, file])) == ["cats", paths[1], "_annotations.coco.json"]


def test_a_set_that_cannot_be_measured_is_refused_before_anything_is_written(
    tmp_path: Path, data: Path, tokenizer
) -> None:
    nothing = str(one_class(tmp_path / "nothing", "valid", boxes=False))
    for path, message in (
        (str(tmp_path / "gone"), "gone does not exist"),
        (nothing, "retention_data: .*'valid' of .*no boxes"),
    ):
        given = {"data": str(data), "output_dir": str(tmp_path / "run"), "device": "cpu"}
        given["retention_data"] = f"{data},{path}"
        bundle = tiny_bundle(tokenizer)
        with pytest.raises(DataError, match=message):
            api.train(api.Model(bundle), quiet=True, **given)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"AP": 0.4, "AP50": 0.9}, {"AP": 0.1, "AP50": 0.3}, ("AP", 0.4, 0.1, 0.25)),
        ({"AP": 0.2}, {"AP": 0.3}, ("AP", 0.2, 0.3, 1.5)),
        ({"AP": 0.0}, {"AP": 0.3}, ("AP", 0.0, 0.3, None)),
        ({"AP": 4e-6}, {"AP": 2e-6}, ("AP", 4e-6, 2e-6, None)),  # chance, not knowledge
        ({"recall@1": 0.5, "recall@5": 0.9}, {"recall@1": 0.0, "recall@5": 0.1}, ("recall@1", 0.5, 0.0, 0.0)),
        ({"recall@1": None}, {"recall@1": None}, ("recall@1", None, None, None)),
    ],
)
def test_the_share_that_is_kept(before: dict, after: dict, expected: tuple) -> None:
    found = retention({"before": before, "after": after})
    assert found[:3] == expected[:3] and found[3] == (
        None if expected[3] is None else pytest.approx(expected[3])
    )
