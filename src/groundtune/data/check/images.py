"""Checks of the image files: each is decoded once, and duplicates are found by its features.

Near-duplicates agree in one of two measures. A difference hash (dHash: 64 bits, one for each pair
of neighbors in a 9 × 8 image) tolerates scaling, light and small changes. Its bits are noise where
an image is smooth; there, the mean square difference of 8 × 8 gray fields detects copies that were
compressed or scaled. The mean colors of the fields must agree as well.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from groundtune.data.images import ImageTooLarge, belongs_upright, exif_orientation, open_image, to_rgb
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, Sample

_PROBED = 8  # images whose headers are read before training
_SMALL = 64  # pixels of the side that images are shrunk to
_ROUNDING = 1.5  # pixels
_ONE_COLOR = 2  # gray levels
_MAX_BITS = 3  # of 64 that can differ
_SAME_GRAY = 2.0  # gray levels, root mean square over the fields
_MAX_DIFFERENCE = 10.0  # gray levels, mean over the fields
_PAIRS = 1 << 16  # compared at a time; a still camera makes every pair a candidate


@dataclass(frozen=True)
class ImageFacts:
    """Features of an image file; of a corrupted one the problem alone."""

    problem: str = ""  # "image-corrupt", "image-truncated", "image-bomb" or ""
    detail: str = ""  # explains the problem
    size: tuple[int, int] = (0, 0)  # stored width and height, pixels
    orientation: int = 1  # EXIF orientation; 1 is upright
    faults: tuple[str, ...] = ()  # checks that the pixels fail
    digest: bytes = b""  # hash of the file
    difference_hash: int = 0  # 64 bits, 1 where the neighbor to the right is darker
    colors: np.ndarray = field(default_factory=lambda: np.zeros((64, 3), np.int16))  # of 8 × 8 fields


Facts = Mapping[Path, ImageFacts]


def read_images(paths: Sequence[Path], threads: int) -> Iterator[tuple[Path, ImageFacts]]:
    """Decode image files in threads, and yield their features in order."""
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about large images and corrupted EXIF data
        yield from zip(paths, pool.map(read_image, paths), strict=True)


def read_image(path: Path) -> ImageFacts:
    """Decode an image file to its end. A problem with it is a result, not an error."""
    try:
        with open_image(path) as opened, path.open("rb") as file:
            return _facts(opened, hashlib.file_digest(file, "blake2b").digest())
    except ImageTooLarge as error:
        return ImageFacts("image-bomb", str(error))
    except UnidentifiedImageError:
        empty = path.is_file() and path.stat().st_size == 0
        return ImageFacts("image-corrupt", "the file is empty" if empty else "unknown image format")
    except Exception as error:  # Pillow's decoders raise nearly every type for corrupted files
        reason = str(error) or type(error).__name__
        truncated = "truncated" in reason.lower() or "unexpected end" in reason.lower()
        return ImageFacts("image-truncated" if truncated else "image-corrupt", reason)


def _facts(opened: Image.Image, digest: bytes) -> ImageFacts:
    mode, size = opened.mode, opened.size
    # a phone's MPO file has a second image of its own
    animated = opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1
    opened.draft(None, (_SMALL, _SMALL))  # reads all of a JPEG, but decodes it at an eighth of its size
    opened.load()
    rgb = opened if opened.mode in ("RGB", "L") else to_rgb(opened)
    small = rgb.resize((_SMALL, _SMALL), Image.Resampling.BOX, reducing_gap=2.0).convert("RGB")
    gray = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    faults = {
        "image-deep": _is_deep(mode),
        "image-animated": animated,
        "image-blank": (np.ptp(np.asarray(small), axis=(0, 1)) <= _ONE_COLOR).all(),
    }
    return ImageFacts(
        size=size,
        orientation=exif_orientation(opened),
        faults=tuple(check for check, failed in faults.items() if failed),
        digest=digest,
        difference_hash=int.from_bytes(np.packbits(gray[:, 1:] > gray[:, :-1]).tobytes(), "big"),
        colors=np.asarray(small.resize((8, 8), Image.Resampling.BOX), np.int16).reshape(-1, 3),
    )


def _is_deep(mode: str) -> bool:
    return mode in ("I", "F") or mode.startswith("I;16")


def check_depth(dataset: Dataset, problems: Collector) -> None:
    """Find images of more than 8 bits by the headers of a few files."""
    for sample in dataset.samples[:_PROBED]:
        with suppress(Exception), open_image(sample.image_path) as image:  # others are reported later
            if _is_deep(image.mode):
                problems.add("image-deep", sample.image_path.name)


def check_images(dataset: Dataset, facts: Facts, problems: Collector) -> None:
    """Check the files of a split, each once, and find image files beside them."""
    samples = {sample.image_path: sample for sample in dataset.samples}
    for path, sample in samples.items():
        fact = facts[path]
        if fact.problem:
            problems.add(fact.problem, f"{path.name}: {fact.detail}")
            continue
        _check_size(sample, fact, problems)
        for check in fact.faults:
            problems.add(check, path.name)


def _check_size(sample: Sample, fact: ImageFacts, problems: Collector) -> None:
    """Compare the stated size with the file's, in the frame that `load_image` chooses."""
    stated, (width, height) = sample.size_hw[::-1], fact.size
    detail = f"{sample.image_path.name}: stored {width} × {height}, stated {stated[0]} × {stated[1]}"
    if 2 <= fact.orientation <= 8:
        check = "exif-ignored"
        if fact.orientation <= 4 or width == height or stated[0] == stated[1]:
            check = "exif-undecided"
        elif belongs_upright(fact.size, fact.orientation, sample.size_hw):
            check = "exif-turned"
            width, height = height, width
        problems.add(check, f"{detail}, EXIF orientation {fact.orientation}")
    if (width, height) != stated:
        off = min(abs(stated[0] * height / width - stated[1]), abs(stated[1] * width / height - stated[0]))
        problems.add("image-rescaled" if off <= _ROUNDING else "image-size-wrong", detail)


