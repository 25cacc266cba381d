"""Image files of any content are checked without an error, and duplicates are found."""

import io
import random

import numpy as np
import pytest
from made_samples import made_sample
from PIL import Image, ImageFilter

from groundtune.data.check.images import check_duplicates, read_image, read_images
from groundtune.data.check.kinds import CHECKING, ModelLimits
from groundtune.data.check.run import raise_for_errors
from groundtune.data.images import load_image
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset
from groundtune.errors import DataError


def noise(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Colored patches, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def split(name: str, folder, images: dict[str, Image.Image], **options) -> Dataset:
    samples = []
    for number, (file_name, image) in enumerate(images.items()):
        image.save(folder / file_name, **options)
        samples.append(made_sample(path=folder / file_name, image_id=number, size_hw=image.size[::-1]))
    return Dataset(name, folder, ["cat"], samples, [1])


def duplicates(*splits: Dataset) -> dict[str, list[str]]:
    paths = [sample.image_path for dataset in splits for sample in dataset.samples]
    facts = dict(read_images(paths, 2))
    problems = Collector(CHECKING)
    for index, dataset in enumerate(splits):
        check_duplicates(dataset, splits[:index], facts, problems)
    return {finding.check: finding.examples for finding in problems.findings()}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_corrupted_file_is_a_result_and_training_agrees(tmp_path, kind):
    rng = random.Random(kind)
    written = io.BytesIO()
    noise(1).save(written, kind)
    for number in range(60):
        content = bytearray(written.getvalue())
        if number % 3 == 0:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.randint(0, 8)):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        path = tmp_path / f"{number}"
        path.write_bytes(content)
        fact = read_image(path)
        try:
            load_image(path, (64, 96))
        except DataError:
            assert fact.problem
        else:
            assert not fact.problem, fact.detail


def test_missing_and_empty_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert read_image(tmp_path / "empty.jpg").detail == "the file is empty"
    assert read_image(tmp_path / "none.jpg").problem == "image-corrupt"


def test_a_truncated_file(tmp_path):
    noise(1, (400, 300)).save(tmp_path / "a.jpg", quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    for share in (0.3, 0.6, 0.95):
        (tmp_path / "a.jpg").write_bytes(content[: int(share * len(content))])
        assert read_image(tmp_path / "a.jpg").problem == "image-truncated"


def test_identical_files_and_near_duplicates(tmp_path):
    folders = [tmp_path / name for name in ("train", "valid")]
    for folder in folders:
        folder.mkdir()
    images = {"a.png": noise(1), "b.png": noise(2), "c.png": noise(1), "d.png": noise(3)}
    train = split("train", folders[0], images)
    changed = {
        "brighter.png": noise(1).point(lambda value: min(255, value + 8)),
        "smaller.png": noise(2).resize((48, 32)),
        "blurred.png": noise(3).filter(ImageFilter.GaussianBlur(1)),
        "other.png": noise(4),
        "same.png": noise(2),
    }
    valid = split("valid", folders[1], changed)
    assert duplicates(train) == {"duplicate-file": ["c.png is a.png"]}
    assert duplicates(train, valid) == {
        "duplicate-file": ["c.png is a.png"],
        "leak-exact": ["same.png is train/b.png"],
        "near-duplicate": ["same.png and smaller.png"],
        "leak-near": [
            "brighter.png and train/a.png",
            "smaller.png and train/b.png",
            "blurred.png and train/d.png",
        ],
    }


def test_a_still_camera_makes_every_pair_a_near_duplicate(tmp_path):
    images = {f"{number}.jpg": noise(1) for number in range(300)}
    for number, image in enumerate(images.values()):
        image.putpixel((number % 96, number // 96), (255, 0, 0))
    dataset = split("train", tmp_path, images, quality=100, subsampling=0)
    assert duplicates(dataset)["near-duplicate"][0] == "1.jpg and 0.jpg"


def test_images_of_one_color_are_no_duplicates(tmp_path):
    images = {f"{n}.png": Image.new("RGB", (40 + n, 30), (90, 90, 90)) for n in range(3)}
    assert duplicates(split("train", tmp_path, images)) == {}


def test_no_images():
    assert list(read_images([], 2)) == []
    assert duplicates(Dataset("train", None, [], [], [])) == {}


def test_training_is_told_of_16_bit_images(tmp_path, tokenizer):
    """12 bits in a 16-bit file, as cameras write them: 60 of 4095 becomes 4 of 255."""
    gray = np.full((64, 96), 60 * 16, np.uint16)
    deep = split("train", tmp_path, {f"{n}.png": Image.fromarray(gray + n) for n in range(3)})
    plain = split("valid", tmp_path, {"x.png": noise(1)})
    for dataset in (deep, plain):
        dataset.samples = [
            made_sample([[4, 4, 40, 40]], [0], path=s.image_path, image_id=s.image_id)
            for s in dataset.samples
        ]
    (tmp_path / "1.png").unlink()  # told elsewhere
    warnings = raise_for_errors({"train": deep, "valid": plain}, ModelLimits(tokenizer, 256, 100, 100, 100))
    assert "image-deep" in warnings
    (message,) = [text for text in deep.messages + plain.messages if "8 bits" in text]
    assert message.startswith("train: Images have more than 8 bits") and "0.png, 2.png" in message
