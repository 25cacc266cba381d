"""Boxes in a wrong form, by evidence over the whole set; findings; and LVIS."""

import pytest
from coco_files import coco, write

from groundtune.data.formats.detect import load_splits, read_splits
from groundtune.data.problems import CheckSpec, Collector
from groundtune.data.sample import LvisRules
from groundtune.errors import DataError


def checks(tmp_path, boxes):
    content = coco(boxes=[(1, 1, box) for box in boxes], size=(100, 80))
    splits = read_splits(write(tmp_path / "a.json", content, tmp_path))
    return {finding.check: finding for finding in splits["train"].findings}


def test_corners_in_a_coco_file(tmp_path):
    found = checks(tmp_path, [[10, 10, 90, 70], [50, 40, 95, 80], [1, 2, 30, 40], [60, 60, 70, 70]])
    finding = found["boxes-look-xyxy"]
    assert (
        finding.severity == "error" and finding.count == 2
    )  # 50 + 95 and 60 + 70 pass 100; 10 + 90 and 1 + 30 do not
    assert found["box-clipped"].count == 2


@pytest.mark.parametrize(
    "boxes",
    [
        [[10, 10, 95, 75], [5, 5, 10, 10]],  # one too large only
        [[10, 10, 95, 75], [50, 40, 95, 80], [50, 40, 20, 20]],  # the third cannot be corners
        [[10, 10, 95, 75], [50, 40, 95, 80], [50, 40, 120, 60]],  # nor can the third, which leaves the image
        [[10, 10, 20, 20]] * 1 + [[1, 1, 30, 30]],
    ],
)
def test_no_evidence_for_corners(tmp_path, boxes):
    assert "boxes-look-xyxy" not in checks(tmp_path, boxes)


def test_shares_in_a_coco_file(tmp_path):
    found = checks(tmp_path, [[0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1]])
    assert found["boxes-look-normalized"].severity == "error" and found["boxes-look-normalized"].count == 2
    assert "boxes-look-normalized" not in checks(tmp_path, [[0.1, 0.2, 0.5, 0.5], [0, 0, 30, 1]])


def test_a_duplicate_box_is_dropped(tmp_path):
    found = checks(tmp_path, [[1, 1, 9, 9], [1, 1, 9, 9], [1, 1, 9, 9.5]])
    assert (
        found["box-duplicate"].count == 1
        and "annotations[1] of a.png [1, 1, 9, 9]" in found["box-duplicate"].examples
    )


def test_keep_going_skips_and_reports_what_cannot_be_used(tmp_path):
    content = coco(
        names=["a.png", "b.png", "../c.png", "d.png"], boxes=[(i, 1, [1, 1, 5, 5]) for i in (1, 2, 3, 4)]
    )
    del content["images"][3]["width"]
    content["images"].append({"id": 1, "file_name": "e.png"})
    write(tmp_path / "data/a.json", content)
    for name in ("a.png", "d.png"):
        (tmp_path / "data" / name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load_splits(tmp_path / "data")
    for part in ("repeats the id 1", "lead out of the data folder", "'../c.png'", "d.png"):
        assert part in str(caught.value)
    splits = load_splits(tmp_path / "data", keep_going=True)
    assert [s.image_path.name for s in splits["train"].samples] == ["a.png"]
    found = {f.check: (f.severity, f.count) for f in splits["train"].findings}
    for check in ("image-id-twice", "image-outside", "image-unreadable"):
        assert found[check] == ("error", 1)
    assert found["image-missing"] == ("warning", 1)  # most of the images exist


def test_a_collector_counts_all_and_keeps_the_first_examples():
    collector = Collector({"x": CheckSpec("warning", "{n} things.", "Do."), "y": CheckSpec("note", "Y.", "")})
    for i in range(9):
        collector.add("x", str(i))
    collector.add("y", count=3)
    x, y = collector.findings()
    assert (
        str(x) == "9 things. 0, 1, 2, 3, 4, … (9 in all)." and str(y) == "Y." and (x.count, y.count) == (9, 3)
    )
    assert collector.count("x") == 9 and collector.count("z") == 0


def test_lvis_images_are_found_by_their_url(tmp_path):
    """Images by URL, and lists of classes that were not searched."""
    content = coco(
        names=["x"] * 1,
        categories=[(3, "baby_buggy"), (9, "Ferris_wheel (big)")],
        boxes=[(1, 9, [1, 1, 5, 5])],
    )
    image = content["images"][0]
    del image["file_name"]
    image |= {
        "coco_url": "http://images.cocodataset.org/val2017/7.png",
        "neg_category_ids": [3],
        "not_exhaustive_category_ids": [],
    }
    for folder in ("val2017", "."):
        (tmp_path / folder / folder).mkdir(parents=True, exist_ok=True)
        root = tmp_path / folder
        path = write(root / "lvis_v1_train.json", content)
        (root / folder / "7.png").touch()
        dataset = load_splits(path)["train"]
        assert dataset.samples[0].image_path == root / folder / "7.png"
        assert dataset.phrases == ["baby buggy", "ferris wheel"]
        assert dataset.class_names == ["baby_buggy", "Ferris_wheel (big)"]
        assert [f.check for f in dataset.findings][:1] == ["annotation-ignored-field"]
        assert dataset.lvis is None  # the categories have no frequency


@pytest.mark.parametrize(
    ("frequencies", "negative", "expected"),
    [
        (
            ["r", "f"],
            [30, "10", 77, None, [1]],
            LvisRules({10: "r", 30: "f"}, {1: [30, 10], 2: []}, {1: [], 2: [30]}),
        ),
        (["r", "f"], 30, LvisRules({10: "r", 30: "f"}, {1: [], 2: []}, {1: [], 2: [30]})),
        (["r", "x"], [30], None),
        (["r", [1]], [30], None),
        (["r", None], [30], None),
    ],
)
def test_lvis_rules(tmp_path, frequencies, negative, expected):
    """Ids are those of the file, others are ignored; without a frequency of each class there are no
    rules.
    """
    content = coco(
        names=["a.png", "b.png"], categories=[(10, "cat"), (30, "dog")], boxes=[(1, 10, [1, 1, 5, 5])]
    )
    content["images"][0]["neg_category_ids"] = negative
    content["images"][1]["not_exhaustive_category_ids"] = [30]
    for category, frequency in zip(content["categories"], frequencies, strict=True):
        category["frequency"] = frequency
    assert load_splits(write(tmp_path / "train.json", content, tmp_path))["train"].lvis == expected
