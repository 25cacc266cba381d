"""Detect objects with an exported file with fixed classes; needs onnxruntime, NumPy and Pillow
only.

groundtune export nano --format onnx --classes "cat, dog" --output model.onnx
python onnx_standalone.py model.onnx image.jpg [threshold]
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resized_size(width: int, height: int, metadata: dict) -> tuple[int, int]:
    """Return width and height of the model's input; the aspect ratio is kept."""
    image_format = metadata["image_format"]
    short_side, max_side = image_format["short_side"], image_format["max_side"]
    short, long = min(width, height), max(width, height)
    exact = float(short_side) if long / short * short_side <= max_side else max_side * short / long
    new_short = max(1, round(exact))
    new_long = max(new_short, int((exact if exact != short_side else new_short) * long / short))
    size = (new_short, new_long) if width <= height else (new_long, new_short)
    return max(size[0], metadata["smallest_side"]), max(size[1], metadata["smallest_side"])


def detect(session: onnxruntime.InferenceSession, original: Image.Image, threshold: float) -> list[tuple]:
    """Return (class, score, box xyxy in pixels) of each detection, best first."""
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["groundtune"])
    image_format = metadata["image_format"]
    resized = original.resize(resized_size(*original.size, metadata), Image.Resampling.BILINEAR)
    mean, std = np.float32(image_format["mean"]), np.float32(image_format["std"])
    image = (np.asarray(resized, np.float32) / 255 - mean) / std
    logits, boxes = session.run(["logits", "boxes"], {"image": image.transpose(2, 0, 1)[None]})
    probabilities = 1 / (1 + np.exp(-logits[0]))  # (queries, tokens)
    scores = np.stack([probabilities[:, tokens].mean(1) for tokens in metadata["phrases"]], 1)
    detections = []
    for index in np.argsort(-scores, axis=None, kind="stable")[:300]:  # scores: (queries, classes)
        query, class_index = divmod(int(index), scores.shape[1])
        score = float(scores[query, class_index])
        if score < threshold:
            break
        x, y, w, h = boxes[0, query]
        corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).clip(0, 1) * (original.size * 2)
        detections.append((metadata["classes"][class_index], score, corners.round(1).tolist()))
    return detections


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1], providers=onnxruntime.get_available_providers())
    image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
    for name, score, box in detect(session, image, float(sys.argv[3]) if len(sys.argv) > 3 else 0.3):
        print(f"{name}  {score:.3f}  {' '.join(map(str, box))}")
