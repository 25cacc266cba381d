"""Random data sets and detections, and pycocotools' objects of them, for the tests of the metrics."""

import contextlib
import io
from pathlib import Path

import numpy as np
from made_samples import made_sample
from pycocotools.coco import COCO

from groundtune.data.sample import Dataset


def random_dataset(rng: np.random.Generator, images: int = 12, crowds: bool = True) -> Dataset:
    """Images of 400 x 500 with 0 to 6 boxes of all sizes, three classes with unsorted ids."""
    samples = []
    for index in range(images):
        count = int(rng.integers(0, 7))
        corner = rng.uniform(0, 200, (count, 2))
        side = 10 ** rng.uniform(1, 2.3, (count, 2))
        boxes, classes = np.concatenate([corner, corner + side], 1), rng.integers(0, 3, count)
        crowd = (rng.random(count) < 0.2) & crowds
        where = {"path": f"{index}.jpg", "image_id": 100 + 7 * index, "size_hw": (400, 500)}
        samples.append(made_sample(boxes, classes, crowd, **where))
    return Dataset("valid", Path(), ["cat", "dog", "red fox"], samples, [40, 7, 13])


def random_predictions(rng: np.random.Generator, dataset: Dataset) -> list[dict]:
    """Each box found about twice with jitter, at times under the wrong class, and some of nothing."""
    found = []
    for sample in dataset.samples:
        for box, class_id in zip(sample.boxes_xyxy.tolist(), sample.class_ids.tolist(), strict=True):
            for _ in range(int(rng.integers(0, 4))):
                size = np.array([box[2] - box[0], box[3] - box[1]])
                x, y = np.array(box[:2]) + rng.normal(0, 0.12, 2) * size
                w, h = size * rng.uniform(0.75, 1.3, 2)
                named = int(rng.integers(0, 3)) if rng.random() < 0.2 else class_id
                found.append((sample.image_id, dataset.category_ids[named], [x, y, w, h]))
        for _ in range(int(rng.integers(0, 15))):
            x, y, w, h = rng.uniform(5, 200, 4)
            found.append((sample.image_id, dataset.category_ids[int(rng.integers(0, 3))], [x, y, w, h]))
    return [
        {"image_id": image, "category_id": c, "bbox": [float(v) for v in box], "score": float(rng.random())}
        for image, c, box in found
    ]


def coco_api(dataset: Dataset, predictions: list[dict]) -> tuple[COCO, COCO]:
    """pycocotools' ground truth and results."""
    annotations = []
    for s in dataset.samples:
        for (x0, y0, x1, y1), c, crowd in zip(s.boxes_xyxy.tolist(), s.class_ids, s.crowd, strict=True):
            ids = {"id": len(annotations) + 1, "image_id": s.image_id, "category_id": dataset.category_ids[c]}
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": int(crowd)}
            annotations.append(ids | box)
    images = [{"id": s.image_id, "height": s.size_hw[0], "width": s.size_hw[1]} for s in dataset.samples]
    names = zip(dataset.category_ids, dataset.class_names, strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in names]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
        truth.createIndex()
        found = truth.loadRes([dict(p) for p in predictions])
    return truth, found
