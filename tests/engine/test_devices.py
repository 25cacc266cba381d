"""`--devices N`: the processes that it launches, how they end, and what the terminal shows."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from engine_runs import scenes, tiny_bundle

from groundtune import api
from groundtune.cli import main
from groundtune.config import TrainConfig
from groundtune.engine import distributed as launching
from groundtune.engine.distributed import init_distributed_env, launch, slurm_variables
from groundtune.errors import ConfigError, DataError

# Scripts that stand for `groundtune train`; "rank" is this process's number, a file of that name is
# its own.
BEGIN = """
import os, signal, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
file = Path(str(rank))
def handle(number, _):
    file.write_text(file.read_text() + f"{number} ")
    sys.exit(128 + (2 if number == signal.SIGINT else 15))
def wait():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, handle)
    file.write_text("")
    while not all(Path(str(other)).exists() for other in range(2)):
        pass
def fail(text):
    print("groundtune: error:", text, file=sys.stderr)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Starts a script as so many processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launching, "_GRACE", 0.3)
    # the tests themselves may be run in the background, where SIGINT is ignored
    before = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}

    def start(script: str, count: int = 2, threads: int = 0) -> int:
        monkeypatch.setattr(sys, "orig_argv", ["python", "-c", BEGIN + script])
        return launch(count, "cpu", threads)

    yield start
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("threads", "expected"), [(0, "2"), (5, "5")])
def test_each_process_knows_its_rank(run, tmp_path: Path, monkeypatch, threads: int, expected: str) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS MASTER_PORT"
    assert run(f"file.write_text(' '.join(os.environ[n] for n in '{names}'.split()))", 3, threads) == 0
    lines = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [line[:5] for line in lines] == [[str(r), str(r), "3", "127.0.0.1", expected] for r in range(3)]
    assert len({line[5] for line in lines}) == 1


def test_only_the_main_process_prints_and_a_good_end_is_silent(run, capfd) -> None:
    assert run("print('result', rank); print('progress', rank, file=sys.stderr)") == 0
    assert capfd.readouterr() == ("result 0\n", "progress 0\n")


TRACEBACK = "Path(os.environ['GROUNDTUNE_ERRORS']).write_text(f'Traceback of {rank}'); sys.exit(1)"
WAITS = "\nsignal.pause()"  # the other one waits for it, and would never end


