"""Time of `groundtune check` on 2000 generated images with 10,000 boxes, and of its comparisons.

    python benchmarks/checking.py

Prints the seconds as JSON, and fails if a limit (for two quiet cores) is exceeded.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import groundtune as gt
from groundtune.data.check.images import ImageFacts, check_duplicates
from groundtune.data.check.kinds import CHECKING
from groundtune.data.check.names import alike_names
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, Sample

LIMITS = {"check 2,000 images": 30.0, "compare 10,000 images": 10.0, "compare 10,000 names": 5.0}


def write_data(folder: Path, count: int) -> None:
    """Write images of noise with five boxes each, as COCO."""
    folder.mkdir()
    images, rows = [], []
    for i in range(count):
        Image.effect_noise((64, 48), 80).convert("RGB").save(folder / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48})
        boxes = ([x, i % 30, 9, 9] for x in (1, 11, 21, 31, 41))
        rows += [
            {"id": len(rows) + n, "image_id": i, "category_id": 1, "bbox": b} for n, b in enumerate(boxes)
        ]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def compare_images(count: int) -> None:
    """Compare random features of images with each other."""
    rng = np.random.default_rng(0)
    facts = {
        Path(f"{i}.jpg"): ImageFacts(
            digest=i.to_bytes(8, "big"),
            difference_hash=int(rng.integers(2**63)),
            colors=rng.integers(0, 256, (64, 3)).astype(np.int16),
        )
        for i in range(count)
    }
    no_boxes = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    samples = [Sample(path, i, (1, 1), *no_boxes) for i, path in enumerate(facts)]
    check_duplicates(Dataset("train", Path(), [], samples, []), [], facts, Collector(CHECKING))


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return round(time.perf_counter() - begin, 2)


def measure() -> Iterator[tuple[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "train", 2000)
        yield "check 2,000 images", seconds(lambda: gt.check(folder))
    yield "compare 10,000 images", seconds(lambda: compare_images(10_000))
    names = [f"{'abcdefghij'[i % 10]}{i * 7919 % 10_007} of kind {i}" for i in range(10_000)]
    yield "compare 10,000 names", seconds(lambda: alike_names(names))


def main() -> int:
    measured = dict(measure())
    print(json.dumps(measured))
    slow = [
        f"{name}: {measured[name]} s, limit {limit:.0f} s"
        for name, limit in LIMITS.items()
        if measured[name] > limit
    ]
    print("\n".join(slow), file=sys.stderr, end="\n" if slow else "")
    return len(slow) > 0


if __name__ == "__main__":
    sys.exit(main())
