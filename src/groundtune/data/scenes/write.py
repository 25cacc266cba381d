"""Data sets of generated images, written as what people really have: COCO boxes with classes, or ODVG captions.

A data set is a stand-in for a user's own images where none can be shipped: made in seconds, with names ("red circle")
that say what they show. Everything follows from the seed.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from groundtune.data.sample import match_class_names
from groundtune.data.scenes.captions import Caption, Drawn, caption_of, plan
from groundtune.data.scenes.draw import draw_image, draw_scene, image_size
from groundtune.data.scenes.names import DEFAULT_CLASSES, scene_classes
from groundtune.errors import DataError

_SMALLEST_SIZE = 32


def write_scenes(
    out: Path, *, train: int, valid: int, classes: list[str] | None = None, size: int = 320, seed: int = 0
) -> None:
    """Write a data set of scenes in Roboflow's COCO layout, placeholder category included.

    The folder appears when it is complete; an interrupted run leaves nothing in its place.

    Args:
        out: the folder to make. It must not exist, or be empty.
        train: images in `train/`; one in twelve or so has no object.
        valid: images in `valid/`.
        classes: names out of `scene_classes()`; None takes `DEFAULT_CLASSES`.
        size: the longer side of an image in pixels, at least 32.
        seed: of everything.

    Raises:
        DataError: a class cannot be drawn, the images are too small for objects, or the folder is not empty.
    """
    drawable = scene_classes()
    names = [drawable[index] for index in match_class_names(classes or DEFAULT_CLASSES, drawable)]

    def write_split(folder: Path, split: str, count: int) -> None:
        _write_boxes(folder, split, count, names, size, seed)

    _write_splits(out, {"train": train, "valid": valid}, size, write_split)


def write_captioned_scenes(out: Path, *, train: int, valid: int, size: int = 320, seed: int = 0) -> None:
    """Write the data set that `nano` is pretrained on: scenes with captions in ODVG, nothing held out in them.

    Arguments, errors and interruption are as for `write_scenes`. A phrase without a box is not in the image.
    """

    def write_split(folder: Path, split: str, count: int) -> None:
        _write_captions(folder, split, count, size, seed)

    _write_splits(out, {"train": train, "valid": valid}, size, write_split)


def captioned_scene(size: int, rng: random.Random) -> tuple[Image.Image, Caption, list[Drawn]]:
    """Draw one image with its caption; and list everything in it."""
    naming, wanted = plan(rng)
    image, found = draw_image(wanted, image_size(size, rng), rng)
    drawn = [(wanted[number][0], box) for number, box in found]
    return image, caption_of(naming, drawn, rng), drawn


def _write_splits(
    out: Path, counts: dict[str, int], size: int, write_split: Callable[[Path, str, int], None]
) -> None:
    """Write all splits beside the folder, then move them into its place."""
    if size < _SMALLEST_SIZE:
        raise DataError(
            f"size: images of {size} pixels are too small for shapes; expected at least {_SMALLEST_SIZE}."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty. Remove it, or choose another folder for the generated images.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        unfinished = Path(temporary) / "scenes"
        for split, count in counts.items():
            (unfinished / split).mkdir(parents=True)
            write_split(unfinished / split, split, count)
        if out.exists():
            out.rmdir()
        shutil.move(unfinished, out)


def _write_boxes(folder: Path, split: str, count: int, names: list[str], size: int, seed: int) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        rng = _image_rng(seed, split, number)
        image, found = draw_scene(names, size, rng)
        file_name = _save(image, folder, number, rng)
        images.append({"id": number, "file_name": file_name, "width": image.width, "height": image.height})
        for name, (x0, y0, x1, y1) in found:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(name) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories: list[dict[str, Any]] = [{"id": 0, "name": "shapes", "supercategory": "none"}]
    categories += [
        {"id": i, "name": name, "supercategory": "shapes"} for i, name in enumerate(names, start=1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")


def _write_captions(folder: Path, split: str, count: int, size: int, seed: int) -> None:
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            rng = _image_rng(seed, split, number)
            image, caption, _ = captioned_scene(size, rng)
            regions: list[dict[str, Any]] = []
            for (begin, end), boxes in caption.phrases:
                phrase = {"phrase": caption.text[begin:end], "tokens_positive": [[begin, end]]}
                regions += [{"bbox": box} | phrase for box in boxes] or [{"bbox": []} | phrase]
            row = {
                "filename": _save(image, folder, number, rng),
                "height": image.height,
                "width": image.width,
            }
            file.write(json.dumps(row | {"grounding": {"caption": caption.text, "regions": regions}}) + "\n")


def _image_rng(seed: int, split: str, number: int) -> random.Random:
    """A generator of its own per image: a data set of more images begins with the same ones."""
    return random.Random(f"{seed}/{split}/{number}")


def _save(image: Image.Image, folder: Path, number: int, rng: random.Random) -> str:
    file_name = f"{folder.name}_{number:05d}.jpg"
    image.save(folder / file_name, quality=rng.randint(70, 95))
    return file_name
