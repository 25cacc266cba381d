"""Compute the maps of `nano-everyday`'s frozen towers once, for photographs and generated scenes.

A sample is a dict: `maps` (float16, per level (C, h, w)), `boxes` ((N, 4) xyxy in [0, 1]), and
`names` (one per box) or, for a scene, `caption` and `phrases` ([begin, end) and boxes of each).
"""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from groundtune.contracts import ImageFormat
from groundtune.data.scenes.captions import captioned_scene
from groundtune.data.transforms import ImageView, resize_keep_ratio
from groundtune.model.bundle import ModelBundle

Sample = dict[str, Any]
SCENES_PER_FILE = 500
# views of each image, and how many images of a set are used
VIEWS = {"coco_train": ("full", "flip", "crop", "crop"), "openimages5": ("full", "flip")}
LIMITS = {"fruitveg": 300, "gym": 130, "garbage": 150}


def read_set(folder: Path) -> list[tuple[Path, int, int, list[list[float]], list[str]]]:
    """Read a Roboflow COCO folder: path, width, height, boxes (xyxy, pixels), names of images."""
    content = json.loads((folder / "_annotations.coco.json").read_text())
    names = {category["id"]: category["name"].lower() for category in content["categories"]}
    labels: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        labels.setdefault(annotation["image_id"], []).append(annotation)
    images = []
    for image in content["images"]:
        own = labels.get(image["id"], [])
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (annotation["bbox"] for annotation in own)]
        classes = [names[annotation["category_id"]] for annotation in own]
        images.append((folder / image["file_name"], image["width"], image["height"], boxes, classes))
    return images


def samples_of_set(bundle: ModelBundle, name: str, folder: Path) -> Iterator[Sample]:
    """Yield the views of a set's images; of coco_train every tenth image is kept aside."""
    rng, images = random.Random(0), read_set(folder)
    if name in LIMITS:
        images = random.Random(5).sample(images, LIMITS[name])
    for index, (path, width, height, boxes, names) in enumerate(images):
        if name == "coco_train" and index % 10 == 0:
            continue
        for kind in VIEWS.get(name, ("full",)):
            view = _view(width, height, kind, bundle.image_format, rng)
            inside, kept = view.boxes(np.array(boxes, np.float32).reshape(-1, 4))
            if len(boxes) and not kept.any():
                continue
            with Image.open(path) as image:
                maps = maps_of(bundle, view.image(image.convert("RGB")))
            h, w = view.size_hw
            relative = torch.from_numpy(inside / np.array([w, h, w, h], np.float32))
            yield {
                "maps": maps,
                "boxes": relative,
                "names": [n for n, k in zip(names, kept, strict=True) if k],
            }


def _view(width: int, height: int, kind: str, image_format: ImageFormat, rng: random.Random) -> ImageView:
    crop, flip = (0, 0, width, height), kind == "flip"
    if kind == "crop":
        share = rng.uniform(0.5, 0.9)
        w, h = int(width * share), int(height * share)
        left, top = rng.randint(0, width - w), rng.randint(0, height - h)
        crop, flip = (left, top, left + w, top + h), rng.random() < 0.5
    size = resize_keep_ratio((crop[3] - crop[1], crop[2] - crop[0]), image_format).size_hw
    return ImageView((height, width), crop, size, flip)


def scenes(bundle: ModelBundle, part: int) -> Iterator[Sample]:
    """Yield one file's generated scenes, compressed as JPEG."""
    for number in range(SCENES_PER_FILE):
        rng = random.Random(f"{1000 + part}/{number}")
        image, caption, _ = captioned_scene(bundle.image_format.max_side, rng)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(70, 95))
        size = torch.tensor([*image.size, *image.size], dtype=torch.float32)
        phrases = [(span, torch.tensor(boxes).float().view(-1, 4) / size) for span, boxes in caption.phrases]
        maps = maps_of(bundle, Image.open(file).convert("RGB"))
        yield {"maps": maps, "caption": caption.text, "phrases": phrases}


@torch.no_grad()
def maps_of(bundle: ModelBundle, image: Image.Image) -> list[Tensor]:
    """Return the towers' maps of an image of the right size, float16."""
    mean, std = (torch.tensor(values) for values in (bundle.image_format.mean, bundle.image_format.std))
    pixels = (torch.from_numpy(np.asarray(image, np.float32) / 255) - mean) / std
    backbone: nn.Module = bundle.detector.backbone
    return [level[0].half().clone() for level in backbone(pixels.permute(2, 0, 1)[None])]


def cached(file: Path, samples: Iterator[Sample]) -> list[Sample]:
    """Read a file of samples, which is written first if it does not exist."""
    if not file.exists():
        partial = file.with_suffix(".partial")
        torch.save(list(samples), partial)
        partial.rename(file)
    loaded: list[Sample] = torch.load(file, mmap=True, weights_only=True)
    return loaded
