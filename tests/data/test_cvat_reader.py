"""CVAT for images 1.1 and for video 1.1, in the form of docs.cvat.ai/docs/manual/advanced/xml_format."""

from pathlib import Path

import pytest
from test_real_layouts import checks, counts, in_folder, pic, put  # noqa: F401 (a fixture)

from groundtune.data.formats.detect import read_splits
from groundtune.errors import DataError

BOX = '<box label="cat" source="manual" occluded="0" xtl="40.00" ytl="30.00" xbr="80.00" ybr="60.00" z_order="0"><attribute name="color">red</attribute></box>'
META = """<meta><task><id>1</id><name>farm</name><size>2</size><mode>annotation</mode><subset>{subset}</subset><labels>
<label><name>cat</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
<label><name>nose</name><type>points</type></label></labels></task></meta>"""


def image(name, shapes=BOX, more="", number=0):
    return f'<image id="{number}" name="{name}" {more} width="160" height="120">{shapes}</image>'


def cvat(*images, subset=""):
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>{META.format(subset=subset)}{"".join(images)}</annotations>'


def boxes(path="d"):
    sample = read_splits(Path(path))["train"].samples[0]
    return sample.boxes_xyxy.tolist()


def test_a_task():
    pic("d/images/a.jpg"), pic("d/images/sub/b.jpg")
    put("d/annotations.xml", cvat(image("a.jpg"), image("sub/b.jpg")))
    assert counts("d") == counts("d/annotations.xml") == {"train": 2} and checks("d") == []


def test_a_project_has_subsets():
    for subset, names in (("Train", "ab"), ("Validation", "c"), ("Test", "d")):
        for n in names:
            pic(f"d/images/{subset}/{n}.jpg")
    rows = [
        image(f"{n}.jpg", more=f'subset="{s}" task_id="1"')
        for s, n in (("Train", "a"), ("Train", "b"), ("Validation", "c"), ("Test", "d"))
    ]
    put("d/annotations.xml", cvat(*rows))
    assert counts("d") == {"train": 2, "valid": 1, "test": 1} and checks("d") == []
    put("d/annotations.xml", cvat(*rows, image("e.jpg", more='subset="default" task_id="2"')))
    assert counts("d") == {"train": 2, "valid": 1, "test": 1} and checks("d") == ["image-without-split"]


def test_the_same_name_in_two_subsets():
    for subset in ("train", "val"):
        pic(f"d/images/{subset}/a.jpg")
    put("d/annotations.xml", cvat(*(image("a.jpg", more=f'subset="{s}"') for s in ("train", "val"))))
    splits = read_splits(Path("d"))
    assert {name: each.samples[0].image_path.parent.name for name, each in splits.items()} == {
        "train": "train",
        "valid": "val",
    }


@pytest.mark.parametrize("subset", ["Validation", "val"])
def test_the_subset_of_a_task(subset):
    pic("d/train/images/a.jpg"), pic("d/v/images/b.jpg")
    put("d/train/annotations.xml", cvat(image("a.jpg")))
    put("d/val/annotations.xml", cvat(image("b.jpg"), subset="Train"))  # the folder comes first
    assert counts("d") == {"train": 1, "valid": 1}
    put("e/annotations.xml", cvat(image("b.jpg"), subset=subset)), pic("e/images/b.jpg")
    assert counts("e", needed=[]) == {"valid": 1}


@pytest.mark.parametrize(
    ("shape", "box", "check"),
    [
        # 30 × 40 about the center (60, 45), by 90 degrees: 40 × 30
        ('<box label="cat" xtl="45" ytl="25" xbr="75" ybr="65" rotation="90.00"/>', [40, 30, 80, 60], "rotated-to-boxes"),
        # a square of side 20 about (60, 45), by 45 degrees: a diagonal of 28.284
        ('<box label="cat" xtl="50" ytl="35" xbr="70" ybr="55" rotation="45"/>', [45.858, 30.858, 74.142, 59.142], "rotated-to-boxes"),
        ('<polygon label="cat" points="40.00,45.00;60.00,30.00;80.00,45.00;60.00,60.00"/>', [40, 30, 80, 60], "segments-to-boxes"),
        ('<ellipse label="cat" cx="60" cy="45" rx="20" ry="15"/>', [40, 30, 80, 60], "segments-to-boxes"),
        ('<ellipse label="cat" cx="60" cy="45" rx="15" ry="20" rotation="270"/>', [40, 30, 80, 60], "segments-to-boxes"),
        ('<mask label="cat" rle="0, 1200" left="40" top="30" width="40" height="30"/>', [40, 30, 80, 60], "segments-to-boxes"),
        (
            '<cuboid label="cat" xtl1="40" ytl1="35" xbl1="40" ybl1="60" xtr1="70" ytr1="35" xbr1="70" ybr1="60" '
            'xtl2="50" ytl2="30" xbl2="50" ybl2="50" xtr2="80" ytr2="30" xbr2="80" ybr2="50"/>',
            [40, 30, 80, 60],
            "segments-to-boxes",
        ),
    ],
)  # fmt: skip
def test_other_shapes(shape, box, check):
    pic("d/images/a.jpg"), put("d/annotations.xml", cvat(image("a.jpg", shape)))
    assert boxes() == [pytest.approx(box, abs=1e-3)] and checks("d") == [check]


