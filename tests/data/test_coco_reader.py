"""One COCO file: what is kept, what is dropped and reported, and what is an error."""

from pathlib import Path

import numpy as np
import pytest
from coco_files import coco, image, write
from PIL import Image

from groundtune.data.formats.detect import read_splits
from groundtune.errors import DataError


def read_coco(path: Path):
    return read_splits(path)["train"]


def read(tmp_path: Path, content):
    return read_coco(write(tmp_path / "a.json", content, tmp_path))


def test_boxes_become_xyxy_in_stated_pixels(tmp_path):
    dataset = read(tmp_path, coco(boxes=[(1, 1, [2, 3, 10, 12]), (1, 1, [0.5, 0, 1.25, 30])]))
    (sample,) = dataset.samples
    assert sample.boxes_xyxy.tolist() == [[2, 3, 12, 15], [0.5, 0, 1.75, 30]]
    arrays = sample.boxes_xyxy, sample.class_ids, sample.crowd
    assert [array.dtype for array in arrays] == [np.float32, np.int64, bool]
    assert sample.size_hw == (30, 40) and sample.image_path == tmp_path / "a.png" and not dataset.messages


def test_category_ids_with_gaps_in_any_order_are_mapped_by_name(tmp_path):
    content = coco(
        names=["a.png", "b.png"],
        boxes=[(1, 90, [0, 0, 5, 5]), (2, 7, [0, 0, 5, 5]), (2, 0, [1, 1, 5, 5])],
        categories=[(90, "Red_Blood cell"), (7, "dog"), (0, "cat")],
    )
    dataset = read(tmp_path, content)
    assert dataset.class_names == ["Red_Blood cell", "dog", "cat"]
    assert dataset.phrases == ["red blood cell", "dog", "cat"]
    assert dataset.category_ids == [90, 7, 0]
    assert [s.class_ids.tolist() for s in dataset.samples] == [[0], [1, 2]]


def test_placeholder_root_is_ignored_but_a_used_category_0_stays(tmp_path):
    content = coco(categories=[(0, "animals"), (1, "cat"), (2, "dog")])
    for category, parent in zip(content["categories"], ["none", "animals", "animals"], strict=True):
        category["supercategory"] = parent
    dataset = read(tmp_path, content)
    assert dataset.class_names == ["cat", "dog"] and dataset.category_ids == [
        1,
        2,
    ]  # dog, without boxes, stays
    assert "'animals'" in str(dataset.findings[0]) and not dataset.messages
    content["annotations"][0]["category_id"] = 0
    assert read(tmp_path, content).class_names == ["animals", "cat", "dog"]
    content = coco(categories=[(0, "cat"), (1, "cat")])  # of the same name as a class
    content["categories"][0]["supercategory"], content["categories"][1]["supercategory"] = "none", "cat"
    dataset = read(tmp_path, content)
    assert dataset.class_names == ["cat"] and dataset.category_ids == [1]


def test_only_equal_names_are_one_class_with_a_message(tmp_path):
    boxes = [(1, 1, [0, 0, 5, 5]), (1, 2, [5, 5, 5, 5]), (1, 3, [1, 1, 2, 2])]
    categories = [(1, "Fire_Truck"), (2, "fire truck"), (3, "Fire_Truck")]
    dataset = read(tmp_path, coco(boxes=boxes, categories=categories))
    assert dataset.class_names == ["Fire_Truck", "fire truck"] and dataset.category_ids == [1, 2]
    assert dataset.phrases == ["fire_truck", "fire truck"]
    assert dataset.samples[0].class_ids.tolist() == [0, 1, 0]
    assert "one class" in dataset.messages[0] and "'Fire_Truck'" in dataset.messages[0]


