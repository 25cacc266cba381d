"""What can be said of forgetting without other data: whether a model still finds what it found before.

Where the user names no data sets to measure (`--retain PATH`), the model's own detections of common things on the validation
pictures, before training, stand in for boxes. The AP of the fine-tuned model on them is agreement with its former self, not
accuracy: it falls where the model forgets, and also where it was wrong and learned better.
"""

from dataclasses import replace

import numpy as np
import torch

from groundtune.data.sample import Dataset
from groundtune.engine.replay import UNSURE, detect_groups
from groundtune.model.bundle import ModelBundle
from groundtune.progress import Progress
from groundtune.text.other_names import COMMON_NAMES

AGREEMENT = "common things (agreement with itself before)"
_MOST_PICTURES = 50


def own_detections(
    bundle: ModelBundle, valid: Dataset, device: torch.device, batch_size: int, progress: Progress
) -> dict[str, Dataset]:
    """Give the model's confident detections of common names as a data set to measure on.

    Args:
        bundle: the model before training.
        valid: at most 50 of its pictures, evenly spread, are used. Its own class names are left out.
        device: where to compute; the network is moved there.
        batch_size: pictures at a time.
        progress: told about the pictures done.

    Returns:
        The data set under the name `AGREEMENT`; nothing where the model is sure of nothing.

    Raises:
        DataError: a picture cannot be read.
    """
    names = [name for name in COMMON_NAMES if name not in valid.class_names]
    every = np.linspace(0, len(valid.samples) - 1, min(_MOST_PICTURES, len(valid.samples))).round().astype(int)
    shown = replace(valid, samples=[replace(valid.samples[place], grounding=None) for place in every], lvis=None)
    found = detect_groups(bundle, shown, [names], device, batch_size, progress)[0]
    sure = [detections.scores.numpy() >= UNSURE for detections in found]
    used = sorted({i for of, kept in zip(found, sure, strict=True) for i in of.class_indices.numpy()[kept].tolist()})
    if not used:
        return {}
    samples = [
        replace(
            sample,
            boxes_xyxy=of.boxes_xyxy.numpy()[kept],
            class_ids=np.searchsorted(used, of.class_indices.numpy()[kept]),
            crowd=np.zeros(int(kept.sum()), bool),
            annotated=None,
        )
        for sample, of, kept in zip(shown.samples, found, sure, strict=True)
    ]
    classes = [names[index] for index in used]
    ids = list(range(1, len(classes) + 1))
    return {AGREEMENT: Dataset("valid", valid.root, classes, samples, ids)}
