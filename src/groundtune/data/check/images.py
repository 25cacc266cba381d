"""Images that are there twice: byte for byte, or to the eye.

Two images are near each other by either of two measures. A difference hash (dHash: 64 bits, one for each pair of neighbors
in a 9 × 8 image) finds images that are alike up to scaling, light and small changes; where they are smooth its bits are
noise, and the root mean square difference of 8 × 8 grey fields finds what was only compressed or scaled. The mean colors of
the fields must then agree too.

What the image files themselves say: every one is decoded to its end, once; `twins` compares what is kept of it.

JPEG files are decoded at an eighth of their size, which reads the whole file and is many times faster.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from groundtune.data.formats.files import IMAGE_SUFFIXES
from groundtune.data.images import ImageTooLarge, belongs_upright, exif_orientation, open_image, to_rgb
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, Sample

_SMALL = 64  # pixels of the side that images are shrunk to
_ROUNDING = 1.5  # pixels
_ONE_COLOR = 2  # grey levels


@dataclass(frozen=True)
class ImageFacts:
    """What is kept of an image file; of one with a problem nothing else."""

    problem: str = ""  # "image-corrupt", "image-truncated", "image-bomb", or "" where there is none
    detail: str = ""  # the problem in words
    size: tuple[int, int] = (0, 0)  # stored width and height, pixels
    orientation: int = 1  # of EXIF; 1 is upright
    faults: tuple[str, ...] = ()  # checks that its content fails
    digest: bytes = b""  # of the file's bytes
    difference_hash: int = 0  # 64 bits, one for each neighbor to the right that is brighter
    look: np.ndarray = field(
        default_factory=lambda: np.zeros((64, 3), np.int16)
    )  # mean colors of 8 × 8 fields


def read_images(paths: Sequence[Path], workers: int) -> Iterator[tuple[Path, ImageFacts]]:
    """Decode image files in threads, and give their facts in order."""
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # Pillow's about large images and broken EXIF: what matters is found
        yield from zip(paths, pool.map(read_image, paths), strict=True)


def read_image(path: Path) -> ImageFacts:
    """Decode an image file to its end. Whatever is wrong with it is a fact, not an error."""
    try:
        with open_image(path) as opened, path.open("rb") as file:
            return _facts(opened, hashlib.file_digest(file, "blake2b").digest())
    except ImageTooLarge as error:
        return ImageFacts("image-bomb", str(error))
    except UnidentifiedImageError:
        empty = path.is_file() and path.stat().st_size == 0
        return ImageFacts("image-corrupt", "the file is empty" if empty else "no image format is recognized")
    except Exception as error:  # Pillow's decoders raise nearly every kind for broken files
        reason = str(error) or type(error).__name__
        cut = "truncated" in reason.lower() or "unexpected end" in reason.lower()
        return ImageFacts("image-truncated" if cut else "image-corrupt", reason)


def _facts(opened: Image.Image, digest: bytes) -> ImageFacts:
    mode, size = opened.mode, opened.size
    several = (
        opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1
    )  # a phone's MPO has a second one of its own
    opened.draft(None, (_SMALL, _SMALL))
    opened.load()
    rgb = opened if opened.mode in ("RGB", "L") else to_rgb(opened)
    small = rgb.resize((_SMALL, _SMALL), Image.Resampling.BOX, reducing_gap=2.0).convert("RGB")
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    faults = {
        "image-deep": mode in ("I", "F") or mode.startswith("I;16"),
        "image-animated": several,
        "image-blank": (np.ptp(np.asarray(small), axis=(0, 1)) <= _ONE_COLOR).all(),
    }
    return ImageFacts(
        size=size,
        orientation=exif_orientation(opened),
        faults=tuple(check for check, fault in faults.items() if fault),
        digest=digest,
        difference_hash=int.from_bytes(bits.tobytes(), "big"),
        look=np.asarray(small.resize((8, 8), Image.Resampling.BOX), np.int16).reshape(-1, 3),
    )


def check_images(dataset: Dataset, facts: dict[Path, ImageFacts], found: Collector) -> None:
    """Look at the files of a split, each once however often it is listed, and for images beside them."""
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
    for folder in sorted(
        {path.parent for path in samples}
    ):  # folders without a used image are somebody else's
        for path in sorted(folder.iterdir()):
            unused = (
                path.suffix.lower() in IMAGE_SUFFIXES
                and not path.name.startswith(".")
                and path not in samples
            )
            if unused and not any(
                path.name in example for example in told
            ):  # else dropped while reading, and told
                found.add("file-unused", path.name)


def _check_frame(sample: Sample, fact: ImageFacts, found: Collector) -> None:
    """Compare the stated size with the file's, in the frame that `transforms.load_image` would choose."""
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
        found.add("image-rescaled" if off <= _ROUNDING else "image-size-wrong", detail)


