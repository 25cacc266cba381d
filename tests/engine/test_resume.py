"""A run that was stopped and resumed equals the uninterrupted one, and what would make it another run is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CLASSES, Recorder, differing, options, run, scenes, tiny_bundle, weights

from groundtune.engine.evaluate import Evaluation, evaluate
from groundtune.errors import CheckpointError, ConfigError

FILES = ["metrics.jsonl", "predictions_valid.json"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("resume") / "data")


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


def evaluate_arbitrarily(*args: Any, **kwargs: Any) -> Evaluation:
    """The real predictions, with an AP that jumps up and down with them, so that any epoch may be the best."""
    found = evaluate(*args, **kwargs)
    found.metrics["AP"] = 1e4 * sum(prediction["score"] for prediction in found.predictions) % 1
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changed", "stop"),
    [
        pytest.param({}, Recorder(stop_at=5), id="in the second epoch"),
        pytest.param({"ema": 0.9}, Recorder(stop_at=4), id="average"),
        pytest.param({"cache_features": True, "cache_views": 2}, Recorder(stop_at=5), id="cached features"),
        pytest.param({"cache_features": True, "ema": 0.9, "workers": 2}, StopsAtMetrics(), id="between two files"),
        pytest.param({"precision": "bf16"}, Recorder(stop_at=5), id="bf16"),
    ],
)
def test_resume_equals_uninterrupted(
    tmp_path: Path, data: Path, tokenizer, changed: dict[str, Any], stop, monkeypatch
) -> None:
    """Bit for bit, with dropout on."""
    monkeypatch.setattr("groundtune.engine.train.evaluate", evaluate_arbitrarily)
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

    assert next(value for name, value in watcher.events if name == "step") == 4  # the first epoch was not run again
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
    repeated = run(options(data, epochs=1, resume=str(out)), again, out, watcher)
    assert "step" not in dict(watcher.events) and differing(weights(bundle), weights(again)) == []
    assert repeated.metrics == result.metrics and repeated.zero_shot == result.zero_shot


def test_changed_options_are_all_listed_and_nothing_is_written(stopped: Path, data: Path, tokenizer) -> None:
    before = snapshot(stopped)
    config = options(data, resume=str(stopped), epochs=4, lr=5e-4, flip=0.25, log_every=7, workers=1)
    with pytest.raises(ConfigError) as error:
        run(config, tiny_bundle(tokenizer), stopped)
    text = str(error.value)
    for part in ("epochs was 2 and is now 4", "flip was 0.5 and is now 0.25", "optimizer was", "0.0005"):
        assert part in text
    assert "log_every" not in text and "workers" not in text  # these do not change what is computed
    assert snapshot(stopped) == before


def test_a_run_from_before_an_option_existed_goes_on(tmp_path: Path, stopped: Path, data: Path, tokenizer) -> None:
    older = tmp_path / "older"
    shutil.copytree(stopped, older)
    state = torch.load(older / "checkpoints/last.pt", weights_only=True)
    del state["config"]["retain"]
    torch.save(state, older / "checkpoints/last.pt")
    assert run(options(data, resume=str(older)), tiny_bundle(tokenizer), older).metrics


def test_changed_data_are_refused(tmp_path: Path, stopped: Path, tokenizer) -> None:
    config = options(scenes(tmp_path / "other", train=4, classes=CLASSES[::-1]), resume=str(stopped))
    with pytest.raises(ConfigError, match=r"(?s)classes were .*'red circle', .*there were 5 training pictures, now 4"):
        run(config, tiny_bundle(tokenizer), stopped)


def test_pitfall_25_a_run_is_only_resumed_when_asked_to(stopped: Path, data: Path, tokenizer) -> None:
    before, bundle = snapshot(stopped), tiny_bundle(tokenizer)
    with pytest.raises(ConfigError, match="not empty.*--resume"):
        run(options(data), bundle, stopped)
    assert snapshot(stopped) == before


def test_a_run_goes_on_in_its_own_folder(tmp_path: Path, stopped: Path, data: Path, tokenizer) -> None:
    with pytest.raises(ConfigError, match="its own folder"):
        run(options(data, resume=str(stopped)), tiny_bundle(tokenizer), tmp_path / "elsewhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("state", ["none", "weights", "other model"])
def test_a_state_that_cannot_be_used(tmp_path: Path, stopped: Path, data: Path, tokenizer, state: str) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    bundle = tiny_bundle(tokenizer, ffn_dim=32) if state == "other model" else tiny_bundle(tokenizer)
    if state == "none":
        (out / "checkpoints/last.pt").unlink()
    if state == "weights":
        shutil.copy(out / "checkpoints/best.pt", out / "checkpoints/last.pt")
    message = {"none": "no checkpoint at", "weights": "weights only", "other model": "does not fit this model"}[state]
    with pytest.raises(CheckpointError, match=message):
        run(options(data, resume=str(out)), bundle, out)
