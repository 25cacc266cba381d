"""Splits by lists of images, and sets in several annotation files."""

import json
from pathlib import Path

import pytest
from test_real_layouts import ROW, coco, counts, in_folder, pic, put, xml, yolo

from groundtune.data.formats.detect import read_splits
from groundtune.errors import DataError

__all__ = ["in_folder"]
KITTI = "cat 0.00 0 -1.57 40 30 80 60 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
VIA = {"name": "rect", "x": 40, "y": 30, "width": 40, "height": 30}


def findings(path):
    return {each.check: each for dataset in read_splits(Path(path)).values() for each in dataset.findings}


def lists(folder, line="{}\n"):
    for split, names in (("train", "abc"), ("val", "d")):
        put(f"{folder}/{split}.txt", "".join(line.format(n) for n in names))


def labels(folder, text, suffix="txt"):
    for n in "abcd":
        put(f"{folder}/{n}.{suffix}", text)


@pytest.mark.parametrize(
    "line", ["{}\n", "./images/{}.jpg\n", "C:\\ds\\images\\{}.jpg\r\n", "{} 1\n", "{}.jpg\n\n"]
)
@pytest.mark.parametrize("where", ["d", "d/ImageSets", "d/ImageSets/Main", "d/splits"])
def test_lists_give_the_splits_of_every_format(line, where):
    for n in "abcd":
        pic(f"d/images/{n}.jpg")
    lists(where, line)
    # every format in turn, in the same folder
    shape = {"label": "cat", "points": [[40, 30], [80, 60]], "shape_type": "rectangle"}
    writers = {
        "kitti": lambda: labels("d/label_2", KITTI),
        "dota": lambda: labels("d/labelTxt", "40 30 80 30 80 60 40 60 cat 0\n"),
        "yolo": lambda: (labels("d/labels", ROW), put("d/classes.txt", "cat\n")),
        "voc": lambda: labels("d/Annotations", xml("")),
        "labelme": lambda: labels(
            "d/json", json.dumps({"shapes": [shape], "imagePath": "x.jpg", "version": "5"}), "json"
        ),
        "coco": lambda: put("d/all.json", coco([f"{n}.jpg" for n in "abcd"])),
        "csv": lambda: put(
            "d/all.csv", "path,class,x1,y1,x2,y2\n" + "".join(f"{n}.jpg,cat,40,30,80,60\n" for n in "abcd")
        ),
    }
    for format in ("kitti", "yolo", "voc", "labelme", "coco", "csv") if where == "d/splits" else writers:
        before = {*Path("d").rglob("*")}
        writers[format]()
        if format == "voc":
            for file in Path("d/Annotations").glob("*.txt"):
                file.rename(file.with_suffix(".xml"))
        assert counts("d", format=format) == {"train": 3, "valid": 1}, format
        for file in {*Path("d").rglob("*")} - before:
            if file.is_file():
                file.unlink()


def test_kitti_below_training_with_lists():
    for n in "abcd":
        pic(f"k/training/image_2/{n}.png")
    labels("k/training/label_2", KITTI)
    pic("k/testing/image_2/e.png")
    lists("k/ImageSets")
    put("k/ImageSets/trainval.txt", "a\nb\nc\nd\n"), put("k/ImageSets/test.txt", "e\n")
    assert counts("k") == {"train": 3, "valid": 1}
    assert "test.txt names 1 images, and none" in read_splits(Path("k")).refused["test"]


def test_what_is_in_no_list_or_only_there_is_reported():
    for n in "abcdef":
        pic(f"d/images/{n}.jpg")
    put("d/all.json", coco([f"{n}.jpg" for n in "abcdef"]))
    lists("d")
    put("d/val.txt", "d\nghost\n")
    assert counts("d") == {"train": 3, "valid": 1}
    found = findings("d")
    assert found["image-without-split"].examples == ["e.jpg", "f.jpg"]
    assert found["annotation-missing"].examples == ["ghost"]


def test_a_text_that_names_no_image_is_not_a_list():
    for n in "abcd":
        pic(f"d/{n}.jpg")
    put("d/all.json", coco([f"{n}.jpg" for n in "abcd"]))
    put("d/test.txt", "Remarks about the test\n"), put("d/train.txt", "0.1 0.2\n\n")
    assert counts("d") == {"train": 4}


def test_the_lists_in_main_count_for_voc():
    """VOC2012 has others in Segmentation/ and Layout/, with fewer images."""
    for n in "abcd":
        pic(f"d/JPEGImages/{n}.jpg")
        put(f"d/Annotations/{n}.xml", xml(f"{n}.jpg"))
    lists("d/ImageSets/Main")
    put("d/ImageSets/Segmentation/train.txt", "a\n"), put("d/ImageSets/Action/val.txt", "a 1\nd 2\n")
    assert counts("d") == {"train": 3, "valid": 1}


def via(names):
    region = {"shape_attributes": VIA, "region_attributes": {"class": "cat"}}
    return json.dumps(
        {n: {"filename": n, "size": 1, "regions": [region], "file_attributes": {}} for n in names}
    )


