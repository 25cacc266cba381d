"""Layouts of real exports, each with a red square whose box in COCO is [40, 30, 40, 30]."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundtune.data.formats.convert import convert
from groundtune.data.formats.detect import read_splits
from groundtune.errors import ConfigError, DataError

ROW = "0 0.375 0.375 0.25 0.25\n"


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pic(path, size=(160, 120)):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (len(str(path)) * 7 % 200, 140, 90))
    image.paste((220, 20, 20), (40, 30, 80, 60))
    image.save(path)


def put(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())


def yolo(folder, names):
    for n in names:
        pic(f"{folder}/images/{n}.jpg")
        put(f"{folder}/labels/{n}.txt", ROW)


def coco(names, box=(40, 30, 40, 30), **more):
    images = [{"id": i, "file_name": n, "width": 160, "height": 120} for i, n in enumerate(names)]
    annotation = {"category_id": 1, "bbox": list(box), "area": 1200, "iscrowd": 0} | more
    annotations = [{"id": i, "image_id": i} | annotation for i in range(len(names))]
    return json.dumps(
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    )


def xml(name, box=(40, 30, 80, 60), more=""):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<annotation><filename>{name}</filename>{more}<size><width>160</width><height>120</height>"
        f"<depth>3</depth></size><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    )


def counts(path, classes=("cat",), box=(40, 30, 80, 60), **options):
    """Number of images by split; all boxes and the class names must be right."""
    splits = read_splits(Path(path), **options)
    for dataset in splits.values():
        assert dataset.class_names == list(classes)
        for sample in dataset.samples:
            assert np.abs(sample.boxes_xyxy - np.array(box)).max() < 1e-3, (
                sample.image_path,
                sample.boxes_xyxy,
            )
            assert len(sample.boxes_xyxy) == 1
            with Image.open(sample.image_path) as image:
                assert image.size == (160, 120)
    return {split: len(dataset.samples) for split, dataset in splits.items()}


def checks(path, **options):
    return [
        each.check for dataset in read_splits(Path(path), **options).values() for each in dataset.findings
    ]


def test_images_of_other_splits_are_not_unused():  # F1
    for n in "abcdefghij":
        pic(f"d/images/{n}.jpg")
    put("d/annotations.json", coco([f"{n}.jpg" for n in "abcdefghij"]))
    assert counts("d") == {"train": 10} and checks("d") == []
    pic("d/images/k.jpg")
    assert checks("d") == ["file-unused"]


@pytest.mark.parametrize(
    "prefix", ["NAME-1/", "/content/NAME-1/", "../", "D:/ds/", "/content/drive/MyDrive/ds/", "D:\\\\ds\\\\"]
)
def test_a_data_yaml_that_was_moved(prefix):  # F2
    yolo("NAME-1/train", "abcd"), yolo("NAME-1/valid", "ef"), yolo("NAME-1/test", "g")
    paths = f"test: ../test/images\ntrain: {prefix}train/images\nval: {prefix}valid/images\n"
    put("NAME-1/data.yaml", f"names:\n- cat\nnc: 1\n{paths}")
    assert counts("NAME-1") == {"train": 4, "valid": 2, "test": 1}


@pytest.mark.parametrize(
    ("images", "xmls"),
    [
        ("images", "annotations"),
        ("data", "labels"),
        ("train/images", "train/annotations"),
        ("images", "annots"),
        ("JPEGImages", "xmls"),
        ("Images", "Annotations"),
        ("images/train", "images/train"),
        ("img", "Annotation"),
    ],
)
def test_voc_in_other_folders(images, xmls):  # F3
    for n in "abcd":
        pic(f"d/{images}/{n}.png")
        put(f"d/{xmls}/{n}.xml", xml(f"{n}.png"))
    assert counts("d") == {"train": 4}


def test_yolo_in_other_folders():  # F3
    for n in "ab":
        pic(f"d/Images/{n}.jpg")
        put(f"d/Labels/{n}.txt", ROW)
    put("d/data.yaml", "train: Images\nnames: [cat]\n")
    assert counts("d") == {"train": 2}
    for split, n in (("train", "a"), ("valid", "b")):
        pic(f"e/{split}/{n}.jpg")
        put(f"e/{split}/{n}.txt", ROW)
    put("e/classes.txt", "cat\n")
    assert counts("e") == {"train": 1, "valid": 1}


def test_folders_inside_the_images_of_yolo():
    yolo("d", ["a", "sub/b", "val/c"])
    put("d/classes.txt", "cat\n")
    assert counts("d") == {"train": 2, "valid": 1} and checks("d") == []


def test_a_named_split_is_never_replaced():  # F4
    yolo("d/train", "abcdef"), yolo("d/valid", "gh")
    put("d/data.yaml", "train: ../train/images\nval: /content/d/valid/images\nnames: [cat]\n")
    assert counts("d") == {"train": 6, "valid": 2}
    put("d/data.yaml", "train: ../train/images\nval: /content/d/validd/images\nnames: [cat]\n")
    with pytest.raises(DataError, match="names valid '/content/d/validd/images', which does not exist"):
        read_splits(Path("d"))
    assert counts("d", needed=["train"]) == {"train": 6}


def test_a_faulty_test_split_refuses_only_itself():  # F5
    yolo("a/train", "abcd"), yolo("a/valid", "ef")
    Path("a/test/images").mkdir(parents=True)
    put("a/data.yaml", "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat]\n")
    assert counts("a") == {"train": 4, "valid": 2}
    for s in ("train", "valid", "test"):
        pic(f"b/{s}/x.jpg")
        put(f"b/{s}/_annotations.coco.json", coco(["x.jpg"]))
    images = [{"id": 1, "file_name": "x.jpg", "width": 160, "height": 120}]
    put(
        "b/test/_annotations.coco.json",
        json.dumps({"images": images, "categories": [{"id": 1, "name": "cat"}]}),
    )
    assert counts("b") == {"train": 1, "valid": 1}
    for n in "abcdef":
        pic(f"c/JPEGImages/{n}.jpg")
    for n in "abcd":
        put(f"c/Annotations/{n}.xml", xml(f"{n}.jpg"))
    for name, text in (("train", "a\nb\nc\n"), ("val", "d\n"), ("test", "e\nf\n")):
        put(f"c/ImageSets/Main/{name}.txt", text)
    assert counts("c") == {"train": 3, "valid": 1}
    for n in "abcd":
        pic(f"k/train/{n}.jpg")
    put(
        "k/train.csv",
        "image_id,class,x_min,y_min,x_max,y_max\n" + "".join(f"{n}.jpg,cat,40,30,80,60\n" for n in "abcd"),
    )
    put("k/test.csv", "image_id\ne.jpg\n")
    assert counts("k") == {"train": 4}
    for folder, reason in (
        ("a", "test/images"),
        ("b", "'annotations' is missing"),
        ("c", "test.txt names 2"),
        ("k", "test.csv"),
    ):
        refused = [
            each for each in read_splits(Path(folder))["train"].findings if each.check == "data-unreadable"
        ]
        assert len(refused) == 1 and reason in str(refused[0])
        with pytest.raises(DataError, match=reason):
            read_splits(Path(folder), needed=["test"])


def test_trainval_is_the_training_split():  # F6
    for n in "abcdef":
        pic(f"d/images/{n}.jpg"), pic(f"v/JPEGImages/{n}.jpg")
        put(f"v/Annotations/{n}.xml", xml(f"{n}.jpg"))
    put("d/annotations/trainval.json", coco([f"{n}.jpg" for n in "abcd"]))
    put("d/annotations/test.json", coco(["e.jpg", "f.jpg"]))
    put("v/ImageSets/Main/trainval.txt", "a\nb\nc\nd\n"), put("v/ImageSets/Main/test.txt", "e\nf\n")
    assert counts("d") == counts("v") == {"train": 4, "test": 2}


@pytest.mark.parametrize(
    ("word", "split"), [("dev", "valid"), ("minival", "valid"), ("eval", "valid"), ("Val", "valid")]
)
def test_words_for_splits(word, split):  # F6
    for n in "abc":
        pic(f"d/images/{n}.jpg")
    put("d/annotations/instances_train.json", coco(["a.jpg", "b.jpg"]))
    put(f"d/annotations/my_{word}2017.json", coco(["c.jpg"]))
    assert counts("d") == {"train": 2, split: 1}


def odvg(names):
    instance = {"bbox": [40, 30, 80, 60], "label": 0, "category": "cat"}
    rows = [
        {"filename": f"{n}.jpg", "height": 120, "width": 160, "detection": {"instances": [instance]}}
        for n in names
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt"])
def test_odvg_of_mmdetection(suffix):  # F7
    for n in "abcd":
        pic(f"d/train/{n}.jpg")
    put(f"d/set_train_od{suffix}", odvg("abcd")), put("d/set_label_map.json", '{"0": "cat"}')
    assert counts("d") == counts(f"d/set_train_od{suffix}") == {"train": 4}


def test_odvg_for_training_and_coco_for_validation():  # F8
    for n in "abcd":
        pic(f"d/images/{n}.jpg")
    put("d/train.jsonl", odvg("abc")), put("d/val.json", coco(["d.jpg"]))
    assert counts("d") == {"train": 3, "valid": 1}


def test_a_data_yaml_without_or_with_capital_split_keys():  # F9
    yolo("s", "abcd")
    put("s/data.yaml", "nc: 1\nnames: [cat]\n")
    for s, ns in (("Train", "abcd"), ("Validation", "ef")):
        for n in ns:
            pic(f"c/images/{s}/{n}.jpg"), put(f"c/labels/{s}/{n}.txt", ROW)
        put(f"c/{s}.txt", "".join(f"images/{s}/{n}.jpg\n" for n in ns))
    put("c/data.yaml", "Train: Train.txt\nValidation: Validation.txt\nnames: {0: cat}\npath: .\n")
    assert counts("s") == counts("s/data.yaml") == {"train": 4}
    assert counts("c") == counts("c/data.yaml") == {"train": 4, "valid": 2}


def test_darknet_and_lists_with_a_folder_in_front():  # F10
    for n in "abcd":
        pic(f"d/obj_train_data/{n}.jpg"), put(f"d/obj_train_data/{n}.txt", ROW)
        pic(f"u/images/train/{n}.jpg"), put(f"u/labels/train/{n}.txt", ROW)
    put("d/obj.names", "cat\n")
    put("d/obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    put("d/train.txt", "".join(f"data/obj_train_data/{n}.jpg\n" for n in "abcd"))
    put("u/train.txt", "".join(f"data/images/train/{n}.jpg\n" for n in "abcd"))
    put("u/data.yaml", "path: .\ntrain: train.txt\nnames: {0: cat}\n")
    assert counts("d") == counts("u") == {"train": 4}


OTHER_PLACES = [
    "images\\1/{}.jpg",
    "..\\..\\label-studio\\media\\upload\\4\\{}.jpg",
    "/home/u/d/images/{}.jpg",
]
OTHER_PLACES += ["data/images/{}.jpg", "D:\\ds\\{}.jpg", "imag%65s/{}.jpg", "file:///x/{}.jpg"]


@pytest.mark.parametrize("made", OTHER_PLACES)
def test_paths_of_other_places(made):  # F11
    for n in "ab":
        pic(f"d/images/{n}.jpg"), pic(f"c/images/{n}.jpg")
    put("d/result.json", coco([made.format(n) for n in "ab"]))
    put("c/a.csv", "path,class,x1,y1,x2,y2\n" + "".join(f"{made.format(n)},cat,40,30,80,60\n" for n in "ab"))
    assert counts("d") == counts("c") == {"train": 2}
    assert checks("d") == ["image-path-resolved"]


def test_an_ambiguous_path_names_both_candidates():  # F11
    for folder in ("s1", "s2"):
        pic(f"d/{folder}/a.jpg")
    put("d/a.json", coco(["/x/a.jpg"]))
    with pytest.raises(DataError, match=r"fit several files.*s1/a.jpg or s2/a.jpg"):
        read_splits(Path("d"))
    put("d/a.json", coco(["/x/s2/a.jpg"]))
    assert read_splits(Path("d"))["train"].samples[0].image_path == Path("d/s2/a.jpg")


def test_an_image_of_another_split_is_not_taken_for_a_missing_one():
    for split, n in (("train", "a"), ("train", "b"), ("valid", "c")):
        pic(f"d/{split}/{n}.jpg")
    put("d/train/_annotations.coco.json", coco(["a.jpg", "b.jpg", "c.jpg"]))
    put("d/valid/_annotations.coco.json", coco(["c.jpg"]))
    assert counts("d") == {"train": 2, "valid": 1}
    assert "image-missing" in checks("d")


FORK = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(96)


def test_hidden_files_do_not_count():  # F14, F15
    yolo("d/train", "abcd"), yolo("d/valid", "ef")
    put("d/data.yaml", "train: train/images\nval: valid/images\nnames: [cat]\n")
    for hidden in (
        "images/._a.jpg",
        "labels/._a.txt",
        "images/.DS_Store",
        "images/Thumbs.db",
        "images/@eaDir/a.jpg",
    ):
        put(f"d/train/{hidden}", FORK)
    put("d/train/images/.ipynb_checkpoints/a-checkpoint.jpg", Path("d/train/images/a.jpg").read_bytes())
    put("d/__MACOSX/train/images/._a.jpg", FORK)
    for n in "ab":
        pic(f"v/JPEGImages/{n}.jpg"), put(f"v/Annotations/{n}.xml", xml(f"{n}.jpg"))
    put("v/Annotations/._a.xml", FORK)
    pic("c/a.jpg"), put("c/annotations.json", coco(["a.jpg"])), put("c/._annotations.json", FORK)
    put("c/.~lock.train.csv#", "x")
    assert counts("d") == {"train": 4, "valid": 2}
    assert counts("v") == {"train": 2} and counts("c") == {"train": 1}


def test_one_file_of_something_else_decides_nothing():  # F16
    for s, ns in (("train", "abcd"), ("val", "ef")):
        yolo(f"n/{s}", ns)
        put(f"n/{s}/classes.txt", "cat\n")
        put(f"n/{s}/notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {}}')
    put("n/data.yaml", "train: train/images\nval: val/images\nnames: [cat]\n")
    (
        yolo("t", "abcd"),
        put("t/data.yaml", "train: images\nnames: [cat]\n"),
        put("t/train.csv", "id,weather\na,sunny\n"),
    )
    assert counts("n") == {"train": 4, "valid": 2} and counts("t") == {"train": 4}
    for n in "ab":
        pic(f"c/{n}.jpg")
    put("c/train.json", coco(["a.jpg"])), put("c/val.json", '{"lr": 0.1}'), put("c/package.json", "{}")
    assert counts("c") == {"train": 1}


def test_two_formats_ask_which():
    yolo("d", "ab"), put("d/classes.txt", "cat\n"), put("d/a.json", coco(["a.jpg", "b.jpg"]))
    with pytest.raises(DataError, match="--format coco or --format yolo"):
        read_splits(Path("d"))
    assert counts("d", format="yolo") == counts("d", format="coco") == {"train": 2}
    with pytest.raises(ConfigError, match="Did you mean coco"):
        read_splits(Path("d"), format="cocoo")


@pytest.mark.parametrize("suffix", ["avif", "jp2", "ppm", "jpe", "gif", "bmp", "tif", "webp", "JPG", "jfif"])
def test_all_kinds_of_images_in_yolo(suffix):  # F18
    yolo("d/train", "ab"), put("d/data.yaml", "train: train/images\nnames: [cat]\n")
    pic(f"d/train/images/p.{suffix}"), put("d/train/labels/p.txt", ROW)
    assert counts("d") == {"train": 3}


def test_suspicious_boxes_are_not_converted():  # F22
    for n in "abcd":
        pic(f"d/{n}.jpg")
    put("d/a.json", coco([f"{n}.jpg" for n in "abcd"], box=(100, 60, 140, 110)))
    with pytest.raises(DataError, match="look like corners"):
        convert(Path("d"), Path("out"), "coco", link=False, input_format=None)
    assert not Path("out").exists()


@pytest.mark.parametrize("stated", ["{}.jpg", "", "{}.png", "{}"])
def test_suffixes_in_other_letter_case(stated):  # F24
    for n in "ab":
        pic(f"d/JPEGImages/{n}.JPG")
        put(f"d/Annotations/{n}.xml", xml(stated.format(n)))
        pic(f"c/{n}.JPG")
    put("c/a.json", coco([(stated or "{}").format(n) for n in "ab"]))
    assert counts("d") == counts("c") == {"train": 2}


HEAD = "filename,image_width,image_height,x,y,width,height,label\n"
CSV = {
    "image size first": HEAD + "a.jpg,160,120,40,30,40,30,cat\n",  # F26
    "two labels": "image,label,label_name,xmin,ymin,xmax,ymax\na.jpg,0,cat,40,30,80,60\n",  # F27
    "two labels again": "image,category,class,xmin,ymin,xmax,ymax\na.jpg,cat,7,40,30,80,60\n",
    "in a cell": 'image_id,width,height,bbox,source\na,160,120,"[40.0, 30.0, 40.0, 30.0]",cat\n',  # F28
    "sizes": "image,xmin,ymin,width,height,label\na.jpg,40,30,40,30,cat\n",
    "no suffix": "image_id,class_name,x_min,y_min,x_max,y_max\na,cat,40,30,80,60\n",
    "SKU-110K": "a.jpg,40,30,80,60,cat,160,120\n",
    "quoted": "image,xmin,ymin,xmax,ymax,label\nimage%20(1).jpg,40,30,80,60,cat\n",
    "Open Images": "ImageID,LabelName,XMin,XMax,YMin,YMax\na.jpg,cat,0.25,0.5,0.25,0.5\n",
}


@pytest.mark.parametrize("name", CSV)
def test_forms_of_csv(name):
    pic("d/a.jpg"), pic("d/image (1).jpg")
    put("d/a.csv", CSV[name])
    assert counts("d") == {"train": 1}


def test_names_of_open_images():
    pic("d/train/a.jpg")
    put("d/train-annotations-bbox.csv", CSV["Open Images"].replace("cat", "/m/01yrx").replace("a.jpg", "a"))
    put("d/class-descriptions-boxable.csv", "/m/01yrx,cat\n/m/0bt9lr,dog\n")
    assert counts("d") == {"train": 1}


RLE = {"size": [120, 160], "counts": [40 * 120 + 30] + [30, 90] * 39 + [30, 120 * 80 + 60]}


@pytest.mark.parametrize(
    "outline", [[[40, 30, 80, 30, 80, 60, 40, 60]], [[40, 30, 60, 30, 60, 60], [60, 30, 80, 60, 80, 40]], RLE]
)
def test_the_box_of_an_outline(outline):  # F29
    pic("d/a.jpg"), pic("d/b.jpg")
    content = json.loads(coco(["a.jpg", "b.jpg"], segmentation=outline))
    del content["annotations"][0]["bbox"]
    content["annotations"][1]["bbox"] = []
    put("d/a.json", json.dumps(content))
    assert counts("d") == {"train": 2}


@pytest.mark.parametrize("field", ["ignore", "iscrowd"])
def test_ignored_boxes(field):  # F30
    pic("d/a.jpg"), put("d/a.json", coco(["a.jpg"], **{field: 1}))
    dataset = read_splits(Path("d"))["train"]
    assert dataset.samples[0].crowd.tolist() == [True] and checks("d") == ["crowd-regions"]


def test_several_entries_of_an_image_are_joined():  # F31
    for n in "ab":
        pic(f"d/{n}.jpg")
    content = json.loads(coco(["a.jpg", "a.jpg", "b.jpg"]))
    content["annotations"][0]["bbox"] = [1, 1, 20, 20]
    put("d/a.json", json.dumps(content))
    a, b = read_splits(Path("d"))["train"].samples
    assert a.boxes_xyxy.tolist() == [[1, 1, 21, 21], [40, 30, 80, 60]] and len(b.boxes_xyxy) == 1
    assert checks("d") == ["image-entry-twice"]


@pytest.mark.parametrize("database", ["The VOC2007 Database", "roboflow.ai", "PASCAL VOC2012"])
def test_voc_counts_from_one(database):  # F32
    more = f"<source><database>{database}</database></source>"
    pic("d/JPEGImages/a.jpg"), put("d/Annotations/a.xml", xml("a.jpg", (41, 31, 80, 60), more))
    assert counts("d") == {"train": 1}


def test_voc_of_supervision():  # F32
    import supervision as sv

    pic("src.jpg")
    box = sv.Detections(xyxy=np.array([[40.0, 30.0, 80.0, 60.0]]), class_id=np.array([0]))
    written = sv.DetectionDataset(classes=["cat"], images=["src.jpg"], annotations={"src.jpg": box})
    written.as_pascal_voc(images_directory_path="d/JPEGImages", annotations_directory_path="d/Annotations")
    assert counts("d") == {"train": 1}


def test_lists_of_paddle():  # F34
    for home, ann in (("d", "Annotations"), ("e", "annotations")):
        for n in "abcd":
            pic(f"{home}/images/{n}.jpg"), put(f"{home}/{ann}/{n}.xml", xml(f"{n}.jpg"))
        put(f"{home}/train.txt", "".join(f"./images/{n}.jpg ./{ann}/{n}.xml\n" for n in "abc"))
        put(f"{home}/valid.txt", f"./images/d.jpg ./{ann}/d.xml\n"), put(f"{home}/label_list.txt", "cat\n")
        assert counts(home) == {"train": 3, "valid": 1}


@pytest.mark.parametrize(
    "row", ["0 0.375 0.375 0.25 0.25 0.30 0.30 0.40 0.40\n", "0 0.375 0.375 0.25 0.25 0.3 0.3 2 0.4 0.4 1\n"]
)
def test_key_points_without_their_shape(row):  # F36
    yolo("d/train", "ab"), put("d/data.yaml", "train: train/images\nnames: [cat]\n")
    for n in "ab":
        put(f"d/train/labels/{n}.txt", row)
    assert counts("d") == {"train": 2} and checks("d") == ["key-points-ignored"]


def test_rotated_boxes_are_outlines():
    yolo("d/train", "a"), put("d/data.yaml", "train: train/images\nnames: [cat]\n")
    put("d/train/labels/a.txt", "0 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5\n")
    assert counts("d") == {"train": 1} and checks("d") == ["segments-to-boxes"]


def test_an_empty_line_in_a_file_of_names_is_no_class():
    yolo("d", "a"), put("d/classes.txt", "cat\n\n")
    assert counts("d") == {"train": 1}
