"""What the picture files themselves say: every one is decoded to its end, at a small size where the format allows it.

JPEG files are decoded at an eighth of their size, which reads the whole file and is many times faster. A picture is looked
at once; `twins` compares what is kept of it.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from groundtune.data.findings import Collector
from groundtune.data.prefetch import in_background
from groundtune.data.sample import Dataset, Sample
from groundtune.data.transforms import MAX_PIXELS, belongs_upright, exif_orientation, to_rgb

_AT_ONCE = 16  # pictures between two reports of progress
_SMALL = 64  # pixels of the side that pictures are shrunk to
_GRID = 8  # the look of a picture is the mean colours of 8 × 8 fields
_SMALLEST_SIDE = 32  # pixels
_ROUNDING = 1.5  # pixels
_ONE_COLOUR = 2  # grey levels
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
_PICTURE_SUFFIXES = {suffix for suffixes in _SUFFIXES.values() for suffix in suffixes}


@dataclass(frozen=True)
class PictureFacts:
    """What is kept of a picture file.

    Attributes:
        problem: "picture-corrupt", "picture-truncated" or "picture-bomb"; the rest is empty then. "" where there is none.
        detail: the problem in words.
        size: stored width and height, pixels.
        mode: of the file, in Pillow's words.
        format: of the file, in Pillow's words.
        frames: pictures in the file.
        transparent: has pixels that may be seen through.
        orientation: of EXIF; 1 is upright.
        one_colour: has nothing to see.
        digest: of the file's bytes.
        difference_hash: 64 bits, one for each neighbour to the right that is brighter.
        look: (64, 3) uint8, mean colours of 8 × 8 fields.
    """

    problem: str = ""
    detail: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    format: str = ""
    frames: int = 1
    transparent: bool = False
    orientation: int = 1
    one_colour: bool = False
    digest: bytes = b""
    difference_hash: int = 0
    look: np.ndarray | None = None


def read_pictures(paths: Sequence[Path], workers: int) -> Iterator[dict[Path, PictureFacts]]:
    """Decode picture files in threads, a few at a time, in order."""
    groups = [paths[begin : begin + _AT_ONCE] for begin in range(0, len(paths), _AT_ONCE)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about large pictures and broken EXIF: what matters is found
        done = in_background(lambda path: partial(read_picture, path), groups, workers)
        for group, facts in zip(groups, done, strict=True):
            yield {path: fact for path, fact in zip(group, facts, strict=True) if fact is not None}


def read_picture(path: Path) -> PictureFacts:
    """Decode a picture file to its end. Whatever is wrong with it is a fact, not an error."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").digest()
            file.seek(0)
            with Image.open(file) as opened:
                size = opened.size
                if size[0] * size[1] > MAX_PIXELS:
                    return PictureFacts("picture-bomb", f"{size[0]} × {size[1]} pixels")
                return _facts(opened, digest)
    except Image.DecompressionBombError:
        return PictureFacts("picture-bomb", f"more than {2 * MAX_PIXELS:,} pixels")
    except UnidentifiedImageError:
        empty = path.is_file() and path.stat().st_size == 0
        return PictureFacts("picture-corrupt", "the file is empty" if empty else "no picture format is recognised")
    except Exception as error:  # Pillow's decoders raise nearly every kind for broken files
        reason = str(error) or type(error).__name__
        cut = "truncated" in reason.lower() or "unexpected end" in reason.lower()
        return PictureFacts("picture-truncated" if cut else "picture-corrupt", reason)


