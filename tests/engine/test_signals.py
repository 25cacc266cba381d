"""SIGINT, SIGTERM and SIGUSR1: the step is finished, the state saved, one line says how to go on."""

import os
import shlex
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_processes import in_two_processes, prepare
from engine_runs import Recorder, differing, options, run, tiny_bundle, weights

from groundtune.cli import main
from groundtune.config import TrainConfig
from groundtune.engine import checkpoint
from groundtune.engine import train as engine
from groundtune.errors import Interrupted
from groundtune.model.bundle import ModelBundle

NUMBERS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
SIZES = {"dropout": 0.1, "fusion_droppath": 0.1}
OPTIONS = {"ema_decay": 0.9, "log_steps": 4}


@pytest.fixture(autouse=True)
def sigint() -> Iterator[None]:
    """Not ignored, as it is in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(
    data: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer
) -> tuple[dict[str, torch.Tensor], Path]:
    """The weights and the folder of the uninterrupted run."""
    bundle, out = tiny_bundle(tokenizer, **SIZES), tmp_path_factory.mktemp("whole") / "run"
    run(options(data, **OPTIONS), bundle, out)
    return weights(bundle), out


def assert_equal(bundle: ModelBundle, out: Path, whole: tuple[dict[str, torch.Tensor], Path]) -> None:
    assert differing(weights(bundle), whole[0]) == []
    for name in ("metrics.jsonl", "predictions_valid.json"):
        assert (out / name).read_text() == (whole[1] / name).read_text()


class Sends(Recorder):
    """Sends signals to its own process at an event, "step" or "evaluation", from the `after`-th on,
    one at each.
    """

    def __init__(self, event: str, after: int, *numbers: signal.Signals) -> None:
        super().__init__()
        self.event, self.after, self.numbers = event, after, list(numbers)

    def note(self, event: str) -> None:
        happened = sum(name == event for name, _ in self.events)
        if event == self.event and happened >= self.after and self.numbers:
            os.kill(os.getpid(), self.numbers.pop(0))

    def step(self, done: int, losses: dict[str, float], lr: float, memory_bytes: int) -> None:
        super().step(done, losses, lr, memory_bytes)
        self.note("step")

    def evaluation(self, done: int, total: int) -> None:
        super().evaluation(done, total)
        self.note("evaluation")


def position_of(out: Path) -> tuple[int, int, int]:
    place = checkpoint.load_state(out / "checkpoints/last.pt")["state"]
    return place["epoch"], place["batch"], place["step"]


@pytest.mark.parametrize(
    ("sends", "place"),
    [
        (Sends("step", 4, signal.SIGTERM), (1, 1, 4)),
        (Sends("step", 3, signal.SIGINT), (0, 3, 3)),  # the last of an epoch, not evaluated yet
        (Sends("step", 5, signal.SIGUSR1, signal.SIGTERM), (1, 2, 5)),
        (
            Sends("evaluation", 3, signal.SIGTERM),
            (0, 3, 3),
        ),  # two batches of each evaluation; 1, 2 are zero-shot
        (Sends("evaluation", 6, signal.SIGINT), (1, 3, 6)),
    ],
    ids=["SIGTERM", "end of an epoch", "SIGUSR1", "in an evaluation", "in the last evaluation"],
)
def test_the_state_is_that_after_the_last_step(
    tmp_path: Path, data: Path, tokenizer, whole, sends: Sends, place: tuple[int, int, int]
) -> None:
    """And the resumed run equals the uninterrupted one."""
    config, number = options(data, **OPTIONS), sends.numbers[0]
    handlers = [signal.getsignal(each) for each in NUMBERS]
    bundle, out = tiny_bundle(tokenizer, **SIZES), tmp_path / "run"
    with pytest.raises(
        Interrupted, match=f"after step {place[2]}. Resume with: groundtune train .* --resume {out}$"
    ) as error:
        run(config, tiny_bundle(tokenizer, **SIZES), out, sends)
    assert error.value.exit_code == NUMBERS[number]
    assert [signal.getsignal(each) for each in NUMBERS] == handlers
    assert position_of(out) == place
    steps = [value for name, value in sends.events if name == "step"]
    config.resume, watcher = str(out), Recorder()
    run(config, bundle, out, watcher)
    steps += [value for name, value in watcher.events if name == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]  # none is done twice
    assert_equal(bundle, out, whole)


def test_before_the_first_step_there_is_nothing_to_save(tmp_path: Path, data: Path, tokenizer, whole) -> None:
    out, bundle = tmp_path / "run", tiny_bundle(tokenizer, **SIZES)
    with pytest.raises(Interrupted, match="after step 0"):
        run(
            options(data, **OPTIONS),
            tiny_bundle(tokenizer, **SIZES),
            out,
            Sends("evaluation", 1, signal.SIGTERM),
        )
    assert list((out / "checkpoints").iterdir()) == []
    run(options(data, **OPTIONS, resume=str(out)), bundle, out)
    assert_equal(bundle, out, whole)


def test_a_second_sigint_ends_at_once(tmp_path: Path, data: Path, tokenizer, monkeypatch, capfd) -> None:
    """Here before the step that the first one wanted to finish is over; nothing is saved."""
    step = engine.optimizer_step

    def twice(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        found = step(*args)
        os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(engine, "optimizer_step", twice)
    with pytest.raises(KeyboardInterrupt):
        run(options(data), tiny_bundle(tokenizer), tmp_path / "run")
    assert list((tmp_path / "run/checkpoints").iterdir()) == []
    assert capfd.readouterr().err.count("press Ctrl-C again to stop now") == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_leave_the_signals_alone(tmp_path: Path, data: Path, tokenizer, monkeypatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *args: found.append(args))
    bundle = tiny_bundle(tokenizer)
    thread = threading.Thread(
        target=lambda: found.append(run(options(data, epochs=1), bundle, tmp_path / "run").folder)
    )
    thread.start()
    thread.join()
    assert found == [tmp_path / "run"]


def test_what_was_ignored_stays_ignored(tmp_path: Path, data: Path, tokenizer) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        run(
            options(data, epochs=1),
            tiny_bundle(tokenizer),
            tmp_path / "run",
            Sends("step", 1, signal.SIGUSR1),
        )
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_command_says_how_to_go_on(tmp_path: Path, tokenizer, monkeypatch, capfd) -> None:
    """In one line, which works."""
    train, out, step = (
        prepare(tmp_path / "it's here", tokenizer),
        tmp_path / "it's here" / "run",
        engine.optimizer_step,
    )

    def stopping(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(engine, "optimizer_step", stopping)
    assert main([*train, "--output-dir", str(out)]) == 143
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("groundtune: Interrupted after step 1. Resume with: groundtune train ")
    monkeypatch.setattr(engine, "optimizer_step", step)
    assert main(shlex.split(said.partition("Resume with: groundtune ")[2])) == 0
    assert (out / "metrics.json").is_file()


def interrupted_run(
    rank: int, config: TrainConfig, tokenizer: Any, out: Path, stop_at: int
) -> dict[str, Any]:
    """A process of a run; the second gets the signal."""
    step, seen, code = engine.optimizer_step, [], 0

    def watched(setup: Any, state: Any, batch: Any) -> Any:
        seen.append((state.step, torch.get_rng_state().tolist()))
        if rank == 1 and state.step + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(setup, state, batch)

    engine.optimizer_step = watched
    bundle = tiny_bundle(tokenizer, **SIZES)
    try:
        run(config, bundle, out)
    except Interrupted as error:
        code = error.exit_code
    return {"code": code, "seen": seen, "weights": weights(bundle)}


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_each_goes_on_with_its_own_generators(
    tmp_path: Path, data: Path, tokenizer
) -> None:
    config = options(data, ema_decay=0.9)

    def both(folder: Path, stop_at: int = 0) -> list[dict[str, Any]]:
        given = {"config": config, "tokenizer": tokenizer, "out": folder / "run", "stop_at": stop_at}
        return in_two_processes(partial(interrupted_run, **given), folder)

    whole = both(tmp_path / "whole")
    assert whole[0]["seen"][3] != whole[1]["seen"][3]  # their generators differ
    stopped = both(tmp_path / "parts", stop_at=4)
    assert [part["code"] for part in stopped] == [143, 143]
    assert [len(part["seen"]) for part in stopped] == [4, 4] and position_of(tmp_path / "parts/run") == (
        1,
        1,
        4,
    )
    config.resume = str(tmp_path / "parts/run")
    resumed = both(tmp_path / "parts")
    for rank in range(2):
        assert stopped[rank]["seen"] + resumed[rank]["seen"] == whole[rank]["seen"]
        assert differing(resumed[rank]["weights"], whole[rank]["weights"]) == []
    lines = [(tmp_path / name / "run/metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1]
