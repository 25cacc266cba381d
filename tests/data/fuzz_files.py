"""Small data sets of every format, and ways to corrupt their annotation files."""

import json
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fuzz_sets
from coco_files import coco, image
from fuzz_structure import change

NAMES = ["a.png", "b.png", "c.png"]
CAPTION = "a left cat . the red dog . nothing"

VOC = """<?xml version="1.0"?>
<annotation><folder>x</folder><filename>{name}</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12.5</xmax><ymax>15</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>39</xmax><ymax>29</ymax></bndbox></object></annotation>
"""


def coco_set(folder: Path) -> list[Path]:
    boxes = [(1, 1, [2, 3, 10, 12]), (2, 7, [1, 1, 30, 20]), (3, 1, [0.5, 0, 1.25, 30])]
    content = coco(NAMES, boxes, [(1, "cat"), (7, "dog")])
    (folder / "labels.json").write_text(json.dumps(content))
    return [folder / "labels.json"]


def tokens_set(folder: Path) -> list[Path]:
    content = coco(NAMES, [(1, 1, [2, 3, 10, 12]), (2, 1, [1, 1, 30, 20])], [(1, "object")])
    for entry in content["images"]:
        entry["caption"] = CAPTION
    content["images"][0]["tokens_positive_eval"] = [[[0, 10]], [[13, 24]]]
    content["annotations"][0]["tokens_positive"] = [[2, 6], [7, 10]]
    content["annotations"][1]["tokens_positive"] = [[13, 24]]
    (folder / "refs.json").write_text(json.dumps(content))
    return [folder / "refs.json"]


def odvg_set(folder: Path) -> list[Path]:
    detection = {
        "instances": [
            {"bbox": [2, 3, 12, 15], "label": 0, "category": "cat"},
            {"bbox": [0, 0, 9, 9], "label": 1},
        ]
    }
    grounding = {
        "caption": CAPTION,
        "regions": [
            {"bbox": [2, 3, 12, 15], "phrase": "left cat"},
            {"bbox": [], "phrase": "dog", "tokens_positive": [[13, 24]]},
        ],
    }
    rows = [{"filename": "a.png", "height": 30, "width": 40, "detection": detection}]
    rows += [{"filename": "b.png", "height": 30, "width": 40, "grounding": grounding}]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "label_map.json").write_text('{"0": "cat", "1": "dog"}')
    return [folder / "data.jsonl", folder / "label_map.json"]


def yolo_set(folder: Path) -> list[Path]:
    files = [folder / "data.yaml", folder / "val.txt"]
    files[0].write_text("path: .\ntrain: images\nval: val.txt\nnc: 2\nnames:\n  0: cat\n  1: 'red dog'\n")
    files[1].write_text("images/a.png\n./images/b.png\n")
    for name in NAMES:
        image(folder / "images" / name)
        files.append(folder / "labels" / f"{name[0]}.txt")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text("0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.2 0.1 0.3 0.3 0.4 0.2\n")
    return files


def voc_set(folder: Path) -> list[Path]:
    files = []
    for place in ("Annotations", "ImageSets/Main"):
        (folder / place).mkdir(parents=True)
    for name in NAMES:
        image(folder / "JPEGImages" / name)
        files.append(folder / "Annotations" / f"{name[0]}.xml")
        files[-1].write_text(VOC.format(name=name))
    for split, stems in (("train", "a\nb\n"), ("val", "c  1\n")):
        files.append(folder / "ImageSets/Main" / f"{split}.txt")
        files[-1].write_text(stems)
    return files


def csv_set(folder: Path) -> list[Path]:
    rows = "a.png,40,30,cat,2,3,12,15\nb.png,40,30,dog,1,1,31,21\nc.png,40,30,,,,,\n"
    (folder / "boxes.csv").write_text("filename,width,height,class,xmin,ymin,xmax,ymax\n" + rows)
    return [folder / "boxes.csv"]


def retinanet_set(folder: Path) -> list[Path]:
    (folder / "boxes.csv").write_text("a.png,2,3,12,15,cat\nb.png,1,1,31,21,dog\nc.png,,,,,\n")
    return [folder / "boxes.csv"]


