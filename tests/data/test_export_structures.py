"""Structures of real exports, rebuilt with an image of our own; boxes are [40, 30, 40, 30].

Looked up in the test assets of datumaro, labelformat and label-studio-converter, and in the
documentation of CVAT, KITTI, Open Images, WIDER FACE and VIA: order and kind of attributes, odd
fields, letter case and line ends are theirs.
"""

import json
from pathlib import Path

import pytest
from test_real_layouts import ROW, counts, in_folder, pic, put

from groundtune.data.formats.detect import read_splits

__all__ = ["in_folder"]
BOX = '<box label="cat" occluded="1" xbr="80" xtl="40" ybr="60" ytl="30" z_order="1">'
ATTRIBUTES = '<attribute name="a1">true</attribute><attribute name="a2">v3</attribute>'
SKELETON = (
    '<skeleton label="skeleton" occluded="0" source="manual" points="" rotation="0.00" z_order="0"><points '
    'label="1" occluded="0" source="manual" outside="1" points="1,1" z_order="0"></points></skeleton>'
)
LABELS = (
    "<labels><label><name>cat</name><attributes><attribute><name>a1</name><input_type>checkbox</input_type>"
    "<default_value>false</default_value><values>false true</values></attribute></attributes></label>"
    "<label><name>skeleton</name><color>#0c81b5</color><type>skeleton</type><attributes></attributes>"
    "<svg>&lt;line x1=&quot;69&quot; data-type=&quot;edge&quot;&gt;&lt;/line&gt;</svg></label>"
    "<label><name>1</name><color>#d12345</color><type>points</type><parent>skeleton</parent></label></labels>"
)


def checks(path):
    return {each.check: each.count for data in read_splits(Path(path)).values() for each in data.findings}


def test_cvat_project_with_subsets():
    """Capital names of subsets, images with the same names in them, `subsets` in the head."""
    tasks = "".join(
        f"<task><id>3</id><name>t</name><subset>{s}</subset></task>" for s in ("Train", "Validation")
    )
    images = ""
    for subset in ("Train", "Validation"):
        pic(f"d/images/{subset}/img0.jpg")
        size = f'height="120" id="0" name="img0.jpg" subset="{subset}" task_id="39" width="160"'
        line = '<polyline label="cat" points="1.0,2;3,4;5,6;7,8"/>'
        images += f"<image {size}>{BOX}{ATTRIBUTES}</box>{line}{SKELETON}</image>"
    head = (
        f"<meta><project><tasks>{tasks}</tasks><subsets>Train\nValidation</subsets>{LABELS}</project></meta>"
    )
    xml = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{head}{images}</annotations>'
    put("d/annotations.xml", xml)
    assert counts("d") == {"train": 1, "valid": 1}
    assert checks("d")["shape-without-box"] == 2  # of the train split; as many in the other


def test_cvat_video_with_nested_tracks():
    for frame in (10, 13, 16):
        pic(f"d/images/frame_{frame:06d}.PNG")

    def shape(frame, outside, kind="box", more='xtl="40.00" ytl="30.00" xbr="80.00" ybr="60.00"'):
        return f'<{kind} frame="{frame}" outside="{outside}" occluded="0" keyframe="1" {more} z_order="0"></{kind}>'

    points = shape(10, 0, "points", 'points="48.80,111.77"')
    tracks = f'<track id="0" label="cat">{shape(10, 0)}{shape(13, 0)}{shape(16, 0)}</track>'
    tracks += f'<track id="3" label="skeleton" source="manual">{shape(10, 0, "skeleton", "")}'
    tracks += f'<track id="0" label="1" source="manual">{points}</track></track>'
    size = "<original_size><width>160</width><height>120</height></original_size>"
    head = (
        f"<meta><task><start_frame>10</start_frame><frame_filter>step=3</frame_filter>{LABELS}{size}</task>"
    )
    put("d/annotations.xml", f"<annotations><version>1.1</version>{head}</meta>{tracks}</annotations>")
    assert counts("d") == {"train": 3}


