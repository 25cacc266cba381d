"""A run that is killed at any moment and resumed equals the uninterrupted one, bit for bit."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from engine_processes import Blow, ended, leftovers, outcome, prepare, start

KILLED = -signal.SIGKILL
EVENTS = [
    *(Blow("open", ".last.pt.tmp", number) for number in (1, 2, 4)),
    *(Blow("half", number=number) for number in (1, 2, 3, 4)),
    *(Blow("os.rename", "checkpoints/last.pt", number) for number in (1, 2)),  # to previous.pt
    *(
        Blow("os.rename", ".last.pt.tmp", number) for number in (1, 2, 4)
    ),  # with no last.pt there, but for the first
    *(Blow("os.rename", ".best.pt.tmp", number) for number in (1, 2)),
    *(Blow("open", "metrics.jsonl", number) for number in (1, 2, 3, 4)),
    *(
        Blow("os.rename", name)
        for name in (".config.yaml.tmp", ".env.json.tmp", ".metrics.json.tmp", "predictions")
    ),
    *(
        Blow("open", name)
        for name in ("train.log", "samples.json", ".config.yaml.tmp", "env.json", "report.html")
    ),
    Blow("os.mkdir", ".model."),
    Blow("open", ".model.", 3),
    Blow("os.rename", ".model."),
    Blow("os.rename", "report.html"),
]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> list[str]:
    """The command line of the run, without --output-dir."""
    return prepare(tmp_path_factory.mktemp("killed"), tokenizer)


@pytest.fixture(scope="module")
def whole(train: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What the uninterrupted run comes to, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    assert ended([*train, "--output-dir", str(folder / "run")], None, folder / "err") == 0, (
        folder / "err"
    ).read_text()
    return outcome(folder / "run"), time.monotonic() - began


def next_command(train: list[str], out: Path) -> list[str]:
    """Resumes; a run that had not even written its options is begun again."""
    if (out / "config.yaml").is_file():
        return ["train", "--resume", str(out)]
    shutil.rmtree(out, ignore_errors=True)
    return [*train, "--output-dir", str(out)]


def assert_ends_equal(train: list[str], out: Path, expected: dict[str, Any]) -> None:
    errors = out.parent / "err"
    assert ended(next_command(train, out), None, errors) == 0, errors.read_text()
    found = outcome(out)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert leftovers(out) == [] and (out / "report.html").is_file()
    assert "Traceback" not in errors.read_text()


def test_killed_while_files_are_written(train: list[str], whole, tmp_path: Path) -> None:
    """A state half written, one between its two renames, the best weights, the model."""
    out = tmp_path / "run"
    blows = [Blow("half", number=2), Blow("os.rename", ".last.pt.tmp"), Blow("os.rename", ".best.pt.tmp")]
    for blow in [*blows, Blow("open", ".model.", 3)]:
        assert ended(next_command(train, out), blow, tmp_path / "err") == KILLED, (
            tmp_path / "err"
        ).read_text()
    assert_ends_equal(train, out, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_fifty_kills(train: list[str], whole, tmp_path: Path, seed: int) -> None:
    """Per seed five at some file's event and five at a random time of the uninterrupted run's."""
    rng, out, expected = random.Random(seed), tmp_path / "run", whole[0]
    for blow in [*rng.sample(EVENTS, 5), *[None] * 5]:
        process = start(next_command(train, out), blow, tmp_path / "err")
        process.join(rng.uniform(0, whole[1]) if blow is None else None)
        process.kill()
        process.join()
        assert process.exitcode in (KILLED, 0), (tmp_path / "err").read_text()
    assert_ends_equal(train, out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_stopped_by_sigterm_at_random_moments(train: list[str], whole, tmp_path: Path, seed: int) -> None:
    """Before the run has its handlers SIGTERM kills; afterwards the state is saved, and the run
    says how to go on.
    """
    rng, out, codes = random.Random(seed), tmp_path / "run", []
    for _ in range(6):
        process = start(next_command(train, out), None, tmp_path / "err")
        process.join(rng.uniform(0.2, 1) * whole[1])
        process.terminate()
        process.join()
        codes.append(process.exitcode)
    assert set(codes) <= {-signal.SIGTERM, 143, 0}
    said = (tmp_path / "err").read_text()
    assert said.count("Interrupted after step") == said.count(f"--resume {out}\n") == codes.count(143)
    assert_ends_equal(train, out, whole[0])
