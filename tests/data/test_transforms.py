"""Boxes and pixels move together, and images of every kind are loaded in the frame of their
annotations.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)

from groundtune.contracts import ImageFormat
from groundtune.data.images import MAX_PIXELS, load_image
from groundtune.data.transforms import (
    ImageView,
    draw_view,
    random_crop,
    resize_keep_ratio,
    resized_size,
    to_tensor,
)
from groundtune.errors import DataError

FORMAT = ImageFormat(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0), short_side=120, max_side=200)


@pytest.mark.parametrize(
    "size_hw",
    [(480, 640), (640, 480), (500, 500), (333, 1000), (427, 640), (90, 90), (2000, 37), (800, 1333)],
)
@pytest.mark.parametrize(("short", "long"), [(800, 1333), (320, 320), (64, 96)])
def test_sizes_are_those_of_the_image_processor_of_transformers(size_hw, short, long):
    processor = GroundingDinoImageProcessorPil(
        size={"shortest_edge": short, "longest_edge": long}, do_pad=False
    )
    pixels = processor(Image.new("RGB", size_hw[::-1]), return_tensors="np")["pixel_values"]
    assert resized_size(size_hw, short, long) == pixels.shape[2:]


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.sampled_from([(800, 1333), (320, 320), (224, 400)]),
)
def test_any_size_is_that_of_transformers(size_hw, limits):
    expected = get_size_with_aspect_ratio(size_hw, *limits)
    assume(min(expected) > 0 and max(expected) <= limits[1])  # strips, see `resized_size`
    assume(expected != size_hw or limits[0] == min(size_hw))
    assert resized_size(size_hw, *limits) == expected


@given(st.tuples(st.integers(1, 100_000), st.integers(1, 100_000)))
def test_strips_stay_within_the_limits_and_are_never_empty(size_hw):
    height, width = resized_size(size_hw, 320, 480)
    assert 1 <= min(height, width) <= 320 and max(height, width) <= 480
    assert (height <= width) == (size_hw[0] <= size_hw[1]) or height == width


def pixels_box(image, threshold=127):
    """xyxy of the bright pixels."""
    bright = np.asarray(image.convert("L")) > threshold
    (x0, *_, x1), (y0, *_, y1) = np.flatnonzero(bright.any(0)), np.flatnonzero(bright.any(1))
    return np.array([x0, y0, x1 + 1, y1 + 1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.tuples(st.integers(60, 240), st.integers(60, 240)), st.data())
def test_boxes_and_pixels_move_together(seed, size_hw, data):
    height, width = size_hw
    left, top = data.draw(st.integers(0, width - 30)), data.draw(st.integers(0, height - 30))
    right, bottom = data.draw(st.integers(left + 30, width)), data.draw(st.integers(top + 30, height))
    image = Image.new("RGB", (width, height))
    image.paste("white", (left, top, right, bottom))
    box = np.array([[left, top, right, bottom]], dtype=np.float32)
    rng = random.Random(seed)
    view = draw_view(size_hw, box, FORMAT, rng, crop=0.7, multi_scale=(0.7, 1.0, 1.3))
    pixels = view.image(image)
    moved, inside = view.boxes(box)
    assert pixels.size == view.size_hw[::-1] and inside.tolist() == [True] and moved.dtype == np.float32
    assert moved[0] == pytest.approx(pixels_box(pixels), abs=1.0)


def test_a_view_by_hand():
    view = ImageView((100, 200), (50, 20, 150, 70), (100, 200), flip=False)  # twice as large
    boxes = np.array(
        [[60, 30, 80, 60], [0, 0, 110, 100], [0, 0, 99, 40], [140, 10, 162, 34]], dtype=np.float32
    )
    moved, inside = view.boxes(boxes)
    assert inside.tolist() == [True, True, False, False]  # centers x 70, 55, 49.5, 151
    assert moved.tolist() == [[20, 20, 60, 80], [0, 0, 120, 100]]
    assert replace(view, flip=True).boxes(boxes)[0].tolist() == [[140, 20, 180, 80], [80, 0, 200, 100]]
    empty, inside = view.boxes(np.zeros((0, 4), dtype=np.float32))
    assert empty.shape == (0, 4) and inside.shape == (0,)


def test_a_flip_swaps_left_and_right():
    view = resize_keep_ratio((30, 50), FORMAT)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    flipped = np.asarray(replace(view, flip=True).image(noise))
    assert np.array_equal(flipped[:, ::-1], np.asarray(view.image(noise)))


@settings(deadline=None)
@given(st.tuples(st.integers(1, 400), st.integers(1, 400)), st.integers(0, 2**32), st.integers(0, 4))
def test_a_crop_is_inside_and_has_the_center_of_a_box(size_hw, seed, count):
    height, width = size_hw
    draw = np.random.default_rng(seed)
    corners = np.sort(draw.uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(-1, 4).astype(np.float32)
    left, top, right, bottom = crop = random_crop(size_hw, boxes, random.Random(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert right - left >= round(width / 2) and bottom - top >= round(height / 2)
    if count:
        assert ImageView(size_hw, crop, (bottom - top, right - left), flip=False).boxes(boxes)[1].any()


def test_the_same_generator_state_gives_the_same_view_and_no_augmentation_the_whole_image():
    boxes = np.array([[1, 1, 50, 50]], dtype=np.float32)
    options = {"crop": 0.5, "multi_scale": (0.5, 1.0)}
    views = [
        [draw_view((90, 70), boxes, FORMAT, random.Random(i), **options) for i in range(20)] for _ in range(2)
    ]
    assert views[0] == views[1] and len(set(views[0])) > 10
    whole = draw_view((90, 70), boxes, FORMAT, random.Random(0), crop=0.0, multi_scale=())
    assert whole == resize_keep_ratio((90, 70), FORMAT)


# EXIF orientation: the visual side that the stored row 0 and the stored column 0 are at (Exif 2.3,
# tag 274)
SIDES = {1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left")}
SIDES |= {5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom")}


def oriented(path, orientation):
    """Write an image with an orientation; return the rows as viewers show them and as they are
    stored.
    """
    upright = np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    row, column = SIDES[orientation]
    stored = upright if row in ("top", "bottom") else upright.transpose(1, 0, 2)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = np.ascontiguousarray(stored[:, ::-1] if column in ("right", "bottom") else stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif)
    assert np.array_equal(
        ImageOps.exif_transpose(Image.open(path)), upright
    )  # the table above is Pillow's too
    return upright, stored


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("stated", ["stored", "upright", "none"])
def test_the_stated_size_decides_about_the_exif_orientation(tmp_path, orientation, stated):
    upright, stored = oriented(tmp_path / "a.png", orientation)
    size = {"stored": stored.shape[:2], "upright": upright.shape[:2], "none": None}[stated]
    expected = {"stored": stored, "upright": upright, "none": upright}[stated]
    if stated == "upright" and orientation in (2, 3, 4):  # both fit: as COCO's own tools read it
        expected = stored
    assert np.array_equal(load_image(tmp_path / "a.png", size), expected)


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_rotated_image_can_be_rescaled_too(tmp_path, orientation):
    upright, stored = oriented(tmp_path / "a.png", orientation)
    for size, expected in ((48, 80), upright), ((80, 48), stored), ((25, 38), upright):
        wanted = Image.fromarray(expected).resize(size[::-1], Image.Resampling.BILINEAR)
        assert np.array_equal(load_image(tmp_path / "a.png", size), wanted)


def test_an_image_that_was_rescaled_fits_its_boxes_again(tmp_path):
    image = Image.new("RGB", (50, 40))
    image.paste("white", (10, 20, 30, 40))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", (80, 100))
    assert loaded.size == (100, 80) and pixels_box(loaded) == pytest.approx([20, 40, 60, 80], abs=1)


GREY16 = np.array([[0, 32768, 65535]], dtype=np.uint16)


def palette(path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(path, transparency=1)


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.png", lambda p: Image.fromarray(GREY16).save(p), [(0,) * 3, (128,) * 3, (255,) * 3]),
        ("a.tif", lambda p: Image.fromarray(GREY16).save(p), [(0,) * 3, (128,) * 3, (255,) * 3]),
        ("a.tif", lambda p: Image.fromarray(np.float32([[0, 1, 4]])).save(p), [(0,) * 3, (1,) * 3, (4,) * 3]),
        (
            "a.tif",
            lambda p: Image.fromarray(np.float32([[0, 0.25, 1]])).save(p),
            [(0,) * 3, (64,) * 3, (255,) * 3],
        ),
        (
            "a.pgm",  # dark, and of 16 bits
            lambda p: p.write_bytes(b"P5 2 1 65535\n" + bytes([0, 255, 0, 128])),
            [(1,) * 3, (0,) * 3],
        ),
        (
            "a.tif",
            lambda p: Image.fromarray(np.int32([[0, 100, 255]])).save(p),
            [(0,) * 3, (100,) * 3, (255,) * 3],
        ),
        ("a.png", palette, [(255, 0, 0), (255, 255, 255)]),
        ("a.png", lambda p: Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(p), [(255, 255, 255)]),
        (
            "a.png",
            lambda p: Image.new("LA", (1, 1), (0, 128)).save(p),
            [(127,) * 3],
        ),  # half of black on white
        ("a.png", lambda p: Image.new("1", (1, 1), 1).save(p), [(255,) * 3]),
        ("a.tif", lambda p: Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(p), [(255, 0, 0)]),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, name, write, expected):
    write(tmp_path / name)
    loaded = load_image(tmp_path / name)
    assert loaded.mode == "RGB" and [tuple(pixel) for pixel in np.asarray(loaded)[0].tolist()] == expected


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (3, 3), color) for color in ("lime", "red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert Image.open(tmp_path / "a.gif").n_frames == 3
    assert load_image(tmp_path / "a.gif").getpixel((1, 1)) == (0, 255, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"cut off.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="Cannot read the image .*cut off"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"", "Cannot read"), (b"<html>", "Cannot read")]
)
def test_a_file_that_is_no_image_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_image(tmp_path / "a.jpg")
    assert "a.jpg" in str(caught.value)


def test_a_stated_size_can_be_a_bomb_too(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="bomb"):
        load_image(tmp_path / "a.png", (MAX_PIXELS // 4 + 1, 4))


def test_to_tensor_by_hand():
    image = Image.new("RGB", (2, 1))
    image.putdata([(255, 0, 51), (0, 255, 255)])
    tensor = to_tensor(image, FORMAT)  # (value / 255 - mean) / std
    expected = [[[1.0, -1.0]], [[-1.0, 3.0]], [[0.2, 1.0]]]
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    torch.testing.assert_close(tensor, torch.tensor(expected))
