"""LabelMe JSON, in the form that labelme and X-AnyLabeling write."""

import json
from pathlib import Path

import pytest
from PIL import Image
from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401 (a fixture)

from groundtune.data.formats.detect import read_splits
from groundtune.data.formats.tree import Tree
from groundtune.errors import DataError


def shape(points=((80, 30), (40, 60)), kind="rectangle", label="cat", group=None, **more):
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
    } | more


def labelme(path, *shapes, image=None, size=(160, 120), **more):
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image or Path(path).stem + ".jpg",
        "imageData": "aGVsbG8=" * 9,
    }
    put(path, json.dumps(content | {"imageHeight": size[1], "imageWidth": size[0]} | more))


def boxes(path="d"):
    return [sample.boxes_xyxy.round(3).tolist() for sample in read_splits(Path(path))["train"].samples]


def test_files_beside_their_images():
    for n in "abcd":
        pic(f"d/{n}.jpg"), labelme(f"d/{n}.json", shape())
    assert counts("d") == {"train": 4} and checks("d") == []


@pytest.mark.parametrize(
    "stated", ["..\\images\\{}.jpg", "../images/{}.jpg", "C:\\Users\\u\\{}.jpg", "{}.png", ""]
)
def test_folders_and_splits(stated):
    for split, names in (("train", "ab"), ("val", "c")):
        for n in names:
            (
                pic(f"d/{split}/images/{n}.jpg"),
                labelme(f"d/{split}/annotations/{n}.json", shape(), image=stated.format(n)),
            )
    assert counts("d") == {"train": 2, "valid": 1}


def test_a_file_with_another_name_than_its_image():
    pic("d/images/a.jpg"), labelme("d/labels/x1.json", shape(), image="..\\images\\a.jpg")
    assert counts("d") == {"train": 1}
    pic("e/a.jpg"), pic("e/b.jpg"), labelme("e/a.json", shape(), image="b.jpg")
    with pytest.raises(DataError, match=r"fit several files.*a.json \(its imagePath 'b.jpg' or a.jpg\)"):
        read_splits(Path("e"))


@pytest.mark.parametrize(
    ("drawn", "box", "check"),
    [
        (shape([[80, 60], [40, 30]]), [40, 30, 80, 60], []),
        (shape([[40, 30], [80, 30], [80, 60], [40, 60]]), [40, 30, 80, 60], []),  # X-AnyLabeling
        (shape([[40, 45], [60, 30], [80, 45], [60, 60]], "polygon"), [40, 30, 80, 60], ["segments-to-boxes"]),
        ({"label": "cat", "points": [[40, 30], [80, 30], [60, 60]]}, [40, 30, 80, 60], ["segments-to-boxes"]),
        (shape([[60, 45], [63, 49]], "circle"), [55, 40, 65, 50], ["segments-to-boxes"]),  # radius 5 by 3, 4
        (shape([[40, 30], [79, 59]], "mask", mask="iVBO"), [40, 30, 80, 60], ["segments-to-boxes"]),  # last pixel
        (shape([[60, 30], [80, 45], [60, 60], [40, 45]], "rotation", direction=0.7), [40, 30, 80, 60], ["rotated-to-boxes"]),
        (shape([[60, 30], [80, 45], [60, 60], [40, 45]], "oriented_rectangle"), [40, 30, 80, 60], ["rotated-to-boxes"]),
    ],
)  # fmt: skip
def test_shapes(drawn, box, check):
    pic("d/a.jpg"), labelme("d/a.json", drawn)
    assert boxes() == [[box]] and checks("d") == check


def test_what_has_no_box():
    pic("d/a.jpg"), pic("d/b.jpg")
    labelme(
        "d/a.json",
        shape(),
        *(shape([[1, 1], [2, 2]], kind) for kind in ("line", "linestrip", "point", "points", ["x"])),
    )
    labelme("d/b.json")
    assert boxes() == [[[40, 30, 80, 60]], []]
    (finding,) = read_splits(Path("d"))["train"].findings
    assert finding.check == "shape-without-box" and finding.count == 5


def test_polygons_of_a_group_are_one_object():
    pic("d/a.jpg")
    left, right = [[40, 30], [50, 30], [50, 60]], [[70, 40], [80, 40], [80, 50]]
    labelme(
        "d/a.json",
        shape(left, "polygon", group=1),
        shape(right, "polygon", group=1),
        shape([[1, 1], [9, 9]], group=1),
        shape([[2, 2], [8, 8]], group=1),
        shape(left, "polygon", "dog", 1),
    )
    assert boxes() == [[[40, 30, 80, 60], [1, 1, 9, 9], [2, 2, 8, 8], [40, 30, 50, 60]]]


@pytest.mark.parametrize("more", [{"difficult": True}, {"flags": {"crowd": True}}])
def test_flags(more):
    pic("d/a.jpg"), labelme("d/a.json", shape(**more), shape([[1, 1], [9, 9]]))
    assert read_splits(Path("d"))["train"].samples[0].crowd.tolist() == [True, False]


def test_a_list_of_labels_orders_the_classes():
    pic("d/a.jpg"), labelme("d/a.json", shape(), shape([[1, 1], [9, 9]], label="ant"))
    put("d/labels.txt", "__ignore__\n_background_\ncat\nant\n")
    assert read_splits(Path("d"))["train"].class_names == ["cat", "ant"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "gbk"])
def test_encodings(encoding):
    text = json.dumps(
        {"shapes": [shape()], "imagePath": "图.jpg" if encoding == "gbk" else "ü.jpg", "imageData": None},
        ensure_ascii=False,
    )
    pic("d/a.jpg"), put("d/a.json", text.encode(encoding))
    assert counts("d") == {"train": 1}


def test_a_label_in_an_unknown_encoding_is_refused():
    pic("d/a.jpg"), pic("d/b.jpg"), labelme("d/b.json", shape())
    put(
        "d/a.json",
        json.dumps({"shapes": [shape(label="Kätzchen")], "imagePath": "a.jpg"}, ensure_ascii=False).encode(
            "cp1252"
        ),
    )
    with pytest.raises(DataError, match="1 annotation files cannot be read. a.json .*not UTF-8"):
        read_splits(Path("d"))


@pytest.mark.parametrize("size", [(60, 80), (None, None)])
def test_labelme_shows_images_upright(size):
    Path("d").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save("d/a.jpg", exif=exif)
    labelme("d/a.json", shape([[10, 20], [50, 75]]), size=size)
    sample = read_splits(Path("d"))["train"].samples[0]
    assert sample.size_hw == (80, 60) and sample.boxes_xyxy.tolist() == [[10, 20, 50, 75]]


def test_embedded_images_are_not_kept():
    pic("d/a.jpg"), labelme("d/a.json", shape())
    assert "imageData" not in Tree(Path("d")).signatures["a.json"].first


def test_broken_and_other_files():
    for n in "abc":
        pic(f"d/{n}.jpg")
    labelme(
        "d/a.json",
        shape(),
        "x",
        {"shape_type": "rectangle"},
        shape(points=[["x", 1], [2, 3]]),
        shape(label=["cat"]),
    )
    labelme("d/b.json", shape()), put("d/settings.json", '{"lr": 1}'), put("d/package.json", "{")
    assert set(checks("d")) == {
        "annotation-broken",
        "box-not-numbers",
        "annotation-unknown-category",
        "file-unused",
    }
    for text in ('{"shapes": [', "[]", '{"version": 1}'):
        put("d/c.json", text)
        with pytest.raises(DataError, match="annotation files cannot be read. c.json"):
            read_splits(Path("d"))