def test_crowd_boxes_are_marked_and_empty_images_kept(tmp_path):
    content = coco(names=["a.png", "b.png"], boxes=[(1, 1, [0, 0, 5, 5]), (1, 1, [1, 1, 20, 20])])
    content["annotations"][1]["iscrowd"] = 1
    full, empty = read(tmp_path, content).samples
    assert full.crowd.tolist() == [False, True]
    assert empty.boxes_xyxy.shape == (0, 4) and empty.class_ids.shape == (0,) and empty.crowd.shape == (0,)


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([5, 5, 0, 9], "no area"),
        ([5, 5, 9, 0.0], "no area"),
        ([5, 5, -3, 9], "negative"),
        ([5, 5, float("nan"), 9], "four finite numbers"),
        ([float("-inf"), 5, 5, 9], "four finite numbers"),
        ([5, 10**400, 5, 9], "four finite numbers"),
        ([41, 5, 5, 5], "outside"),
        ([40 - 1e-7, 5, 5, 5], "outside"),  # nothing of it is left in float32
        ([-9, -9, 9, 9], "outside"),
        ([1, 2, 3], "four finite numbers"),
        ([1, 2, 3, "4"], "four finite numbers"),
        ([1, 2, 3, True], "four finite numbers"),
        (None, "four finite numbers"),
    ],
)
def test_a_bad_box_costs_only_that_box(tmp_path, bbox, reason):
    dataset = read(tmp_path, coco(boxes=[(1, 1, [2, 3, 10, 12]), (1, 1, bbox)]))
    assert dataset.samples[0].boxes_xyxy.tolist() == [[2, 3, 12, 15]]
    (message,) = dataset.messages
    assert message.startswith("train: 1 boxes dropped") and reason in message and "annotations[1]" in message


def test_rows_of_unknown_images_and_categories_are_counted(tmp_path):
    content = coco(
        boxes=[(1, 1, [2, 3, 10, 12]), (1, 5, [0, 0, 1, 1]), (9, 1, [0, 0, 1, 1]), (8, 1, [0, 0, 1, 1])]
    )
    content["annotations"].append("text")
    dataset = read(tmp_path, content)
    assert len(dataset.samples[0].boxes_xyxy) == 1
    assert {finding.check: finding.count for finding in dataset.findings} == {
        "annotation-unknown-category": 1,
        "annotation-unknown-image": 2,
        "annotation-broken": 1,
    }


def test_a_box_beyond_the_edge_is_clipped_and_reported(tmp_path):
    dataset = read(tmp_path, coco(boxes=[(1, 1, [-4, 20, 10, 30]), (1, 1, [30, 20, 10.2, 10])]))
    assert dataset.samples[0].boxes_xyxy.tolist() == [[0, 20, 6, 30], [30, 20, 40, 30]]
    assert "1 boxes reached beyond" in dataset.messages[0]  # the second by rounding only


