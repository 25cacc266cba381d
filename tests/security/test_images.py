"""Hostile image files: each is an error before it is decoded, in training, prediction and `check`."""

import os
import random
import resource
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from coco_files import coco, write
from PIL import Image
from watch import watched, within

from groundtune.data.check.images import read_image
from groundtune.data.formats.detect import load_splits
from groundtune.data.images import MAX_PIXELS, load_image
from groundtune.errors import DataError


def png(path: Path, width: int, height: int) -> Path:
    """A file of 67 bytes whose header promises an image of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height"), [(9500, 9500), (40_000, 40_000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)]
)
def test_a_huge_header_is_an_error_with_size_limit_and_fix(tmp_path: Path, width: int, height: int) -> None:
    path = png(tmp_path / "a.png", width, height)
    with pytest.raises(
        DataError, match=rf"a\.png would have .* pixels\. At most {MAX_PIXELS:,} are read .* make it smaller"
    ):
        load_image(path)
    assert read_image(path).problem == "image-bomb"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("stated", [(10**12, 10**12), (MAX_PIXELS + 1, 1), (None, None)])
def test_a_data_set_with_huge_images_is_an_error_before_training(
    tmp_path: Path, stated: tuple[int | None, int | None]
) -> None:
    content = coco(boxes=[(1, 1, [1, 1, 2, 2])])
    content["images"][0] |= {"width": stated[0], "height": stated[1]}
    write(tmp_path / "a.json", content)
    png(tmp_path / "a.png", *((40, 30) if stated[0] else (9500, 9500)))
    with pytest.raises(DataError, match=rf"over {MAX_PIXELS:,} pixels|At most {MAX_PIXELS:,} are read"):
        load_splits(tmp_path)
    findings = load_splits(tmp_path, keep_going=True)["train"].findings
    assert {finding.check: finding.severity for finding in findings}[
        "image-bomb" if stated[0] else "image-unreadable"
    ] == "error"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_no_other_program_is_started_regardless_of_the_suffix(
    tmp_path: Path, monkeypatch, suffix: str
) -> None:
    """Pillow hands EPS to Ghostscript; this one would make a file, were there a `gs`."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.eps")
    path = shutil.copy(tmp_path / "a.eps", tmp_path / f"a.{suffix}")
    with watched() as seen, pytest.raises(DataError, match="Cannot read the image"):
        load_image(Path(path))
    with watched() as more:
        assert read_image(Path(path)).problem == "image-corrupt"
    assert seen == more == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("kind", ["image", "labels"])
def test_a_pipe_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("cat\n")
    Image.new("RGB", (20, 20)).save(tmp_path / "images/a.png")
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    pipe = tmp_path / ("images/a.png" if kind == "image" else "labels/a.txt")
    pipe.unlink()
    os.mkfifo(pipe)
    with within(30), pytest.raises(DataError, match=r"not a regular file|No data set"):
        load_splits(tmp_path)
    if kind == "image":
        with within(30), pytest.raises(DataError, match="not a regular file"):
            load_image(pipe)
        with within(30):
            assert read_image(pipe).problem == "image-corrupt"


def samples(folder: Path) -> list[Path]:
    """Small images of all kinds, one with EXIF, one with several frames."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    noise.save(folder / "a.jpg", exif=exif)
    noise.save(folder / "b.png", exif=exif)
    noise.quantize(16).save(folder / "c.gif", save_all=True, append_images=[Image.new("P", noise.size)])
    noise.convert("I;16").save(folder / "d.tif")
    for name in ("e.webp", "f.bmp", "g.ppm", "h.jp2", "i.tif"):
        noise.save(folder / name)
    return sorted(folder.iterdir())


def corrupted(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(data), rng.choice([64, 512, len(data)])))
        data[at : at + 1] = rng.choice(
            [bytes([rng.randrange(256)]), b"\xff\xff\xff\xff", b"", b"\x7f\xff\xff\xff", b"\0" * 9]
        )
    return bytes(data[: rng.choice([len(data)] * 3 + [rng.randrange(len(data) + 1)])])


def fuzz(count: int, folder: Path) -> tuple[int, int]:
    valid = {path.suffix: path.read_bytes() for path in samples(folder)}
    rng, read, rejected = random.Random(0), 0, 0
    for _ in range(count):
        suffix = rng.choice(list(valid))
        path = folder / f"corrupted{suffix}"
        path.write_bytes(corrupted(valid[suffix], rng))
        with watched() as seen, within(60):
            read_image(path)
            try:
                image = load_image(path)
                assert image.mode == "RGB" and image.width * image.height <= MAX_PIXELS
                read += 1
            except DataError as error:
                rejected += 1
                assert "corrupted" in str(error)
        assert seen == []
    return read, rejected


def test_corrupted_images_are_read_or_are_one_error(tmp_path: Path) -> None:
    read, rejected = fuzz(100, tmp_path)
    assert read and rejected


@pytest.mark.slow
def test_5000_corrupted_images(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, rejected = fuzz(5000, tmp_path)
    assert read > 500 and rejected > 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20  # KB
