"""Formats that are not read: the error says what they are and what to do."""

import json
from pathlib import Path

import pytest
from PIL import Image
from test_real_layouts import coco, counts, in_folder, pic, put  # noqa: F401 (a fixture)

from groundtune.data.formats.detect import read_splits
from groundtune.errors import DataError

SUPERVISELY = {
    "description": "",
    "tags": [],
    "size": {"height": 120, "width": 160},
    "objects": [
        {
            "classTitle": "cat",
            "geometryType": "rectangle",
            "points": {"exterior": [[40, 30], [80, 60]], "interior": []},
        }
    ],
}
LABELBOX = {
    "data_row": {"id": "x", "external_id": "a.jpg"},
    "media_attributes": {},
    "projects": {"y": {"labels": []}},
}
VOTT = {
    "name": "p",
    "securityToken": "t",
    "tags": [{"name": "cat"}],
    "assets": {"1": {"asset": {}, "regions": []}},
}
VIA3 = {"project": {"pname": "x"}, "config": {}, "attribute": {}, "file": {}, "metadata": {}, "view": {}}
IMGLAB = "<?xml version='1.0'?>\n<dataset>\n<name>x</name>\n<images>\n<image file='a.jpg'><box top='30' left='40' width='40' height='30'><label>cat</label></box></image></images></dataset>"
FILES = {
    "Supervisely": {"ds/ann/a.jpg.json": json.dumps(SUPERVISELY), "meta.json": '{"classes": [], "tags": [], "projectType": "images"}'},
    "Labelbox": {"export.ndjson": (json.dumps(LABELBOX) + "\n") * 2},
    "export of Labelbox": {"export.json": json.dumps([{"ID": "1", "Labeled Data": "http://x/a.jpg", "Label": {}}])},
    "VoTT": {"p-export.json": json.dumps(VOTT)},
    "project of VoTT": {"1-asset.json": json.dumps({"asset": {"name": "a.jpg"}, "regions": [], "version": "2.2.0"})},
    "VIA 3": {"via.json": json.dumps(VIA3)},
    "TFRecord": {"train.tfrecord-00000-of-00002": b"\x00\x01"},
    "MOT": {"MOT17-02/gt/gt.txt": "1,1,40,30,40,30,1,1,1.0\n2,1,40,30,40,30,1,1,1.0\n"},
    "imglab": {"train.xml": IMGLAB},
    "HEIC": {"IMG_1.HEIC": b"\x00\x00\x00\x18ftypheic"},
    "mask": {},
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_error_names_the_format_and_a_way(name):
    pic("d/images/a.jpg")
    if name == "mask":
        Path("d/masks").mkdir(), Image.new("L", (160, 120)).save("d/masks/a.png")
    for file, text in FILES[name].items():
        put(f"d/{file}", text)
    with pytest.raises(DataError, match=f"is not read. It is .*{name}.*: (export|convert|choose|open)"):
        read_splits(Path("d"))


@pytest.mark.parametrize("name", sorted(set(FILES) - {"mask", "HEIC"}))
def test_a_data_set_beside_them_is_read(name):
    pic("d/images/a.jpg"), put("d/train.json", coco(["a.jpg"]))
    for file, text in FILES[name].items():
        put(f"d/{file}", text)
    assert counts("d") == {"train": 1}
