"""KITTI, VisDrone and DOTA: a text file of boxes per image."""

from pathlib import Path

import pytest
from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401

from groundtune.data.formats.detect import read_splits
from groundtune.errors import DataError

KITTI = "cat 0.00 0 -1.57 40.00 30.00 80.00 60.00 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
DONT_CARE = "DontCare -1 -1 -10 5.0 6.0 20.0 16.0 -1 -1 -1 -1000 -1000 -1000 -10\n"
DOTA = "imagesource:GoogleEarth\ngsd:0.146343590398\n40.0 45.0 60.0 30.0 80.0 45.0 60.0 60.0 cat 0\n"


def kitti(text=KITTI, names=("000000", "000001")):
    for n in names:
        pic(f"d/training/image_2/{n}.png"), put(f"d/training/label_2/{n}.txt", text)


def visdrone(text="40,30,40,30,1,4,0,0\n"):
    for part, n in (("train", "a"), ("val", "b"), ("test-dev", "c")):
        pic(f"d/VisDrone2019-DET-{part}/images/{n}.jpg")
        put(f"d/VisDrone2019-DET-{part}/annotations/{n}.txt", text)


def dota(text=DOTA):
    for split, n in (("train", "P0001"), ("val", "P0002")):
        pic(f"d/{split}/images/{n}.png"), put(f"d/{split}/labelTxt/{n}.txt", text)


def test_kitti():
    kitti()
    pic("d/testing/image_2/000000.png")
    assert counts("d") == {"train": 2}
    pic("d/training/image_3/000000.png")  # of the right camera
    put("d/training/calib/000000.txt", "P0: 7.07e+02 0 6.04e+02 0 0 7.07e+02 1.8e+02 0 0 0 1 0\n")
    splits = read_splits(Path("d"), format="kitti")
    assert splits["train"].samples[0].image_path == Path("d/training/image_2/000000.png")
    assert checks("d") == ["file-unused"]
    kitti(KITTI.strip() + " 0.9\n")  # with a score
    assert counts("d") == {"train": 2}


def test_regions_are_ignored_for_every_class():
    kitti(KITTI + KITTI.replace("cat", "dog").replace("40.00", "41.00") + DONT_CARE, ["000000"])
    kitti("", ["000001"])
    dataset = read_splits(Path("d"))["train"]
    sample, empty = dataset.samples
    assert dataset.class_names == ["cat", "dog"] and len(empty.boxes_xyxy) == 0
    assert sample.crowd.tolist() == [False, False, True, True]
    assert sample.boxes_xyxy[2:].tolist() == [[5, 6, 20, 16]] * 2
    assert sorted(sample.class_ids[2:].tolist()) == [0, 1]
    assert checks("d") == ["crowd-regions"]


def test_visdrone():
    visdrone()
    names = "pedestrian people bicycle car van truck tricycle awning-tricycle bus motor".split()
    assert counts("d", names) == {"train": 1, "valid": 1, "test": 1}
    visdrone("40,30,40,30,1,4,0,0,\n1,2,30,40,0,0,0,0\n5,6,7,8,0,5,0,1\n9,9,9,9,1,11,0,0\n")
    sample = read_splits(Path("d"))["train"].samples[0]
    assert sample.class_ids[~sample.crowd].tolist() == [3]
    assert sample.boxes_xyxy[~sample.crowd].tolist() == [[40, 30, 80, 60]]
    rows = list(zip(sample.boxes_xyxy.tolist(), sample.class_ids.tolist(), strict=True))
    assert ([5, 6, 12, 14], 4) in rows  # a van that evaluation ignores
    for region in ([1, 2, 31, 42], [9, 9, 18, 18]):
        assert sorted(c for box, c in rows if box == region) == list(range(10))


@pytest.mark.parametrize("corners", ["40 45 60 30 80 45 60 60", "80, 60, 40, 60, 40, 30, 80, 30,"])
def test_dota(corners):
    dota(f"imagesource:GoogleEarth\ngsd:null\n{corners} cat 0\n")
    assert counts("d") == {"train": 1, "valid": 1}
    assert checks("d") == ["segments-to-boxes"] * 2
    dota(DOTA + DOTA.splitlines()[2].replace("cat 0", "large-vehicle 1\n"))
    dataset = read_splits(Path("d"))["train"]
    assert dataset.samples[0].crowd.tolist() == [False, True] and len(dataset.class_names) == 2


def test_an_image_of_dota_without_boxes():
    dota()
    pic("d/train/images/P0003.png"), put("d/train/labelTxt/P0003.txt", "imagesource:GoogleEarth\ngsd:0.1\n")
    assert [len(each.boxes_xyxy) for each in read_splits(Path("d"))["train"].samples] == [1, 0]


def test_texts_of_words_in_images_are_not_dota():
    pic("d/images/img_1.jpg"), put("d/labels/img_1.txt", "40,30,80,30,80,60,40,60,Genaxis Theatre\n")
    with pytest.raises(DataError, match="No data set"):
        read_splits(Path("d"))


def test_broken_rows_are_counted():
    kitti(KITTI + "cat 1 2\n" + KITTI.replace("40.00", "nan").replace("cat", "dog"))
    finding = next(each for each in read_splits(Path("d"))["train"].findings)
    assert finding.check == "annotation-broken" and finding.count == 4
    assert "000000.txt line 2 'cat 1 2'" in finding.examples


def test_a_missing_image_is_reported():
    kitti()
    Path("d/training/image_2/000001.png").unlink()
    assert "image-missing" in checks("d")
