"""Finding objects with an exported closed-set model: onnxruntime, NumPy and Pillow are all that it needs.

groundtune export nano --format onnx --classes "cat, dog" --output-dir model.onnx
python onnx_standalone.py model.onnx image.jpg [threshold]
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resized_size(width: int, height: int, about: dict) -> tuple[int, int]:
    """Width and height that the model wants, with the aspect ratio kept."""
    short_side, max_side = about["image_format"]["short_side"], about["image_format"]["max_side"]
    short, long = min(width, height), max(width, height)
    wanted = float(short_side) if long / short * short_side <= max_side else max_side * short / long
    new_short = max(1, round(wanted))
    new_long = max(new_short, int((wanted if wanted != short_side else new_short) * long / short))
    size = (new_short, new_long) if width <= height else (new_long, new_short)
    return max(size[0], about["smallest_side"]), max(size[1], about["smallest_side"])


def detect(session: onnxruntime.InferenceSession, original: Image.Image, threshold: float) -> list[tuple]:
    """(class, score, box xyxy in pixels) of everything found, best first."""
    about = json.loads(session.get_modelmeta().custom_metadata_map["groundtune"])
    resized = original.resize(resized_size(*original.size, about), Image.Resampling.BILINEAR)
    mean, std = np.float32(about["image_format"]["mean"]), np.float32(about["image_format"]["std"])
    image = (np.asarray(resized, np.float32) / 255 - mean) / std
    logits, boxes = session.run(["logits", "boxes"], {"image": image.transpose(2, 0, 1)[None]})
    probabilities = 1 / (1 + np.exp(-logits[0]))  # (queries, tokens)
    scores = np.stack(
        [probabilities[:, tokens].mean(1) for tokens in about["phrases"]], 1
    )  # (queries, classes)
    found = []
    for place in np.argsort(-scores, axis=None, kind="stable")[:300]:
        query, class_index = divmod(int(place), scores.shape[1])
        if scores[query, class_index] < threshold:
            break
        x, y, w, h = boxes[0, query]
        corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).clip(0, 1) * (original.size * 2)
        found.append(
            (about["classes"][class_index], float(scores[query, class_index]), corners.round(1).tolist())
        )
    return found


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1], providers=onnxruntime.get_available_providers())
    image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
    for name, score, box in detect(session, image, float(sys.argv[3]) if len(sys.argv) > 3 else 0.3):
        print(f"{name}  {score:.3f}  {' '.join(map(str, box))}")