def test_files_of_different_images_are_one_set():
    for n in "abcd":
        pic(f"d/{n}.jpg"), pic(f"v/{n}.jpg"), pic(f"t/{n}.jpg")
    put("d/batch1.json", coco(["a.jpg", "b.jpg"])), put("d/batch2.json", coco(["c.jpg", "d.jpg"]))
    assert counts("d") == {"train": 4}
    assert findings("d")["annotation-files-joined"].examples == ["batch1.json", "batch2.json"]
    ids = [sample.image_id for sample in read_splits(Path("d"))["train"].samples]
    assert len({*ids}) == 4  # both files number theirs from 0
    put("v/ann.json", via(["a.jpg", "b.jpg"])), put("v/bob.json", via(["c.jpg", "d.jpg"]))
    assert counts("v") == {"train": 4}
    put("t/train_1.json", coco(["a.jpg", "b.jpg"])), put("t/train_2.json", coco(["c.jpg"]))
    put("t/val.json", coco(["d.jpg"]))
    assert counts("t") == {"train": 3, "valid": 1}


def test_classes_of_parts_are_joined_by_name():
    for n in "ab":
        pic(f"d/{n}.jpg")
    put("d/1.json", coco(["a.jpg"]))  # category 1 is cat
    content = json.loads(coco(["b.jpg"]))
    content["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    content["annotations"] += [{"id": 9, "image_id": 0, "category_id": 7, "bbox": [1, 1, 5, 5]}]
    put("d/2.json", json.dumps(content))
    dataset = read_splits(Path("d"))["train"]
    assert dataset.class_names == ["cat", "dog"] and len({*dataset.category_ids}) == 2
    labels_of = {s.image_path.name: [dataset.class_names[c] for c in s.class_ids] for s in dataset.samples}
    assert labels_of == {"a.jpg": ["cat"], "b.jpg": ["dog"]}
    assert "annotation-unknown-category" in {each.check for each in dataset.findings}


def test_parts_with_images_of_the_same_names_keep_theirs():
    for batch in ("one", "two"):
        pic(f"d/{batch}/images/a.jpg")
        box = (40, 30, 40, 30) if batch == "one" else (1, 2, 3, 4)
        put(f"d/{batch}/annotations.json", coco(["a.jpg"], box=box))
    samples = read_splits(Path("d"))["train"].samples
    found = {s.image_path.parent.parent.name: s.boxes_xyxy[0].tolist() for s in samples}
    assert found == {"one": [40, 30, 80, 60], "two": [1, 2, 4, 6]}


def test_files_of_the_same_or_of_no_images_ask():
    for n in "abc":
        pic(f"d/{n}.jpg"), pic(f"e/{n}.jpg")
    put("d/v1.json", coco(["a.jpg", "b.jpg"])), put("d/v2.json", coco(["b.jpg", "c.jpg"]))
    put("e/new.json", coco(["a.jpg", "b.jpg"])), put("e/old.json", coco(["x.jpg"]))
    for folder, names in (("d", "v1.json, v2.json"), ("e", "new.json, old.json")):
        with pytest.raises(
            DataError, match=f"2 annotation files .{names}. for the split 'train'.*Give the path"
        ):
            read_splits(Path(folder))
    assert counts("d/v1.json") == {"train": 2}


def test_yolo_lists_beside_a_data_yaml_are_those_that_it_names():
    yolo("d", "abcd")
    put("d/data.yaml", "train: train.txt\nval: val.txt\nnames: [cat]\n")
    lists("d", "./images/{}.jpg\n")
    assert counts("d") == {"train": 3, "valid": 1}


def test_an_image_in_two_lists_is_in_both_splits():
    for n in "abc":
        pic(f"d/{n}.jpg")
    put("d/all.json", coco(["a.jpg", "b.jpg", "c.jpg"]))
    put("d/train.txt", "a\nb\n"), put("d/val.txt", "b\nc\n")
    assert counts("d") == {"train": 2, "valid": 2}  # `groundtune check` reports the leak


@pytest.mark.parametrize("declared", [True, False])
def test_yolo_labels_without_an_image_are_reported(declared):
    yolo("d", "ab"), put("d/labels/ghost.txt", ROW), put("d/labels/classes.txt", "cat\n")
    if declared:
        put("d/data.yaml", "train: images\nnames: [cat]\n")
    assert counts("d") == {"train": 2}
    assert findings("d")["label-without-image"].examples == ["labels/ghost.txt"]


def test_annotations_of_other_formats_are_reported():
    yolo("d", "ab"), put("d/data.yaml", "train: images\nnames: [cat]\n")
    assert "annotations-unused" not in findings("d")
    put("d/more.json", coco(["a.jpg"])), put("d/other/x.xml", xml("a.jpg"))
    assert counts("d") == {"train": 2}
    assert findings("d")["annotations-unused"].examples == ["more.json (coco)", "other/x.xml (voc)"]
    for n in "ab":
        pic(f"e/{n}.jpg"), put(f"e/{n}.xml", xml(f"{n}.jpg"))
    put("e/train.json", coco(["a.jpg"]))
    assert counts("e") == {"train": 1}
    assert findings("e")["annotations-unused"].examples == ["a.xml (voc)"]


def test_a_list_in_another_encoding_is_read_as_far_as_it_goes():
    for n in "abc":
        pic(f"d/{n}.jpg")
    put("d/all.json", coco(["a.jpg", "b.jpg", "c.jpg"]))
    put("d/train.txt", b"\xef\xbb\xbfa\nb\n\xe9\n"), put("d/val.txt", "c\n")
    assert counts("d") == {"train": 2, "valid": 1}
    assert findings("d")["annotation-missing"].count == 1
