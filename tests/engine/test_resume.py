"""A run that was stopped and resumed equals the uninterrupted one, and what would make it another
run is refused.
"""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import (
    CLASSES,
    RUN_TASK,
    Recorder,
    differing,
    logged,
    messages,
    options,
    run,
    scenes,
    steps,
    tiny_bundle,
    weights,
)

from groundtune.config import TrainConfig, train_config
from groundtune.engine import checkpoint
from groundtune.engine.evaluate import Evaluation, run_task
from groundtune.errors import CheckpointError, ConfigError

FILES = ["metrics.jsonl", "predictions_valid.json"]


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """A run that was stopped in its second epoch."""
    out = tmp_path_factory.mktemp("resume") / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(options(data), tiny_bundle(tokenizer), out, Recorder(stop_at=5))
    return out


class StopsAtMetrics(Recorder):
    """Raises after the best weights of the second epoch were written, and before the state was."""

    def metrics(self, ap: float | None, best: float | None) -> None:
        super().metrics(ap, best)
        if sum(name == "metrics" for name, _ in self.events) == 2:
            raise KeyboardInterrupt


def evaluate_arbitrarily(*args: Any) -> Evaluation:
    """The real predictions, with an AP that jumps up and down with them, so that any epoch may be
    the best.
    """
    found = run_task(*args)
    found.metrics["AP"] = 1e4 * sum(prediction["score"] for prediction in found.predictions) % 1
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changed", "stop", "first"),
    [
        pytest.param({}, Recorder(stop_at=5), 4, id="in the second epoch"),
        pytest.param({"exhaustive": False}, Recorder(stop_at=5), 4, id="incomplete labels"),
        pytest.param({"save_steps": 1, "log_steps": 4}, Recorder(stop_at=6), 6, id="between two lines"),
        pytest.param({"ema_decay": 0.9, "save_steps": 2}, Recorder(stop_at=6), 5, id="average"),
        pytest.param({"cache_features": True, "save_steps": 2}, Recorder(stop_at=4), 4, id="cached features"),
        pytest.param(
            {"cache_features": True, "ema_decay": 0.9, "workers": 2},
            StopsAtMetrics(),
            4,
            id="between two files",
        ),
        pytest.param({"precision": "bf16", "save_steps": 5}, Recorder(stop_at=6), 6, id="bf16"),
    ],
)
def test_resume_equals_uninterrupted(
    tmp_path: Path, data: Path, tokenizer, changed: dict[str, Any], stop, first: int, monkeypatch
) -> None:
    """Bit for bit, with dropout on."""
    monkeypatch.setattr(RUN_TASK, evaluate_arbitrarily)
    config = options(data, epochs=3, **changed)
    sizes = {"dropout": 0.1, "fusion_droppath": 0.1}
    whole, parts = tiny_bundle(tokenizer, **sizes), tiny_bundle(tokenizer, **sizes)
    expected = run(config, whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, parts, tmp_path / "parts", stop)
    torch.rand(7)  # whatever happened to the generators in the meantime
    parts = tiny_bundle(tokenizer, **sizes)
    config.resume = str(tmp_path / "parts")
    watcher = Recorder()
    result = run(config, parts, tmp_path / "parts", watcher)

    assert steps(watcher)[0] == first  # the ones before were not run again
    assert differing(weights(parts), weights(whole)) == []
    last = [torch.load(tmp_path / name / "checkpoints/last.pt")["network"] for name in ("whole", "parts")]
    assert differing(*last) == []
    for name in FILES:
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    numbers = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "parts")]
    assert all(found.pop("seconds") > 0 and found.pop("memory_bytes") > 2**20 for found in numbers)
    assert numbers[0] == numbers[1]
    assert (result.zero_shot, result.metrics, result.final, result.per_class) == (
        expected.zero_shot,
        expected.metrics,
        expected.final,
        expected.per_class,
    )


