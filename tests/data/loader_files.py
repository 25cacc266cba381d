"""A small data set for the tests of loaders: black images of mixed shapes with their boxes filled
white.
"""

from pathlib import Path

import numpy as np
from made_samples import made_sample
from PIL import Image

from groundtune.config import TrainConfig
from groundtune.contracts import ImageFormat
from groundtune.data.loader import TrainLoader
from groundtune.data.sample import Dataset, Sample

FORMAT = ImageFormat(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), short_side=48, max_side=96)
NAMES = ["cat", "red blood cell", "tv monitor", "zebra", "car", "carrot"]
SIZES_HW = [(40, 80), (80, 40), (60, 60), (30, 90), (50, 64), (64, 50), (70, 60)]


def sample(folder: Path, index: int, boxes=(), classes=(), crowd=None, size_hw=None) -> Sample:
    """A black image with its boxes filled white."""
    size_hw = size_hw or SIZES_HW[index % len(SIZES_HW)]
    pixels = np.zeros((*size_hw, 3), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 255
    Image.fromarray(pixels).save(folder / f"{index}.png")
    path = folder / f"{index}.png"
    return made_sample(boxes, classes, crowd, path=path, image_id=index + 100, size_hw=size_hw)


def dataset_of(samples, names=NAMES) -> Dataset:
    return Dataset("train", Path(), list(names), list(samples), list(range(1, len(names) + 1)))


def seven_images(folder: Path) -> Dataset:
    """Seven images of six shapes; the fourth one is empty."""
    boxes = [[(4 + i, 5, 24 + i, 25), (2, 8, 12, 28)] for i in range(7)]
    boxes[3] = []
    return dataset_of(sample(folder, i, b, [i % 6, (i + 2) % 6][: len(b)]) for i, b in enumerate(boxes))


def loader_of(dataset, tokenizer, needs_pixels=None, rank=0, processes=1, **options) -> TrainLoader:
    """A loader with options of `TrainConfig`; `cache_views` turns the feature cache on."""
    config = TrainConfig(data="", cache_features="cache_views" in options, **options)
    loader = TrainLoader(dataset, tokenizer, FORMAT, config, 256, rank, processes)
    loader.needs_pixels = needs_pixels
    return loader
