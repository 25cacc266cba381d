"""The run folder's files."""

import json
import os
from pathlib import Path

import pytest

from groundtune.engine.run_folder import RunFolder, disk_faults
from groundtune.errors import CheckpointError, ConfigError
from groundtune.files import atomic_write


def test_writes_lines_and_whole_files(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run", False, True)
    folder.log("Äpfel")
    folder.log("zwei")
    folder.metrics({"step": 1, "loss": None})
    folder.metrics({"step": 2})
    folder.json("metrics.json", {"a": 1})
    folder.json("metrics.json", {"b": [1, 2]}, indent=None)
    path = folder.path
    assert [line.split(" ", 2)[2] for line in (path / "train.log").read_text("utf-8").splitlines()] == [
        "Äpfel",
        "zwei",
    ]
    assert (path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n{"step": 2}\n'
    assert (path / "metrics.json").read_text() == '{"b": [1, 2]}\n'
    assert folder.checkpoint("last") == path / "checkpoints" / "last.pt" and (path / "checkpoints").is_dir()
    assert {entry.name for entry in path.iterdir()} == {
        "train.log",
        "metrics.jsonl",
        "metrics.json",
        "checkpoints",
    }


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty.*--resume") as error:
        RunFolder(tmp_path, False, True)
    assert error.value.exit_code == 2 and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    RunFolder(tmp_path, True, True).log("on")
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/groundtune-run"])
def test_a_place_that_cannot_be_a_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^output_dir: "):
        RunFolder(tmp_path / place, False, True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_place_without_permission(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="cannot be created: Permission denied"):
        RunFolder(tmp_path / "run", False, True)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", False, False)
    folder.log("x")
    folder.metrics({"step": 1})
    folder.json("metrics.json", {})
    folder.forget_after(0, 0)
    folder.reopen()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "kept"),
    [((0, 0), 1), ((0, -1), 0), ((0, 2), 3), ((1, 2), 4), ((1, 3), 5), ((2, 3), 6), ((9, 9), 6)],
)
def test_forget_after(tmp_path: Path, place: tuple[int, int], kept: int) -> None:
    """Two steps an epoch, the evaluation after it has the next one's number. The line that a crash
    cut off goes.
    """
    folder = RunFolder(tmp_path, False, True)
    lines = [
        {"step": step, "epoch": epoch} for epoch, step in ((0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (2, 3))
    ]
    for line in lines:
        folder.metrics(line)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    folder.forget_after(*place)
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found == lines[:kept]
    folder.metrics({"step": 10})
    assert (tmp_path / "metrics.jsonl").read_text().endswith('{"step": 10}\n')


def test_forget_after_without_a_file(tmp_path: Path) -> None:
    RunFolder(tmp_path, False, True).forget_after(0, 3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_leftovers_of_a_killed_run_go_when_it_goes_on_and_nothing_else(tmp_path: Path) -> None:
    for left in (".model.abc", "checkpoints", "model"):
        (tmp_path / left).mkdir()
    for left in (
        ".model.abc/x",
        ".metrics.json.tmp",
        "checkpoints/.last.pt.tmp",
        "checkpoints/last.pt",
        "model/y",
        ".mine",
    ):
        (tmp_path / left).write_text("")
    RunFolder(tmp_path, True, False)
    assert (tmp_path / ".metrics.json.tmp").exists()
    RunFolder(tmp_path, True, True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"checkpoints", "checkpoints/last.pt", "model", "model/y", ".mine"}


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(
    tmp_path: Path, monkeypatch
) -> None:
    seen: list[str] = []
    kept = os.fsync, os.replace

    def note(doing: str, path: str) -> None:
        seen.append(f"{doing} {Path(path).name}")

    monkeypatch.setattr(
        os, "fsync", lambda fd: (note("sync", os.readlink(f"/proc/self/fd/{fd}")), kept[0](fd))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (note("rename", str(old)), kept[1](old, new)))
    (tmp_path / "folder").mkdir()
    for _ in range(2):
        with atomic_write(tmp_path / "folder/a", tmp_path / "folder/b") as file:
            file.write(b"x")
    assert seen[:3] == ["sync .a.tmp", "rename .a.tmp", "sync folder"]
    assert seen[3:] == ["sync .a.tmp", "rename a", "rename .a.tmp", "sync folder"]


def test_finished_is_what_the_summary_says(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, False, True)
    assert folder.finished() is None
    folder.json("metrics.json", {"a": 1})
    assert folder.finished() == {"a": 1}
    folder.reopen()
    folder.reopen()
    assert folder.finished() is None


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), PermissionError(13, "no"), FileNotFoundError(2, "gone")]
)
def test_faults_of_the_disk_become_one_message(error: OSError) -> None:
    message = "run directory runs/a cannot be written.*GO ON"
    with pytest.raises(CheckpointError, match=message) as found, disk_faults(Path("runs/a"), "GO ON"):
        raise error
    assert found.value.exit_code == 4


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), TimeoutError(), ValueError("x")])
def test_other_faults_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)), disk_faults(Path("runs/a"), "GO ON"):
        raise error