def test_resuming_a_finished_run_trains_no_further(tmp_path: Path, data: Path, tokenizer) -> None:
    bundle, out = tiny_bundle(tokenizer), tmp_path / "run"
    result = run(options(data, epochs=1), bundle, out)
    again, watcher = tiny_bundle(tokenizer), Recorder()
    before = snapshot(out)
    repeated = run(options(data, epochs=1, resume=str(out)), again, out, watcher)
    assert "step" not in dict(watcher.events) and differing(weights(bundle), weights(again)) == []
    assert ("message", "The run is finished already.") in watcher.events
    changed = {name for name, content in snapshot(out).items() if content != before[name]}
    assert changed == {"train.log", "config.yaml"} and len(before) == len(snapshot(out))
    assert repeated.metrics == result.metrics and repeated.zero_shot == result.zero_shot
    shutil.rmtree(out / "model")
    run(options(data, epochs=1, resume=str(out)), again, out)
    assert (out / "model/model.safetensors").read_bytes() == before["model/model.safetensors"]


def test_a_finished_run_without_its_states_is_not_finished(tmp_path: Path, data: Path, tokenizer) -> None:
    config, out = options(data, epochs=1), tmp_path / "run"
    run(config, tiny_bundle(tokenizer), out)
    for name in ("last", "previous", "best"):
        (out / f"checkpoints/{name}.pt").unlink(missing_ok=True)
    (out / "metrics.json").write_text('{"retention": {"of": {"another": 1}}}')
    result = run(options(data, epochs=1, resume=str(out)), tiny_bundle(tokenizer), out)
    assert result.retention == {} and json.loads((out / "metrics.json").read_text())["best"] == result.metrics


def test_changed_options_are_all_listed_and_nothing_is_written(stopped: Path, data: Path, tokenizer) -> None:
    before = snapshot(stopped)
    config = options(data, resume=str(stopped), epochs=1, lr=5e-4, flip=0.25, log_steps=7, workers=1)
    with pytest.raises(ConfigError) as error:
        run(config, tiny_bundle(tokenizer), stopped)
    text = str(error.value)
    command = f"groundtune train {data} --model {stopped}"
    for part in (
        "more epochs than the 1 done, got 1",
        command,
        "flip was 0.5 and is now 0.25",
        "optimizer was",
        "0.0005",
    ):
        assert part in text
    assert "log_steps" not in text and "workers" not in text  # these do not change what is computed
    assert snapshot(stopped) == before


