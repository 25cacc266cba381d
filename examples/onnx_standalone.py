"""Detect objects with an exported file with fixed classes; needs onnxruntime, NumPy and Pillow
only.

groundtune export nano --format onnx --classes "cat, dog" --output model.onnx
python onnx_standalone.py model.onnx image.jpg [other.jpg ...] [threshold]
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resized_size(width: int, height: int, image_format: dict) -> tuple[int, int]:
    """Return width and height of the model's input; the aspect ratio is kept."""
    short_side, max_side = image_format["short_side"], image_format["max_side"]
    short, long = min(width, height), max(width, height)
    exact = float(short_side) if long / short * short_side <= max_side else max_side * short / long
    new_short = max(1, round(exact))
    new_long = max(new_short, int((exact if exact != short_side else new_short) * long / short))
    return (new_short, new_long) if width <= height else (new_long, new_short)


def detect(session: onnxruntime.InferenceSession, images: list[Image.Image], threshold: float) -> list[list]:
    """Return (class, score, box xyxy in pixels) of each detection of each image, best first."""
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["groundtune"])
    mean, std = (np.float32(metadata["image_format"][name]) for name in ("mean", "std"))
    batches: dict[tuple[int, int], list[int]] = {}  # images of one resized size
    for index, image in enumerate(images):
        batches.setdefault(resized_size(*image.size, metadata["image_format"]), []).append(index)
    results: list[list] = [[] for _ in images]
    for size, indices in batches.items():
        resized = [images[index].resize(size, Image.Resampling.BILINEAR) for index in indices]
        batch = np.stack([(np.asarray(image, np.float32) / 255 - mean) / std for image in resized])
        outputs = session.run(["logits", "boxes"], {"image": batch.transpose(0, 3, 1, 2)})
        for index, logits, boxes in zip(indices, *outputs, strict=True):
            results[index] = detections(logits, boxes, images[index].size, metadata, threshold)
    return results


def detections(logits: np.ndarray, boxes: np.ndarray, size: tuple, metadata: dict, threshold: float) -> list:
    """Return the 300 best detections of one image: logits (queries, tokens), boxes cxcywh."""
    probabilities = 1 / (1 + np.exp(-logits))
    scores = np.stack([probabilities[:, tokens].mean(1) for tokens in metadata["phrases"]], 1)
    found = []
    for index in np.argsort(-scores, axis=None, kind="stable")[:300]:
        query, class_index = divmod(int(index), scores.shape[1])
        score, (x, y, w, h) = float(scores[query, class_index]), boxes[query]
        if score >= threshold:
            corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).clip(0, 1) * (size * 2)
            found.append((metadata["classes"][class_index], score, corners.round(1).tolist()))
    return found


if __name__ == "__main__":
    paths, threshold = sys.argv[2:], 0.3
    if paths[-1].replace(".", "", 1).isdigit():
        threshold = float(paths.pop())
    session = onnxruntime.InferenceSession(sys.argv[1], providers=onnxruntime.get_available_providers())
    images = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in paths]
    for path, found in zip(paths, detect(session, images, threshold), strict=True):
        if len(paths) > 1:
            print(path)
        for name, score, box in found:
            print(f"{name}  {score:.3f}  {' '.join(map(str, box))}")
