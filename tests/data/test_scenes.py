"""Generated images: boxes are exact, seeds are reproducible, and the folder is a valid data set."""

import random

import numpy as np
import pytest
from PIL import Image

from groundtune.data.formats.detect import load_splits
from groundtune.data.scenes import SHAPES, draw, draw_scene, scene_classes, write, write_scenes
from groundtune.data.scenes.shapes import PATTERNS, Thing, thing_of
from groundtune.data.scenes.write import DEFAULT_CLASSES
from groundtune.errors import DataError


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_files_and_more_images_begin_alike(tmp_path):
    for name, options in {"a": {}, "b": {}, "longer": {"train": 5}, "other": {"seed": 1}}.items():
        write_scenes(tmp_path / name, **{"train": 3, "valid": 2, "size": 64, **options})
    first, longer, other = files(tmp_path / "a"), files(tmp_path / "longer"), files(tmp_path / "other")
    assert first == files(tmp_path / "b") and len(first) == 5 + 2
    images = [path for path in first if path.suffix == ".jpg"]
    assert all(longer[path] == first[path] for path in images)
    assert all(other[path] != first[path] for path in images)
    assert first[images[0]] != first[images[3]], "train and valid begin with the same image"


def test_boxes_span_exactly_the_pixels_of_every_shape(monkeypatch):
    """White shapes (218 to 255 by their light) on black, shadows below 30 × 0.4: bright pixels are
    covered by half.
    """
    monkeypatch.setattr(draw, "_background", lambda size_wh, avoid, rng: Image.new("RGB", size_wh))
    monkeypatch.setattr(draw, "_photograph", lambda image, rng: image)
    monkeypatch.setattr(draw, "_second_shade", lambda base, color: base)
    for shape in SHAPES:
        count = 0
        for seed in range(2):
            image, found = draw_scene([f"white {shape}"], 160, random.Random(seed))
            pixels = np.asarray(image).max(axis=2)
            inside = np.zeros(pixels.shape, dtype=bool)
            for name, (x0, y0, x1, y1) in found:
                assert name == f"white {shape}"
                assert 0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height
                inside[y0:y1, x0:x1] = True
                sides = pixels[y0, x0:x1], pixels[y1 - 1, x0:x1], pixels[y0:y1, x0], pixels[y0:y1, x1 - 1]
                assert all(side.max() >= 218 * 0.5 for side in sides), name  # half covered at each side
                count += 1
            assert pixels[~inside].max() <= (255 + 12) * 0.5, shape
        assert count > 1, shape


def test_a_pattern_has_a_second_shade_and_an_outline_shows_the_background(monkeypatch):
    monkeypatch.setattr(draw, "_background", lambda size_wh, avoid, rng: Image.new("RGB", size_wh, "white"))
    monkeypatch.setattr(draw, "_photograph", lambda image, rng: image)
    pale = {}  # the part of the box of a red square that is not red
    for pattern in PATTERNS:
        thing = Thing("square", "red", pattern)
        image, [(_, (x0, y0, x1, y1))] = draw.draw_image([(thing, 0.6)], (200, 200), random.Random(5))
        inner = np.asarray(image)[y0 + 20 : y1 - 20, x0 + 20 : x1 - 20]
        pale[pattern] = (inner[..., 1] > 150).mean()
    assert pale["plain"] == 0 and pale["outlined"] == 1
    assert all(0.15 < pale[pattern] < 0.75 for pattern in ("striped", "dotted", "checkered"))


@pytest.mark.parametrize("color", ["red", "blue", "green"])
def test_a_shape_has_the_color_in_its_name(color):
    channel = {"red": 0, "green": 1, "blue": 2}[color]
    checked = 0
    for seed in range(10):
        image, found = draw_scene([f"{color} square"], 128, random.Random(seed))
        for _, (x0, y0, x1, y1) in found[-1:]:  # nothing covers the last one
            center = np.asarray(image)[(y0 + y1) // 2, (x0 + x1) // 2]
            assert center.argmax() == channel
            checked += 1
    assert checked > 5


def test_the_written_set_is_read_by_load_splits(tmp_path):
    write_scenes(tmp_path / "out", train=40, valid=3, size=96)
    splits = load_splits(tmp_path / "out")
    assert {name: len(d.samples) for name, d in splits.items()} == {"train": 40, "valid": 3}
    dataset = splits["train"]
    assert dataset.class_names == DEFAULT_CLASSES
    assert [finding.check for finding in dataset.findings] == ["category-placeholder"]  # no box was clipped
    counts = [len(sample.boxes_xyxy) for sample in dataset.samples]
    assert min(counts) == 0 and max(counts) > 3
    assert {int(c) for sample in dataset.samples for c in sample.class_ids} == set(range(6))
    for sample in dataset.samples:
        with Image.open(sample.image_path) as image:
            assert image.size == sample.size_hw[::-1] and max(image.size) == 96
    assert len({sample.size_hw for sample in dataset.samples}) > 1


def test_classes_are_in_the_order_of_the_user(tmp_path):
    names = ["Pink_Hexagon", "black cross", "pink hexagon", "lightning bolt", "dotted green quarter circle"]
    write_scenes(tmp_path / "out", train=2, valid=1, size=64, classes=names)
    read = load_splits(tmp_path / "out")["train"].class_names
    assert read == ["pink hexagon", "black cross", "lightning bolt", "dotted green quarter circle"]


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    real, calls = write.draw_scene, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(write, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "deep/out", train=2, valid=2, size=64)
    assert len(calls) == 3 and list((tmp_path / "deep").iterdir()) == []


def test_an_empty_folder_is_used_and_one_with_content_is_an_error(tmp_path):
    (tmp_path / "out").mkdir()
    write_scenes(tmp_path / "out", train=1, valid=1, size=64)
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match="out is not empty"):
        write_scenes(tmp_path / "out", train=1, valid=1, size=64)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file is a file"):
        write_scenes(tmp_path / "file", train=1, valid=1, size=64)
    assert files(tmp_path / "out") == before
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["red cirle"]}, "'red cirle' .did you mean 'red circle'?"),
        ({"classes": ["red circle", "zebra"]}, "Unknown class 'zebra'"),
        ({"size": 31}, "at least 32 pixels, got 31"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_and_nothing_is_written(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        write_scenes(tmp_path / "out", **{"train": 1, "valid": 1, **options})
    assert list(tmp_path.iterdir()) == []


def test_all_names_are_unique_and_describe_a_thing():
    things = {name: thing_of(name, random.Random(0)) for name in scene_classes()}
    assert len(things) == len(scene_classes()) and {thing.shape for thing in things.values()} == set(SHAPES)
    assert things["blue lightning bolt"] == Thing("lightning bolt", "blue")
    assert things["dotted white letter a"] == Thing("letter a", "white", "dotted")
    assert things["plain navy square frame"] == Thing("square frame", "navy")


def test_a_name_without_a_color_gets_a_random_one():
    things = {thing_of("striped cat", random.Random(seed)) for seed in range(40)}
    assert {(thing.shape, thing.pattern) for thing in things} == {("cat", "striped")} and len(things) > 5


def test_the_smallest_images_can_be_drawn():
    for seed in range(40):
        draw_scene(scene_classes(), 32, random.Random(seed))
