"""Recall and fragments of `predict --tiles` on small and large objects.

    python benchmarks/tiles.py RUN_DIRECTORY

Fine-tunes nano on generated arrows of 24 to 440 pixels, unless the run directory exists, and
detects the arrows of eight images of 1000x700 pixels: one of 350 to 900 pixels, and up to 72 of 50
pixels. For each size of tiles it prints the numbers of small arrows and of those that are found
(IoU of at least 0.5), of large ones that are found, and of false detections inside these.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import groundtune as gt
from groundtune.boxes import box_area, pairwise_iou

Box = tuple[int, int, int, int]
SIZE, THRESHOLD = (1000, 700), 0.15


def arrow(draw: ImageDraw.ImageDraw, box: Box, color: tuple[int, int, int]) -> None:
    """Draw an arrow that points to the right and fills a box."""
    x0, y0, x1, y1 = box
    head, half, middle = min(y1 - y0, (x1 - x0) * 0.5), 0.15 * (y1 - y0), (y0 + y1) / 2
    corner = x1 - head
    shaft = [(x0, middle - half), (corner, middle - half), (corner, y0), (x1, middle)]
    draw.polygon([*shaft, (corner, y1), (corner, middle + half), (x0, middle + half)], fill=color)


def scene(size: tuple[int, int], boxes: list[Box], rng: random.Random) -> Image.Image:
    """Draw arrows of a few colors on a light background."""
    image = Image.new("RGB", size, tuple(rng.randint(200, 255) for _ in range(3)))
    for box in boxes:
        arrow(ImageDraw.Draw(image), box, tuple(rng.randint(0, 130) for _ in range(3)))
    return image


def random_boxes(size: tuple[int, int], rng: random.Random) -> list[Box]:
    """Return boxes that do not touch: some small, up to two large."""
    boxes: list[Box] = []
    lengths = [rng.randint(150, 440) for _ in range(rng.randint(0, 2))]
    for width in [*lengths, *(rng.randint(24, 80) for _ in range(rng.randint(1, 9)))]:
        height = max(14, round(width * (rng.uniform(0.12, 0.25) if width > 100 else rng.uniform(0.5, 0.9))))
        x, y = rng.randint(0, size[0] - width), rng.randint(0, size[1] - height)
        if all(x + width < a or c < x or y + height < b or d < y for a, b, c, d in boxes):
            boxes.append((x, y, x + width, y + height))
    return boxes


def write_data(folder: Path) -> None:
    for split, count in (("train", 120), ("valid", 20)):
        (folder / split).mkdir(parents=True)
        images, rows = [], []
        for number in range(count):
            rng = random.Random(f"{split}{number}")
            boxes, name = random_boxes((480, 320), rng), f"{number}.jpg"
            scene((480, 320), boxes, rng).save(folder / split / name)
            images.append({"id": number, "file_name": name, "width": 480, "height": 320})
            for a, b, c, d in boxes:
                ids = {"id": len(rows) + 1, "image_id": number, "category_id": 1}
                rows.append(ids | {"bbox": [a, b, c - a, d - b], "area": (c - a) * (d - b), "iscrowd": 0})
        content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "arrow"}]}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))


def grid(rng: random.Random) -> list[Box]:
    """Return 72 boxes of 50x34 pixels in nine columns and eight rows, moved at random."""
    cells = [
        (30 + 108 * i + rng.randint(0, 40), 20 + 84 * j + rng.randint(0, 30))
        for j in range(8)
        for i in range(9)
    ]
    return [(x, y, x + 50, y + 34) for x, y in cells]


def scene_of(seed: int) -> tuple[Image.Image, list[Box]]:
    """Return an image of 1000x700 with one arrow of 350 to 900 pixels and small ones beside it."""
    rng = random.Random(seed)
    width, height = rng.randint(350, 900), rng.randint(40, 160)
    x, y = rng.randint(5, 995 - width), rng.randint(5, 695 - height)
    large = (x, y, x + width, y + height)
    beside = [
        b for b in grid(rng) if b[3] + 8 < y or b[1] > large[3] + 8 or b[2] + 8 < x or b[0] > large[2] + 8
    ]
    return scene(SIZE, [large, *beside], rng), [large, *beside]


def measure(model: gt.Model, image: Image.Image, boxes: list[Box], tiles: int | None) -> Counter[str]:
    """Count the objects, those that are found, and the false detections inside the large one."""
    found = model.predict(image, ["arrow"], threshold=THRESHOLD, tiles=tiles)
    detected, truth = torch.from_numpy(found.xyxy).float(), torch.tensor(boxes).float()
    right = pairwise_iou(truth, detected) >= 0.5
    both = torch.cat([detected[:, :2].maximum(truth[0, :2]), detected[:, 2:].minimum(truth[0, 2:])], 1)
    inside = box_area(both) >= 0.7 * box_area(detected)
    counts = {
        "small": len(boxes) - 1,
        "found": int(right[1:].any(1).sum()),
        "large found": int(right[0].any()),
    }
    return Counter(counts | {"fragments": int((inside & ~right.any(0)).sum()) if right[0].any() else 0})


def main(folder: Path) -> None:
    if not folder.exists():
        data = folder.with_name(f"{folder.name}-data")
        write_data(data)
        options = {"epochs": 15, "retention_data": ["none"], "report_to": ["none"], "flip": 0}
        gt.train("nano", data, output_dir=folder, **options)
    model = gt.load(folder, device="cpu")
    for tiles in (None, 200, 320, 480):
        counts = sum((measure(model, *scene_of(seed), tiles) for seed in range(8)), Counter())
        print("tiles", tiles, json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
