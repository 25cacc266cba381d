"""Result files: drawn images and videos, JSON, COCO, YOLO, CSV, crops, and their names."""

import csv
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from supervision import Detections

from groundtune.data.formats.detect import load_splits
from groundtune.data.images import load_image
from groundtune.errors import ConfigError
from groundtune.predict.video import Frame, VideoStream, video_frames
from groundtune.predict.writers import JsonArray, Results

VIDEO = VideoStream(Fraction(25), Fraction(1, 1000), False)
VIOLET, RED = (0xA3, 0x51, 0xFB), (0xFF, 0x40, 0x40)  # the first two colors of supervision's palette, RGB


def save(inputs, predictions, classes, folder, kinds=("annotated", "json"), unreadable=None):
    """Write predictions for paths or frames."""
    results = Results(folder, kinds, classes, [])
    for given, detections in zip(inputs, predictions, strict=True):
        results.add(given if isinstance(given, Frame) else Frame(given, load_image(given)), detections)
    results.close(unreadable or {})


def make_detections(boxes, class_ids, names=("cat", "dog")):
    return Detections(
        xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        confidence=np.linspace(0.9, 0.4, len(boxes)),
        class_id=np.array(class_ids, dtype=int),
        data={"class_name": np.array([names[c] for c in class_ids], dtype=object)},
    )


def test_drawn_boxes_have_the_color_of_their_class_and_the_right_position(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (300, 200), (10, 20, 30)).save(path, quality=95)
    found = make_detections([(50, 60, 150, 160), (170, 80, 280, 190)], [0, 1])
    save([path], [found], ["cat", "dog"], tmp_path / "new/out")
    drawn = np.asarray(Image.open(tmp_path / "new/out/a.png"))
    original = np.asarray(Image.open(path))
    assert drawn.shape == original.shape
    for (x0, y0, x1, y1), color in zip(found.xyxy.astype(int), (VIOLET, RED), strict=True):
        for x, y in [(x0, (y0 + y1) // 2), (x1, (y0 + y1) // 2), ((x0 + x1) // 2, y1)]:
            assert tuple(drawn[y, x]) == color  # RGB, not BGR
        assert np.array_equal(
            drawn[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5], original[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5]
        )
        label = drawn[y0 - 12 : y0 - 2, x0 + 2 : x0 + 50].reshape(-1, 3)
        assert (label == color).all(1).mean() > 0.3 and (
            label.min(1) > 200
        ).any()  # white letters on the color
    assert np.array_equal(drawn[:30], original[:30])
    with Image.open(path) as untouched:
        assert np.array_equal(np.asarray(untouched), original)


def test_the_better_detection_is_on_top_and_labels_are_legible_on_light_colors(tmp_path):
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    same_place = make_detections([(50, 60, 150, 160)] * 2, [1, 0])
    light = make_detections([(50, 60, 150, 160)], [2], ["", "", "pink: ü"])
    save([tmp_path / "a.png"] * 2, [same_place, light], ["cat", "dog", "ü"], tmp_path / "out")
    assert Image.open(tmp_path / "out/a.png").getpixel((50, 110)) == RED
    label = np.asarray(Image.open(tmp_path / "out/a-2.png"))[48:58, 52:100].reshape(-1, 3)
    assert label.min() < 60  # dark letters


def test_predictions_json_has_images_detections_and_unreadable_files(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (80, 60)).save(tmp_path / folder / "a.jpg")
    Image.new("RGB", (80, 60)).save(tmp_path / "two/a-2.jpg")
    paths = [tmp_path / "one/a.jpg", tmp_path / "two/a.jpg", tmp_path / "two/a-2.jpg"]
    found = [make_detections([(1, 2, 30, 40)], [1]), make_detections([], []), Detections.empty()]
    save(paths, found, ["cat", "dog"], tmp_path / "out", unreadable={"x.jpg": "broken"})
    content = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))
    names = ["a.png", "a-2.png", "a-2-2.png"]
    one = {"class": "dog", "score": 0.9, "box_xyxy": [1.0, 2.0, 30.0, 40.0]}
    assert content == {
        "classes": ["cat", "dog"],
        "images": [
            {"image": str(path), "name": name.removesuffix(".png"), "detections": part}
            for path, name, part in zip(paths, names, [[one], [], []], strict=True)
        ],
        "unreadable": {"x.jpg": "broken"},
    }
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*names, "predictions.json"])


