"""The comparison of runs: numbers, changed options, validation splits that differ, and the page in
a browser.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import needs_chromium, opened

import groundtune as gt
from groundtune.cli import main
from groundtune.errors import ConfigError, DataError
from groundtune.report.compare import changed_options, differing_validation
from groundtune.report.run_data import RunData

EVIL = "<script>hacked=1</script>"


def run_folder(
    folder: Path, config: dict[str, Any], aps: list[float], per_class: dict[str, float | None]
) -> Path:
    """A finished run of as many epochs as there are APs after the zero-shot one; the best is the
    largest.
    """
    folder.mkdir(parents=True)
    config = {"data": "d/cats", "model": "m/model", "out": "x"} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": 10 * epoch, "epoch": epoch, "valid/AP": ap} for epoch, ap in enumerate(aps)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"zero_shot": {"valid/AP": aps[0]}, "best": {"valid/AP": max(aps), "valid/AP50": None}}
    cost = {"seconds": 61.4, "memory_bytes": 3 * 2**20, "valid_images": 8}
    classes = {"per_class": {name: {"AP": ap} for name, ap in per_class.items()}}
    (folder / "metrics.json").write_text(json.dumps(summary | classes | cost))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs on the same classes, one of which is called like a script; the second is better on
    one of them.
    """
    first = {"epochs": 2, "optimizer": {"lr": 1e-3, "type": "AdamW"}}
    second = {"epochs": 3, "optimizer": {"lr": 1e-4, "type": "AdamW"}, "seed": 0}
    return [
        run_folder(tmp_path / "plain", first, [0.1, 0.3, 0.2], {EVIL: 0.25, "cat": 0.5, "dog": None}),
        run_folder(
            tmp_path / "slow & long", second, [0.1, 0.2, 0.4, 0.6], {EVIL: 0.125, "cat": 0.75, "dog": None}
        ),
    ]


def cells(page: str, table: str) -> list[list[str]]:
    """The rows of a table, without the one of the headings."""
    inside = page[page.index(f'id="{table}"') :].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in inside.split("<tr>")]
    return [row for row in rows if row]


def test_numbers_options_and_classes_stand_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    assert gt.compare_runs(runs, tmp_path / "c.html") == []
    page = (tmp_path / "c.html").read_text()
    assert cells(page, "headline") == [
        ["plain", "0.300", "-", "0.100", "61 s", "3 MB", "2", "m", "cats"],
        ["slow &amp; long", "0.600", "-", "0.100", "61 s", "3 MB", "3", "m", "cats"],
    ]
    assert cells(page, "options") == [
        ["epochs", "2", "3"],
        ["optimizer.lr", "0.001", "0.0001"],
        ["seed", "-", "0"],
    ]
    evil = "&lt;script&gt;hacked=1&lt;/script&gt;"
    assert cells(page, "classes") == [
        [evil, "0.250", "0.125", "0.125"],
        ["cat", "0.500", "0.750", "0.250"],
        ["dog", "-", "-", "-"],
    ]
    assert re.findall(r'class="best">([^<]*)<', page) == ["0.250", "0.750"]
    assert EVIL not in page and 'id="warnings"' not in page and 'id="unfinished"' not in page
    assert page.count("<polyline") == 2 and "slow &amp; long</span>" in page
    # the first run ends at epoch 2 of 3: two thirds of the way from 46 to 508, and AP 0.2 a fifth
    # of that from 186 up to 12
    assert re.findall(r'points="([^"]*)"', page)[0].split()[-1] == "354.0,151.2"


def test_other_images_or_classes_are_a_warning_on_the_page_and_on_stderr(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = json.loads((runs[1] / "metrics.json").read_text())
    summary |= {"valid_images": 9, "per_class": {"cat": {}, "cow": {}}}
    (runs[1] / "metrics.json").write_text(json.dumps(summary))
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, runs)]) == 0
    shown = capsys.readouterr()
    assert shown.out == "comparison.html\n"
    assert shown.err.splitlines() == [
        "Warning: The runs were evaluated on different numbers of images: plain on 8, slow & long on 9.",
        f"Warning: The classes differ: compared with plain, slow & long lacks {EVIL}, dog and adds cow.",
    ]
    page = Path("comparison.html").read_text()
    assert 'id="warnings"' in page and "plain on 8, slow &amp; long on 9" in page


def test_what_a_run_does_not_tell_is_no_difference() -> None:
    known = RunData(Path("a"), per_class={"cat": {}}, valid_images=3)
    assert differing_validation({"a": known, "b": RunData(Path("b"))}) == []
    places = {"output_dir": "b", "resume": "b", "model": "m"}
    assert changed_options({"a": known, "b": RunData(Path("b"), config=places)}) == []


def test_an_unfinished_run_is_compared_by_what_there_is(runs: list[Path], tmp_path: Path) -> None:
    (runs[0] / "metrics.json").unlink()
    assert gt.compare_runs(runs, tmp_path / "c.html") == []
    page = (tmp_path / "c.html").read_text()
    assert "<b>Not finished:</b> plain." in page
    assert cells(page, "headline")[0] == ["plain", "0.300", "-", "0.100", "-", "-", "2", "m", "cats"]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / place / "run", {}, [0.0, 0.5], {}) for place in ("a", "b")]
    gt.compare_runs(folders, tmp_path / "c.html")
    rows = cells((tmp_path / "c.html").read_text(), "headline")
    assert [row[0] for row in rows] == list(map(str, folders))


def test_what_cannot_be_compared_or_written_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two or more run directories to compare, got 1"):
        gt.compare_runs(runs[:1], tmp_path / "c.html")
    for place in (tmp_path, tmp_path / "nowhere" / "c.html"):
        with pytest.raises(ConfigError, match="output: cannot write"):
            gt.compare_runs(runs, place)
    with pytest.raises(DataError, match="not a run directory"):
        gt.compare_runs([*runs, tmp_path], tmp_path / "c.html")
    assert not (tmp_path / "c.html").exists()


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_comparison_works_in_a_browser(runs: list[Path], tmp_path: Path, width: int) -> None:
    gt.compare_runs(runs, tmp_path / "c.html")
    script = """
    result.down = clicked("#headline", 1); result.up = clicked("#headline", 1);
    result.first = clicked("#classes", 1); result.second = clicked("#classes", 2); result.again = clicked("#classes", 2);
    """
    result = opened((tmp_path / "c.html").read_text(), script, tmp_path, width)
    assert result == {
        "down": ["slow & long", "plain"],
        "up": ["plain", "slow & long"],
        "first": ["cat", EVIL, "dog"],
        "second": ["cat", EVIL, "dog"],
        "again": ["dog", EVIL, "cat"],
    }
