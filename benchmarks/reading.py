"""Time and memory of reading annotations: 100,000 boxes on 5,000 images, in every format.

    python benchmarks/reading.py [--images 5000]

Each format is read in a process of its own. Printed are CPU seconds, the ratio to COCO, the ratio
to a quarter of the images (4 is linear growth), and the peak memory. Ratios hold on any machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from groundtune.data.formats.convert import FORMATS, write_data
from groundtune.data.sample import Dataset, Sample

BOXES_PER_IMAGE = 20
READ = """
import json, sys, time
from pathlib import Path
from groundtune.data.formats.detect import read_splits
began = time.process_time()
splits = read_splits(Path(sys.argv[1]))
took = time.process_time() - began
boxes = sum(len(sample.boxes_xyxy) for dataset in splits.values() for sample in dataset.samples)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps([boxes, took, int(peak.split()[1]) / 1024]))
"""


def data_set(folder: Path, images: int) -> dict[str, Dataset]:
    """Return a split of equal images with boxes at various places."""
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "image.png")
    index = np.arange(BOXES_PER_IMAGE)
    corners = np.stack([index + 0.25, index / 7, index + 9.5, index / 7 + 3], axis=1).astype(np.float32)
    classes, crowd = index % 2, np.zeros(BOXES_PER_IMAGE, bool)
    samples = []
    for number in range(images):
        path = folder / f"{number:05}.png"
        path.symlink_to(folder / "image.png")
        samples.append(Sample(path, number, (30, 40), corners, classes, crowd))
    return {"train": Dataset("train", folder, ["cat", "dog"], samples, [1, 2])}


def write_csv(splits: dict[str, Dataset], out: Path) -> None:
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for sample in splits["train"].samples:
        boxes = zip(sample.boxes_xyxy.tolist(), sample.class_ids, strict=True)
        rows += [f"{sample.image_path.name},40,30,{c},{','.join(map(str, box))}" for box, c in boxes]
    (out / "boxes.csv").write_text("\n".join(rows))


def measure(images: int, format: str, root: Path) -> tuple[float, float]:
    """Return CPU seconds and megabytes of reading one data set."""
    source = root / f"{format}-{images}"
    splits = data_set(source, images)
    if format == "csv":
        write_csv(splits, source)
    else:
        write_data(splits, root / f"{format}-{images}-written", format, link=True)
        source = root / f"{format}-{images}-written"
    result = subprocess.run([sys.executable, "-c", READ, source], capture_output=True, text=True, check=True)
    boxes, seconds, megabytes = json.loads(result.stdout)
    assert boxes == images * BOXES_PER_IMAGE
    return seconds, megabytes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    images = parser.parse_args().images
    print("format  seconds  of COCO  of a quarter  MB")
    coco = None
    with tempfile.TemporaryDirectory() as folder:
        for format in (*FORMATS, "csv"):
            quarter, _ = measure(images // 4, format, Path(folder))
            seconds, megabytes = measure(images, format, Path(folder))
            coco = coco or seconds
            print(
                f"{format:6}  {seconds:7.2f}  {seconds / coco:7.2f}  {seconds / quarter:12.2f}  "
                f"{megabytes:.0f}"
            )


if __name__ == "__main__":
    main()
