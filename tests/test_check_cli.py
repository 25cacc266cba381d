"""`groundtune check` on the command line, `--rename`, and the checks before training."""

import json
import shutil
from pathlib import Path
from typing import Any

import planted_faults
import pytest

import groundtune as gt
from groundtune.cli import main
from groundtune.data.formats.detect import load_splits
from groundtune.errors import DataError


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_faults.write_clean(tmp_path_factory.mktemp("clean") / "scenes")


@pytest.fixture()
def data(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> planted_faults.Copy:
    """A copy of the clean data set, called `data` from where the command runs."""
    monkeypatch.chdir(tmp_path)
    return planted_faults.open_copy(clean, tmp_path / "data")


@pytest.mark.parametrize(
    ("faults", "options", "code", "verdict"),
    [
        ([], [], 0, "No problems found in 36 images (2 notes)."),
        ([], ["--strict"], 0, "No problems found in 36 images (2 notes)."),
        (["box-outside"], [], 0, "1 warning, 2 notes. Training would run; look at the warning first."),
        (
            ["box-outside"],
            ["--strict"],
            3,
            "1 warning, 2 notes. Training would run; look at the warning first.",
        ),
        (
            ["box-outside"],
            ["--strict", "--ignore", "box-outside,images-empty"],
            0,
            "No problems found in 36 images (1 note).",
        ),
        (["image-corrupt"], [], 3, "1 error, 2 notes. Training would stop on the error."),
        (["image-corrupt"], ["--fast"], 0, "No problems found in 36 images (2 notes)."),
        (
            ["image-corrupt", "name-too-long", "box-outside"],
            [],
            3,
            "2 errors, 1 warning, 2 notes. Training would stop on the errors.",
        ),
    ],
)
def test_the_last_line_is_a_verdict_and_the_exit_code_agrees(
    data: planted_faults.Copy,
    capsys: pytest.CaptureFixture,
    faults: list[str],
    options: list[str],
    code: int,
    verdict: str,
) -> None:
    for fault in faults:
        planted_faults.PLANTS[fault](data)
    data.save()
    assert main(["check", "data", *options]) == code
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == verdict
    assert shown.err == ""


def test_a_finding_has_count_examples_and_a_fix_and_fits_the_terminal(
    data: planted_faults.Copy, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        data.box(0, [500 + number, 5, 20, 20])
    data.save()
    monkeypatch.setenv("COLUMNS", "60")
    main(["check", "data"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data: 36 images (24 train, 12 valid), ")
    begin = lines.index("Warnings")
    assert lines[begin + 1] == "  box-outside  7 in train"
    assert "      … and 4 more" in lines
    assert any(line.startswith("    → ") for line in lines[begin:])
    assert max(map(len, lines[begin:-1])) <= 60
    assert lines.index("Warnings") < lines.index("Notes")


def test_json_has_everything(data: planted_faults.Copy, capsys: pytest.CaptureFixture) -> None:
    data.box(0, [500, 5, 20, 20])
    data.name("rbc")
    data.save()
    assert main(["check", "data", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content) == {"data", "splits", "errors", "warnings", "notes", "findings", "classes"}
    assert content["splits"]["train"]["images"] == 24
    assert (content["errors"], content["warnings"], content["notes"]) == (0, 2, 2)
    for finding in content["findings"]:
        assert set(finding) == {"check", "severity", "split", "count", "message", "examples", "fix"}
    outside = next(finding for finding in content["findings"] if finding["check"] == "box-outside")
    assert (outside["severity"], outside["split"], outside["count"]) == ("warning", "train", 1)
    name = next(finding for finding in content["findings"] if finding["check"] == "name-abbreviation")
    assert name["split"] is None and "rb ##c" in name["examples"][0]
    assert content["classes"][0] | {"boxes": 0} == {
        "id": 1, "name": "rbc", "prompt": "rbc", "tokens": ["rb", "##c"], "boxes": 0,
    }  # fmt: skip
    assert set(content["classes"][0]["boxes"]) == {"train", "valid"}


@pytest.mark.parametrize("as_json", [True, False])
def test_unreadable_data_is_reported_and_a_missing_directory_is_an_error(
    data: planted_faults.Copy, capsys: pytest.CaptureFixture, as_json: bool
) -> None:
    data.save()
    planted_faults.PLANTS["data-unreadable"](data)
    options = ["--json"] if as_json else []
    assert main(["check", "data", *options]) == 3
    out = capsys.readouterr().out
    assert "data-unreadable" in out and "is not valid JSON" in " ".join(out.split())
    assert main(["check", "nowhere", *options]) == 3
    assert capsys.readouterr().out == ""


def test_renamed_classes_keep_their_ids_and_may_become_one(data: planted_faults.Copy) -> None:
    from groundtune.data.combine import rename_classes

    data.save()
    before, after = load_splits(data.folder), load_splits(data.folder)
    rename_classes(list(after.values()), {"Green_triangle": "Blue Star", "red circle": "ball"})
    for split in before:
        assert after[split].class_names == ["red circle", "blue star"]
        assert after[split].phrases == ["ball", "blue star"]
        assert after[split].category_ids == [1, 2]
        for old, new in zip(before[split].samples, after[split].samples, strict=True):
            assert [min(index, 1) for index in old.class_ids.tolist()] == new.class_ids.tolist()
            assert (old.boxes_xyxy == new.boxes_xyxy).all()
    assert "'blue star' and 'green triangle' are one class" in after["train"].messages[-1]
    rename_classes([], {"a": "b"})
    with pytest.raises(DataError, match="no text is left for 'red circle'"):
        rename_classes(list(after.values()), {"ball": "?"})


class Trained(Exception):
    """The replaced training loop was called with these classes."""


@pytest.fixture()
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    import groundtune.engine.train as loop

    def train(config: Any, bundle: Any, splits: Any, out: Path, progress: Any, retained: Any) -> None:
        raise Trained(splits["train"].phrases, config.rename)

    monkeypatch.setattr(loop, "train", train)


@pytest.mark.parametrize("by", ["yaml", "command line"])
def test_train_reads_the_new_names_and_shows_them(
    data: planted_faults.Copy, no_training: None, capsys: pytest.CaptureFixture, by: str
) -> None:
    data.name("rbc")
    data.save()
    Path("c.yaml").write_text('rename: {rbc: "red blood cell"}\n')
    options = ["--config", "c.yaml"] if by == "yaml" else ["--rename", "rbc=red blood cell"]
    with pytest.raises(Trained) as called:
        main(["train", "data", *options])
    names, renamed = called.value.args
    assert names == ["red blood cell", "blue star", "green triangle"]
    assert renamed == {"rbc": "red blood cell"}
    lines = capsys.readouterr().err.splitlines()
    row = next(line for line in lines if "red blood cell" in line)
    assert row.split()[:6] == ["1", "rbc", "red", "blood", "cell", "3"]
    assert "Prompt: red blood cell. blue star. green triangle. (12 tokens)" in lines
    with pytest.raises(Trained) as called:
        gt.train("nano", "data", rename={"rbc": "red blood cell"}, quiet=True)
    assert called.value.args[0][0] == "red blood cell"


def test_the_table_of_classes_is_short_for_many(
    data: planted_faults.Copy, no_training: None, capsys: pytest.CaptureFixture
) -> None:
    data.name(*(f"sort {chr(97 + i // 26)}{chr(97 + i % 26)} of thing" for i in range(300)))
    data.save()
    with pytest.raises(Trained):
        main(["train", "data"])
    lines = capsys.readouterr().err.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.split()[:2] == ["id", "name"])
    assert lines[begin + 31] == "… and 270 more classes"
    assert lines[begin + 32].startswith("Prompt: sort aa of thing.") and len(lines[begin + 32]) < 700


@pytest.mark.parametrize(
    "fault", ["name-too-long", "split-without-boxes", "boxes-look-xyxy", "boxes-look-normalized"]
)
def test_training_stops_on_the_errors_of_the_fast_checks(
    data: planted_faults.Copy, no_training: None, capsys: pytest.CaptureFixture, fault: str
) -> None:
    planted_faults.PLANTS[fault](data)
    data.save()
    assert main(["train", "data"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("groundtune: error: ") and "Traceback" not in error
    assert not Path("runs").exists()


def test_training_lists_the_warnings_and_continues(
    data: planted_faults.Copy, no_training: None, capsys: pytest.CaptureFixture
) -> None:
    data.name("rbc")
    data.save()
    with pytest.raises(Trained):
        main(["train", "data"])
    lines = capsys.readouterr().err.splitlines()
    assert "Warnings about the data: name-abbreviation. For details: groundtune check data" in lines


def test_the_data_is_only_read(data: planted_faults.Copy, capsys: pytest.CaptureFixture) -> None:
    data.save()
    before = {path: path.stat().st_mtime_ns for path in Path(".").rglob("*")}
    main(["check", "data"])
    assert {path: path.stat().st_mtime_ns for path in Path(".").rglob("*")} == before
    shutil.rmtree("data")