def test_no_usable_box_at_all_is_an_error_but_no_boxes_are_legal(tmp_path):
    with pytest.raises(DataError, match="none of its boxes can be used.*2 boxes dropped.*no area"):
        read(tmp_path, coco(boxes=[(1, 1, [2, 3, 0, 0])] * 2))
    assert len(read(tmp_path, coco(boxes=[])).samples) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[1, 2]", "holds a JSON list.*COCO"),
        ('{"info": {}, "shapes": []}', "'images' is missing.*found 'info', 'shapes'"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is a dict"),
        ('{"images": [], "annotations": [], "categories": []}', "no images"),
    ],
)
def test_files_that_are_not_coco_are_one_clear_error(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_coco(write(tmp_path / "a.json", content))
    assert str(tmp_path / "a.json") in str(caught.value)


def test_unreadable_files_are_data_errors(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'{"images": "\xff\xfe"}')
    for path in (tmp_path / "latin.json", tmp_path / "absent.json", tmp_path):
        with pytest.raises(DataError):
            read_coco(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", [3], r"images\[0\] has no usable"),
        ("images", [{"id": 1}], r"images\[0\] has no usable"),
        ("images", [{"id": [1], "file_name": "a.png"}], r"images\[0\] has no usable"),
        (
            "images",
            [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}],
            "repeats the id 1 of a.png",
        ),
        ("categories", [], "no categories"),
        ("categories", [{"id": 1}], r"categories\[0\] has no usable"),
        ("categories", [{"id": 1, "name": "\ud800"}], r"categories\[0\] has no usable"),
        ("categories", [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "id 1 is both 'a' and 'b'"),
    ],
)
def test_ambiguous_or_broken_entries_are_refused(tmp_path, key, value, message):
    image(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        read_coco(write(tmp_path / "a.json", {**coco(), key: value}))


def test_text_ids_are_numbered_and_a_number_equals_its_text(tmp_path):
    content = coco(
        names=["a.png", "b.png"], boxes=[("left", "c1", [0, 0, 5, 5]), ("right", "c2", [0, 0, 6, 6])]
    )
    content["images"][0]["id"], content["images"][1]["id"] = "left", "right"
    content["categories"] = [{"id": "c2", "name": "dog"}, {"id": "c1", "name": "cat"}]
    dataset = read(tmp_path, content)
    assert [s.image_id for s in dataset.samples] == [1, 2] and dataset.category_ids == [1, 2]
    assert [s.class_ids.tolist() for s in dataset.samples] == [[1], [0]]
    assert len(dataset.messages) == 2
    content = coco(boxes=[("1", 1.0, [0, 0, 5, 5])])
    assert len(read(tmp_path, content).samples[0].boxes_xyxy) == 1


def test_missing_images_are_listed_with_their_number(tmp_path):
    content = coco(names=[f"{i}.png" for i in range(9)])
    write(tmp_path / "a.json", content, tmp_path)
    for i in range(1, 9):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(
        DataError, match=r"8 images .* missing.* '1.png', .*'5.png', … \(8 in all\).* 9 images"
    ):
        read_coco(tmp_path / "a.json")


@pytest.mark.parametrize(
    "name", ["../outside.png", "sub/../../outside.png", "/etc/outside.png", "..\\outside.png", "a\0b"]
)
def test_paths_that_leave_the_data_folder_are_refused(tmp_path, name):
    image(tmp_path / "outside.png")
    (tmp_path / "data/sub").mkdir(parents=True)
    with pytest.raises(DataError, match="lead out of the data folder"):
        read_coco(write(tmp_path / "data/a.json", coco(names=[name])))


def test_paths_that_stay_inside_may_have_dots(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("sub/../a..b.png", "sub\\c.png"):
        content = coco(names=[name])
        image(tmp_path / name.replace("\\", "/"))
        assert read_coco(write(tmp_path / "a.json", content)).samples[0].image_path.is_file()


@pytest.mark.parametrize("side", [None, 0, -5, "40", 40.5, float("nan"), True])
def test_a_size_that_is_not_stated_is_read_from_the_image(tmp_path, side):
    content = coco()
    image(tmp_path / "a.png", 50, 20)
    content["images"][0]["width"] = side
    dataset = read_coco(write(tmp_path / "a.json", content))
    assert dataset.samples[0].size_hw == (20, 50) and "taken from the images" in dataset.messages[0]


def test_stored_size_ignores_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 20)).save(tmp_path / "a.jpg", exif=exif)
    content = coco(names=["a.jpg"])
    del content["images"][0]["width"]
    assert read_coco(write(tmp_path / "a.json", content)).samples[0].size_hw == (20, 50)


@pytest.mark.parametrize("number", [10**400, "x"])
@pytest.mark.parametrize("form", ["polygon", "counts", "size"])
def test_outlines_that_are_not_numbers(number, form):
    from groundtune.data.formats.shapes import outline_box

    rle = {"counts": [1, number if form == "counts" else 2], "size": [number if form == "size" else 3, 4]}
    assert outline_box([[1, 1, 5, 1, 5, number]] if form == "polygon" else rle, (3, 4)) is None


def test_outlines_without_points():
    from groundtune.data.formats.shapes import outline_box

    assert outline_box([[], []], (3, 4)) is None
