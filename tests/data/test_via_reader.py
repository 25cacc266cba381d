"""VGG Image Annotator 1 and 2: projects, annotations and CSV."""

import json
from pathlib import Path

import pytest
from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401 (a fixture)

from groundtune.data.formats.detect import read_splits
from groundtune.errors import DataError

RECT = {"name": "rect", "x": 40, "y": 30, "width": 40, "height": 30}
CAT = {"class": "cat"}


def region(shape=RECT, attributes=CAT):
    return {"shape_attributes": shape, "region_attributes": attributes}


def entry(name, *regions, numbered=False):
    listed = {str(i): each for i, each in enumerate(regions)} if numbered else list(regions)
    return {f"{name}1234": {"filename": name, "size": 1234, "regions": listed, "file_attributes": {}}}


def project(*entries, path="d/via_project.json", attributes=None):
    images = {key: value for each in entries for key, value in each.items()}
    content = {"_via_settings": {"ui": {}, "core": {}, "project": {"name": "x"}}, "_via_img_metadata": images}
    put(
        path,
        json.dumps(
            content
            | {
                "_via_attributes": {"region": attributes or {}, "file": {}},
                "_via_data_format_version": "2.0.10",
                "_via_image_id_list": list(images),
            }
        ),
    )


def labels(path="d"):
    dataset = read_splits(Path(path))["train"]
    return [[dataset.class_names[c] for c in sample.class_ids] for sample in dataset.samples]


def test_projects_and_annotations():
    for n in "ab":
        pic(f"d/{n}.jpg"), pic(f"e/images/{n}.jpg"), pic(f"f/{n}.jpg")
    project(entry("a.jpg", region()), entry("b.jpg", region()))
    put("e/via_region_data.json", json.dumps(entry("a.jpg", region()) | entry("b.jpg", region())))
    old = {"fileref": "", "base64_img_data": ""}
    put(
        "f/via.json",
        json.dumps({k: old | v for n in "ab" for k, v in entry(f"{n}.jpg", region(), numbered=True).items()}),
    )
    assert counts("d") == counts("e") == counts("f") == {"train": 2}
    assert checks("d") == checks("e") == checks("f") == []


def test_a_large_file_of_annotations():
    pic("d/a.jpg"), pic("d/b.jpg")
    put(
        "d/via.json",
        json.dumps(entry("a.jpg", region()) | entry("b.jpg", region()) | {"x": "x" * 2**23})[:-1] + "}",
    )
    assert "image-broken" in checks("d", keep_going=True) and len(labels_of("d")) == 2


def labels_of(path):
    return read_splits(Path(path), keep_going=True)["train"].samples


HEAD = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"


def row(name, shape, attributes, count=1):
    cells = (json.dumps(each, separators=(",", ":")).replace('"', '""') for each in (shape, attributes))
    return '{},1234,"{{}}",{},0,"{}","{}"\n'.format(name, count, *cells)


@pytest.mark.parametrize("mark", ["", "#"])
def test_csv(mark):
    for n in "abc":
        pic(f"d/{n}.jpg")
    put(
        "d/via_region_data.csv",
        mark + HEAD + row("a.jpg", RECT, CAT) + row("b.jpg", RECT, CAT) + row("c.jpg", {}, {}, 0),
    )
    assert labels() == [["cat"], ["cat"], []] and checks("d") == []
    assert read_splits(Path("d"))["train"].samples[1].boxes_xyxy.tolist() == [[40, 30, 80, 60]]
    put(
        "d/via_region_data.csv",
        HEAD + row("a.jpg", RECT, CAT) + row("a.jpg", RECT | {"x": 1}, CAT, 2) + "b.jpg,1,{},1,0,,x\n",
    )
    assert labels() == [["cat", "cat"], []] and "annotation-broken" in checks("d")


def test_names_with_brackets_and_broken_cells_of_csv():
    pic("d/[1].jpg"), pic("d/{2-3}.jpg")
    put("d/via.csv", HEAD + row("[1].jpg", RECT, CAT) + row("{2-3}.jpg", RECT, CAT))
    assert counts("d") == {"train": 2}
    put("d/via.csv", HEAD + 'a.jpg,1,{},1,0,"{""name"":","{}"\n')
    with pytest.raises(DataError, match="has cells that are not valid JSON"):
        read_splits(Path("d"))


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"name": "circle", "cx": 60, "cy": 45, "r": 10.5}, [49.5, 34.5, 70.5, 55.5]),
        ({"name": "ellipse", "cx": 60, "cy": 45, "rx": 20, "ry": 15}, [40, 30, 80, 60]),
        (
            {"name": "ellipse", "cx": 60, "cy": 45, "rx": 15, "ry": 20, "theta": 1.5707963267948966},
            [40, 30, 80, 60],
        ),
        (
            {"name": "polygon", "all_points_x": [40, 60, 80, 60], "all_points_y": [45, 30, 45, 60]},
            [40, 30, 80, 60],
        ),
    ],
)
def test_other_shapes(shape, box):
    pic("d/a.jpg"), project(entry("a.jpg", region(shape)))
    assert read_splits(Path("d"))["train"].samples[0].boxes_xyxy.tolist() == [pytest.approx(box, abs=1e-4)]
    assert checks("d") == ["segments-to-boxes"]


def test_points_and_broken_regions():
    pic("d/a.jpg"), pic("d/b.jpg")
    odd = [
        {"name": "polyline", "all_points_x": [1], "all_points_y": [1]},
        {"name": "point", "cx": 1, "cy": 1},
        {"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1]},
        {"name": "rect", "x": "?"},
    ]
    project(entry("a.jpg", region(), *map(region, odd), "x", {"shape_attributes": []}), entry("b.jpg"))
    assert labels() == [["cat"], []]
    found = {each.check: each.count for each in read_splits(Path("d"))["train"].findings}
    assert found == {
        "shape-without-box": 2,
        "annotation-broken": 2,
        "box-not-numbers": 2,
        "segments-to-boxes": 1,
    }


@pytest.mark.parametrize(
    ("attributes", "expected", "check"),
    [
        ({"id": "7", "kind": "cat"}, ["cat"], []),  # the one with words
        ({"color": "red", "Type": "cat"}, ["cat"], ["class-attribute-chosen"]),
        ({"type": {"cat": True, "dog": False}}, ["cat"], []),  # checkboxes
        ({"type": {"cat": True, "dog": True}}, ["cat", "dog"], []),
        ({"type": "2"}, ["dog"], []),  # the description of an option
        ({"id": 7}, ["7"], []),
        ({}, ["object"], ["class-not-stated"]),
    ],
)
def test_the_class_is_an_attribute(attributes, expected, check):
    pic("d/a.jpg")
    options = {"type": {"type": "dropdown", "options": {"1": "cat", "2": "dog"}}}
    project(entry("a.jpg", region(attributes=attributes)), attributes=options)
    assert labels() == [expected] and checks("d") == check


def test_splits_and_a_region_without_a_class():
    for split, n in (("train", "a"), ("val", "b")):  # the balloons of Mask R-CNN
        (
            pic(f"d/{split}/{n}.jpg"),
            project(entry(f"{n}.jpg", region()), path=f"d/{split}/via_region_data.json"),
        )
    assert counts("d") == {"train": 1, "valid": 1}
    project(entry("a.jpg", region(), region(RECT | {"x": 1}, {})), path="d/train/via_region_data.json")
    assert counts("d") == {"train": 1, "valid": 1} and checks("d") == ["annotation-unknown-category"]
