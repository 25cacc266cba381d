"""Each check detects its planted fault, a clean data set has none, and real ones have the known
ones.
"""

from pathlib import Path

import planted_faults
import pytest

import groundtune as gt
from groundtune.data.check.kinds import CHECKING, CHECKS
from groundtune.errors import ConfigError


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_faults.write_clean(tmp_path_factory.mktemp("clean") / "scenes")


def severities(report) -> dict[str, str]:
    """The severity of each check that found something."""
    return {finding.check: finding.severity for _, finding in report.findings}


def test_a_clean_data_set_has_no_problems(clean: Path) -> None:
    report = gt.check(clean)
    assert (report.count("error"), report.count("warning")) == (0, 0)
    assert set(severities(report)) <= {"images-empty", "category-placeholder"}
    assert report.images == {"train": 24, "valid": 12}
    assert [row["prompt"] for row in report.classes] == planted_faults.CLASSES


def test_every_check_has_a_planted_fault() -> None:
    unplanted = {"data-unpacked"}  # of archives, see test_archives.py
    assert set(CHECKING) - unplanted <= set(planted_faults.PLANTS) <= set(CHECKS)


@pytest.mark.parametrize("check", planted_faults.PLANTS)
def test_a_planted_fault_is_detected(clean: Path, tmp_path: Path, check: str) -> None:
    copy = planted_faults.open_copy(clean, tmp_path / "data")
    of_files = ("split-missing", "file-in-two-splits", "data-unreadable", "span", "phrase")
    steps = [lambda: planted_faults.PLANTS[check](copy), copy.save]
    for step in reversed(steps) if check.startswith(of_files) else steps:
        step()
    report = gt.check(tmp_path / "data")
    expected = "warning" if check == "image-missing" else CHECKS[check].severity  # one of many
    assert severities(report)[check] == expected
    # only the planted error is reported
    errors = {c for c, severity in severities(report).items() if severity == "error"}
    assert errors <= ({check, "split-missing"} if check == "data-unreadable" else {check})
    finding = next(finding for _, finding in report.findings if finding.check == check)
    assert finding.count >= 1 and finding.message and finding.fix
    assert finding.examples or check.startswith("boxes-look")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bccd", {"box-near-duplicate"}),
        ("chess", {"class-one-box", "images-empty", "leak-near", "near-duplicate"}),
        ("cat144", {"leak-near", "box-covers-image"}),
        ("amenity", {"class-one-box", "class-only-train"}),
        ("tinycoco", {"images-empty", "class-one-box", "object-tiny"}),
        ("refs", {"box-covers-image"}),
    ],
)
def test_real_data_sets_have_the_known_problems_and_no_errors(
    shared: Path, name: str, expected: set[str]
) -> None:
    report = gt.check(shared / "data" / name)
    assert report.count("error") == 0
    assert expected <= set(severities(report))
    counts = {(finding.check, split): finding.count for split, finding in report.findings}
    empty = sum(counts.get(("images-empty", split), 0) for split in report.images)
    if name == "chess":  # README.md: 50 of 58 valid images have a near-duplicate in train
        assert 45 <= counts["leak-near", "valid"] <= 58
    if name in ("chess", "tinycoco"):  # SOURCE.txt
        assert empty == {"chess": 1, "tinycoco": 2}[name]


def test_fast_opens_no_image_and_ignore_skips_checks(clean: Path, tmp_path: Path) -> None:
    copy = planted_faults.open_copy(clean, tmp_path / "data")
    planted_faults.PLANTS["image-corrupt"](copy)
    copy.save()
    assert gt.check(tmp_path / "data", fast=True).count("error") == 0
    assert gt.check(tmp_path / "data", ignore=["image-corrupt"]).count("error") == 0
    assert gt.check(tmp_path / "data").count("error") == 1
    with pytest.raises(ConfigError, match="no check 'image-corupt'.*Did you mean image-corrupt"):
        gt.check(tmp_path / "data", ignore=["image-corupt"])


def test_the_size_of_the_images_decides_what_is_tiny(clean: Path, tmp_path: Path) -> None:
    copy = planted_faults.open_copy(clean, tmp_path / "data")
    copy.box(0, [10, 10, 4, 4])  # 13 px at 320
    copy.save()
    assert "object-tiny" not in severities(gt.check(tmp_path / "data", fast=True))
    assert "object-tiny" in severities(gt.check(tmp_path / "data", fast=True, short_side=96, max_side=96))


def test_a_new_name_is_checked_instead_of_the_old_one(clean: Path, tmp_path: Path) -> None:
    copy = planted_faults.open_copy(clean, tmp_path / "data")
    copy.name("rbc")
    copy.save()
    report = gt.check(tmp_path / "data", fast=True, rename={"RBC": "Red blood cell"})
    assert "name-abbreviation" not in severities(report)
    assert [(row["name"], row["prompt"]) for row in report.classes][0] == ("rbc", "red blood cell")
