"""Write data sets of generated images: COCO boxes with classes, or ODVG captions.

Each image has a random generator of its own, so a larger set begins with the same images.
"""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from groundtune.data.sample import match_class_names
from groundtune.data.scenes.captions import Caption, captioned_scene
from groundtune.data.scenes.draw import Box, draw_scene
from groundtune.data.scenes.shapes import scene_classes
from groundtune.errors import DataError
from groundtune.files import atomic_folder, ensure_empty_output

DEFAULT_CLASSES = [
    "red circle", "blue star", "green triangle", "yellow square", "purple heart", "orange ring"
]  # fmt: skip
_MIN_SIZE = 32  # pixels

Labels = TypeVar("Labels")
Scenes = list[tuple[str, tuple[int, int], Labels]]
"""The file name, (width, height) and labels of each image of a split."""


def write_scenes(
    out: Path, *, train: int, valid: int, classes: list[str] | None = None, size: int = 320, seed: int = 0
) -> None:
    """Write a data set of scenes in Roboflow's COCO layout, with its placeholder category.

    The folder appears when it is complete; an interrupted call leaves nothing.

    Args:
        out: folder to write, new or empty.
        train: number of images in `train/`. About one in twelve has no object.
        valid: number of images in `valid/`.
        classes: names out of `scene_classes()`; None means `DEFAULT_CLASSES`.
        size: longer side of an image in pixels, at least 32.
        seed: random seed.

    Raises:
        DataError: a class cannot be drawn, `size` is too small, or the folder is not empty.
    """
    drawable = scene_classes()
    names = [drawable[index] for index in match_class_names(classes or DEFAULT_CLASSES, drawable)]
    draw = partial(draw_scene, names, size)
    _write(out, {"train": train, "valid": valid}, size, seed, draw, partial(_write_boxes, names))


def write_captioned_scenes(out: Path, *, train: int, valid: int, size: int = 320, seed: int = 0) -> None:
    """Write the data set that `nano` is pretrained on: scenes with captions, in ODVG.

    A phrase without a box is not in the image. Arguments and errors are those of `write_scenes`.
    """

    def draw(rng: random.Random) -> tuple[Image.Image, Caption]:
        return captioned_scene(size, rng)[:2]

    _write(out, {"train": train, "valid": valid}, size, seed, draw, _write_captions)


def _write(
    out: Path,
    counts: dict[str, int],
    size: int,
    seed: int,
    draw: Callable[[random.Random], tuple[Image.Image, Labels]],
    annotate: Callable[[Scenes[Labels], Path], None],
) -> None:
    """Write the images of each split, and annotate them from their names, sizes and labels."""
    if size < _MIN_SIZE:
        raise DataError(f"size: expected at least {_MIN_SIZE} pixels, got {size}. Choose larger images.")
    ensure_empty_output(out)
    with atomic_folder(out) as folder:
        for split, count in counts.items():
            (folder / split).mkdir()
            written = []
            for number in range(count):
                rng = random.Random(f"{seed}/{split}/{number}")
                image, labels = draw(rng)
                file_name = f"{split}_{number:05d}.jpg"
                image.save(folder / split / file_name, quality=rng.randint(70, 95))
                written.append((file_name, image.size, labels))
            annotate(written, folder / split)


def _write_boxes(names: list[str], scenes: Scenes[list[tuple[str, Box]]], folder: Path) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (file_name, (width, height), boxes) in enumerate(scenes):
        images.append({"id": number, "file_name": file_name, "width": width, "height": height})
        for name, (x0, y0, x1, y1) in boxes:
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": names.index(name) + 1}
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            annotations.append(ids | box)
    categories: list[dict[str, Any]] = [{"id": 0, "name": "shapes", "supercategory": "none"}]
    categories += [{"id": i, "name": name, "supercategory": "shapes"} for i, name in enumerate(names, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")


def _write_captions(scenes: Scenes[Caption], folder: Path) -> None:
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
        for file_name, (width, height), caption in scenes:
            regions: list[dict[str, Any]] = []
            for (begin, end), boxes in caption.phrases:
                phrase = {"phrase": caption.text[begin:end], "tokens_positive": [[begin, end]]}
                regions += [{"bbox": box} | phrase for box in boxes] or [{"bbox": []} | phrase]
            grounding = {"caption": caption.text, "regions": regions}
            row = {"filename": file_name, "height": height, "width": width, "grounding": grounding}
            file.write(json.dumps(row) + "\n")
