"""Every check finds its planted fault; a clean data set has none; the real ones have those that are known."""

import json
import time
from pathlib import Path

import planted_faults
import pytest
from PIL import Image

import groundtune as gt
from groundtune.data.check.kinds import CHECKING, CHECKS
from groundtune.errors import ConfigError


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_faults.write_clean(tmp_path_factory.mktemp("clean") / "scenes")


def found(report) -> dict[str, str]:
    return {located.finding.check: located.finding.severity for located in report.findings}


def test_nothing_is_found_in_a_clean_data_set(clean: Path) -> None:
    report = gt.check(clean)
    assert (report.count("error"), report.count("warning")) == (0, 0)
    assert set(found(report)) <= {"images-empty", "category-placeholder"}
    assert report.images == {"train": 24, "valid": 12}
    assert [row["prompt"] for row in report.classes] == planted_faults.CLASSES


def test_every_check_has_a_plant_and_there_are_enough_of_them() -> None:
    assert set(CHECKING) <= set(planted_faults.PLANTS) <= set(CHECKS)
    assert len(CHECKING) >= 36


@pytest.mark.parametrize("check", planted_faults.PLANTS)
def test_a_planted_fault_is_found(clean: Path, tmp_path: Path, check: str) -> None:
    copy = planted_faults.open_copy(clean, tmp_path / "data")
    if check in ("split-missing", "file-in-two-splits", "data-unreadable") or check.startswith(
        ("span", "phrase")
    ):
        copy.save()
        planted_faults.PLANTS[check](copy)
    else:
        planted_faults.PLANTS[check](copy)
        copy.save()
    report = gt.check(tmp_path / "data")
    kinds = found(report)
    assert check in kinds
    assert kinds[check] == CHECKS[check].severity
    # an error is told once, and only where it is planted
    assert {c for c, severity in kinds.items() if severity == "error"} <= {check}
    (finding, *_) = [located.finding for located in report.findings if located.finding.check == check]
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
def test_the_real_sets_have_the_faults_that_are_known_and_no_errors(
    shared: Path, name: str, expected: set[str]
) -> None:
    report = gt.check(shared / "data" / name)
    assert report.count("error") == 0
    assert expected <= set(found(report))
    counts = {(located.finding.check, located.split): located.finding.count for located in report.findings}
    if (
        name == "chess"
    ):  # README.md: 50 of 58 valid images have a near twin in train; SOURCE.txt: one is without boxes
        assert 45 <= counts["leak-near", "valid"] <= 58
        assert sum(counts.get(("images-empty", split), 0) for split in report.images) == 1
    if name == "tinycoco":
        assert sum(counts.get(("images-empty", split), 0) for split in report.images) == 2


def test_fast_opens_no_image_and_ignore_leaves_out(clean: Path, tmp_path: Path) -> None:
    copy = planted_faults.open_copy(clean, tmp_path / "data")
    planted_faults.PLANTS["image-corrupt"](copy)
    copy.save()
    assert gt.check(tmp_path / "data", fast=True).count("error") == 0
    assert gt.check(tmp_path / "data", ignore=["image-corrupt"]).count("error") == 0
    assert gt.check(tmp_path / "data").count("error") == 1
    with pytest.raises(ConfigError, match="there is no check 'image-corupt'. Did you mean image-corrupt?"):
        gt.check(tmp_path / "data", ignore=["image-corupt"])


def test_the_size_of_the_images_decides_what_is_tiny(clean: Path, tmp_path: Path) -> None:
    copy = planted_faults.open_copy(clean, tmp_path / "data")
    copy.box(0, [10, 10, 4, 4])  # 13 px at 320
    copy.save()
    assert "object-tiny" not in found(gt.check(tmp_path / "data", fast=True))
    assert "object-tiny" in found(gt.check(tmp_path / "data", fast=True, short_side=96, max_side=96))


def test_a_new_name_is_checked_in_place_of_the_old_one(clean: Path, tmp_path: Path) -> None:
    copy = planted_faults.open_copy(clean, tmp_path / "data")
    copy.name("rbc")
    copy.save()
    report = gt.check(tmp_path / "data", fast=True, rename={"RBC": "Red blood cell"})
    assert "name-abbreviation" not in found(report)
    assert [(row["name"], row["prompt"]) for row in report.classes][0] == ("rbc", "red blood cell")


def test_2000_images_are_checked_in_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    images, rows = [], []
    for i in range(2000):
        Image.effect_noise((64, 48), 80).convert("RGB").save(folder / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48})
        rows += [
            {"id": 5 * i + k, "image_id": i, "category_id": 1, "bbox": [k, i % 30, 9, 9]}
            for k in (1, 11, 21, 31, 41)
        ]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    begin = time.monotonic()
    report = gt.check(tmp_path)
    assert time.monotonic() - begin < 30
    assert report.count("error") == 0
    assert sum(report.images.values()) == 2000
