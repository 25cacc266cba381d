"""Recall and fragments of `predict --tiles` on small and large objects.

    python benchmarks/tiles.py RUN_DIRECTORY

Fine-tunes nano on generated arrows of 24 to 440 pixels, unless the run directory exists, and
detects them in 1000x700 images: 72 arrows of 50 pixels, one arrow of 700 pixels, and both together.
Prints for each image and tile size the small and the large arrows that are found (IoU of at least
0.5, score of at least 0.3), and the false detections inside the large arrow.
"""

import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

import groundtune as gt
from groundtune.boxes import pairwise_iou

Box = tuple[int, int, int, int]
SIZE, THRESHOLD, TILES = (1000, 700), 0.3, (None, 160, 200, 320, 640)
LONG: Box = (150, 310, 850, 410)


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


def measure(model: gt.Model, image: Image.Image, boxes: list[Box], tiles: int | None) -> dict[str, float]:
    """Return the objects that are found, the false detections inside the large one, and scores."""
    import torch

    found = model.predict(image, ["arrow"], threshold=THRESHOLD, tiles=tiles)
    detected, truth = torch.from_numpy(found.xyxy).float(), torch.tensor(boxes).float().reshape(-1, 4)
    iou = pairwise_iou(truth, detected)
    right = (iou >= 0.5).any(1) if len(found) else torch.zeros(len(boxes), dtype=torch.bool)
    large = truth[:, 2] - truth[:, 0] > 100
    false = ~(iou >= 0.5).any(0)
    x0, y0, x1, y1 = LONG
    centers = (detected[:, :2] + detected[:, 2:]) / 2
    inside = (centers[:, 0] > x0) & (centers[:, 0] < x1) & (centers[:, 1] > y0) & (centers[:, 1] < y1)
    of_large = (
        iou[large].amax(0) >= 0.5 if large.any() and len(found) else torch.zeros(len(found), dtype=torch.bool)
    )
    scores = torch.from_numpy(found.confidence)
    return {
        "small": int(right[~large].sum()),
        "large": int(right[large].sum()),
        "false": int(false.sum()),
        "fragments": int((false & inside).sum()) if large.any() else 0,
        "score": round(float(scores[of_large].max()), 2) if of_large.any() else 0,
        "fragment": round(float(scores[false & inside].max()), 2) if (false & inside).any() else 0,
    }


def main(folder: Path) -> None:
    if not folder.exists():
        write_data(folder.with_name(f"{folder.name}-data"))
        options = {"epochs": 15, "retention_data": ["none"], "report_to": ["none"], "flip": 0}
        gt.train("nano", folder.with_name(f"{folder.name}-data"), output_dir=folder, **options)
    model = gt.load(folder, device="cpu")
    rng = random.Random(0)
    small = grid(rng)
    apart = [box for box in small if box[3] + 5 < LONG[1] or box[1] > LONG[3] + 5]
    for name, boxes in (("72 small", small), ("one large", [LONG]), ("both", [*apart, LONG])):
        image = scene(SIZE, boxes, random.Random(name))
        for tiles in TILES:
            print(name, tiles, json.dumps(measure(model, image, boxes, tiles)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
