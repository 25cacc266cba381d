"""The pages of real runs in a browser: two short ones on blood cells, and their comparison."""

from pathlib import Path

import pytest
from browser import needs_chromium, opened

import groundtune as gt


@pytest.mark.slow
@needs_chromium
def test_the_pages_of_two_runs_on_blood_cells_work(shared: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "max_train_images": 16, "max_valid_images": 12, "report_to": [], "quiet": True}
    folders = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        gt.train("nano", shared / "data/bccd", output_dir=folder, seed=seed, **options)
    script = """
    result.first = clicked("#classes", 0); result.second = clicked("#classes", 0);
    const gallery = document.getElementById("gallery"), tag = document.getElementById("by-tag");
    const shown = () => [...gallery.children].filter(card => !card.hidden).length;
    result.all = shown(); tag.value = "missed"; tag.dispatchEvent(new Event("change")); result.missed = shown();
    result.loaded = [...document.images].every(i => i.loading = "eager") && [...document.images].every(i => i.naturalWidth > 0);
    """
    result = opened((folders[0] / "report.html").read_text(), script, tmp_path, 1280)
    assert result["first"] == result["second"][::-1]
    assert sorted(result["first"]) == ["platelet", "red blood cell", "white blood cell"]
    assert result["all"] == 12 >= result["missed"] > 0 and result["loaded"]
    gt.compare_runs(folders, tmp_path / "comparison.html")
    result = opened(
        (tmp_path / "comparison.html").read_text(), 'result.rows = clicked("#headline", 0);', tmp_path, 390
    )
    assert sorted(result["rows"]) == ["seed0", "seed1"]
