"""A training run: what it learns, what it leaves alone, which weights it keeps, and what it writes."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import (
    CLASSES,
    RUN_TASK,
    TOWERS,
    Recorder,
    differing,
    evaluated,
    options,
    run,
    scenes,
    tiny_bundle,
    weights,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

from groundtune.config import ParamGroup, train_config
from groundtune.data.formats.detect import load_splits
from groundtune.data.sample import Dataset
from groundtune.engine.evaluate import EvalTask, Evaluation
from groundtune.engine.train import train
from groundtune.errors import ConfigError, DataError
from groundtune.model.checkpoint.load import load_bundle


class ScriptedEvaluation:
    """Stands in for `evaluate`: gives the APs of a list, and keeps the weights that it was asked
    about.
    """

    def __init__(self, aps: list[float]) -> None:
        self.aps = aps
        self.weights: list[dict[str, torch.Tensor]] = []
        self.splits: list[str] = []

    def __call__(self, task: EvalTask, dataset: Dataset, *_: Any) -> Evaluation:
        ap = self.aps[len(self.weights)]
        self.weights.append(weights(task.bundle))
        self.splits.append(dataset.name)
        per_class = {name: {"AP": ap, "AP50": ap} for name in dataset.class_names}
        return Evaluation({"AP": ap}, per_class, [{"score": ap}])


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_small_data_set_is_shown_more_often_but_not_evaluated_more_often(
    tmp_path: Path, data: Path, tokenizer
) -> None:
    watcher = Recorder()  # 5 images, 3 steps an epoch
    run(
        options(data, epochs=2, min_steps=16, eval_epochs=1),
        tiny_bundle(tokenizer),
        tmp_path / "run",
        watcher,
    )
    names = [name for name, _ in watcher.events]
    assert names.count("step") == 18
    assert names.count("metrics") == 2  # as in two epochs


def test_overfits_four_images(tmp_path: Path, tokenizer) -> None:
    data = scenes(tmp_path / "data", train=4)
    shutil.rmtree(data / "valid")
    shutil.copytree(data / "train", data / "valid")
    config = options(
        data, epochs=110, batch_size=4, eval_epochs=110, lr=2e-3, max_grad_norm=1.0, flip=0.0, warmup_steps=10,
        lr_drop_at=0.8, cache_features=True,
    )  # fmt: skip
    result = run(config, tiny_bundle(tokenizer), tmp_path / "run")
    assert result.zero_shot["valid/AP50"] < 0.1 and result.metrics["valid/AP50"] > 0.8


def test_zero_shot_is_measured_before_the_first_step(
    tmp_path: Path, data: Path, tokenizer, monkeypatch
) -> None:
    bundle, watcher, script = tiny_bundle(tokenizer), Recorder(), ScriptedEvaluation([0.7, 0.2, 0.4])
    before = weights(bundle)
    monkeypatch.setattr(RUN_TASK, script)
    result = run(options(data), bundle, tmp_path / "run", watcher)
    first = script.weights[0]
    label = "decoder.label_embedding.weight"  # made for the classes of the data
    assert all(torch.equal(first[name], before[name]) for name in before if name != label)
    assert result.zero_shot == {"valid/AP": 0.7} and result.metrics == result.final == {"valid/AP": 0.4}
    assert [value for name, value in watcher.events if name == "metrics"] == [(0.2, 0.2), (0.4, 0.4)]
    assert watcher.events[0][0] == "message" and watcher.events[-1] == ("close", None)
    assert ("start", 6) in watcher.events and [v for n, v in watcher.events if n == "step"] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_best_weights_are_chosen_by_valid_and_kept(
    tmp_path: Path, data: Path, tokenizer, monkeypatch, ema_decay: float
) -> None:
    """AP falls after the second of four epochs; the split "test" is there and is never asked."""
    bundle, script, out = (
        tiny_bundle(tokenizer),
        ScriptedEvaluation([0.9, 0.1, 0.5, 0.3, 0.4]),
        tmp_path / "run",
    )
    monkeypatch.setattr(RUN_TASK, script)
    splits = load_splits(data)
    splits["test"] = dataclasses.replace(splits["valid"], name="test")
    result = train(options(data, epochs=4, ema_decay=ema_decay), bundle, splits, out, Recorder(), {})
    assert script.splits == ["valid"] * 5
    best, last = script.weights[2], script.weights[4]
    assert differing(best, last) and differing(weights(bundle), best) == []
    assert differing(weights(load_bundle(out / "model")), best) == []
    assert result.metrics == {"valid/AP": 0.5} and result.final == {"valid/AP": 0.4}
    assert result.per_class == {name: {"AP": 0.5, "AP50": 0.5} for name in CLASSES}
    found = json.loads((out / "metrics.json").read_text())
    assert (found["best_epoch"], found["best_step"]) == (2, 6)
    assert json.loads((out / "predictions_valid.json").read_text()) == [{"score": 0.5}]
    assert not bundle.network.training


def test_average_of_the_weights_is_evaluated_and_saved(
    tmp_path: Path, data: Path, tokenizer, monkeypatch
) -> None:
    """The average is worked out here from the weights after each step."""
    bundle, script = tiny_bundle(tokenizer), ScriptedEvaluation([0.0, 0.1])
    averaged: dict[str, torch.Tensor] = {}

    class Averager(Recorder):
        def step(self, done: int, losses: dict[str, float], lr: float, memory_bytes: int) -> None:
            decay = min(0.2, done / (9 + done))
            for name, own in weights(bundle).items():
                averaged[name] = decay * averaged.get(name, script.weights[0][name]) + (1 - decay) * own

    monkeypatch.setattr(RUN_TASK, script)
    run(options(data, epochs=1, ema_decay=0.2), bundle, tmp_path / "run", Averager())
    for found in (script.weights[1], weights(bundle)):
        torch.testing.assert_close(found, averaged, rtol=1e-5, atol=1e-6)


def test_run_folder(tmp_path: Path, data: Path, tokenizer) -> None:
    out, bundle, config = tmp_path / "run", tiny_bundle(tokenizer), options(data)
    result = run(config, bundle, out)
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "env.json", "train.log", "metrics.jsonl", "metrics.json", "predictions_valid.json",
        "checkpoints", "model", "samples",
    }  # fmt: skip
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"last.pt", "previous.pt", "best.pt"}
    assert train_config({}, out / "config.yaml", {}) == config
    assert json.loads((out / "env.json").read_text())["trains on"] == "cpu"
    assert "frozen: backbone, language_model" in (out / "train.log").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["zero_shot"] == result.zero_shot and metrics["best"] == result.metrics
    assert metrics["final"] == result.final and metrics["per_class"].keys() == set(CLASSES)
    found = lines(out)
    assert [line["step"] for line in found] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert [("valid/AP" in line, "loss" in line) for line in found] == [
        (step in (0, 4, 8), step not in (0, 4, 8)) for step in range(9)
    ]
    # what `groundtune evaluate` says about the saved model
    again = evaluated(load_bundle(out / "model"), load_splits(data)["valid"])
    kept = json.loads((out / "predictions_valid.json").read_text())
    assert len(kept) == len(again.predictions) == 3 * 20 * len(CLASSES)
    assert [p["score"] for p in kept] == pytest.approx([p["score"] for p in again.predictions], abs=1e-5)


def test_logged_terms_are_means_since_the_last_line(tmp_path: Path, data: Path, tokenizer) -> None:
    for every in (1, 3):
        run(options(data, epochs=1, log_steps=every), tiny_bundle(tokenizer), tmp_path / str(every))
    single, (_, mean, _) = lines(tmp_path / "1")[1:4], lines(tmp_path / "3")
    terms = [name for name in mean if "loss_" in name or name in ("class_error", "matched_boxes")]
    assert {"loss_cls", "d0.loss_bbox", "enc_loss_giou", "dn_loss_cls", "d0.dn_loss_giou"} < set(terms)
    for name in terms:
        assert mean[name] == pytest.approx(sum(line.get(name, 0.0) for line in single) / 3, rel=1e-5), name
    # warm after two steps, and a tenth after round(0.7 * 3) of them
    assert mean["lr"] == {name: pytest.approx(1e-4) for name in ("neck", "encoder", "decoder", "bbox_head")}
    weighted = sum(value for name, value in single[0].items() if "loss_" in name)
    assert single[0]["loss"] == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize(
    ("groups", "frozen"),
    [
        (TOWERS, ("backbone.", "language_model.")),
        ([], ()),
        ([*TOWERS, ParamGroup(["encoder.layers", "neck"], 0.0)], ("backbone.", "language_model.", "encoder.layers.", "neck.")),
    ],
    ids=["towers", "nothing", "more"],
)  # fmt: skip
def test_frozen_stays_bit_identical_and_all_the_rest_learns(
    tmp_path: Path, data: Path, tokenizer, groups: list[ParamGroup], frozen: tuple[str, ...]
) -> None:
    bundle = tiny_bundle(tokenizer)
    before = {
        name: p.detach().clone() for name, p in bundle.network.named_parameters() if "label_emb" not in name
    }
    run(options(data, epochs=1, param_groups=groups), bundle, tmp_path / "run")
    after = {name: p for name, p in bundle.network.named_parameters() if name in before}
    unused = "backbone.body.swin.layernorm."  # transformers' Swin has it for its classifier
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if not name.startswith((*frozen, unused))
    }


@pytest.mark.parametrize("limit", [0.1, 5.0, 0.0])
def test_gradient_is_clipped_to_the_limit(tmp_path: Path, data: Path, tokenizer, limit: float) -> None:
    norms = []

    def remember(optimizer, args, kwargs) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()))

    hook = register_optimizer_step_pre_hook(remember)
    try:
        run(options(data, epochs=1, max_grad_norm=limit), tiny_bundle(tokenizer), tmp_path / "run")
    finally:
        hook.remove()
    logged = [line["grad_norm"] for line in lines(tmp_path / "run") if "grad_norm" in line]
    assert min(logged) > 5
    assert norms == pytest.approx([limit] * 3 if limit else logged, rel=1e-4)


def test_the_same_classes_keep_their_label_embedding_and_others_get_new_rows(
    tmp_path: Path, data: Path, tokenizer, monkeypatch
) -> None:
    run(options(data, epochs=1), tiny_bundle(tokenizer), tmp_path / "first")
    learned = load_bundle(tmp_path / "first" / "model").network.decoder.label_embedding.weight
    assert learned.shape == (3, 64)
    label = "decoder.label_embedding.weight"
    cases = {"same": CLASSES, "other": CLASSES[::-1], "more": [*CLASSES, "red ring"]}
    for name, classes in cases.items():
        bundle, script = load_bundle(tmp_path / "first" / "model"), ScriptedEvaluation([0.0, 0.0])
        monkeypatch.setattr(RUN_TASK, script)
        new = scenes(tmp_path / f"data-{name}", classes=classes)
        run(options(new, epochs=1), bundle, tmp_path / name)
        rows = script.weights[0][label]
        assert bundle.classes == classes and rows.shape == (len(classes), 64)
        assert torch.equal(rows, learned) == (name == "same")
        assert load_bundle(tmp_path / name / "model").classes == classes


@pytest.mark.parametrize("missing", ["train", "valid"])
def test_a_missing_split_is_refused_before_anything_is_written(
    tmp_path: Path, data: Path, tokenizer, missing: str
) -> None:
    splits = load_splits(data)
    del splits[missing]
    with pytest.raises(DataError, match=f"no split '{missing}'") as error:
        train(options(data), tiny_bundle(tokenizer), splits, tmp_path / "run", Recorder(), {})
    assert error.value.exit_code == 3 and list(tmp_path.iterdir()) == []


def test_runs_of_different_precision_in_one_process(tmp_path: Path, data: Path, tokenizer) -> None:
    """Also after a run that was refused while it was set up. The weights stay float32."""
    refused = options(data, precision="bf16", param_groups=[ParamGroup(["neck.nothing"], 0.0)])
    with pytest.raises(ConfigError, match="neck.nothing"):
        run(refused, tiny_bundle(tokenizer), tmp_path / "refused")
    found = {}
    for precision in ("fp32", "bf16", "fp32"):
        bundle = tiny_bundle(tokenizer)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        run(options(data, epochs=1, precision=precision), bundle, tmp_path / "run")
        if precision in found:
            assert differing(found[precision], weights(bundle)) == []
        found[precision] = weights(bundle)
        assert all(tensor.dtype != torch.bfloat16 for tensor in found[precision].values())
    assert differing(found["fp32"], found["bf16"])
    assert not (tmp_path / "refused").exists()
