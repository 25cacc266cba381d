"""The start of several processes by hand: each mistake ends in one sentence, soon, with exit code 2,
and each signal ends the waiting.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from engine_runs import scenes, tiny_bundle

from groundtune import api
from groundtune.engine.rendezvous import check_launcher
from groundtune.errors import ConfigError

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background
from groundtune.cli import main
{before}
sys.exit(main(sys.argv[1:]))
"""


def free_port() -> str:
    with socket.create_server(("", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch):
    """Sets the launcher's variables."""

    def set_variables(**values: str) -> None:
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"GROUNDTUNE_START_TIMEOUT": "1"} | values).items():
            monkeypatch.setenv(name, value)

    return set_variables


MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "free"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK: expected a whole number between 0 and 1, got '2'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK: expected a whole number between 0 and 1, got '-1'"),
        ({"RANK": "1"}, "RANK: expected a whole number between 0 and 0, got '1'"),
        ({"WORLD_SIZE": "2"}, "RANK: expected a whole number between 0 and 1, got ''"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number .* got 'two'"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "GROUNDTUNE_START_TIMEOUT": "x"},
            "START_TIMEOUT: expected a whole",
        ),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE: expected a whole number .* got '0'"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": ""},
            "MASTER_PORT: expected a whole number .* got ''",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "taken"},
            r"Cannot use MASTER_PORT \d+: Address alr",
        ),
        ({"RANK": "0", "WORLD_SIZE": "3"}, "After 1 s the processes with RANK 1, 2 of WORLD_SIZE 3 are miss"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, r"Nothing answers at MASTER_ADDR '127.0.0.1', .*RANK 0"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "no host"},
            "Nothing answers at MASTER_ADDR 'no host'",
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": ""}, "Nothing answers at MASTER_ADDR ''"),
    ],
)
def test_each_mistake_of_a_launcher_is_one_sentence(variables, values: dict[str, str], message: str) -> None:
    with socket.create_server(("", 0)) as server:
        ports = {"taken": str(server.getsockname()[1]), "free": free_port()}
        port = (MASTER | values)["MASTER_PORT"]
        variables(**MASTER | values | {"MASTER_PORT": ports.get(port, port)})
        with pytest.raises(ConfigError, match=message):
            check_launcher(1)


@pytest.mark.parametrize("values", [{}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "1"}])
def test_a_single_process_waits_for_none(variables, values: dict[str, str]) -> None:
    variables(**values)
    check_launcher(1)


def test_torchrun_has_waited_already(variables) -> None:
    variables(**MASTER | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"})
    check_launcher(1)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"groundtune 1": "1"}, "Two processes have RANK 1. Each needs its own, from 0 to 1"),
        ({"groundtune size 0": "3"}, r"WORLD_SIZE: expected the same in all processes, got \[2, 3\]"),
    ],
)
def test_processes_that_do_not_agree(variables, known: dict[str, str], message: str) -> None:
    server = dist.TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)
    for key, value in known.items():
        server.set(key, value)
    variables(**MASTER | {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": str(server.port)})
    with pytest.raises(ConfigError, match=message):
        check_launcher(1)


@pytest.fixture
def train(tmp_path: Path, tokenizer) -> list[str]:
    """The command line of a run of many steps in `tmp_path/run`."""
    data = scenes(tmp_path / "data", train=4, valid=3)
    api.Model(tiny_bundle(tokenizer)).save(tmp_path / "model")
    paths = ["--model", str(tmp_path / "model"), "--output-dir", str(tmp_path / "run")]
    options = ["--device", "cpu", "--batch-size", "2", "--report-to", "none", "--threads", "1"]
    return ["train", str(data), *paths, *options, "--epochs", "3000", "--eval-epochs", "3000"]


def start(
    train: list[str], rank: int, port: str, before: str = "", seconds: str = "2", count: str = "2"
) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "WORLD_SIZE": count}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank)}
    environment |= {"GROUNDTUNE_START_TIMEOUT": seconds, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", PROGRAM.format(before=before), *train]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_command_says_what_is_wrong_in_one_line(train: list[str]) -> None:
    port = free_port()
    with socket.create_server(("", 0)) as server:
        processes = {
            f"Cannot use MASTER_PORT {server.getsockname()[1]}": start(
                train, 0, str(server.getsockname()[1])
            ),
            "RANK 1 of WORLD_SIZE 2 are missing": start(train, 0, port),
            "Nothing answers at MASTER_ADDR": start(train, 1, free_port()),
        }
        for message, process in processes.items():
            printed, errors = process.communicate(timeout=100)
            assert process.returncode == 2 and printed == ""
            (line,) = errors.splitlines()
            assert line.startswith("groundtune: error: ") and message in line


# A process that waits in the library for another one, which is there and does not answer.
STUCK = """
import groundtune.engine.rendezvous as rendezvous
rendezvous._meet = lambda *_: None
"""


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("before", ["", STUCK], ids=["in Python", "in C++"])
def test_a_signal_ends_the_wait_for_the_others_at_once(
    train: list[str], name: str, code: int, before: str
) -> None:
    process = start(train, 0, free_port(), before, seconds="100")
    own = psutil.Process(process.pid)
    wait_until(process, lambda: any(each.status == "LISTEN" for each in own.net_connections()))
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(getattr(signal, name))
    errors = process.communicate(timeout=100)[1]
    assert time.monotonic() - began < 5 and "Traceback" not in errors
    assert process.returncode in (code, -getattr(signal, name))


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_wait_for_a_process_that_hangs(train: list[str], tmp_path: Path) -> None:
    """The other one is stopped in the middle of the training, so that this one waits in C++."""
    port = free_port()
    pair = [start([*train, "--log-steps", "1"], rank, port, seconds="60") for rank in range(2)]
    try:
        metrics = tmp_path / "run/metrics.jsonl"
        wait_until(pair[0], lambda: metrics.is_file() and '"loss"' in metrics.read_text())
        pair[1].send_signal(signal.SIGSTOP)
        time.sleep(1)
        pair[0].send_signal(signal.SIGINT)
        time.sleep(1)
        assert pair[0].poll() is None
        pair[0].send_signal(signal.SIGINT)
        assert pair[0].wait(timeout=5) == 130
    finally:
        for process in pair:
            process.kill()