@pytest.mark.parametrize(("first", "second"), [("in/a.png", "out/a.png"), ("out/b.jpg", "out/a.png")])
def test_a_drawn_image_never_replaces_an_image(tmp_path, monkeypatch, first, second):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "out/a.png", "out/b.jpg", "out/sub/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 60)).save(name)
    before = Path("out/a.png").read_bytes()
    results = Results(Path("out"), ["annotated"], ["cat"], [Path(second).parent])
    with pytest.raises(ConfigError, match="a.png is an input"):
        for name in (first, second):
            results.add(Frame(Path(name), load_image(Path(name))), make_detections([(1, 2, 30, 40)], [0]))
    assert Path("out/a.png").read_bytes() == before
    late = Results(Path("out/../out"), ["annotated"], ["cat"], [])  # inputs from stdin are not known before
    with pytest.raises(ConfigError, match="a.png is an input"):
        late.add(Frame(Path("out/a.png"), load_image(Path("out/a.png"))), Detections.empty())


def test_results_of_an_earlier_prediction_are_replaced(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "in/a.jpg")
    for color in (0, 1):
        found = make_detections([(10, 20, 60, 50)], [color])
        save([tmp_path / "in/a.jpg"], [found], ["cat", "dog"], tmp_path / "out")
    assert Image.open(tmp_path / "out/a.png").getpixel((10, 35)) == RED