_MOST_BITS = 3  # of 64 that may differ
_SAME_GREY = 2.0  # grey levels, root mean square over the fields
_MOST_DIFFERENCE = 10.0  # grey levels, mean over the fields
_COMPARED = 1 << 16  # pairs at a time; a still camera makes every pair a candidate

Facts = Mapping[Path, ImageFacts]


def check_twins(dataset: Dataset, earlier: Sequence[Dataset], facts: Facts, found: Collector) -> None:
    """Look for images of one split that are there before, in it or in an earlier split.

    A file that is listed in two splits is told elsewhere.
    """
    own: dict[bytes, Path] = {}
    others = {path: other.name for other in earlier for path in _decoded(other, facts)}
    known = {facts[path].digest: path for path in reversed(others)}  # the first split has the last word
    rest = []
    for path in _decoded(dataset, facts):
        first, same = own.setdefault(facts[path].digest, path), known.get(facts[path].digest)
        if first is not path:
            found.add("duplicate-file", f"{path.name} is {first.name}")
        if same is None:
            rest.append(path)
        elif path not in others:
            found.add("leak-exact", f"{path.name} is {others[same]}/{same.name}")
    unique = list(own.values())
    for later, first in _near(unique, unique, facts):
        found.add("near-duplicate", f"{later.name} and {first.name}")
    for path, other in _near(rest, list(others), facts):
        found.add("leak-near", f"{path.name} and {others[other]}/{other.name}")


def _decoded(dataset: Dataset, facts: Facts) -> list[Path]:
    paths = dict.fromkeys(sample.image_path for sample in dataset.samples)
    return [path for path in paths if not facts[path].problem]


def _near(paths: list[Path], others: list[Path], facts: Facts) -> Iterator[tuple[Path, Path]]:
    """Each path with the first of the others that looks like it; in one list of both, one that stands before it.

    Every pair is compared: 10,000 images take about two seconds.
    """
    within = paths is others
    paths, others = ([p for p in group if "image-blank" not in facts[p].faults] for group in (paths, others))
    if not paths or not others:
        return
    hashes, other_hashes = (
        np.array([facts[p].difference_hash for p in g], dtype=np.uint64) for g in (paths, others)
    )
    looks, other_looks = (np.stack([facts[p].look for p in g]) for g in (paths, others))
    greys, other_greys = (look.mean(axis=-1, dtype=np.float32) for look in (looks, other_looks))
    squares, other_squares = ((grey**2).sum(axis=1) for grey in (greys, other_greys))
    step = max(1, _COMPARED // len(others))
    for begin in range(0, len(paths), step):
        part = slice(begin, begin + step)
        bits = np.bitwise_count(hashes[part, None] ^ other_hashes)
        square = squares[part, None] + other_squares - 2 * greys[part] @ other_greys.T
        candidates = (bits <= _MOST_BITS) | (square <= greys.shape[1] * _SAME_GREY**2)
        if within:
            candidates = np.tril(candidates, begin - 1)
        rows, columns = np.nonzero(candidates)
        difference = np.abs(looks[begin + rows] - other_looks[columns]).mean(axis=(1, 2), dtype=np.float32)
        near = difference <= _MOST_DIFFERENCE
        first = dict(zip(rows[near][::-1].tolist(), columns[near][::-1].tolist(), strict=True))
        yield from ((paths[begin + row], others[first[row]]) for row in sorted(first))