@pytest.mark.parametrize("stop", [None, 5], ids=["finished", "interrupted"])
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_more_epochs_go_on_with_the_same_data_and_a_later_drop(
    tmp_path: Path, data: Path, tokenizer, stop: int | None, tune: str, monkeypatch
) -> None:
    """A run whose rate never drops: the run with all epochs from the start is the same one."""
    config, out = options(data, lr_drop_at=1.0, tune=tune, ema_decay=0.9), tmp_path / "run"
    with contextlib.suppress(KeyboardInterrupt):
        run(config, tiny_bundle(tokenizer, dropout=0.1), out, Recorder(stop_at=stop))
    longer, watcher, bundle = replace(config, epochs=4), Recorder(), tiny_bundle(tokenizer, dropout=0.1)
    run(replace(longer, resume=str(out)), bundle, out, watcher)
    assert steps(watcher) == list(range(4 if stop else 7, 13))
    said = "The learning rate drops at 100% of the 4 epochs; steps that are done keep theirs."
    assert said in messages(watcher)
    whole = tiny_bundle(tokenizer, dropout=0.1)
    run(longer, whole, tmp_path / "whole")
    assert differing(weights(bundle), weights(whole)) == []
    assert (out / "metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()
    assert json.loads((out / "metrics.json").read_text())["final"]
    assert "epochs: 4\n" in (out / "config.yaml").read_text()


def test_the_drop_of_the_learning_rate_follows_the_new_number_of_epochs(
    tmp_path: Path, data: Path, tokenizer
) -> None:
    """3 steps an epoch: of 2 epochs it drops after step 3, of 4 epochs after step 6."""
    config = options(data, lr_drop_at=0.5, lr_drop_factor=0.25, warmup_steps=0, lr=1e-3)
    out = tmp_path / "run"
    run(config, tiny_bundle(tokenizer), out)
    run(replace(config, epochs=4, resume=str(out)), tiny_bundle(tokenizer), out)
    rates = [max(line["lr"].values()) for line in logged(out)]
    assert rates == pytest.approx([1e-3] * 3 + [2.5e-4] * 9)
    other = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        run(config, tiny_bundle(tokenizer), other, Recorder(stop_at=5))  # its state is that after 3
    run(replace(config, epochs=4, resume=str(other)), tiny_bundle(tokenizer), other)
    assert [max(line["lr"].values()) for line in logged(other)] == pytest.approx([1e-3] * 6 + [2.5e-4] * 6)


@pytest.mark.parametrize(("given", "message"), [(1, "than the 2 done, got 1"), (2, None)])
def test_fewer_epochs_than_done_are_refused(
    tmp_path: Path, data: Path, tokenizer, given: int, message: str | None
) -> None:
    out = tmp_path / "run"
    run(options(data), tiny_bundle(tokenizer), out)
    before, config = snapshot(out), options(data, epochs=given, resume=str(out))
    if message is None:
        assert run(config, tiny_bundle(tokenizer), out).metrics
    else:
        with pytest.raises(ConfigError, match=message):
            run(config, tiny_bundle(tokenizer), out)
        assert snapshot(out) == before


def test_epochs_of_a_resume_replace_the_recipes_minimum_of_steps(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: x\nepochs: 27\nmin_steps: 210\neval_epochs: 3\n")
    kept = train_config({"resume": str(tmp_path)}, None, {})
    assert (kept.epochs, kept.min_steps) == (27, 210)
    more = train_config({"resume": str(tmp_path), "epochs": "40"}, None, {})
    assert (more.epochs, more.min_steps, more.eval_epochs) == (40, 0, 3)


def test_a_run_from_before_an_option_existed_goes_on(
    tmp_path: Path, stopped: Path, data: Path, tokenizer
) -> None:
    older = tmp_path / "older"
    shutil.copytree(stopped, older)
    state = torch.load(older / "checkpoints/last.pt", weights_only=True)
    del state["config"]["blend"]
    checkpoint.save_state(state, older / "checkpoints/last.pt")
    assert run(options(data, resume=str(older)), tiny_bundle(tokenizer), older).metrics


def test_changed_data_are_refused(tmp_path: Path, stopped: Path, tokenizer) -> None:
    config = options(scenes(tmp_path / "other", train=4, classes=CLASSES[::-1]), resume=str(stopped))
    with pytest.raises(
        ConfigError, match=r"(?s)classes were .*'red circle', .*there were 5 training images, now 4"
    ):
        run(config, tiny_bundle(tokenizer), stopped)


def test_a_run_is_only_resumed_when_asked_to(stopped: Path, data: Path, tokenizer) -> None:
    before, bundle = snapshot(stopped), tiny_bundle(tokenizer)
    with pytest.raises(ConfigError, match="not empty.*--resume"):
        run(options(data), bundle, stopped)
    assert snapshot(stopped) == before


def test_a_run_goes_on_in_its_own_folder(tmp_path: Path, stopped: Path, data: Path, tokenizer) -> None:
    with pytest.raises(ConfigError, match="its own folder"):
        run(options(data, resume=str(stopped)), tiny_bundle(tokenizer), tmp_path / "elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_free_options_may_change_and_are_listed(tmp_path: Path, stopped: Path, data: Path, tokenizer) -> None:
    out, watcher = shutil.copytree(stopped, tmp_path / "run"), Recorder()
    run(options(data, resume=str(out), workers=1, log_steps=7), tiny_bundle(tokenizer), out, watcher)
    line = "Changed options: workers 1 (was None), log_steps 7 (was 1); all others are those of the run."
    assert ("message", line) in watcher.events and line in (out / "train.log").read_text()


@pytest.mark.parametrize("state", ["weights", "other model", "other version"])
def test_a_state_that_cannot_be_used(
    tmp_path: Path, stopped: Path, data: Path, tokenizer, state: str
) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    bundle = tiny_bundle(tokenizer, ffn_dim=32) if state == "other model" else tiny_bundle(tokenizer)
    if state == "weights":
        shutil.copy(out / "checkpoints/best.pt", out / "checkpoints/last.pt")
    if state == "other version":
        checkpoint.save_state(
            checkpoint.load_state(out / "checkpoints/last.pt") | {"schedule": 3}, out / "checkpoints/last.pt"
        )
    message = {
        "weights": "weights only",
        "other model": "do not fit the model",
        "other version": "or version",
    }[state]
    with pytest.raises(CheckpointError, match=message):
        run(options(data, resume=str(out)), bundle, out)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 3])
    elif how == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 16
        path.write_bytes(content)


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer) -> tuple[TrainConfig, Path, Path]:
    """Options that save each step; the folder of a whole run, and of one that was stopped in step 6
    of 6.
    """
    config, folder = options(data, save_steps=1, ema_decay=0.9), tmp_path_factory.mktemp("saved")
    run(config, tiny_bundle(tokenizer), folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tiny_bundle(tokenizer), folder / "stopped", Recorder(stop_at=6))
    return config, folder / "whole", folder / "stopped"


