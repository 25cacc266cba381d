"""Paths in data sets and models stay in their folders; all output is in the folder that the user
named.
"""

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from coco_files import coco, image
from fuzz_files import SETS, make_set
from PIL import Image
from supervision import Detections

from groundtune.config import DATA_FORMATS as FORMATS
from groundtune.data.formats.convert import convert
from groundtune.data.formats.detect import load_splits
from groundtune.errors import DataError
from groundtune.predict.video import Frame, VideoStream
from groundtune.predict.writers import Results

NAMES = ["a.png", "b.png", "c.png"]
LEADING_OUT = ["../secret.png", "sub/../../secret.png", "..\\secret.png", "./../secret.png"]
LEADING_OUT += ["/etc/passwd", "//etc/passwd"]
LEADING_OUT += ["file:///etc/passwd", "http://127.0.0.1:9/secret.png", "C:\\secret.png"]
LEADING_OUT += ["~/secret.png", "$HOME/secret.png"]


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", LEADING_OUT)
@pytest.mark.parametrize("kind", sorted({*SETS} - {"parquet", "zip", "tar"}))  # text files
def test_no_format_reads_an_image_outside_its_folder(tmp_path: Path, kind: str, name: str) -> None:
    files = make_set(kind, tmp_path / "data")
    image(tmp_path / "secret.png")
    for path in files:
        text = path.read_text()
        path.write_text(
            text.replace("a.png", json.dumps(name)[1:-1] if path.suffix in (".json", ".jsonl") else name)
        )
    try:
        splits = load_splits(tmp_path / "data")
    except DataError:
        return
    paths = [sample.image_path.resolve() for dataset in splits.values() for sample in dataset.samples]
    assert all(path.is_relative_to(tmp_path / "data") and "secret" not in path.name for path in paths)


@pytest.mark.parametrize(
    "text",
    [
        "train: ../secret\n",
        "train: {root}/secret\n",
        "path: ..\ntrain: secret\n",
        "path: {root}/secret\ntrain: .\n",
    ]
    + ["train: [images, ../secret]\n", "train: ../secret/list.txt\n", "train: list.txt\n"],
)
def test_a_yolo_file_names_no_folder_outside_its_own(tmp_path: Path, text: str) -> None:
    make_set("yolo", tmp_path / "data")
    image(tmp_path / "secret/secret.png")
    (tmp_path / "secret/list.txt").write_text("secret.png\n")
    (tmp_path / "data/list.txt").write_text(
        f"../secret/secret.png\n{tmp_path}/secret/secret.png\nimages/a.png\n"
    )
    (tmp_path / "data/data.yaml").write_text(text.format(root=tmp_path) + "names: [cat, red dog]\n")
    try:
        splits = load_splits(tmp_path / "data", keep_going=True)
    except DataError:
        return
    assert all(
        "secret" not in str(sample.image_path) for dataset in splits.values() for sample in dataset.samples
    )


def test_links_of_the_user_are_followed_but_two_dots_do_not_leave_through_them(tmp_path: Path) -> None:
    """`pics/..` is the data folder, although the system would go to the parent of the link's
    target.
    """
    image(tmp_path / "elsewhere/pics/a.png")
    image(tmp_path / "elsewhere/secret.png", 7, 7)
    target = image(tmp_path / "data/secret.png", 9, 9)
    (tmp_path / "data/pics").symlink_to(tmp_path / "elsewhere/pics")
    (tmp_path / "data/a.json").write_text(json.dumps(coco(["pics/a.png", "pics/../secret.png"])))
    linked, inside = (
        load_splits(tmp_path / "data")["train"].samples + load_splits(tmp_path / "data")["valid"].samples
    )
    found = {sample.image_path.name: sample.image_path for sample in (linked, inside)}
    assert found["a.png"].resolve() == tmp_path / "elsewhere/pics/a.png"
    assert os.path.samefile(found["secret.png"], target)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("link", [False, True])
def test_convert_writes_in_its_folder_only(tmp_path: Path, format: str, link: bool) -> None:
    """Names of classes and files that look like paths, markup and commands to whoever reads them
    next.
    """
    hostile = ["../../escape", "/tmp/escape", "a\\..\\b.png"]
    hostile += ["'; rm -rf ~ #", "a: &x [*x]", "<!ENTITY x>", "- !!python/name:os"]
    names = [f"..{letter}.png" for letter in "abcdefg"] + ["&#47;.png"]
    for name in names:
        image(tmp_path / "data" / name)
    boxes = [(i, i, [1, 2, 10, 12]) for i in range(1, 8)]
    (tmp_path / "data/a.json").write_text(json.dumps(coco(names, boxes, list(enumerate(hostile, 1)))))
    before = everything(tmp_path)
    convert(tmp_path / "data", tmp_path / "out", format, link=link, input_format=None)
    assert {name.partition("/")[0] for name in everything(tmp_path) - before} == {"out"}
    read, again = load_splits(tmp_path / "data"), load_splits(tmp_path / "out")
    assert sum(len(dataset.samples) for dataset in again.values()) == 8
    assert {name for d in again.values() for name in d.class_names} == {
        name for d in read.values() for name in d.class_names
    }


@pytest.mark.parametrize("videos", [False, True])
def test_predictions_stay_in_their_folder(tmp_path: Path, videos: bool) -> None:
    names = ("...png", "..a.png", "a\\..\\b.png", "\x1b[2J.png")
    classes = ["../../escape", "/etc/escape", "..", "."]
    ids = np.arange(4)
    found = Detections(
        xyxy=np.full((4, 4), [1.0, 1, 9, 9]),
        confidence=np.full(4, 0.5),
        class_id=ids,
        data={"class_name": np.array(classes, dtype=object)},
    )
    results = Results(tmp_path / "a/out", ["annotated", "json", "coco", "yolo", "csv", "crops"], classes, [])
    for name in names:
        video = VideoStream(Fraction(1), Fraction(1, 10), False) if videos else None
        results.add(Frame(tmp_path / "a/in" / name, Image.new("RGB", (20, 20)), video), found)
    results.close({})
    assert len(everything(tmp_path / "a/out")) > 20
    assert {name for name in everything(tmp_path) if not name.startswith("a/out/")} == {"a", "a/out"}