def studio_item(kind, value, **more):
    box = {"x": 25, "y": 25, "width": 25, "height": 25, "rotation": 0}
    head = {"original_width": 160, "original_height": 120, "image_rotation": 0, "id": "C7oHaRDVVC"}
    tail = {"from_name": "label", "to_name": "image", "type": kind, "origin": "manual"}
    return head | {"value": box | {kind: value}} | tail | more


@pytest.mark.parametrize("image", ["/data/upload/29/0a1b2c3d-a.jpg", "/a", "s3://bucket/dir/a", "a.jpg"])
def test_label_studio_tasks(image):
    """A choice about a box repeats its numbers; two people's annotations; images without suffix."""
    pic("d/a.jpg")
    result = [
        studio_item("rectanglelabels", ["cat"]),
        studio_item("choices", ["uncertain"], from_name="choices"),
    ]
    annotation = {
        "id": 1, "completed_by": 2, "result": result, "was_cancelled": False, "ground_truth": False,
        "lead_time": 1235.418, "prediction": {}, "result_count": 0, "task": 1, "project": 1,
        "parent_prediction": None, "parent_annotation": None,
    }  # fmt: skip
    second = annotation | {"id": 2, "result": [studio_item("rectanglelabels", ["dog"])]}
    task = {
        "id": 1, "annotations": [annotation, second], "file_upload": "a.jpg", "drafts": [], "predictions": [],
        "data": {"image": image}, "meta": {}, "inner_id": 1, "total_annotations": 2, "comment_authors": [],
    }  # fmt: skip
    put("d/project-1-at-2022-12-27.json", json.dumps([task], indent=4))
    assert counts("d") == {"train": 1}
    assert checks("d")["annotation-repeated"] == 1


def test_label_studio_csv_with_tabs():
    cell = json.dumps(
        [{"x": 25, "y": 25, "width": 25, "height": 25, "rotation": 0, "rectanglelabels": ["cat"]}]
    )
    pic("d/a.jpg")
    names = ("annotation_id", "annotator", "created_at", "id", "image", "label", "lead_time", "updated_at")
    row = (
        "9",
        '"t@x.com"',
        '"2022-11-04"',
        "4",
        '"/data/upload/1/a.jpg"',
        '"' + cell.replace('"', '""') + '"',
        "10.7",
        '"x"',
    )
    put("d/result.csv", "\t".join(f'"{name}"' for name in names) + "\n" + "\t".join(row) + "\n")
    assert counts("d") == {"train": 1}


def test_kitti_of_labelformat():
    """Fields that are not known are -1, -10 and -1000; class names and file names have spaces."""
    for name in ("a-weird Filename.asdf", "aNother-weird__ filename.with.many.characters"):
        pic(f"d/images/{name}.jpg")
        row = "traffic light -1 -1 -10 40.0 30.0 80.0 60.0 -1 -1 -1 -1000 -1000 -1000 -10\n"
        put(f"d/labels/{name}.txt", row)
    assert counts("d", ("traffic light",)) == {"train": 2}


def test_kitti_with_subsets_and_calibration():
    row = "cat 0.00 0 -0.20 40 30 80 60 1.89 0.48 1.20 1.84 1.47 8.41 0.01\n"
    for split, number in (("train", "000000"), ("val", "000001"), ("test", "000002")):
        pic(f"d/image_2/{split}/{number}.png")
        put(f"d/label_2/{split}/{number}.txt", row)
        put(f"d/calib/{split}/{number}.txt", "P0: 7.2e+02 0 6.0e+02 0\nP1: 7.2e+02 0 6.0e+02 0\n")
    assert counts("d") == {"train": 1, "valid": 1, "test": 1}


