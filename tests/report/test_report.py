"""The report: what it shows of a run, whole or cut off; and that it works as a page, in headless
Chromium.
"""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import needs_chromium, opened

from groundtune.data.formats.detect import load_splits
from groundtune.data.scenes import write_captioned_scenes, write_scenes
from groundtune.errors import DataError
from groundtune.report.advice import advice
from groundtune.report.build import build_report
from groundtune.report.figures import heat_map, line_chart, ticks
from groundtune.report.run_data import RunData, read_run

EVIL = "<script>hacked=1</script>"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A finished run on scenes whose second class is called like a script; detections made from the
    boxes.
    """
    root = tmp_path_factory.mktemp("report")
    write_scenes(root / "scenes", train=6, valid=8, classes=["red circle", "blue star"], size=96)
    for path in root.glob("scenes/*/_annotations.coco.json"):
        path.write_text(path.read_text().replace("blue star", EVIL))
    valid = load_splits(root / "scenes")["valid"]
    run = root / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"data: {root / 'scenes'}\nmodel: nano\nepochs: 3\n")
    (run / "env.json").write_text(json.dumps({"torch": "2", "command": f"groundtune train --note {EVIL}"}))
    lines = [{"step": 0, "epoch": 0, "valid/AP": 0.01, "valid/AP50": 0.02}]
    for step in (10, 20, 30):
        lines.append({"step": step, "epoch": 1, "loss": 30 / step, "grad_norm": 1.0, "lr": {"neck": 1e-4}})
        lines.append({"step": step, "epoch": 1, "valid/AP": step / 60, "valid/AP50": step / 40})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"step": 31, "lo')  # cut off
    numbers = {"valid/AP": 0.5, "valid/AP50": 0.75, "valid/AP75": None}
    per_class = {name: {"AP": 0.5, "AP50": 0.75} for name in valid.class_names}
    summary = {"zero_shot": {"valid/AP": 0.01}, "final": numbers, "best": numbers, "per_class": per_class}
    (run / "metrics.json").write_text(json.dumps(summary | {"seconds": 12.0}))
    found = []
    for sample in valid.samples:
        for index, (x0, y0, x1, y1) in enumerate(sample.boxes_xyxy.tolist()):
            class_id, swapped = int(sample.class_ids[index]), index % 3 == 0 and sample.image_id % 2 == 0
            named = 1 - class_id if swapped else class_id
            bbox = [x0, y0, x1 - x0, y1 - y0]
            ids = {"image_id": sample.image_id, "category_id": valid.category_ids[named]}
            found.append({**ids, "bbox": bbox, "score": 0.9 - 0.01 * index})
    (run / "predictions_valid.json").write_text(json.dumps(found))
    return run


def page_of(folder: Path) -> str:
    splits = load_splits(folder.parent / "scenes")
    return build_report(folder, splits, 500).read_text(encoding="utf-8")


def test_a_finished_run_has_every_part_and_names_are_text(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert EVIL not in page and "&lt;script&gt;hacked=1" in page
    for part in ("Before and after", "Training", "Classes", "Confusion matrix", "worst first", "Reproduce"):
        assert part in page
    assert "0.500" in page and "+0.490" in page
    assert page.count("<figure>") == 8
    assert 'id="unfinished"' not in page


def test_retained_sets_are_a_table(run_folder: Path, tmp_path: Path) -> None:
    assert 'id="retention"' not in page_of(run_folder)
    run = shutil.copytree(run_folder, tmp_path / "run")
    shutil.copytree(run_folder.parent / "scenes", tmp_path / "scenes")
    sets = {"a&b": {"before": {"AP": 0.5}, "after": {"AP": 0.2}}}
    sets["refs"] = {"before": {"recall@1": 0.0}, "after": {"recall@1": 0.1}}
    summary = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(summary | {"retention": sets}))
    page = page_of(run)
    assert "<td>a&amp;b</td><td>AP</td><td>0.500</td><td>0.200</td><td>40 %</td>" in page
    assert "<td>refs</td><td>recall@1</td><td>0.000</td><td>0.100</td><td>-</td>" in page


def test_nothing_is_loaded_from_elsewhere(run_folder: Path) -> None:
    page = page_of(run_folder)
    addresses = re.findall(r"(?:src|href|action|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "default-src 'none'" in page


def test_a_run_that_was_cut_off_has_a_report_that_says_so(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.copytree(run_folder.parent / "scenes", tmp_path / "scenes")
    for name in ("metrics.json", "predictions_valid.json"):
        (tmp_path / "run" / name).unlink()
    page = page_of(tmp_path / "run")
    assert 'id="unfinished"' in page and "metrics.json is missing" in page
    assert "Before and after" in page and "Average precision" in page
    assert read_run(tmp_path / "run").best == {"valid/AP": 0.5, "valid/AP50": 0.75}
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "env.json").write_text("{")
    assert "env.json cannot be read" in page_of(tmp_path / "run")
    with pytest.raises(DataError, match="not a run directory"):
        read_run(tmp_path)


def test_an_image_that_is_gone_is_said_and_the_others_are_shown(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.copytree(run_folder.parent / "scenes", tmp_path / "scenes")
    splits = load_splits(tmp_path / "scenes")
    (tmp_path / "scenes/valid/valid_00003.jpg").write_bytes(b"no image")
    page = build_report(tmp_path / "run", splits, 500).read_text()
    assert page.count("<figure>") == 7 and "valid_00003.jpg" in page


def test_a_run_on_captions_has_its_recall_and_no_classes(run_folder: Path, tmp_path: Path) -> None:
    write_captioned_scenes(tmp_path / "scenes", train=2, valid=2)
    run = shutil.copytree(run_folder, tmp_path / "run")
    for name in ("metrics.json", "metrics.jsonl"):
        text = (run / name).read_text().replace("valid/AP50", "valid/recall@5")
        (run / name).write_text(text.replace("valid/AP", "valid/recall@1"))
    predictions = [{"image_id": 0, "phrase": 0, "bbox": [1, 2, 30, 40], "score": 0.5}]
    (run / "predictions_valid.json").write_text(json.dumps(predictions))
    page = page_of(run)
    assert "Recall of phrases" in page and "<td>recall@1</td>" in page and "worst first" not in page


def test_samples_are_mentioned_where_they_are(run_folder: Path, tmp_path: Path) -> None:
    assert "samples/" not in page_of(run_folder)
    shutil.copytree(run_folder.parent / "scenes", tmp_path / "scenes")
    (shutil.copytree(run_folder, tmp_path / "run") / "samples").mkdir()
    assert "samples/ of the run directory" in page_of(tmp_path / "run")


def test_ticks_are_round_numbers() -> None:
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(3, 888) == [200, 400, 600, 800]
    assert ticks(0.0001, 0.001) == [0.0002, 0.0004, 0.0006, 0.0008, 0.001]


def test_charts_pass_over_what_is_not_finite() -> None:
    nan = float("nan")
    assert line_chart([("loss", [1, 2], [nan, nan])], "step") == "" == line_chart([], "step")
    chart = line_chart([("a<b", [1, 2, 3, 4], [1, nan, 2, 3])], "step")
    assert chart.count("<polyline") == 1 and chart.count("<circle") == 1 and "a&lt;b" in chart
    seven = line_chart([(str(n), [1, 2], [n, n]) for n in range(7)], "step")
    assert seven.count('class="line0"') == 1 == seven.count('class="line0 dashed"')


def test_the_confusion_matrix_is_a_table_of_shares() -> None:
    table = heat_map(np.array([[3, 1], [0, 0]]), ["<b>", "background"])
    assert '<td class="hit" style="--share:0.750">3</td><td class="off" style="--share:0.250">1</td>' in table
    assert "<th>&lt;b&gt;</th>" in table


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([0.0, 0.1, 0.2, 0.3, 0.4], "still rising"),
        ([0.0, 0.2, 0.5, 0.4, 0.3], "overfits"),
        ([0.0, 0.4, 0.3], ""),
    ],
)
def test_advice_reads_the_curve_of_ap(scores: list[float], sentence: str) -> None:
    run = RunData(Path(), evaluations=[{"step": 10 * i, "valid/AP": ap} for i, ap in enumerate(scores)])
    kinds = ("matched", "missed", "classification", "localization", "background")
    none = {kind: np.zeros(1, int) for kind in kinds}
    found = advice(run, None, ["cat"], none)
    assert (sentence in found[0]) if sentence else found == []


def test_advice_names_classes_with_their_numbers() -> None:
    counts = {kind: np.array([0, 2]) for kind in ("matched", "classification", "localization", "background")}
    found = advice(RunData(Path()), None, ["cat", "dog"], counts | {"missed": np.array([9, 1])})
    assert found == ["Class “cat”: 9 boxes missed, 0 detected. See them in the gallery (missed)."]


SCRIPT = """
result.down = clicked("#classes", 0)[0]; result.up = clicked("#classes", 0)[0];
const gallery = document.getElementById("gallery"), shown = () => [...gallery.children].filter(c => !c.hidden).length;
result.all = shown();
const tag = document.getElementById("by-tag");
tag.value = "classification"; tag.dispatchEvent(new Event("change")); result.wrong = shown();
tag.value = "missed"; tag.dispatchEvent(new Event("change")); result.missed = shown();
document.getElementById("predictions").click(); result.hidden = gallery.className;
result.loaded = [...document.images].every(i => i.loading = "eager") && document.images.length;
"""


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(run_folder: Path, tmp_path: Path, width: int) -> None:
    result = opened(page_of(run_folder), SCRIPT, tmp_path, width)
    assert (result["down"], result["up"]) == ("red circle", EVIL)
    assert result["all"] == 8 > result["wrong"] > 0
    assert result["hidden"] == "cards hide-predictions" and result["loaded"] == 8


@pytest.mark.slow
def test_500_images_with_300_detections_each_are_a_page_of_at_most_15_mb(tmp_path: Path) -> None:
    """Fifty scenes, each ten times; a few of the random detections sit on a box."""
    write_scenes(tmp_path / "scenes", train=1, valid=50, size=640)
    valid, rng = load_splits(tmp_path / "scenes")["valid"], np.random.default_rng(0)
    valid.samples = [dataclasses.replace(s, image_id=i) for i, s in enumerate(valid.samples * 10)]
    found = [
        {"image_id": image, "category_id": int(c), "bbox": box.tolist(), "score": float(rng.random())}
        for image in range(500)
        for c, box in zip(rng.choice(valid.category_ids, 300), rng.uniform(5, 200, (300, 4)), strict=True)
    ]
    (tmp_path / "config.yaml").write_text("data: scenes\nmodel: nano\n")
    (tmp_path / "predictions_valid.json").write_text(json.dumps(found))
    path = build_report(tmp_path, {"valid": valid}, 500)
    assert 3e6 < path.stat().st_size < 15e6 and path.read_text().count("<figure>") == 500
