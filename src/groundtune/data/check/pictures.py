"""What the picture files themselves say: every one is decoded to its end, once; `twins` compares what is kept of it.

JPEG files are decoded at an eighth of their size, which reads the whole file and is many times faster.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from groundtune.data.findings import Collector
from groundtune.data.formats.files import PICTURE_SUFFIXES
from groundtune.data.picture_files import PictureTooLarge, exif_orientation, open_picture
from groundtune.data.sample import Dataset, Sample
from groundtune.data.transforms import belongs_upright, to_rgb

_SMALL = 64  # pixels of the side that pictures are shrunk to
_ROUNDING = 1.5  # pixels
_ONE_COLOUR = 2  # grey levels


@dataclass(frozen=True)
class PictureFacts:
    """What is kept of a picture file; of one with a problem nothing else."""

    problem: str = ""  # "picture-corrupt", "picture-truncated", "picture-bomb", or "" where there is none
    detail: str = ""  # the problem in words
    size: tuple[int, int] = (0, 0)  # stored width and height, pixels
    orientation: int = 1  # of EXIF; 1 is upright
    faults: tuple[str, ...] = ()  # checks that its content fails
    digest: bytes = b""  # of the file's bytes
    difference_hash: int = 0  # 64 bits, one for each neighbour to the right that is brighter
    look: np.ndarray = field(default_factory=lambda: np.zeros((64, 3), np.int16))  # mean colours of 8 × 8 fields


def read_pictures(paths: Sequence[Path], workers: int) -> Iterator[tuple[Path, PictureFacts]]:
    """Decode picture files in threads, and give their facts in order."""
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # Pillow's about large pictures and broken EXIF: what matters is found
        yield from zip(paths, pool.map(read_picture, paths), strict=True)


def read_picture(path: Path) -> PictureFacts:
    """Decode a picture file to its end. Whatever is wrong with it is a fact, not an error."""
    try:
        with open_picture(path) as opened, path.open("rb") as file:
            return _facts(opened, hashlib.file_digest(file, "blake2b").digest())
    except PictureTooLarge as error:
        return PictureFacts("picture-bomb", str(error))
    except UnidentifiedImageError:
        empty = path.is_file() and path.stat().st_size == 0
        return PictureFacts("picture-corrupt", "the file is empty" if empty else "no picture format is recognised")
    except Exception as error:  # Pillow's decoders raise nearly every kind for broken files
        reason = str(error) or type(error).__name__
        cut = "truncated" in reason.lower() or "unexpected end" in reason.lower()
        return PictureFacts("picture-truncated" if cut else "picture-corrupt", reason)


def _facts(opened: Image.Image, digest: bytes) -> PictureFacts:
    mode, size = opened.mode, opened.size
    several = opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1  # a phone's MPO has a second one of its own
    opened.draft(None, (_SMALL, _SMALL))
    opened.load()
    rgb = opened if opened.mode in ("RGB", "L") else to_rgb(opened)
    small = rgb.resize((_SMALL, _SMALL), Image.Resampling.BOX, reducing_gap=2.0).convert("RGB")
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    faults = {
        "picture-deep": mode in ("I", "F") or mode.startswith("I;16"),
        "picture-animated": several,
        "picture-blank": (np.ptp(np.asarray(small), axis=(0, 1)) <= _ONE_COLOUR).all(),
    }
    return PictureFacts(
        size=size,
        orientation=exif_orientation(opened),
        faults=tuple(check for check, fault in faults.items() if fault),
        digest=digest,
        difference_hash=int.from_bytes(bits.tobytes(), "big"),
        look=np.asarray(small.resize((8, 8), Image.Resampling.BOX), np.int16).reshape(-1, 3),
    )


def check_pictures(dataset: Dataset, facts: dict[Path, PictureFacts], found: Collector) -> None:
    """Look at the files of a split, each once however often it is listed, and for pictures beside them."""
    samples = {sample.image_path: sample for sample in dataset.samples}
    for path, sample in samples.items():
        fact = facts[path]
        if fact.problem:
            found.add(fact.problem, f"{path.name}: {fact.detail}")
            continue
        _check_frame(sample, fact, found)
        for check in fact.faults:
            found.add(check, path.name)
    told = {example for finding in dataset.findings for example in finding.examples}
    for folder in sorted({path.parent for path in samples}):  # folders without a used picture are somebody else's
        for path in sorted(folder.iterdir()):
            unused = path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path not in samples
            if unused and not any(path.name in example for example in told):  # else dropped while reading, and told
                found.add("file-unused", path.name)


def _check_frame(sample: Sample, fact: PictureFacts, found: Collector) -> None:
    """Compare the stated size with the file's, in the frame that `transforms.load_picture` would choose."""
    stated, (width, height) = sample.size_hw[::-1], fact.size
    detail = f"{sample.image_path.name}: stored {width} × {height}, stated {stated[0]} × {stated[1]}"
    if 2 <= fact.orientation <= 8:
        check = "exif-ignored"
        if fact.orientation <= 4 or width == height or stated[0] == stated[1]:
            check = "exif-undecided"
        elif belongs_upright(fact.size, fact.orientation, sample.size_hw):
            check = "exif-turned"
            width, height = height, width
        found.add(check, f"{detail}, EXIF orientation {fact.orientation}")
    if (width, height) != stated:
        off = min(abs(stated[0] * height / width - stated[1]), abs(stated[1] * width / height - stated[0]))
        found.add("picture-rescaled" if off <= _ROUNDING else "picture-size-wrong", detail)