def test_lines_and_points_have_no_box():
    pic("d/images/a.jpg")
    others = '<polyline label="cat" points="1,1;2,2"/><points label="nose" points="3,3"/><tag label="cat"/><skeleton label="cat"><points label="1" points="1,1"/></skeleton>'
    put("d/annotations.xml", cvat(image("a.jpg", BOX + others)))
    assert counts("d") == {"train": 1}
    (finding,) = read_splits(Path("d"))["train"].findings
    assert finding.check == "shape-without-box" and finding.count == 3


def test_images_without_boxes_and_broken_entries():
    pic("d/images/a.jpg"), pic("d/images/b.jpg")
    broken = '<box label="cat" xtl="x" ytl="30" xbr="80" ybr="60"/><box label="cat" xtl="nan" ytl="1" xbr="2" ybr="2"/><polygon label="cat" points="1;2"/><box xtl="1" ytl="1" xbr="9" ybr="9"/>'
    put("d/annotations.xml", cvat(image("a.jpg", BOX + broken), image("b.jpg", "")))
    assert [len(sample.boxes_xyxy) for sample in read_splits(Path("d"))["train"].samples] == [1, 0]
    assert set(checks("d")) == {"box-not-numbers", "annotation-unknown-category", "segments-to-boxes"}


def test_crowd_flags():
    pic("d/images/a.jpg")
    flagged = (
        '<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"><attribute name="is_crowd">true</attribute></box>'
    )
    put(
        "d/annotations.xml",
        cvat(image("a.jpg", BOX + flagged + flagged.replace("true", "false").replace("9", "8"))),
    )
    assert read_splits(Path("d"))["train"].samples[0].crowd.tolist() == [False, True, False]


def track(*frames, label="cat"):
    shape = '<box frame="{}" keyframe="1" outside="{}" occluded="0" xtl="40.0" ytl="30.0" xbr="80.0" ybr="60.0" z_order="0"/>'
    return f'<track id="0" label="{label}" source="manual">{"".join(shape.format(*frame) for frame in frames)}</track>'


def test_frames_of_a_video():
    size = "<meta><task><original_size><width>160</width><height>120</height></original_size></task></meta>"
    put("d/annotations.xml", f"<annotations>{size}{track((0, 0), (1, 0), (2, 1))}</annotations>")
    with pytest.raises(DataError, match=r"frames \(frame_000000.png\) are missing"):
        read_splits(Path("d"))
    for number in range(4):
        pic(f"d/images/frame_{number:06d}.png")
    samples = read_splits(Path("d"))["train"].samples
    assert [len(sample.boxes_xyxy) for sample in samples] == [1, 1, 0, 0]
    assert samples[1].boxes_xyxy.tolist() == [[40, 30, 80, 60]] and checks("d") == []


def test_frames_between_key_frames_are_skipped():
    for number in range(4):
        pic(f"d/images/frame_{number:06d}.png")
    put("d/annotations.xml", f"<annotations>{track((0, 0), (2, 0))}</annotations>")
    assert [s.image_path.stem[-1] for s in read_splits(Path("d"))["train"].samples] == ["0", "2", "3"]
    assert "image-skipped" in checks("d")


@pytest.mark.parametrize(
    "text",
    [
        "<annotations><image",
        '<!DOCTYPE a [<!ENTITY x "y">]><annotations>&x;</annotations>',
        '<?xml version="1.0" encoding="foo"?><annotations/>',
    ],
)
def test_unreadable_xml(text):
    pic("d/images/a.jpg"), put("d/annotations.xml", text)
    with pytest.raises(DataError, match="is not readable XML"):
        read_splits(Path("d"))
