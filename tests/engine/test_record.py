"""The run folder's files."""

import json
from pathlib import Path

import pytest

from groundtune.engine.record import RunFolder
from groundtune.errors import ConfigError


def test_writes_lines_and_whole_files(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run", resume=False)
    folder.log("Äpfel")
    folder.log("zwei")
    folder.metrics({"step": 1, "loss": None})
    folder.metrics({"step": 2})
    folder.json("metrics.json", {"a": 1})
    folder.json("metrics.json", {"b": [1, 2]}, indent=None)
    path = folder.path
    assert [line.split(" ", 2)[2] for line in (path / "train.log").read_text("utf-8").splitlines()] == ["Äpfel", "zwei"]
    assert (path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n{"step": 2}\n'
    assert (path / "metrics.json").read_text() == '{"b": [1, 2]}\n'
    assert folder.checkpoint("last") == path / "checkpoints" / "last.pt" and (path / "checkpoints").is_dir()
    assert {entry.name for entry in path.iterdir()} == {"train.log", "metrics.jsonl", "metrics.json", "checkpoints"}


def test_pitfall_25_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty.*--resume") as error:
        RunFolder(tmp_path, resume=False)
    assert error.value.exit_code == 2 and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    RunFolder(tmp_path, resume=True).log("on")
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/groundtune-run"])
def test_a_place_that_cannot_be_a_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^out: "):
        RunFolder(tmp_path / place, resume=False)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_place_without_permission(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="cannot be created: Permission denied"):
        RunFolder(tmp_path / "run", resume=False)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", resume=False, writes=False)
    folder.log("x")
    folder.metrics({"step": 1})
    folder.json("metrics.json", {})
    folder.forget_after(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "kept"), [(0, [0]), (2, [0, 1, 2, 2]), (9, [0, 1, 2, 2, 3])])
def test_forget_after(tmp_path: Path, step: int, kept: list[int]) -> None:
    """The line that a crash cut off goes, whatever its step."""
    folder = RunFolder(tmp_path, resume=False)
    for number in (0, 1, 2, 2, 3):
        folder.metrics({"step": number})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    folder.forget_after(step)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == kept
    folder.metrics({"step": 10})
    assert (tmp_path / "metrics.jsonl").read_text().endswith('\n{"step": 10}\n')


def test_forget_after_without_a_file(tmp_path: Path) -> None:
    RunFolder(tmp_path, resume=False).forget_after(3)
    assert not (tmp_path / "metrics.jsonl").exists()
