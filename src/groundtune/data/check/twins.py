"""Pictures that are there twice: byte for byte, or to the eye.

Two pictures are near each other by either of two measures. A difference hash (dHash: 64 bits, one for each pair of neighbours
in a 9 × 8 picture) finds pictures that are alike up to scaling, light and small changes; where they are smooth its bits are
noise, and the root mean square difference of 8 × 8 grey fields finds what was only compressed or scaled. The mean colours of
the fields must then agree too.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from groundtune.data.check.pictures import PictureFacts
from groundtune.data.findings import Collector
from groundtune.data.sample import Dataset

_MOST_BITS = 3  # of 64 that may differ
_SAME_GREY = 2.0  # grey levels, root mean square over the fields
_MOST_DIFFERENCE = 10.0  # grey levels, mean over the fields
_COMPARED = 1 << 16  # pairs at a time; a still camera makes every pair a candidate

Facts = Mapping[Path, PictureFacts]


def check_twins(dataset: Dataset, earlier: Sequence[Dataset], facts: Facts, found: Collector) -> None:
    """Look for pictures of one split that are there before, in it or in an earlier split.

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

    Every pair is compared: 10,000 pictures take about two seconds.
    """
    within = paths is others
    paths, others = ([p for p in group if "picture-blank" not in facts[p].faults] for group in (paths, others))
    if not paths or not others:
        return
    hashes, other_hashes = (np.array([facts[p].difference_hash for p in g], dtype=np.uint64) for g in (paths, others))
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
