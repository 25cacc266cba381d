"""`groundtune predict`: what it prints and saves, and what happens with unreadable files."""

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import UNEVEN, write_video
from web_server import serving

from groundtune.api import Model
from groundtune.cli import main
from groundtune.data.images import MAX_PIXELS, load_image
from groundtune.errors import ConfigError, DataError
from groundtune.predict.video import video_frames

PREDICT = ["predict", "stub", "--classes", "Red_Circle,dog", "--device", "cpu"]
DETECTIONS = ["  Red_Circle  0.750  0.0 0.0 80.0 60.0", "  dog  0.500  0.0 0.0 40.0 60.0"]


@pytest.fixture()
def folder(stub, tmp_path, monkeypatch):
    """An empty working directory with two images."""
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.jpg", "in/b.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 60)).save(name)


def saved_images():
    return json.loads(Path("out/predictions.json").read_text())["images"]


def test_the_command_prints_and_saves(folder, capsys):
    assert main([*PREDICT, "in", "--output-dir", "out"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "in/a.jpg: 2 detections",
        *DETECTIONS,
        "in/b.jpg: 2 detections",
        *DETECTIONS,
    ]
    assert "out." in printed.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.png", "predictions.json"]
    assert main([*PREDICT, "in/b.jpg", "--json", "--threshold", "0.6"]) == 0
    record = {"class": "Red_Circle", "score": 0.75, "box_xyxy": [0.0, 0.0, 80.0, 60.0]}
    assert json.loads(capsys.readouterr().out) == [{"image": "in/b.jpg", "detections": [record]}]


def test_an_unreadable_image_is_skipped_and_reported(folder, capsys):
    Path("in/aa.jpg").write_text("no image")
    assert main([*PREDICT, "in", "--output-dir", "out", "--json"]) == 3
    printed = capsys.readouterr()
    assert [row["image"] for row in json.loads(printed.out)] == ["in/a.jpg", "in/b.jpg"]
    assert "Cannot read the image in/aa.jpg" in printed.err and printed.err.endswith("\n  in/aa.jpg\n")
    content = json.loads(Path("out/predictions.json").read_text())
    assert list(content["unreadable"]) == ["in/aa.jpg"] and len(content["images"]) == 2


def test_hidden_files_and_other_formats_leave_the_exit_code_alone(folder, capsys):
    for name in ("in/._a.jpg", "in/b.heic"):
        Path(name).write_bytes(b"\0\5\x16\7")
    assert main([*PREDICT, "in"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("in/") == 2
    assert printed.err == "in: skipped 1 .heic, which cannot be read. Convert these images to JPEG or PNG.\n"


def test_addresses_are_named_in_full_in_all_results(folder, capsys):
    with serving({"/x//a.jpg": Path("in/a.jpg").read_bytes()}) as server:
        names = [f"{server}/x//a.jpg?size=1", f"{server}/b.jpg"]
        assert (
            main([*PREDICT, *names, "--output-dir", "out", "--save-as", "json,coco,csv,yolo,annotated"]) == 3
        )
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == f"{names[0]}: 2 detections" and printed.err.endswith(
        f"\n  {names[1]}\n"
    )
    content = json.loads(Path("out/predictions.json").read_text())
    assert [row["image"] for row in content["images"]] == names[:1] and list(content["unreadable"]) == names[
        1:
    ]
    assert json.loads(Path("out/coco.json").read_text())["images"][0]["file_name"] == names[0]
    assert names[0] in Path("out/predictions.csv").read_text()
    assert Path("out/a.png").exists() and Path("out/labels/a.txt").exists()


@pytest.fixture()
def pillow_limit(monkeypatch):
    """A limit of 1,000 pixels instead of Pillow's; it is put back after the test."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)


def test_the_size_limit_is_an_option(stub, folder, pillow_limit, capsys):
    """The option's default, which is Pillow's limit, is above the 1,000 pixels of this test."""
    with pytest.raises(DataError, match=r"At most 1,000 are read .*--max-megapixels"):
        load_image(Path("in/a.jpg"))
    assert main([*PREDICT, "in/a.jpg", "--max-megapixels", "100"]) == 0
    assert Image.MAX_IMAGE_PIXELS == 100_000_000
    assert len(Model(stub, "cpu").predict("in/a.jpg", ["cat"])) == 2
    assert Image.MAX_IMAGE_PIXELS == 100_000_000  # no later call lowers it
    with pytest.raises(ConfigError, match=r"max_megapixels: .*at least 89\.478485"):
        Model(stub, "cpu").predict("in/a.jpg", ["cat"], max_megapixels=50)


def test_the_default_limit_is_that_of_pillow():
    assert MAX_PIXELS == 89_478_485 == int(1024**3 // 4 // 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_90_megapixels_is_read_in_tiles(folder, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS)
    Image.new("L", (10_000, 9_000)).save("big.png")
    assert main([*PREDICT, "big.png", "--tiles", "5000"]) == 3
    assert "10000 × 9000 pixels. At most 89,478,485 are read" in capsys.readouterr().err
    assert main([*PREDICT, "big.png", "--tiles", "5000", "--max-megapixels", "90"]) == 0
    assert "10000.0 9000.0" in capsys.readouterr().out


def test_a_video_is_drawn_with_its_times(folder, capsys):
    write_video(Path("in/film.mp4"), UNEVEN, sound=True)
    options = ["--frame-stride", "2", "--output-dir", "out", "--save-as", "annotated,coco"]
    assert main([*PREDICT, "in/film.mp4", "in/film.mp4", *options]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[::3][:4] == [
        f"in/film.mp4 frame {index} at {time} s: 2 detections"
        for index, time in ((0, "0.000"), (2, "0.100"), (4, "0.260"), (6, "1.000"))
    ]
    assert printed.err.count("The sound of videos is not saved.") == 1
    for name in ("out/film.mp4", "out/film-2.mp4"):
        frames = list(video_frames(Path(name), 1))
        assert [round(float(frame.time), 3) for frame in frames] == [0, 0.1, 0.26, 1]
        edge = np.asarray(frames[0].image)[5:-5, :2].reshape(-1, 3).mean(0)
        assert edge[2] > 180 and edge[0] > 90 and edge[1] < 130  # violet, the first class, around all of it
    row = {"id": 2, "file_name": "in/film.mp4", "width": 64, "height": 48, "frame": 2, "seconds": 0.1}
    assert json.loads(Path("out/coco.json").read_text())["images"][1] == row


def test_the_frames_before_the_damage_of_a_video_are_saved(folder, capsys):
    path = write_video(Path("in/film.mkv"), [Fraction(i, 10) for i in range(50)], noise=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main([*PREDICT, "in/film.mkv", "--frame-stride", "5", "--output-dir", "out"]) == 3
    assert "film.mkv is truncated" in capsys.readouterr().err
    assert len(list(video_frames(Path("out/film.mp4"), 1))) == len(saved_images()) > 2


def test_results_are_complete_after_ctrl_c(folder, capsys, monkeypatch):
    def interrupted():
        yield "in/a.jpg\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", interrupted())
    assert main([*PREDICT, "-", "--output-dir", "out", "--batch-size", "1", "--json"]) == 130
    assert [row["image"] for row in json.loads(capsys.readouterr().out)] == ["in/a.jpg"]
    assert [row["image"] for row in saved_images()] == ["in/a.jpg"]


def test_classes_come_from_a_file_and_phrases_may_have_commas(folder, capsys):
    start = ["predict", "stub", "in/a.jpg", "--device", "cpu"]
    Path("names.txt").write_text("Red_Circle\n\n  dog \n")
    assert main([*start, "--classes", "names.txt"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == DETECTIONS
    assert main([*start, "--phrase", "the cat, left", "--phrase", "a dog"]) == 0
    names = [row.split("  ")[1] for row in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["the cat, left", "a dog"]
    assert main([*PREDICT, "in/a.jpg", "--phrase", "x"]) == 2
    assert main([*start, "--classes", "absent.txt"]) == 3
    Path("names.txt").write_text("\n")
    assert main([*start, "--classes", "names.txt"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_an_output_directory_that_cannot_be_written_is_one_line(folder, capsys):
    assert main([*PREDICT, "in/a.jpg", "--output-dir", "in/a.jpg/out"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "output_dir: cannot write to in/a.jpg/out" in line
    assert main([*PREDICT, "in", "--output-dir", "in"]) == 2
    assert "choose a directory outside of it" in capsys.readouterr().err


def test_names_of_files_cannot_command_the_terminal(folder, capsys):
    name = "in/\x1b[2J\udcff.jpg"
    Path("in/a.jpg").rename(name)
    assert main([*PREDICT, name, "--output-dir", "out", "--save-as", "annotated,json,csv,coco,yolo"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "in/\\x1b[2J?.jpg: 2 detections"
    assert saved_images()[0]["image"] == name


@pytest.mark.parametrize(("scores", "kept"), [((0.7, 0.45), [0, 1]), ((0.8, 0.45), [1])])
def test_thresholds_of_a_run_are_those_of_its_report(folder, capsys, scores, kept):
    """Each object is detected with the score of its class, and a wrong box 0.2 below: F1 is 1 at
    that score.
    """
    from groundtune.data.formats.detect import load_splits
    from groundtune.data.scenes import write_scenes

    write_scenes(Path("data"), train=1, valid=3, classes=["red circle", "dog"], size=64)
    valid = load_splits(Path("data"))["valid"]
    rows = []
    for sample in valid.samples:
        for (x0, y0, x1, y1), class_id in zip(sample.boxes_xyxy.tolist(), sample.class_ids, strict=True):
            ids, score = (
                {"image_id": sample.image_id, "category_id": valid.category_ids[class_id]},
                scores[class_id],
            )
            rows.append({**ids, "score": score, "bbox": [x0, y0, x1 - x0, y1 - y0]})
            rows.append({**ids, "score": score - 0.2, "bbox": [0, 0, 1, 1]})
    assert {row["score"] for row in rows} >= set(scores)
    Path("run").mkdir()
    Path("run/config.yaml").write_text("data: data\n")
    Path("run/predictions_valid.json").write_text(json.dumps(rows))
    assert main([*PREDICT, "in/a.jpg", "--thresholds", "run", "--threshold", "0.99"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [DETECTIONS[index] for index in kept]
    Path("run/predictions_valid.json").unlink()
    assert main([*PREDICT, "in/a.jpg", "--thresholds", "run"]) == 3
    assert "run has no thresholds" in capsys.readouterr().err


def test_one_name_per_object_and_a_limit(folder, capsys):
    """The dog is half of the image, the circle all of it: their IoU is 0.5."""
    for options, kept in (
        (["--nms", "0.1"], DETECTIONS),  # of one class each
        (["--nms", "0.4", "--agnostic-nms"], DETECTIONS[:1]),
        (["--nms", "0.6", "--agnostic-nms"], DETECTIONS),
        (["--agnostic-nms"], DETECTIONS),  # from an IoU of 0.7 on
        (["--max-detections", "1"], DETECTIONS[:1]),
        (["--nms", "none"], DETECTIONS),
    ):
        assert main([*PREDICT, "in/a.jpg", *options]) == 0
        noun = "detection" if len(kept) == 1 else "detections"
        assert capsys.readouterr().out.splitlines() == [f"in/a.jpg: {len(kept)} {noun}", *kept]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.yaml", "Red_Circle: 0.8\n"),
        ("t.yml", "{red circle: .8, dog: 0.1}"),
        ("t.json", '{\n\t"Red_Circle": 8e-1\n}'),
        ("Red_Circle=0.8", None),
        ("Red_Circle = 0.8 , dog=.2", None),
    ],
)
def test_thresholds_by_hand(folder, capsys, name, content):
    if content is not None:
        Path(name).write_text(content)
    assert main([*PREDICT, "in/a.jpg", "--thresholds", name]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == DETECTIONS[1:]


def test_thresholds_of_names_with_commas_and_equal_signs(folder, capsys):
    names = "salt, pepper=0.8,a=b=0.4,dog=1"
    Path("names.txt").write_text("salt, pepper\na=b\n")
    line = ["predict", "stub", "in/a.jpg", "--device", "cpu", "--classes", "names.txt", "--thresholds"]
    assert main([*line, names]) == 2
    assert "thresholds: no such class: 'dog'. Expected some of salt, pepper, a=b." in capsys.readouterr().err
    assert main([*line, names.removesuffix(",dog=1")]) == 0
    assert [row.split("  ")[1] for row in capsys.readouterr().out.splitlines()[1:]] == ["a=b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected cat=0.5,dog=0.3"),
        ("- dog", "expected cat=0.5,dog=0.3"),
        ("dog: [", "t.yaml is neither YAML nor JSON at line 1"),
        ("dog: 2", "t.yaml: thresholds: expected a number between 0 and 1, got 2"),
        ("dog:", "t.yaml: thresholds: expected a number for every name"),
        ("dgo: 0.5", "thresholds: no such class: 'dgo'. Did you mean dog?"),
    ],
)
def test_files_that_have_no_thresholds(folder, capsys, content, message):
    Path("t.yaml").write_text(content)
    assert main([*PREDICT, "in/a.jpg", "--thresholds", "t.yaml"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(stub, tmp_path, monkeypatch):
    """700 images of 0.3 MB in memory: 180 MB between the 100th and the last one."""
    import psutil

    Image.new("RGB", (320, 240)).save(tmp_path / "a.png")
    sizes = []

    def lines():
        for number in range(700):
            if number in (100, 699):
                sizes.append(psutil.Process().memory_info().rss)
            yield f"{tmp_path / 'a.png'}\n"

    monkeypatch.setattr(sys, "stdin", lines())
    options = ["--output-dir", str(tmp_path / "out"), "--save-as", "json,coco,yolo,csv"]
    assert main([*PREDICT, "-", *options]) == 0
    assert len(json.loads((tmp_path / "out/coco.json").read_text())["annotations"]) == 1400
    assert sizes[1] - sizes[0] < 40_000_000
