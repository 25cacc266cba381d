"""Pictures that are there twice: byte for byte, or to the eye.

Two pictures are near each other by either of two measures. A difference hash (dHash: 64 bits, one for each pair of neighbours
in a 9 × 8 picture) finds pictures that are alike up to scaling, light and small changes; where they are smooth its bits are
noise, and the root mean square difference of 8 × 8 grey fields finds what was only compressed or scaled. The mean colours of
the fields must then agree too. On the shared sets this finds the near twins of `chess`, and a few pairs in the others.
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
_COMPARED = 1 << 20  # pairs at a time
_VERIFIED = 1 << 16  # candidates at a time

Facts = Mapping[Path, PictureFacts]


def check_duplicates(dataset: Dataset, facts: Facts, found: Collector) -> None:
    """Look for pictures of one split that are there before."""
    paths = _decoded(dataset, facts)
    first: dict[bytes, Path] = {}
    unique = []
    for path in paths:
        same = first.setdefault(facts[path].digest, path)
        if same is not path:
            found.add("duplicate-file", f"{path.name} is {same.name}")
        elif not facts[path].one_colour:
            unique.append(path)
    told = set()
    for later, earlier in _near_pairs(unique, unique, facts):
        if earlier < later and later not in told:
            told.add(later)
            found.add("near-duplicate", f"{unique[later].name} and {unique[earlier].name}")


def check_leaks(dataset: Dataset, earlier: Sequence[Dataset], facts: Facts, found: Collector) -> None:
    """Look for pictures of one split that splits before it have too. A file listed in both is told elsewhere."""
    others = {path: other.name for other in earlier for path in _decoded(other, facts)}
    known = {facts[path].digest: path for path in reversed(others)}  # the first split has the last word
    rest = []
    for path in _decoded(dataset, facts):
        same = known.get(facts[path].digest)
        if same is None:
            rest.append(path)
        elif path not in others:
            found.add("leak-exact", f"{path.name} is {others[same]}/{same.name}")
    rest, candidates = ([path for path in group if not facts[path].one_colour] for group in (rest, others))
    told = set()
    for row, column in _near_pairs(rest, candidates, facts):
        if row not in told:
            told.add(row)
            found.add("leak-near", f"{rest[row].name} and {others[candidates[column]]}/{candidates[column].name}")


def _decoded(dataset: Dataset, facts: Facts) -> list[Path]:
    paths = dict.fromkeys(sample.image_path for sample in dataset.samples)
    return [path for path in paths if not facts[path].problem]


def _near_pairs(paths: list[Path], others: list[Path], facts: Facts) -> Iterator[tuple[int, int]]:
    """Pairs of indices that look alike, row by row. Every pair is compared: 10,000 pictures take about two seconds."""
    if not paths or not others:
        return
    hashes, other_hashes = (np.array([facts[p].difference_hash for p in g], dtype=np.uint64) for g in (paths, others))
    looks, other_looks = (np.stack([_look(facts[p]) for p in g]) for g in (paths, others))
    greys, other_greys = (look.mean(axis=-1, dtype=np.float32) for look in (looks, other_looks))
    squares = (other_greys**2).sum(axis=1)
    rows_at_once = max(1, _COMPARED // len(others))
    for begin in range(0, len(paths), rows_at_once):
        part = slice(begin, begin + rows_at_once)
        bits = np.bitwise_count(hashes[part, None] ^ other_hashes[None, :])
        square = (greys[part] ** 2).sum(axis=1)[:, None] + squares[None, :] - 2 * greys[part] @ other_greys.T
        rows, columns = np.nonzero((bits <= _MOST_BITS) | (square <= greys.shape[1] * _SAME_GREY**2))
        for first in range(0, len(rows), _VERIFIED):  # a still camera makes every pair a candidate
            some, its = rows[first : first + _VERIFIED], columns[first : first + _VERIFIED]
            difference = np.abs(looks[begin + some] - other_looks[its]).mean(axis=(1, 2), dtype=np.float32)
            near = difference <= _MOST_DIFFERENCE
            yield from zip((begin + some[near]).tolist(), its[near].tolist(), strict=True)


def _look(fact: PictureFacts) -> np.ndarray:
    assert fact.look is not None  # of a picture that was decoded
    return fact.look.astype(np.int16)