CVAT = """<?xml version="1.0"?>
<annotations><version>1.1</version><meta><task><labels><label><name>cat</name></label></labels></task></meta>
<image id="0" name="a.png" subset="train" width="40" height="30"><box label="cat" xtl="2" ytl="3" xbr="12.5" ybr="15" rotation="9.5"/></image>
<image id="1" name="b.png" subset="train" width="40" height="30"><polygon label="dog" points="1,1;9,1;9,9"/><points label="dog" points="1,1"/></image>
<image id="2" name="c.png" subset="val" width="40" height="30"><ellipse label="cat" cx="9" cy="9" rx="3" ry="4"/></image></annotations>
"""


def cvat_set(folder: Path) -> list[Path]:
    (folder / "annotations.xml").write_text(CVAT)
    return [folder / "annotations.xml"]


def labelme_set(folder: Path) -> list[Path]:
    shapes = [
        {
            "label": "cat",
            "points": [[12, 15], [2, 3]],
            "shape_type": "rectangle",
            "group_id": None,
            "flags": {},
        }
    ]
    shapes += [{"label": "dog", "points": [[9, 9], [9, 14]], "shape_type": "circle", "group_id": 1}]
    shapes += [{"label": "dog", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon", "group_id": 1}]
    for name in NAMES:
        content = {
            "shapes": shapes,
            "imagePath": name,
            "imageData": None,
            "imageHeight": 30,
            "imageWidth": 40,
        }
        (folder / f"{name[0]}.json").write_text(json.dumps(content))
    return [folder / f"{name[0]}.json" for name in NAMES]


def label_studio_set(folder: Path) -> list[Path]:
    value = {"x": 5, "y": 10, "width": 25, "height": 40, "rotation": 10, "rectanglelabels": ["cat"]}
    other = {"points": [[1, 1], [9, 1], [9, 9]], "polygonlabels": ["dog"]}
    result = [
        {"original_width": 40, "original_height": 30, "image_rotation": 0, "to_name": "i", "value": v}
        for v in (value, other)
    ]
    tasks = [
        {
            "id": i,
            "data": {"image": f"/data/upload/1/0a1b2c3d-{n}?d={n}"},
            "annotations": [{"result": result, "was_cancelled": False}],
            "predictions": [],
        }
        for i, n in enumerate(NAMES)
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return [folder / "tasks.json"]


def label_studio_csv_set(folder: Path) -> list[Path]:
    cell = '[{""x"": 5, ""y"": 10, ""width"": 25, ""height"": 40, ""original_width"": 40, ""original_height"": 30, ""rectanglelabels"": [""cat""]}]'
    rows = "".join(f'{i},{n},{i},"{cell}"\n' for i, n in enumerate(NAMES))
    (folder / "tasks.csv").write_text("annotation_id,image,id,label\n" + rows)
    return [folder / "tasks.csv"]


def via_set(folder: Path) -> list[Path]:
    shapes = [{"name": "rect", "x": 2, "y": 3, "width": 10, "height": 12}]
    shapes += [{"name": "ellipse", "cx": 9, "cy": 9, "rx": 3, "ry": 4, "theta": 0.3}]
    shapes += [{"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]}]
    regions = [
        {"shape_attributes": shape, "region_attributes": {"class": "cat", "id": 3}} for shape in shapes
    ]
    images = {name: {"filename": name, "size": 9, "regions": regions} for name in NAMES}
    attributes = {"region": {"class": {"options": {"cat": "Cat"}}}}
    (folder / "via.json").write_text(json.dumps({"_via_img_metadata": images, "_via_attributes": attributes}))
    return [folder / "via.json"]


def via_csv_set(folder: Path) -> list[Path]:
    row = '{},9,{{}},1,0,"{{""name"":""rect"",""x"":2,""y"":3,""width"":9,""height"":9}}","{{""class"":""cat""}}"\n'
    head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    (folder / "via.csv").write_text(head + "".join(row.format(name) for name in NAMES))
    return [folder / "via.csv"]


def createml_set(folder: Path) -> list[Path]:
    box = {"label": "cat", "coordinates": {"x": 9, "y": 9, "width": 10, "height": 12}}
    (folder / "a.json").write_text(json.dumps([{"image": name, "annotations": [box]} for name in NAMES]))
    return [folder / "a.json"]


LINES = {
    "kitti": "cat 0.0 0 -1.5 2.0 3.0 12.5 15.0 1.6 1.7 3.9 -1.2 1.8 30.7 -1.6\nDontCare -1 -1 -10 1 1 9 9 -1 -1 -1 -1 -1 -1 -1\n",
    "visdrone": "2,3,10,12,1,4,0,0\n1,1,9,9,0,0,0,0\n",
    "dota": "imagesource:GoogleEarth\ngsd:0.1\n2 3 12 3 12 15 2 15 cat 0\n1 1 9 1 9 9 1 9 red-dog 1\n",
}


def lines_set(folder: Path, kind: str) -> list[Path]:
    files = []
    for split, name in zip(("train", "train", "val"), NAMES, strict=True):
        image(folder / split / "images" / name)
        files.append(folder / split / "labels" / f"{name[0]}.txt")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text(LINES[kind])
    return files


def wider_set(folder: Path) -> list[Path]:
    rows = "a.png\n2\n2 3 10 12 0 0 0 0 0 0\n1 1 9 9 0 0 0 1 0 0\nb.png\n0\n0 0 0 0 0 0 0 0 0 0\n"
    (folder / "faces_train.txt").write_text(rows)
    return [folder / "faces_train.txt"]


def json_lines_set(folder: Path, name: str, rows: list[dict]) -> list[Path]:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / name]


NDJSON = [{"type": "dataset", "task": "detect", "class_names": {"0": "cat", "1": "dog"}}] + [
    {"type": "image", "file": "a.png", "split": "train", "width": 40, "height": 30, "annotations": {"boxes": [[0, 0.5, 0.5, 0.2, 0.4]]}},
    {"type": "image", "file": "b.png", "split": "train", "annotations": {"segments": [[1, 0.1, 0.1, 0.2, 0.1, 0.3, 0.3]]}},
    {"type": "image", "file": "c.png", "split": "val", "annotations": {"pose": [[1, 0.5, 0.5, 0.2, 0.4, 0.5, 0.5, 2]]}},
]  # fmt: skip
PALIGEMMA = [
    {"image": "a.png", "prefix": "detect cat ; dog", "suffix": "<loc0100><loc0100><loc0300><loc0400> cat ; <loc0000><loc0000><loc0300><loc0400> dog"},
    {"image": "b.png", "prefix": "<OD>", "suffix": "cat<loc_10><loc_20><loc_300><loc_400>dog<loc_1><loc_2><loc_500><loc_600>"},
]  # fmt: skip
HF = [
    {"file_name": "a.png", "objects": {"bbox": [[2, 3, 10, 12]], "category": [1]}},
    {"file_name": "b.png", "objects": [{"bbox": [1, 1, 9, 9], "category": 0, "iscrowd": 1}]},
]
README = "---\ndataset_info:\n  features:\n  - name: objects\n    struct:\n    - name: category\n      dtype:\n        class_label:\n          names:\n            '0': cat\n            '1': dog\n---\n"


def hf_set(folder: Path) -> list[Path]:
    (folder / "README.md").write_text(README)
    return [*json_lines_set(folder, "metadata.jsonl", HF), folder / "README.md"]


def hf_csv_set(folder: Path) -> list[Path]:
    objects = json.dumps({"bbox": [[2, 3, 10, 12]], "category": ["cat"]}).replace('"', '""')
    rows = "".join(f'{name},"{objects}"\n' for name in NAMES)
    (folder / "metadata.csv").write_text("file_name,objects\n" + rows)
    return [folder / "metadata.csv"]


SETS: dict[str, Callable[[Path], list[Path]]] = {
    "coco": coco_set,
    "tokens_positive": tokens_set,
    "odvg": odvg_set,
    "yolo": yolo_set,
    "voc": voc_set,
    "csv": csv_set,
    "retinanet": retinanet_set,
    "cvat": cvat_set,
    "labelme": labelme_set,
    "label_studio": label_studio_set,
    "label_studio_csv": label_studio_csv_set,
    "via": via_set,
    "via_csv": via_csv_set,
    "createml": createml_set,
    "kitti": partial(lines_set, kind="kitti"),
    "visdrone": partial(lines_set, kind="visdrone"),
    "dota": partial(lines_set, kind="dota"),
    "wider": wider_set,
    "ndjson": partial(json_lines_set, name="set.ndjson", rows=NDJSON),
    "paligemma": partial(json_lines_set, name="annotations.jsonl", rows=PALIGEMMA),
    "hf": hf_set,
    "hf_csv": hf_csv_set,
    **{name.removesuffix("_set"): make for name, make in vars(fuzz_sets).items() if name.endswith("_set")},
}
OWN_IMAGES = {"yolo", "voc", "darknet", "yolo_folders", "tracks", "parquet", "zip", "tar", *LINES}


def make_set(kind: str, folder: Path) -> list[Path]:
    """Write a valid data set; return its annotation files."""
    folder.mkdir(parents=True)
    for name in NAMES if kind not in OWN_IMAGES else ():
        image(folder / name)
    return SETS[kind](folder)


_VALUES = [
    "NaN", "Infinity", "-1e999", "1e308", "9" * 400, "-0", "null", "true", "[]", "{}", '""', '"\\ud800"', "[[[[]]]]",
    '"../../outside.png"', '"/etc/passwd"', '"a\\u0000b"', '"' + "x" * 5000 + '"', "1e-320", "-5", "3.7", '{"id": 1}',
]  # fmt: skip
_RAW = [
    b"../../outside.png", b"/etc/passwd", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", "\u202e\u0131\U0001f600".encode(), b"nan",
    b"inf", b"1e999", b"-", b"*", b"&a", b"!!python/object/apply:os.system ['touch /tmp/owned']", b"<![CDATA[", b"&x;", b"]]>",
    b'"', b"{", b"[", b"\r", b"\t", b",", b":", b"- - - -", b"? ", b"% ",
]  # fmt: skip
_BOMB = b'<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;"><!ENTITY s SYSTEM "file:///etc/passwd">]>'


def mutate(content: bytes, name: str, rng: random.Random) -> bytes:
    """Change the structure of a file once or twice, or corrupt it in one to four ways."""
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 2)):
            content = change(content, name, rng)
        return content
    for _ in range(rng.randint(1, 4)):
        content = rng.choice(_WAYS)(content, rng)
    return content


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _flip(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 8) if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(_RAW) * rng.choice([1, 1, 1, 50]) + content[at:]


def _nest(content: bytes, rng: random.Random) -> bytes:
    depth = rng.choice([50, 3000, 100_000])
    opening, closing = rng.choice(
        [(b"[", b"]"), (b'{"a":', b"}"), (b"<a>", b"</a>"), (b"- ", b""), (b"(", b")")]
    )
    at = rng.randrange(len(content) + 1)
    nested = opening * depth + (b"1" + closing * depth if rng.random() < 0.7 else b"")
    return rng.choice([nested, content[:at] + nested + content[at:]])


def _encode(content: bytes, rng: random.Random) -> bytes:
    return content.decode("latin-1").encode(
        rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7", "cp037", "utf-8-sig"])
    )


def _token(content: bytes, rng: random.Random) -> bytes:
    """Replace one number, word or text by a value of another kind."""
    found = list(re.finditer(rb'"[^"]*"|-?\d+\.?\d*|\w+', content))
    if not found:
        return content
    match = rng.choice(found)
    return content[: match.start()] + rng.choice(_VALUES).encode() + content[match.end() :]


def _shuffle(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines + lines[: rng.randint(0, 2)])


def _bomb(content: bytes, rng: random.Random) -> bytes:
    return rng.choice([_BOMB + content, content.replace(b"<annotation>", _BOMB + b"<annotation>&y;&s;"), b""])


_WAYS = [_cut, _flip, _insert, _nest, _encode, _token, _token, _token, _shuffle, _bomb]
