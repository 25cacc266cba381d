"""SIGINT, SIGTERM and SIGUSR1: the step is finished, the state saved, one line says how to go on."""

import os
import shlex
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_processes import prepare
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
    """Sends signals to its own process at an event, "step" or "evaluation", from the `after`-th on, one at each."""

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


def place_of(out: Path) -> tuple[int, int, int]:
    place = checkpoint.load_state(out / "checkpoints/last.pt")["place"]
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
        Interrupted, match=f"after step {place[2]}. Go on with: groundtune train .* --resume {out}$"
    ) as error:
        run(config, tiny_bundle(tokenizer, **SIZES), out, sends)
    assert error.value.exit_code == NUMBERS[number]
    assert [signal.getsignal(each) for each in NUMBERS] == handlers
    assert place_of(out) == place
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
    assert capfd.readouterr().err.count("Ctrl-C again ends at once") == 1
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
    assert said.startswith("groundtune: stopped after step 1. Go on with: groundtune train ")
    monkeypatch.setattr(engine, "optimizer_step", step)
    assert main(shlex.split(said.partition("Go on with: groundtune ")[2])) == 0
    assert (out / "metrics.json").is_file()


def _worker(rank: int, port: int, config: TrainConfig, tokenizer: Any, folder: Path, stop_at: int) -> None:
    """One of two processes; the second gets the signal."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    step, seen, code = engine.optimizer_step, [], 0

    def watched(own: Any, batch: Any, place: Any) -> Any:
        seen.append((place.step, torch.get_rng_state().tolist()))
        if rank == 1 and place.step + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(own, batch, place)

    engine.optimizer_step = watched
    bundle = tiny_bundle(tokenizer, **SIZES)
    try:
        run(config, bundle, folder / "run")
    except Interrupted as error:
        code = error.exit_code
    torch.save({"code": code, "seen": seen, "weights": weights(bundle)}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _in_two(config: TrainConfig, tokenizer: Any, folder: Path, stop_at: int = 0) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    torch.multiprocessing.spawn(_worker, (port, config, tokenizer, folder, stop_at), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_each_goes_on_with_its_own_generators(
    tmp_path: Path, data: Path, tokenizer
) -> None:
    config = options(data, ema_decay=0.9)
    whole = _in_two(config, tokenizer, tmp_path / "whole")
    assert whole[0]["seen"][3] != whole[1]["seen"][3]  # their generators differ
    stopped = _in_two(config, tokenizer, tmp_path / "parts", stop_at=4)
    assert [part["code"] for part in stopped] == [143, 143]
    assert [len(part["seen"]) for part in stopped] == [4, 4] and place_of(tmp_path / "parts/run") == (1, 1, 4)
    config.resume = str(tmp_path / "parts/run")
    resumed = _in_two(config, tokenizer, tmp_path / "parts")
    for rank in range(2):
        assert stopped[rank]["seen"] + resumed[rank]["seen"] == whole[rank]["seen"]
        assert differing(resumed[rank]["weights"], whole[rank]["weights"]) == []
    lines = [(tmp_path / name / "run/metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1]