@pytest.mark.parametrize(
    ("faults", "first"),
    [
        ({"last": "bit"}, 5),
        ({"last": "cut"}, 5),
        ({"last": "gone"}, 5),  # killed between the two renames
        ({"last": "bit", "previous": "cut"}, 1),
        ({"last": "gone", "previous": "gone", "best": "gone"}, 1),
    ],
    ids=["bit", "cut", "gone", "both", "killed before the first"],
)
def test_a_damaged_checkpoint_falls_back(
    tmp_path: Path, tokenizer, saved, faults: dict[str, str], first: int
) -> None:
    """To the one before, or the beginning; and ends equal to the uninterrupted run."""
    config, whole, out, watcher = saved[0], saved[1], shutil.copytree(saved[2], tmp_path / "run"), Recorder()
    for name, how in faults.items():
        damage(out / f"checkpoints/{name}.pt", how)
    run(replace(config, resume=str(out)), tiny_bundle(tokenizer), out, watcher)
    said = "\n".join(messages(watcher))
    assert steps(watcher)[0] == first
    assert all(f"{name}.pt" in said for name in faults.keys() - {"best"})
    assert ("starts again" in said) == (first == 1)
    for name in [*FILES, "model/model.safetensors"]:
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_what_was_damaged_does_not_come_back_as_the_one_before(tmp_path: Path, tokenizer, saved) -> None:
    out = shutil.copytree(saved[2], tmp_path / "run")
    config = replace(saved[0], resume=str(out))
    for _ in range(2):
        damage(out / "checkpoints/last.pt", "bit")
        watcher = Recorder(stop_at=6)
        with pytest.raises(KeyboardInterrupt):
            run(config, tiny_bundle(tokenizer), out, watcher)
        assert steps(watcher)[0] == 5


class Damager(Recorder):
    """Damages best.pt after the second validation, that is, before the best weights are loaded."""

    def __init__(self, file: Path, fault: str) -> None:
        super().__init__()
        self.file, self.fault, self.validations = file, fault, 0

    def metrics(self, ap: float | None, best: float | None) -> None:
        super().metrics(ap, best)
        self.validations += 1
        if self.validations != 2:
            return
        if self.fault == "other step":
            checkpoint.save_state(checkpoint.load_state(self.file) | {"step": 1}, self.file)
        else:
            damage(self.file, self.fault)


@pytest.mark.parametrize("fault", ["bit", "gone", "other step"])
def test_a_corrupted_best_file_gives_way_to_the_newest_average(
    tmp_path: Path, data: Path, tokenizer, monkeypatch, fault: str
) -> None:
    """The first epoch was the best; its weights are lost, so the second's are evaluated and kept."""
    aps = iter([0.1, 0.9, 0.4, 0.4])
    monkeypatch.setattr(RUN_TASK, lambda *_: Evaluation({"AP": next(aps)}, {}, [{"score": 1.0}]))
    bundle, out = tiny_bundle(tokenizer), tmp_path / "run"
    watcher = Damager(out / "checkpoints/best.pt", fault)
    result = run(options(data, ema_decay=0.5), bundle, out, watcher)
    assert any("Using the newest weights" in text for text in messages(watcher))
    assert result.metrics == {"valid/AP": 0.4} and watcher.validations == 3
    assert json.loads((out / "metrics.json").read_text())["best_step"] == 6
    average = torch.load(out / "checkpoints/last.pt", weights_only=True)["average"]
    found = weights(bundle)
    assert average and all(torch.equal(found[name], value) for name, value in average.items())
    assert (out / "model/groundtune.json").is_file()