@pytest.mark.parametrize(
    ("script", "code", "errors"),
    [
        ("fail('of all'); sys.exit(3)", 3, "groundtune: error: of all\n"),
        ("if not rank: fail('of the main one'); sys.exit(5)", 5, "groundtune: error: of the main one\n"),
        ("if not rank: fail('of one'); sys.exit(4)" + WAITS, 4, "groundtune: error: of one\n"),
        (
            "if rank: print('noise', file=sys.stderr); fail('of one'); sys.exit(3)" + WAITS,
            3,
            "groundtune: error: of one\n",
        ),
        (f"if rank: {TRACEBACK}" + WAITS, 1, "Traceback of 1\n"),
        (f"if not rank: {TRACEBACK}" + WAITS, 1, "Traceback of 0\n"),
        ("if rank: sys.exit(1)" + WAITS, 1, "groundtune: error: process 1 of 2 ended with exit code 1.\n"),
        (
            "if rank: os.kill(os.getpid(), signal.SIGKILL)" + WAITS,
            137,
            "groundtune: error: process 1 of 2 ended with signal SIGKILL.\n",
        ),
    ],
)
def test_one_failure_ends_all_and_is_reported_once(run, capfd, script: str, code: int, errors: str) -> None:
    assert run(script) == code
    assert capfd.readouterr() == ("", errors)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_signal_reaches_each_process_once_and_their_code_comes_back(
    run, tmp_path: Path, capfd, name: str, code: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run(f"wait()\nif rank == 0: os.kill(os.getppid(), signal.{name})\nsignal.pause()") == code
    number = getattr(signal, name)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [f"{int(number)} "] * 2
    assert capfd.readouterr() == ("", "") and signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_ignored(run) -> None:
    """As nohup has it, and a shell that starts a job in the background."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    script = "if not rank:\n for _ in range(9): os.kill(os.getppid(), signal.SIGUSR1)\n"
    assert run("signal.signal(signal.SIGUSR1, signal.SIG_DFL)\n" + script) == 0


def test_no_process_is_in_the_group_that_gets_ctrl_c(run, tmp_path: Path) -> None:
    assert run("file.write_text(str(os.getpgid(0)))") == 0
    groups = {int((tmp_path / str(rank)).read_text()) for rank in range(2)}
    assert len(groups) == 2 and os.getpgid(0) not in groups


def test_a_process_that_still_saves_may_finish(run, tmp_path: Path) -> None:
    """Also long after the other has ended, far beyond the grace after a failure."""
    script = "wait()\nif rank: sys.exit(143)\ntime.sleep(1.0)\nfile.write_text('saved')\nsys.exit(143)"
    assert run(script) == 143 and (tmp_path / "0").read_text() == "saved"


def test_a_started_process_keeps_its_traceback_for_the_one_that_waits(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GROUNDTUNE_ERRORS", str(tmp_path / "errors"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "platform", "none")  # else this process would end with its parent
    init_distributed_env()
    try:
        raise ZeroDivisionError("by hand")
    except ZeroDivisionError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert "ZeroDivisionError: by hand" in (tmp_path / "errors").read_text()


STEP = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_JOB_ID": "1234567",
    "SLURM_NTASKS": "8",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[007-009,12],other", "node007"),
        ("gpu-a1,gpu-b2", "gpu-a1"),
        ("n[3,5]", "n3"),
        ("alone", "alone"),
    ],
)
def test_a_task_of_slurm_gets_torchruns_variables(nodes: str, first: str) -> None:
    assert slurm_variables({**STEP, "SLURM_STEP_NODELIST": nodes}) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": first,
        "MASTER_PORT": "24567",
    }


def test_slurm_variables_that_are_set_stay_and_a_batch_script_is_no_task() -> None:
    step = {**STEP, "SLURM_STEP_NODELIST": "a,b", "MASTER_ADDR": "head", "MASTER_PORT": "1"}
    assert slurm_variables(step).keys() == {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
    assert slurm_variables({**step, "RANK": "0"}) == {}
    assert slurm_variables({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}) == {}
    assert slurm_variables({**step, "SLURM_STEP_NUM_TASKS": "1"}) == {}


@pytest.mark.parametrize(
    ("count", "device", "message"),
    [
        (4, "cuda", "expected at most 2 (cuda, seen by torch), got 4"),
        (2, "cuda:1", "2 processes cannot share cuda:1"),
    ],
)
def test_more_devices_than_there_are(monkeypatch, count: int, device: str, message: str) -> None:
    monkeypatch.setattr(launching, "pick_device", lambda name: torch.device(name))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(ConfigError) as error:
        launch(count, device, 0)
    assert str(error.value).startswith(f"devices: {message}")


def test_from_python_nothing_is_started(monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2 SCRIPT"):
        api.train(config=TrainConfig(data="anywhere", devices=2), quiet=True)


@pytest.mark.parametrize(("rank", "printed"), [("0", "2 devices"), ("1", "")])
def test_of_processes_that_others_start_one_prints(
    tmp_path: Path, tokenizer, monkeypatch, capsys, rank: str, printed: str
) -> None:
    """And none starts more."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("groundtune.printing.print_run", lambda run, retained: print(run))
    monkeypatch.setattr(api, "retention_rows", lambda run: [])
    monkeypatch.setattr(api, "train", lambda config: f"{config.devices} devices")
    api.Model(tiny_bundle(tokenizer)).save(tmp_path)
    assert main(["train", "data", "--model", str(tmp_path), "--devices", "2"]) == 0
    assert capsys.readouterr().out.strip() == printed


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_model_in_parts_is_refused(monkeypatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    with pytest.raises(DataError):  # goes on, to the data
        api.train(config=TrainConfig(data="nowhere"), quiet=True)
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=f"accelerate launch asks for {name}"):
        api.train(config=TrainConfig(data="nowhere"), quiet=True)


def command(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), **variables}
    environment.pop("RANK", None)
    line = [sys.executable, "-m", "groundtune.cli", *arguments]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def train(tmp_path: Path, tokenizer) -> list[str]:
    """The command line of a run of two processes in `tmp_path/run`, without its length."""
    data = scenes(tmp_path / "data", train=4, valid=3)
    api.Model(tiny_bundle(tokenizer)).save(tmp_path / "model")
    options = ["--devices", "2", "--device", "cpu", "--batch-size", "2", "--report-to", "none"]
    paths = ["--model", str(tmp_path / "model"), "--output-dir", str(tmp_path / "run")]
    return ["train", str(data), *paths, *options]


@pytest.mark.slow
def test_two_processes_train_from_the_command_line(tmp_path: Path, train: list[str]) -> None:
    """One table and one report; then a mistake that both processes meet, reported once."""
    run = command(*train, "--epochs", "1")
    printed, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert printed.count("zero-shot") == 1 and printed.count("Best weights:") == 1
    assert errors.count("Run directory:") == 1 and "Traceback" not in errors and "arning:" not in errors
    assert (tmp_path / "run/report.html").is_file()

    (tmp_path / "data/train/_annotations.coco.json").write_text("{")
    run = command(*train, "--epochs", "1", "--output-dir", str(tmp_path / "other"))
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 3 and errors.count("groundtune: error:") == 1 and "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGKILL", -9)])
def test_no_process_is_left_behind(tmp_path: Path, train: list[str], name: str, code: int) -> None:
    """The launching process is asked to end, or killed; the run can be resumed."""
    run = command(*train, *["--epochs", "3000", "--eval-epochs", "3000", "--log-steps", "1"])
    assert run.stderr is not None
    try:
        metrics = tmp_path / "run/metrics.jsonl"
        while not (metrics.is_file() and '"loss"' in metrics.read_text()):
            assert run.poll() is None, run.stderr.read()
        started = psutil.Process(run.pid).children(recursive=True)
    except BaseException:
        run.kill()
        raise
    assert len(started) == 2
    run.send_signal(getattr(signal, name))
    errors = run.stderr.read()
    assert run.wait(timeout=120) == code
    _, alive = psutil.wait_procs(started, timeout=120)
    assert alive == [] and "Traceback" not in errors
    assert errors.count("Resume with: groundtune train") == 1
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