@pytest.mark.parametrize("name", ["file", "file/deeper", "n" * 300])
def test_a_folder_that_cannot_be_written_is_a_config_error(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output_dir: cannot write to"):
        Results(tmp_path / name, ["json"], ["cat"], [])


def test_coco_yolo_and_csv_have_the_detections(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Image.new("RGB", (80, 40)).save("in/a.jpg")
    Image.new("RGB", (50, 50)).save("in/b.jpg")
    found = [make_detections([(8, 4, 40, 24), (0, 0, 80, 40)], [1, 0]), make_detections([], [])]
    paths = [Path("in/a.jpg"), Path("in/b.jpg")]
    save(paths, found, ["cat", "my  dog"], Path("in/out"), ("coco", "yolo", "csv"))
    coco = json.loads(Path("in/out/coco.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "my  dog"}]
    assert [image["id"] for image in coco["images"]] == [1, 2]
    assert coco["images"][0] == {"id": 1, "file_name": "in/a.jpg", "width": 80, "height": 40}
    box = {"bbox": [8, 4, 32, 20], "area": 640, "iscrowd": 0, "score": 0.9}
    assert coco["annotations"][0] == {"id": 1, "image_id": 1, "category_id": 2, **box}
    assert len(coco["annotations"]) == 2
    # center 24, 14 and size 32, 20 of 80 × 40
    assert Path("in/out/labels/a.txt").read_text() == "1 0.3 0.35 0.4 0.5\n0 0.5 0.5 1 1\n"
    assert Path("in/out/labels/b.txt").read_text() == ""
    assert Path("in/out/classes.txt").read_text() == "cat\nmy  dog\n"
    rows = list(csv.reader(Path("in/out/predictions.csv").read_text().splitlines()))
    assert rows[0] == ["image", "frame", "seconds", "class", "score", "x0", "y0", "x1", "y1"]
    assert rows[1] == ["in/a.jpg", "", "", "dog", "0.9", "8.0", "4.0", "40.0", "24.0"] and len(rows) == 3
    # groundtune reads the COCO file beside the images
    Path("data/in").mkdir(parents=True)
    for name in ("in/a.jpg", "in/b.jpg"):
        Path(name).rename(f"data/{name}")
    Path("in/out/coco.json").rename("data/_annotations.coco.json")
    samples = {
        sample.image_path.name: sample for d in load_splits(Path("data")).values() for sample in d.samples
    }
    assert samples["a.jpg"].boxes_xyxy.tolist() == [[8, 4, 40, 24], [0, 0, 80, 40]] and len(samples) == 2


def test_crops_are_in_a_directory_per_class(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[4:24, 8:40] = (10, 200, 30)
    frame = Frame(Path("a.jpg"), Image.fromarray(pixels))
    names = ("../../up", "." * 300)
    found = make_detections(
        [(8, 4, 40, 24), (8.4, 4, 39.6, 23.5), (0, 0, 80, 40), (5, 5, 5, 9)], [0, 0, 1, 0], names
    )
    save([frame, frame], [found, found], names, tmp_path / "out", ("crops",))
    folders = sorted(path.name for path in (tmp_path / "out/crops").iterdir())
    assert set(folders) == {"______up", "_" * 50}
    assert sorted(path.name for path in (tmp_path / "out/crops/______up").iterdir()) == [
        "a-1.png", "a-2-1.png", "a-2-2.png", "a-2.png"
    ]  # fmt: skip
    for number in (1, 2):  # every pixel that the box touches
        crop = np.asarray(Image.open(tmp_path / f"out/crops/______up/a-2-{number}.png"))
        assert crop.shape == (20, 32, 3) and (crop == (10, 200, 30)).all()


def test_every_image_has_a_unique_name(tmp_path):
    """Also on file systems that ignore case, and where a numbered name is another image's."""
    stems = ["a", "A", "a", "a-2", "n" * 250, "n" * 250, "ü" * 120]
    results = Results(tmp_path / "out", ["yolo"], ["cat"], [])
    image, empty = Image.new("RGB", (4, 4)), make_detections([], [])
    for stem in stems:
        results.add(Frame(Path(f"in/{stem}.jpg"), image), empty)
    for index in (0, 7):
        results.add(Frame(Path("in/a.mp4"), image, VIDEO, index), empty)
    results.add(Frame(Path("in/a.mp4"), image, replace(VIDEO), 0), empty)
    results.close({})
    labels = tmp_path / "out/labels"
    found = sorted(path.relative_to(labels).as_posix() for path in labels.rglob("*.txt"))
    expected = ["a", "A-2", "a-3", "a-2-2", "n" * 50, "n" * 50 + "-2", "ü" * 50]
    assert found == sorted(f"{name}.txt" for name in [*expected, "a-4/000000", "a-4/000007", "a-5/000000"])


def test_a_drawn_video_takes_odd_sizes_and_times_that_do_not_rise(tmp_path):
    times = [Fraction(0), Fraction(40, 1000), Fraction(20, 1000), Fraction(3)]
    sizes = [(61, 47), (61, 47), (61, 47), (30, 20)]
    given = [
        Frame(Path("a.avi"), Image.new("RGB", size, "white"), VIDEO, index, time)
        for index, (size, time) in enumerate(zip(sizes, times, strict=True))
    ]
    save(given, [make_detections([], [])] * 4, ["cat"], tmp_path / "out", ("annotated",))
    written = list(video_frames(tmp_path / "out/a.mp4", 1))
    assert [round(float(frame.time), 3) for frame in written] == [0, 0.04, 0.041, 3]
    for frame in written:
        assert frame.image.size == (62, 48)
        assert np.asarray(frame.image)[:44, :58].min() > 220


def test_an_empty_array_is_json(tmp_path):
    with (tmp_path / "a.json").open("w") as file:
        array = JsonArray(file, '{"a": ')
        array.close("}")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": []}
