"""What an image may be: paths, bytes, files, PIL images in every mode, arrays, tensors, batches."""

import io
import random
from collections import UserList
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from predict_fakes import make_predictor

from groundtune.api import Model
from groundtune.data.images import load_image, to_8bit
from groundtune.errors import DataError
from groundtune.predict.inputs import read_images

MODES = {  # by container; what Pillow writes
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "GIF": ["L", "P", "RGB"],
    "PPM": ["1", "L", "RGB", "I"],
    "AVIF": ["RGB", "RGBA"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA", "I;16"],
}
ROTATED = ("PNG", "TIFF", "JPEG", "WEBP", "AVIF")  # with EXIF data
CASES = [(container, mode) for container, modes in MODES.items() for mode in modes]


def noise(mode, size, seed=0):
    """A PIL image of random pixels."""
    random_state = np.random.default_rng(seed)

    def values(channels, top=256, dtype=np.uint8):
        return random_state.integers(0, top, (size[1], size[0], *channels), dtype=dtype)

    if mode in ("I;16", "I"):
        pixels = values((), 65536, np.uint16 if mode == "I;16" else np.int32)
        pixels.flat[0] = 65535  # 16 bits
        return Image.fromarray(pixels)
    if mode == "F":
        return Image.fromarray(values((), 256, np.int32).astype(np.float32) / 255)
    if mode in ("1", "P"):
        image = Image.fromarray(values(())).convert(mode)
        if mode == "P":
            image.putpalette(random_state.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    if mode == "PA":
        return noise("LA", size, seed).convert("PA")
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, values((channels,)).tobytes())


def written(container, mode, size, orientation=1, seed=0, **options):
    """The bytes of an image file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options |= {"exif": exif} if container in ROTATED and orientation != 1 else {}
    options |= {"lossless": True} if container == "WEBP" else {}
    options |= {"transparency": 3} if mode == "P" and container in ("PNG", "GIF") and seed % 2 else {}
    stream = io.BytesIO()
    noise(mode, size, seed).save(stream, container, **options)
    return stream.getvalue()


def pixels_of(image):
    (image,) = read_images(image)
    assert image.mode == "RGB"
    return np.asarray(image)


def all_ways(content, path):
    """The pixels of one file, read in every way; the first is from its path."""
    path.write_bytes(content)
    yield pixels_of(path)
    yield pixels_of(str(path))
    yield pixels_of(content)
    yield pixels_of(bytearray(content))
    yield pixels_of(memoryview(content))
    yield pixels_of(io.BytesIO(content))
    with path.open("rb") as file:
        file.seek(5)
        yield pixels_of(file)
        yield pixels_of(file)  # again
    with Image.open(path) as image:
        yield pixels_of(image)
        yield pixels_of(image)
    yield pixels_of(np.asarray(load_image(path)))


def reference(content):
    """The pixels by Pillow and NumPy alone."""
    image = Image.open(io.BytesIO(content))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16"):
        return np.repeat(np.round(np.asarray(image)[:, :, None] / 257), 3, axis=2)
    if image.mode == "F":
        return np.repeat(np.round(np.asarray(image)[:, :, None] * 255), 3, axis=2)
    if image.has_transparency_data:
        values = np.asarray(image.convert("RGBA")).astype(float)
        return values[:, :, :3] * values[:, :, 3:] / 255 + 255 - values[:, :, 3:]
    return np.asarray(image.convert("RGB")).astype(float) if image.mode != "LAB" else None


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CASES), st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(0, 3))
def test_an_image_has_the_same_pixels_however_it_is_held(
    tmp_path_factory, case, width, height, orientation, seed
):
    content = written(*case, (width, height), orientation, seed)
    path = tmp_path_factory.getbasetemp() / "image without suffix"
    first, *others = all_ways(content, path)
    for other in others:
        np.testing.assert_array_equal(first, other)
    expected = reference(content)
    if expected is not None:
        assert first.shape == expected.shape and np.abs(first - expected).max() <= 1
    if orientation > 4 and case[0] in ROTATED:
        assert first.shape[:2] == (width, height)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_mode_of_every_container_can_be_read(tmp_path, case):
    first, *others = all_ways(written(*case, (23, 17), 6, 1), tmp_path / "a")
    assert all(np.array_equal(first, other) for other in others) and first.std() > 10


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (3000, 2000), (2999, 3000)])
def test_long_and_large_images_have_the_same_pixels_too(tmp_path, size):
    for container in ("JPEG", "PNG", "TIFF"):
        first, *others = all_ways(written(container, "RGB", size, 8), tmp_path / "a")
        assert first.shape == (size[0], size[1], 3)
        assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(
    "mode", [*dict.fromkeys(mode for _, mode in CASES), "YCbCr", "HSV", "RGBX", "RGBa", "La", "I;16B"]
)
def test_pil_images_in_memory_have_every_mode(mode):
    written_as = {"La": "LA", "RGBa": "RGBA", "I;16B": "I;16"}.get(mode, mode)
    image = noise(written_as, (9, 5))
    if mode != written_as:
        expected, swapped = pixels_of(image), np.asarray(image).byteswap().tobytes()
        image = Image.frombytes(mode, (9, 5), swapped) if mode == "I;16B" else image.convert(mode)
        # premultiplied alpha loses the colors of nearly transparent pixels, not their look
        assert np.abs(pixels_of(image).astype(int) - expected).max() <= (0 if mode == "I;16B" else 2)
    before = image.tobytes()
    assert pixels_of(image).shape == (5, 9, 3)
    assert image.tobytes() == before


def test_lab_is_read_with_its_colors():
    """CIE L*a*b* of sRGB red is (53.2, 80.1, 67.2)."""
    image = Image.frombytes("LAB", (1, 1), bytes([round(53.2 * 2.55), 80, 67]))
    assert np.abs(pixels_of(image)[0, 0].astype(int) - (255, 0, 0)).max() <= 12  # 8-bit a and b


GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def repeated(gray):
    return np.repeat(np.asarray(gray)[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GRAY, repeated(GRAY)),
        (GRAY[:, :, None], repeated(GRAY)),
        (GRAY[None, :, :2], repeated(GRAY[:, :2])),
        (RGB, RGB),
        (RGB.transpose(2, 0, 1), RGB),
        (np.dstack([RGB, np.full((6, 5), 255, np.uint8)]), RGB),
        (np.dstack([RGB, np.zeros((6, 5), np.uint8)]), np.full_like(RGB, 255)),  # transparent: white
        (RGB[:1, :1], RGB[:1, :1]),
        (RGB[:3, :, :], RGB[:3]),  # both axes fit: channels are last
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB.astype(np.float64), RGB),
        ((RGB / 255).astype(np.float16), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(">u2") * 257, RGB),
        (RGB.astype(np.int64), RGB),
        (RGB.astype(np.int32) * 257, RGB),
        (GRAY > 100, repeated(np.where(GRAY > 100, 255, 0))),
        (np.array([[np.nan, 1.0]]), [[[0] * 3, [255] * 3]]),
        (np.array([[0.0, 1.0000004]]), [[[0] * 3, [255] * 3]]),
        (np.array([[128, 32768]], np.uint16), [[[0] * 3, [128] * 3]]),
        (np.asfortranarray(RGB)[::-1], RGB[::-1]),
        (torch.from_numpy(RGB), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1) / 255, RGB),
        ((torch.from_numpy(RGB) / 255).requires_grad_(), RGB),
        (torch.from_numpy(GRAY).bfloat16(), repeated(torch.from_numpy(GRAY).bfloat16().float().numpy())),
    ],
)  # fmt: skip
def test_arrays_and_tensors(array, expected):
    np.testing.assert_array_equal(pixels_of(array), np.asarray(expected, np.uint8))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["uint8", "uint16", "float32", "float64", "int32"]))
def test_the_values_of_a_pixel_do_not_depend_on_other_pixels(seed, dtype):
    """Of two images of the same range."""
    scale = {"uint8": 1, "uint16": 257, "float32": 1 / 255, "float64": 1, "int32": 1}[dtype]
    rng = random.Random(seed)
    gray = [rng.randrange(256) for _ in range(4)]
    small, large = (np.array([values], np.float64) * scale for values in (gray, [*gray, 255]))
    if dtype == "float64" and max(gray) < 2:
        return  # reads as 0..1
    small, large = (to_8bit(values.round(9).astype(dtype)) for values in (small, large))
    assert small.tolist() == large[:, :4].tolist() == [gray]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.array([[-2.1, 2.6]]), "0..1 or 0..255, got float64 from -2.1 to 2.6"),
        (np.array([[0, 1.5]]), "from 0 to 1.5"),
        (np.array([[0, 256.0]]), "from 0 to 256"),
        (np.array([[0, np.inf]]), "from 0 to inf"),
        (np.array([[-1, 5]]), "got int64 from -1 to 5"),
        (np.array([[0, 65536]]), "got int64 from 0 to 65536"),
        (np.array([[1j]]), "got complex128"),
        (np.zeros((5, 6, 2), np.uint8), r"\(H, W, C\).*got \(5, 6, 2\)"),
        (np.zeros(7, np.uint8), r"got \(7,\)"),
        (np.float32(1), r"got \(\)"),
        (np.zeros((2, 2, 2, 5, 3), np.uint8), r"got \(2, 2, 2, 5, 3\)"),
        (np.zeros((0, 60, 3), np.uint8), r"at least one pixel, got \(0, 60, 3\)"),
        (Image.new("RGB", (0, 5)), "at least one pixel, got a size of 0 × 5"),
        (Image.fromarray(np.array([[0, 1e6]], np.float32)), "of mode F: .* from 0 to 1e"),
        (None, "expected a path, address, bytes, open file, PIL image, array or tensor.*got NoneType"),
        (7, "got int"),
        ({"a": 1}, "got dict"),
        (b"text", "image of 4 bytes: cannot identify"),
        (io.BytesIO(b""), "BytesIO: cannot identify"),
        (io.StringIO("text"), "Cannot read the image StringIO"),
        ("absent.png", "absent.png does not exist"),
        (Path("absent.png"), "absent.png does not exist"),
        ("s3://bucket//a.png", "Cannot read s3://bucket//a.png: expected a path"),
        ("file:///etc/a.png", "Cannot read file:///etc/a.png: expected a path"),
    ],
)  # fmt: skip
def test_other_values_are_one_error(image, message):
    with pytest.raises(DataError, match=message):
        list(read_images(image))
    with pytest.raises(DataError, match=message):
        list(read_images([RGB, image]))


def test_a_truncated_file_is_named_however_it_is_held(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(written("JPEG", "RGB", (64, 64))[:900])
    with path.open("rb") as file:
        for image in (path, Image.open(path), file):
            with pytest.raises(DataError, match="cut.jpg"):
                pixels_of(image)
    with pytest.raises(DataError, match="of 900 bytes: image file is truncated"):
        pixels_of(path.read_bytes())
    closed = Image.open(path)
    closed.close()
    with pytest.raises(DataError, match="cut.jpg"):
        pixels_of(closed)


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ([RGB, GRAY], 2),
        ((RGB, GRAY, RGB), 3),
        (iter([RGB, GRAY]), 2),
        ((image for image in [RGB]), 1),
        (UserList([RGB]), 1),
        ([], 0),
        (np.stack([RGB, RGB]), 2),
        (np.stack([RGB]), 1),
        (np.zeros((0, 6, 5, 3), np.uint8), 0),
        (torch.from_numpy(np.stack([RGB, RGB])).permute(0, 3, 1, 2), 2),
        ([np.stack([RGB, RGB]), GRAY], 3),  # as of a data loader
    ],
)  # fmt: skip
def test_several_images_give_a_list(stub, images, count):
    found = Model(stub, "cpu").predict(images, ["cat"])
    assert isinstance(found, list) and len(found) == count


def test_one_image_gives_its_detections(stub, tmp_path):
    (tmp_path / "a.png").write_bytes(written("PNG", "RGB", (30, 20)))
    model = Model(stub, "cpu")
    for image in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        GRAY,
        torch.zeros(3, 20, 30),
    ):
        assert len(model.predict(image, ["cat"])) == 2  # supervision.Detections


def test_the_range_of_a_batch_is_that_of_all_its_images():
    dark, light = np.full((2, 2, 3), 1.0), np.full((2, 2, 3), 200.0)
    first, second = read_images(np.stack([dark, light]))
    assert first.getpixel((0, 0)) == (1, 1, 1) and second.getpixel((0, 0)) == (200, 200, 200)


def test_arrays_of_paths_are_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(written("PNG", "RGB", (3, 2)))
    for paths in (np.array([str(tmp_path / "a.png")] * 2), np.array([tmp_path / "a.png"] * 2, dtype=object)):
        assert [image.size for image in read_images(paths)] == [(3, 2)] * 2


def test_an_image_that_its_owner_changes_later_was_read_before(stub):
    """A batch waits for its images, and the caller may use one buffer for all."""
    buffer = Image.new("RGB", (8, 8))

    def images():
        for shade in (10, 200):
            buffer.paste((shade,) * 3, (0, 0, 8, 8))
            yield buffer

    list(make_predictor(stub, ["cat"]).each(images()))
    assert [image.mean().item() * 255 for image in stub.calls[0].images] == pytest.approx([10, 200])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_detections_are_those_of_the_path(nano, tmp_path, orientation):
    """Of a real network, for an image that its file says to rotate."""
    path = tmp_path / "e.jpg"
    path.write_bytes(written("JPEG", "RGB", (60, 36), orientation))
    predictor = make_predictor(nano, ["cat", "dog"], threshold=0.0)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    ways = [
        path,
        Image.open(path),
        path.read_bytes(),
        upright,
        torch.from_numpy(upright.copy()).permute(2, 0, 1),
    ]
    first, *others = predictor.each(ways)
    assert len(first) > 10 and np.isfinite(first.xyxy).all() and np.isfinite(first.confidence).all()
    for other in others:
        np.testing.assert_allclose(other.xyxy, first.xyxy, atol=1e-3)
        np.testing.assert_allclose(other.confidence, first.confidence, atol=1e-5)
