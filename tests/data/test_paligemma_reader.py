"""Location tokens of PaliGemma and Florence-2."""

import json
from pathlib import Path

import pytest
from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401

from groundtune.data.formats.detect import read_splits

SQUARE = "<loc0256><loc0256><loc0512><loc0512>"  # a quarter to a half of both sides
OF_FLORENCE = "<loc_250><loc_250><loc_500><loc_500>"


def jsonl(path, rows):
    for image, *_ in rows:
        pic(Path(path).parent / image)
    lines = [json.dumps({"image": i, "prefix": p, "suffix": s}) + "\n" for i, p, s in rows]
    put(path, "".join(lines))


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("detect cat", f"{SQUARE} cat"),
        ("segment cat\n", f"{SQUARE}{'<seg012>' * 16} cat"),
        ("<OD>", f"cat{OF_FLORENCE}"),
        ("<OD>", f"</s><s>cat{OF_FLORENCE}</s>"),
    ],
)
def test_one_object(prefix, suffix):
    jsonl("d/_annotations.train.jsonl", [("a.jpg", prefix, suffix), ("b.jpg", prefix, suffix)])
    jsonl("d/_annotations.valid.jsonl", [("c.jpg", prefix, suffix)])
    assert counts("d") == {"train": 2, "valid": 1}
    assert counts("d/_annotations.valid.jsonl") == {"train": 1}


def test_the_order_of_coordinates():
    jsonl(
        "d/train/annotations.jsonl",
        [("a.jpg", "detect red car ; dog", "<loc0000><loc0512><loc0256><loc1023> dog")],
    )
    jsonl("d/valid/annotations.jsonl", [("b.jpg", "<OD>", "dog<loc_500><loc_0><loc_999><loc_250>")])
    splits = read_splits(Path("d"))
    assert splits["train"].class_names == ["red car", "dog"]
    assert splits["train"].samples[0].boxes_xyxy[0].tolist() == pytest.approx([80, 0, 160 * 1023 / 1024, 30])
    assert splits["valid"].samples[0].boxes_xyxy[0].tolist() == pytest.approx([80, 0, 159.84, 30], abs=1e-4)


def test_several_objects_and_none():
    both = f"{SQUARE} cat ; <loc0000><loc0000><loc0128><loc0256> dog"
    florence = f"cat{OF_FLORENCE}<loc_0><loc_0><loc_250><loc_125>dog<loc_0><loc_0><loc_100><loc_100>"
    rows = [("a.jpg", "detect cat ; dog", both), ("b.jpg", "detect cat", ""), ("c.jpg", "<OD>", florence)]
    jsonl("d/a.jsonl", rows)
    a, b, c = read_splits(Path("d"))["train"].samples
    assert a.boxes_xyxy.tolist() == [[40, 30, 80, 60], [0, 0, 40, 15]] and a.class_ids.tolist() == [0, 1]
    assert len(b.boxes_xyxy) == 0
    assert c.boxes_xyxy.tolist() == [[40, 30, 80, 60], [0, 0, 40, 15], [0, 0, 16, 12]]
    assert c.class_ids.tolist() == [0, 0, 1]


def test_other_tasks_and_broken_tokens():
    rows = [("a.jpg", "detect cat", f"{SQUARE} cat"), ("b.jpg", "caption en", "a cat")]
    jsonl("d/a.jsonl", [*rows, ("c.jpg", "detect cat", "<loc0256><loc0256> cat")])
    dataset = read_splits(Path("d"))["train"]
    assert [len(each.boxes_xyxy) for each in dataset.samples] == [1, 0]
    assert checks("d") == ["annotation-broken", "file-unused"] and dataset.findings[0].count == 2