def check_duplicates(dataset: Dataset, earlier: Sequence[Dataset], facts: Facts, problems: Collector) -> None:
    """Find duplicates of a split's images in it and in earlier splits.

    A file that two splits list is reported by `names.check_splits`.
    """
    unique: dict[bytes, Path] = {}
    split_of = {path: other.name for other in earlier for path in _decoded(other, facts)}
    known = {facts[path].digest: path for path in reversed(split_of)}  # the first split wins
    new = []
    for path in _decoded(dataset, facts):
        first, leak = unique.setdefault(facts[path].digest, path), known.get(facts[path].digest)
        if first is not path:
            problems.add("duplicate-file", f"{path.name} is {first.name}")
        if leak is None:
            new.append(path)
        elif path not in split_of:
            problems.add("leak-exact", f"{path.name} is {split_of[leak]}/{leak.name}")
    firsts = list(unique.values())
    for path, other in _near_duplicates(firsts, firsts, facts):
        problems.add("near-duplicate", f"{path.name} and {other.name}")
    for path, other in _near_duplicates(new, list(split_of), facts):
        problems.add("leak-near", f"{path.name} and {split_of[other]}/{other.name}")


def _decoded(dataset: Dataset, facts: Facts) -> list[Path]:
    paths = dict.fromkeys(sample.image_path for sample in dataset.samples)
    return [path for path in paths if not facts[path].problem]


def _near_duplicates(paths: list[Path], others: list[Path], facts: Facts) -> Iterator[tuple[Path, Path]]:
    """Yield each path with its first near-duplicate among the others; in one list, before it.

    Every pair is compared: 10,000 images take about two seconds.
    """
    within = paths is others
    paths, others = ([p for p in group if "image-blank" not in facts[p].faults] for group in (paths, others))
    if not paths or not others:
        return
    hashes, colors, grays, squares = _features(paths, facts)
    other_hashes, other_colors, other_grays, other_squares = _features(others, facts)
    step = max(1, _PAIRS // len(others))
    for begin in range(0, len(paths), step):
        part = slice(begin, begin + step)
        bits = np.bitwise_count(hashes[part, None] ^ other_hashes)
        square = squares[part, None] + other_squares - 2 * grays[part] @ other_grays.T
        candidates = (bits <= _MAX_BITS) | (square <= grays.shape[1] * _SAME_GRAY**2)
        if within:
            candidates = np.tril(candidates, begin - 1)
        rows, columns = np.nonzero(candidates)
        difference = np.abs(colors[begin + rows] - other_colors[columns]).mean(axis=(1, 2), dtype=np.float32)
        near = difference <= _MAX_DIFFERENCE
        first = dict(zip(rows[near][::-1].tolist(), columns[near][::-1].tolist(), strict=True))
        yield from ((paths[begin + row], others[first[row]]) for row in sorted(first))


def _features(paths: list[Path], facts: Facts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    hashes = np.array([facts[path].difference_hash for path in paths], dtype=np.uint64)
    colors = np.stack([facts[path].colors for path in paths])
    grays = colors.mean(axis=-1, dtype=np.float32)
    return hashes, colors, grays, (grays**2).sum(axis=1)
