"""NDJSON of Ultralytics."""

import json
from pathlib import Path

import pytest
from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401

from groundtune.data.formats.detect import read_splits
from groundtune.errors import DataError

BOX = [0, 0.375, 0.375, 0.25, 0.25]


def ndjson(rows, names=None, folder="d"):
    head = {
        "type": "dataset",
        "task": "detect",
        "name": "x",
        "class_names": names or {"0": "cat"},
        "version": 1,
    }
    for row in rows:
        pic(f"{folder}/images/{row['file']}")
    lines = [
        head,
        *({"type": "image", "width": 160, "height": 120, "url": "https://x.org/a"} | r for r in rows),
    ]
    put(f"{folder}/set.ndjson", "".join(json.dumps(line) + "\n" for line in lines))


def row(file, split="train", **annotations):
    return {"file": file, "split": split, "annotations": annotations or {"boxes": [BOX]}}


def test_splits_and_boxes():
    ndjson([row("a.jpg"), row("b.jpg"), row("c.jpg", "val"), row("e.jpg", "test")])
    assert counts("d") == {"train": 2, "valid": 1, "test": 1}
    assert counts("d/set.ndjson") == {"train": 2, "valid": 1, "test": 1}
    ndjson([row("a.jpg"), {"file": "b.jpg", "annotations": {"boxes": [BOX]}}], ["cat"], "e")
    assert counts("e") == {"train": 2}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("segments", [0, 0.25, 0.25, 0.5, 0.25, 0.5, 0.5, 0.25, 0.5]),
        ("segments", [0, 0.25, 0.3, 0.5, 0.25, 0.3, 0.5]),
        ("obb", [0, 0.25, 0.375, 0.375, 0.25, 0.5, 0.375, 0.375, 0.5]),
        ("pose", [*BOX, 0.3, 0.3, 2]),
    ],
)
def test_other_shapes(key, value):
    ndjson([row("a.jpg", **{key: [value]})])
    assert counts("d") == {"train": 1}
    ndjson([row("a.jpg", boxes=[BOX], **{key: [value]})])  # of the same object
    assert counts("d") == {"train": 1} and checks("d") == []


def test_outlines_of_other_objects_are_added():
    ndjson(
        [row("a.jpg", boxes=[BOX], segments=[[1, 0, 0, 0.1, 0, 0.1, 0.1]]), row("b.jpg", boxes=[])],
        ["cat", "dog"],
    )
    sample, empty = read_splits(Path("d"))["train"].samples
    assert sample.boxes_xyxy.tolist() == [[40, 30, 80, 60], [0, 0, 16, 12]]
    assert sample.class_ids.tolist() == [0, 1] and len(empty.boxes_xyxy) == 0
    assert checks("d") == ["segments-to-boxes"]


def test_faults():
    ndjson([row("a.jpg", boxes=[BOX, [0, 1], "x", [7, 0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.5, 0.1, 0.1]])])
    assert counts("d") == {"train": 1}
    findings = {each.check: each.count for each in read_splits(Path("d"))["train"].findings}
    assert findings == {"annotation-broken": 2, "annotation-unknown-category": 2}
    put("d/set.ndjson", Path("d/set.ndjson").read_text().replace('{"0": "cat"}', "5"))
    with pytest.raises(DataError, match="'names' is not usable"):
        read_splits(Path("d"))