def _facts(opened: Image.Image, digest: bytes) -> PictureFacts:
    mode, size, kind = opened.mode, opened.size, opened.format or ""
    # a phone's MPO holds a second picture for its own use
    frames = 1 if kind == "MPO" else int(getattr(opened, "n_frames", 1))
    opened.draft(None, (_SMALL, _SMALL))
    opened.load()
    transparent = opened.has_transparency_data
    rgb = opened if opened.mode in ("RGB", "L") else to_rgb(opened)
    small = rgb.resize((_SMALL, _SMALL), Image.Resampling.BOX, reducing_gap=2.0).convert("RGB")
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    pixels = np.asarray(small)
    return PictureFacts(
        size=size,
        mode=mode,
        format=kind,
        frames=frames,
        transparent=transparent,
        orientation=exif_orientation(opened),
        one_colour=bool((np.ptp(pixels, axis=(0, 1)) <= _ONE_COLOUR).all()),
        digest=digest,
        difference_hash=int.from_bytes(bits.tobytes(), "big"),
        look=np.asarray(small.resize((_GRID, _GRID), Image.Resampling.BOX)).reshape(-1, 3).copy(),
    )


def check_pictures(dataset: Dataset, facts: dict[Path, PictureFacts], found: Collector) -> None:
    """Look at the files of a split, each once however often it is listed."""
    for sample in {sample.image_path: sample for sample in dataset.samples}.values():
        fact = facts[sample.image_path]
        if fact.problem:
            found.add(fact.problem, f"{sample.image_path.name}: {fact.detail}")
            continue
        _check_frame(sample, fact, found)
        _check_content(sample.image_path, fact, found)
    _check_unused(dataset, found)


def _check_frame(sample: Sample, fact: PictureFacts, found: Collector) -> None:
    """Compare the stated size with the file's, in the frame that `transforms.load_picture` would choose."""
    name, stated = sample.image_path.name, sample.size_hw[::-1]
    width, height = fact.size
    if 2 <= fact.orientation <= 8:
        detail = f"{name}: EXIF orientation {fact.orientation}, stored {_by(fact.size)}, stated {_by(stated)}"
        if fact.orientation <= 4 or width == height or stated[0] == stated[1]:
            found.add("exif-undecided", detail)
        elif belongs_upright(fact.size, fact.orientation, sample.size_hw):
            found.add("exif-turned", detail)
            width, height = height, width
        else:
            found.add("exif-ignored", detail)
    if (width, height) == stated:
        return
    by_width, by_height = abs(stated[0] * height / width - stated[1]), abs(stated[1] * width / height - stated[0])
    same_shape = min(by_width, by_height) <= _ROUNDING
    check = "picture-rescaled" if same_shape else "picture-size-wrong"
    found.add(check, f"{name}: stated {_by(stated)}, is {_by((width, height))}")


def _check_content(path: Path, fact: PictureFacts, found: Collector) -> None:
    if fact.mode == "CMYK":
        found.add("picture-cmyk", path.name)
    if fact.mode in ("I", "F") or fact.mode.startswith("I;16"):
        found.add("picture-deep", f"{path.name}: mode {fact.mode}")
    if fact.transparent:
        found.add("picture-transparent", path.name)
    if fact.frames > 1:
        found.add("picture-animated", f"{path.name}: {fact.frames} pictures")
    if fact.one_colour:
        found.add("picture-blank", path.name)
    if min(fact.size) < _SMALLEST_SIDE:
        found.add("picture-small", f"{path.name}: {_by(fact.size)}")
    usual = _SUFFIXES.get(fact.format)
    if usual and path.suffix.lower() not in usual:
        found.add("file-extension", f"{path.name} is {fact.format}")


def _check_unused(dataset: Dataset, found: Collector) -> None:
    """Look for pictures beside those that are used. Folders without a used picture are somebody else's."""
    used = {sample.image_path for sample in dataset.samples}
    told = {example for finding in dataset.findings for example in finding.examples}
    for folder in sorted({path.parent for path in used}):
        for name in sorted(os.listdir(folder)):
            path = folder / name
            if path.suffix.lower() not in _PICTURE_SUFFIXES or name.startswith(".") or path in used:
                continue
            if not any(name in example for example in told):  # dropped while reading, for a reason that is told
                found.add("file-unused", name)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
