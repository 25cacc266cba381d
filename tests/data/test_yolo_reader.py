"""YOLO folders as people have them."""

import pytest
from coco_files import image
from PIL import Image

from groundtune.data.formats.detect import load_splits, read_splits
from groundtune.errors import DataError


def label(folder, name, text, size=(40, 20)):
    """An image in `images/` and its rows in `labels/`."""
    image(folder / "images" / f"{name}.png", *size)
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / f"{name}.txt").write_text(text)


def roboflow(root, yaml, splits=("train", "valid")):
    for split in splits:
        label(root / split, split[0], "1 0.5 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text(yaml)
    return root


def test_a_row_is_a_normalized_center_and_size(tmp_path):
    roboflow(tmp_path, "train: train/images\nval: valid/images\nnames: [cat, red dog]\n")
    splits = load_splits(tmp_path)
    (sample,) = splits["train"].samples
    assert sample.boxes_xyxy.tolist() == [[15, 5, 25, 15]] and sample.size_hw == (20, 40)
    assert splits["train"].class_names == ["cat", "red dog"] and sample.class_ids.tolist() == [1]
    assert splits["train"].category_ids == [0, 1] and splits["valid"].samples[0].image_path.name == "v.png"
    assert not splits["train"].messages


@pytest.mark.parametrize(
    "paths",
    [
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n",  # Roboflow; there is no test
        "path: ../datasets/mine\ntrain: train/images\nval: valid/images\n",  # Ultralytics, another machine's folder
        "path: /home/someone/mine\ntrain: train/images\nval: valid/images\n",
        "path: .\ntrain: [train/images]\nval: valid\n",
        "train: ./train/images/\nvalid: valid\\images\n",
    ],
)
def test_paths_of_other_machines_are_found_inside_the_folder(tmp_path, paths):
    splits = load_splits(roboflow(tmp_path, paths + "names: {1: dog, 0: cat}\n"))
    names = {name: [s.image_path.name for s in dataset.samples] for name, dataset in splits.items()}
    assert names == {"train": ["t.png"], "valid": ["v.png"]}
    assert splits["train"].class_names == ["cat", "dog"] and len(splits["valid"].samples[0].boxes_xyxy) == 1


def test_images_of_a_split_without_images_folder_have_their_labels_in_place(tmp_path):
    roboflow(tmp_path, "train: train\nval: valid\nnames: [cat, dog]\n")
    assert len(load_splits(tmp_path / "data.yaml")["train"].samples[0].boxes_xyxy) == 1


def test_lists_of_files(tmp_path):
    for name in "abc":
        label(tmp_path, name, "0 0.5 0.5 1 1\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "train.txt").write_text(f"./images/c.png\nimages/a.png\n{tmp_path}/images/b.png\n")
    (tmp_path / "lists/val.txt").write_text("../images/a.png\nimages/b.png\n")
    (tmp_path / "mine.yaml").write_text("train: train.txt\nval: lists/val.txt\nnames: [cat]\n")
    splits = load_splits(tmp_path)
    assert [s.image_path.name for s in splits["train"].samples] == ["c.png", "a.png", "b.png"]  # its order
    assert [len(s.boxes_xyxy) for s in splits["valid"].samples] == [1, 1]


def test_names_are_text_whatever_yaml_makes_of_them(tmp_path):
    roboflow(tmp_path, "train: train/images\nval: valid/images\nnames: [no, 007, 1.50, null, ~on]\n")
    assert load_splits(tmp_path)["train"].class_names == ["no", "007", "1.50", "null", "~on"]


@pytest.mark.parametrize("split", [False, True])
def test_folders_without_yaml_need_a_names_file(tmp_path, split):
    for name, folder in (("a", "train"), ("b", "val")):
        image(tmp_path / "images" / (folder if split else ".") / f"{name}.png")
        (tmp_path / "labels" / (folder if split else ".")).mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / (folder if split else ".") / f"{name}.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DataError, match="no class names.*classes.txt"):
        load_splits(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\nred dog\n")
    splits = load_splits(tmp_path)
    assert splits["valid"].samples[0].class_ids.tolist() == [1]
    assert splits["train"].class_names == ["cat", "red dog"]
    assert len(splits["train"].samples) == len(splits["valid"].samples) == 1


def test_darknet_images_and_labels_in_one_folder(tmp_path):
    for name in ("a", "b"):
        image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    assert sum(len(d.samples[0].boxes_xyxy) for d in load_splits(tmp_path).values()) == 2


def test_outlines_become_boxes_and_key_points_are_ignored(tmp_path):
    rows = "0 0.25 0.5 0.75 0.25 0.5 1.0\n0 0.5 0.5 0.5 0.5 0.9\n"  # a triangle; a box with a confidence
    label(tmp_path, "a", rows)
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    dataset = read_splits(tmp_path)["train"]
    assert dataset.samples[0].boxes_xyxy.tolist() == [[10, 5, 30, 20], [10, 5, 30, 15]]
    assert [f.check for f in dataset.findings] == ["segments-to-boxes"]
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\nkpt_shape: [1, 2]\n")
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.5 0.5 0.1 0.1\n")
    assert read_splits(tmp_path)["train"].samples[0].boxes_xyxy.tolist() == [[10, 5, 30, 15]]


def test_bad_rows_cost_only_themselves_and_not_the_image(tmp_path):
    """Two bad rows in twelve images cost Ultralytics two images."""
    for number in range(12):
        bad = {
            3: "0 0.5 x 0.5 0.5\n",
            7: "9 0.5 0.5 0.5 0.5\n0 nan 0.5 0.5 0.5\n0 0.5 0.5\n0 1.5 0.5 0.1 0.1\n",
        }
        label(tmp_path, f"{number:02}", "0 0.5 0.5 0.5 0.5\n" + bad.get(number, ""))
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    dataset = read_splits(tmp_path)["train"]
    assert [len(s.boxes_xyxy) for s in dataset.samples] == [1] * 12
    found = {f.check: (f.count, f.examples[0]) for f in dataset.findings}
    checks = {"annotation-broken", "annotation-unknown-category", "box-not-numbers", "box-outside"}
    assert found.keys() == checks
    assert found["annotation-broken"][1].startswith("03.txt line 2") and found["box-not-numbers"][0] == 2


def test_images_without_a_label_file_have_no_objects_and_pixels_are_reported(tmp_path):
    label(tmp_path, "a", "0 20 10 10 10\n0 12 10 10 10\n0 0.5 0.5 0.5 0.5\n")
    image(tmp_path / "images/b.png")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    dataset = read_splits(tmp_path)["train"]
    assert [len(s.boxes_xyxy) for s in dataset.samples] == [1, 0]
    found = {f.check: f.severity for f in dataset.findings}
    assert found["label-file-missing"] == "note" and found["boxes-look-pixels"] == "error"


def test_the_frame_is_the_image_as_viewers_show_it(tmp_path):
    """YOLO states no size, and its tools draw on turned images: a stored 50 x 20 with orientation 6
    is 20 wide.
    """
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (50, 20)).save(tmp_path / "images/a.jpg", exif=exif)
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.5 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    (sample,) = read_splits(tmp_path)["train"].samples
    assert sample.size_hw == (50, 20) and sample.boxes_xyxy.tolist() == [[5, 20, 15, 30]]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images\nnames: 3\n", "'names' is not usable"),
        ("train: images\nnames: {a: cat}\n", "'names' is not usable"),
        ("train: nowhere\nnames: [cat]\n", "train 'nowhere', which does not exist"),
        ("train: ../..\nnames: [cat]\n", "does not exist"),
        ("train: /etc\nnames: [cat]\n", "does not exist"),
        ("train: images\nnames: [cat\n", "not YAML at line"),
        ("[" * 5000, "not YAML"),
        ("#" * (2**20 + 1), "over 1 MB"),
    ],
)
def test_a_yaml_that_cannot_be_used_is_one_clear_error(tmp_path, yaml, message):
    label(tmp_path, "a", "0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(DataError, match=message):
        load_splits(tmp_path)


def test_all_formats_but_no_hidden_files_are_images_of_a_folder(tmp_path):
    for name in ("a.png", "b.jp2", "c.avif", "d.pgm"):
        label(tmp_path, "a", "0 0.5 0.5 1 1\n")
        Image.new("L" if name == "d.pgm" else "RGB", (40, 20)).save(tmp_path / "images" / name)
    for name in ("._a.png", ".hidden.png", "__MACOSX/a.png", ".cache/a.png", "e.heic"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"no image")
    (tmp_path / "classes.txt").write_text("cat\n")
    splits = load_splits(tmp_path)  # one image is held out for validation
    found = sorted(sample.image_path.name for split in splits.values() for sample in split.samples)
    assert found == ["a.png", "b.jp2", "c.avif", "d.pgm"]
    (finding,) = [finding for finding in splits["train"].findings if finding.check == "image-format-unread"]
    assert (finding.severity, finding.count, finding.examples) == ("warning", 1, ["images/e.heic"])
