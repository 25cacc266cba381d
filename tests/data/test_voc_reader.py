"""Pascal VOC folders, and hostile XML."""

import pytest
from coco_files import image
from fuzz_files import VOC

from groundtune.data.formats.detect import load_splits, read_splits
from groundtune.errors import DataError


def annotate(folder, name, text=None, images="JPEGImages"):
    image(folder / images / f"{name}.png")
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(text or VOC.format(name=f"{name}.png"))


def lists(folder, **names):
    (folder / "ImageSets/Main").mkdir(parents=True)
    for split, stems in names.items():
        (folder / "ImageSets/Main" / f"{split}.txt").write_text(stems)


@pytest.mark.parametrize("home", [".", "VOC2012", "VOCdevkit/VOC2007"])
def test_a_devkit_with_lists(tmp_path, home):
    home = tmp_path / home
    home.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c d"):
        annotate(home, name)
    lists(home, train="a\n", val="b  1\nc d\n", cat_train="a -1\n", trainval="a\nb\n")
    splits = load_splits(tmp_path)
    stems = {name: [s.image_path.stem for s in dataset.samples] for name, dataset in splits.items()}
    assert stems == {"train": ["a"], "valid": ["b", "c d"]}
    assert splits["train"].class_names == ["cat", "dog"]
    assert splits["train"].samples[0].boxes_xyxy.tolist() == [[2, 3, 12.5, 15], [1, 1, 39, 29]]


@pytest.mark.parametrize("images", ["JPEGImages", "images", "."])
def test_without_lists_everything_is_train_and_some_is_held_out(tmp_path, images):
    for name in "abcde":
        annotate(tmp_path, name, VOC.format(name="wrong/other.jpg"), images)  # the file's own name counts
    splits = load_splits(tmp_path)
    assert len(splits["train"].samples) == 4 and len(splits["valid"].samples) == 1


def test_xml_beside_images_in_a_folder_per_split(tmp_path):
    for split in ("train", "valid"):
        image(tmp_path / split / "a.png")
        (tmp_path / split / "a.xml").write_text(VOC.format(name="a.png"))
    counts = {name: len(dataset.samples[0].boxes_xyxy) for name, dataset in load_splits(tmp_path).items()}
    assert counts == {"train": 2, "valid": 2}


def test_difficult_objects_are_not_trained_on_and_a_list_gives_the_order(tmp_path):
    annotate(tmp_path, "a", VOC.format(name="a.png").replace("<difficult>0", "<difficult>1"))
    (tmp_path / "classes.txt").write_text("zebra\ndog\ncat\n")
    dataset = read_splits(tmp_path)["train"]
    assert dataset.class_names == ["zebra", "dog", "cat"]
    assert dataset.samples[0].crowd.tolist() == [True, False]
    assert [f.check for f in dataset.findings] == ["crowd-regions"]


def test_a_listed_file_that_is_missing_and_one_that_is_broken(tmp_path):
    for name in "ab":
        annotate(tmp_path, name)
    lists(tmp_path, train="a\nb\nzzz\n../../etc/passwd\n")
    dataset = read_splits(tmp_path)["train"]
    assert [f.check for f in dataset.findings] == ["annotation-missing"] and dataset.findings[0].count == 2
    (tmp_path / "Annotations/b.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match="1 annotation files cannot be read. b.xml"):
        read_splits(tmp_path)
    assert [s.image_path.stem for s in read_splits(tmp_path, keep_going=True)["train"].samples] == ["a"]


def test_several_years_are_ambiguous(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        (tmp_path / year).mkdir()
        annotate(tmp_path / year, "a")
    with pytest.raises(DataError, match="several VOC sets"):
        load_splits(tmp_path)


BOMB = (
    "<!DOCTYPE a ["
    + "".join(f'<!ENTITY x{i} "{f"&x{i - 1};" * 10 if i else "ha"}">' for i in range(10))
    + "]><annotation>&x9;</annotation>"
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><annotation/>',
        '<?xml version="1.0" encoding="nonsense"?><annotation/>',
        "<a>" * 200_000,
    ],
)
def test_xml_that_expands_or_reads_other_files_is_an_error(tmp_path, text):
    annotate(tmp_path, "a", text)
    with pytest.raises(DataError, match="cannot be read"):
        load_splits(tmp_path)
