"""Small COCO folders for the tests of this room: files with images of one color."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def image(path: Path, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 150)).save(path)
    return path


def coco(
    names: Sequence[str] = ("a.png",),
    boxes: Sequence[tuple[int, int, Any]] = ((1, 1, [2, 3, 10, 12]),),
    categories: Sequence[tuple[int, str]] = ((1, "cat"),),
    size: tuple[int, int] = (40, 30),
) -> dict[str, Any]:
    """COCO content: image i (from 1) is `names[i - 1]`, boxes are (image id, category id, bbox)."""
    return {
        "images": [
            {"id": i, "file_name": n, "width": size[0], "height": size[1]} for i, n in enumerate(names, 1)
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0}
            for i, (image, category, bbox) in enumerate(boxes, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


def write(path: Path, content: Any, image_dir: Path | None = None) -> Path:
    """Write the JSON, and with a folder an image for each entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    if image_dir is not None:
        for entry in content["images"]:
            image(image_dir / entry["file_name"], entry["width"], entry["height"])
    return path
