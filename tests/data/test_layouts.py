"""Layouts of folders as people have them, and real data sets."""

import pytest
from coco_files import coco, image, write

from groundtune.data.formats.detect import load_splits
from groundtune.errors import DataError


def names_of(splits):
    return {split: [s.image_path.name for s in dataset.samples] for split, dataset in splits.items()}


@pytest.mark.parametrize("valid", ["valid", "val", "validation"])
def test_roboflow_folders(tmp_path, valid):
    for folder, name in (("train", "a.png"), (valid, "b.png"), ("test", "c.png")):
        write(tmp_path / folder / "_annotations.coco.json", coco(names=[name]), tmp_path / folder)
    splits = load_splits(tmp_path)
    assert names_of(splits) == {"train": ["a.png"], "valid": ["b.png"], "test": ["c.png"]}
    assert [d.name for d in splits.values()] == ["train", "valid", "test"]


@pytest.mark.parametrize("images", ["train2017", "images/train2017", "images/train", "images"])
def test_coco_release_folders(tmp_path, images):
    write(tmp_path / "annotations/instances_train2017.json", coco(names=["a.png"]), tmp_path / images)
    val = images.replace("train", "val")
    write(tmp_path / "annotations/instances_val2017.json", coco(names=["b.png"]), tmp_path / val)
    write(tmp_path / "annotations/person_keypoints_train2017.json", "{}")
    splits = load_splits(tmp_path)
    assert names_of(splits) == {"train": ["a.png"], "valid": ["b.png"]}
    assert splits["train"].samples[0].image_path == tmp_path / images / "a.png"


def test_file_names_that_carry_their_folder(tmp_path):
    write(tmp_path / "annotations/train.json", coco(names=["images/a.png"]), tmp_path)
    write(tmp_path / "annotations/val.json", coco(names=["images/b.png"]), tmp_path)
    assert names_of(load_splits(tmp_path)) == {"train": ["a.png"], "valid": ["b.png"]}


@pytest.mark.parametrize("images", [".", "images", "data"])
@pytest.mark.parametrize("by_file", [True, False])
def test_one_file_gets_a_held_out_fifth_that_does_not_depend_on_the_order(tmp_path, images, by_file):
    names = [f"{i}.png" for i in range(20)]
    file = write(
        tmp_path / "labels.json", coco(names=names, boxes=[(i, 1, [0, 0, i, 5]) for i in range(1, 21)])
    )
    for name in names:
        image(tmp_path / images / name)
    first = load_splits(file if by_file else tmp_path)
    assert len(first["train"].samples) == 16 and len(first["valid"].samples) == 4
    assert sorted(sum(names_of(first).values(), [])) == sorted(names)
    assert "4 of 20 images were held out" in first["train"].messages[-1]
    write(file, coco(names=names[::-1]))
    again = load_splits(file if by_file else tmp_path)
    assert set(names_of(again)["valid"]) == set(names_of(first)["valid"])


def test_held_out_also_where_only_valid_is_missing(tmp_path):
    for folder in ("train", "test"):
        names = [f"{folder}{i}.png" for i in range(5)]
        write(tmp_path / folder / "_annotations.coco.json", coco(names=names), tmp_path / folder)
    counts = {split: len(names) for split, names in names_of(load_splits(tmp_path)).items()}
    assert counts == {"train": 4, "valid": 1, "test": 5}


def test_a_single_image_cannot_be_split(tmp_path):
    write(tmp_path / "x.json", coco(), tmp_path)
    assert names_of(load_splits(tmp_path)) == {"train": ["a.png"]}


def test_classes_are_unified_by_name_over_splits(tmp_path):
    train = coco(boxes=[(1, 1, [0, 0, 5, 5]), (1, 2, [0, 0, 6, 6])], categories=[(1, "cat"), (2, "dog")])
    valid = coco(
        boxes=[(1, 1, [0, 0, 7, 7]), (1, 3, [0, 0, 8, 8])], categories=[(1, "dog"), (3, "bird")]
    )  # 1 is another class here, cat is not listed, bird is new
    write(tmp_path / "train/_annotations.coco.json", train, tmp_path / "train")
    write(tmp_path / "valid/_annotations.coco.json", valid, tmp_path / "valid")
    splits = load_splits(tmp_path)
    assert all(d.class_names == ["cat", "dog", "bird"] for d in splits.values())
    assert splits["train"].samples[0].class_ids.tolist() == [0, 1]
    assert splits["valid"].samples[0].class_ids.tolist() == [1, 2]
    assert splits["train"].category_ids == [1, 2, 3]
    ids = splits["valid"].category_ids
    assert ids[1:] == [1, 3] and len(set(ids)) == 3  # cat's own 1 is dog's here
    assert any("'cat'" in message for message in splits["valid"].messages)


def test_errors_list_the_expected_layouts_and_the_entries(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_splits(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="such as train/_annotations.*Found: images/, notes.txt"):
        load_splits(tmp_path)
    with pytest.raises(DataError, match="not a data set"):
        load_splits(tmp_path / "notes.txt")


def test_ambiguity_is_an_error(tmp_path):
    write(tmp_path / "a.json", coco(), tmp_path)
    write(tmp_path / "b.json", coco())
    with pytest.raises(DataError, match="2 annotation files"):
        load_splits(tmp_path)
    write(tmp_path / "val.json", coco())
    write(tmp_path / "valid.json", coco())
    with pytest.raises(
        DataError, match="2 annotation files \\(val.json, valid.json\\) for the split .valid."
    ):
        load_splits(tmp_path)


@pytest.mark.parametrize(
    ("name", "images", "boxes", "classes"),
    [
        ("bccd", [291, 73], [3919, 967], 3),
        ("cat144", [115, 29], [116, 29], 1),
        ("chess", [202, 58, 29], [2107, 386, 376], 13),  # 12 pieces and the stray "bishop"
        ("amenity", [72, 18], [122, 34], 20),
        ("tinycoco", [32, 6], [284, 135], 43),
    ],
)
def test_real_folders(shared, name, images, boxes, classes):
    splits = load_splits(shared / "data" / name)
    assert [len(d.samples) for d in splits.values()] == images
    assert [sum(len(s.boxes_xyxy) for s in d.samples) for d in splits.values()] == boxes
    assert all(len(d.class_names) == classes for d in splits.values())
    assert all([f.check for f in d.findings] == ["category-placeholder"] for d in splits.values())
