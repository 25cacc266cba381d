"""Time of `groundtune check` on 2000 generated images with 10,000 boxes, and of its comparisons.

    python benchmarks/checking.py            # decodes the images
    python benchmarks/checking.py --scale    # 100,000 images with 1,000,000 boxes in one COCO file

Prints the seconds as JSON, and fails if a limit (for two quiet cores) is exceeded. With `--scale`,
`check --fast` runs in a process of its own: CPU seconds and peak megabytes. The images are links to
one file, which is not opened, because COCO states the sizes.
"""

import json
import subprocess
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
CLASSES = ["person", "bicycle", "car", "bus", "train", "truck", "boat"]
SCALE_LIMITS = {"CPU seconds": 20.0, "MB": 1500.0}
CHECK = """
import json, resource, sys, time
import groundtune as gt
report = gt.check(sys.argv[1], fast=True)
assert sum(report.boxes.values()) == 1_000_000, report.boxes
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"CPU seconds": round(time.process_time(), 1), "MB": round(peak)}))
"""


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


def scale(count: int) -> dict[str, float]:
    """Return CPU seconds and megabytes of checking `count` images with ten boxes each."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(10, 200, (10 * count, 2)).round(2)
    corners = (rng.uniform(0, 1, (10 * count, 2)) * ((640, 480) - sides)).round(2)
    boxes = np.hstack([corners, sides]).tolist()
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder) / "train"
        train.mkdir()
        Image.new("RGB", (64, 48)).save(train / "0.jpg")
        for i in range(1, count):
            (train / f"{i}.jpg").symlink_to("0.jpg")
        size = {"width": 640, "height": 480}
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg"} | size for i in range(count)],
            "annotations": [
                {"id": n, "image_id": n // 10, "category_id": n % 7, "bbox": box, "area": box[2] * box[3]}
                | {"iscrowd": 0, "segmentation": []}
                for n, box in enumerate(boxes)
            ],
            "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)],
        }
        (train / "_annotations.coco.json").write_text(json.dumps(content))
        del content
        command = [sys.executable, "-c", CHECK, folder]
        result: dict[str, float] = json.loads(subprocess.check_output(command, text=True))
        return result


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
    large = "--scale" in sys.argv
    measured, limits = (scale(100_000), SCALE_LIMITS) if large else (dict(measure()), LIMITS)
    print(json.dumps(measured))
    slow = [
        f"{name}: {measured[name]}, limit {limit:.0f}"
        for name, limit in limits.items()
        if measured[name] > limit
    ]
    print("\n".join(slow), file=sys.stderr, end="\n" if slow else "")
    return len(slow) > 0


if __name__ == "__main__":
    sys.exit(main())
