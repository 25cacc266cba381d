"""Create ML's JSON."""

import json
from pathlib import Path

import pytest
from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401 (a fixture)

from groundtune.data.formats.detect import read_splits

BOX = {"label": "cat", "coordinates": {"x": 60, "y": 45, "width": 40, "height": 30}}


@pytest.mark.parametrize(("image", "boxes"), [("image", "annotations"), ("imagefilename", "annotation")])
def test_splits(image, boxes):
    for split, names in (("train", "ab"), ("valid", "c")):
        for n in names:
            pic(f"d/{split}/{n}.jpg")
        put(
            f"d/{split}/_annotations.createml.json",
            json.dumps([{image: f"{n}.jpg", boxes: [BOX]} for n in names]),
        )
    assert counts("d") == {"train": 2, "valid": 1} and checks("d") == []
    assert counts("d/train/_annotations.createml.json") == {"train": 2}


def test_images_without_boxes_and_broken_entries():
    for n in "abc":
        pic(f"d/{n}.jpg")
    boxes = [
        BOX,
        7,
        {"label": "cat"},
        {"label": "cat", "coordinates": {"x": "?", "y": 1, "width": 1, "height": 1}},
        BOX | {"label": ["cat"]},
    ]
    put(
        "d/a.json",
        json.dumps(
            [
                {"image": "a.jpg", "annotations": []},
                {"image": "b.jpg", "annotations": [BOX]},
                {"image": "c.jpg", "annotations": boxes},
            ]
        ),
    )
    assert [len(sample.boxes_xyxy) for sample in read_splits(Path("d"))["train"].samples] == [0, 1, 1]
    assert checks("d") == ["annotation-broken", "box-not-numbers", "annotation-unknown-category"]


def test_normalized_numbers_are_refused():
    pic("d/a.jpg")
    put(
        "d/a.json",
        json.dumps(
            [
                {
                    "image": "a.jpg",
                    "annotations": [
                        {
                            "label": "cat",
                            "coordinates": {"x": 0.375, "y": 0.375, "width": 0.25, "height": 0.25},
                        }
                    ],
                }
            ]
        ),
    )
    assert "boxes-look-normalized" in checks("d")