def test_yolo_lists_of_images_in_the_yaml():
    for split, names in (("train", "ab"), ("val", "c")):
        for n in names:
            pic(f"d/images/{split}/{n}.jpg"), put(f"d/labels/{split}/{n}.txt", ROW)
    put(
        "d/data.yaml",
        "path: .\ntrain:\n  - images/train/a.jpg\n  - images/train/b.jpg\nval:\n  - images/val/c.jpg\n"
        "  - images/val/gone.jpg\n  - more/val\n\nnames:\n  0: cat\n",
    )
    assert counts("d") == {"train": 2, "valid": 1}
    assert checks("d")["image-missing"] == checks("d")["path-missing"] == 1


def test_yolo_list_of_a_darknet_folder():
    pic("d/images/train/1.jpg"), put("d/labels/train/1.txt", ROW)
    put("d/train.txt", "data/images/train/1.jpg\n")
    put("d/data.yaml", "path: .\ntrain: train.txt\n\nnames:\n  0: cat\n")
    assert counts("d") == {"train": 1}


def test_wider_face_without_a_last_line_end():
    for name in ("0--Parade/0_Parade_image_01", "1--Handshaking/1_Handshaking_image_02"):
        pic(f"d/WIDER_train/images/{name}.jpg")
    rows = "40 30 40 30 0 0 0 0 0 0 "
    text = f"0--Parade/0_Parade_image_01.jpg\n1\n{rows}\n1--Handshaking/1_Handshaking_image_02.jpg\n1\n{rows}"
    put("d/wider_face_split/wider_face_train_bbx_gt.txt", text)
    assert counts("d", ("face",)) == {"train": 2}


def test_voc_of_cvat_and_labelformat():
    """labelformat writes the least; CVAT an image without objects or size as "@.xml"."""
    for name in ("a-weird Filename.asdf", "2007_000001", "@"):
        pic(f"d/JPEGImages/{name}.jpg")
    box = "<bndbox><xmin>40.0</xmin><ymin>30.0</ymin><xmax>80.0</xmax><ymax>60.0</ymax></bndbox>"
    for name in ("a-weird Filename.asdf", "2007_000001"):
        put(
            f"d/Annotations/{name}.xml",
            f"<annotation><filename>{name}.jpg</filename><size><width>160</width><height>120</height></size>"
            f"<object><name>cat</name>{box}</object></annotation>",
        )
    put(
        "d/Annotations/@.xml",
        "<annotation>\n  <folder></folder>\n  <filename>@.jpg</filename>\n  <source>\n    <database>Unknown"
        "</database>\n  </source>\n  <segmented>0</segmented>\n</annotation>\n",
    )
    put("d/ImageSets/Main/train.txt", "2007_000001\na-weird Filename.asdf\n@\n\n")
    samples = read_splits(Path("d"))["train"].samples
    assert {s.image_path.stem: s.boxes_xyxy.tolist() for s in samples} == {
        "2007_000001": [[40, 30, 80, 60]], "a-weird Filename.asdf": [[40, 30, 80, 60]], "@": []
    }  # fmt: skip


def test_open_images_folders():
    """Version 6: capital folders, ids without suffix, tables of images and of image labels beside."""
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    for split, name in (("train", "0a1"), ("validation", "0b2"), ("test", "0c3")):
        pic(f"d/{split}/{name}.jpg")
        prefix = "oidv6-train" if split == "train" else split
        put(
            f"d/{prefix}-annotations-bbox.csv",
            f"{head}\n{name},xclick,/m/01yrx,1,0.25,0.5,0.25,0.5,0,0,0,0,0\n",
        )
        put(
            f"d/{split}-annotations-human-imagelabels-boxable.csv",
            f"ImageID,Source,LabelName,Confidence\n{name},verification,/m/01yrx,1\n",
        )
        put(
            f"d/{split}-images-boxable-with-rotation.csv",
            f"ImageID,Subset,OriginalURL,Rotation\n{name},{split},http://x,0.0\n",
        )
    put("d/class-descriptions-boxable.csv", "/m/01yrx,cat\n")
    assert counts("d") == {"train": 1, "valid": 1, "test": 1}
