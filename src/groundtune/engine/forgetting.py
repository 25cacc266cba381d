"""What can be said of forgetting without other data: whether a model still finds what it found before.

Where the user names no data sets to measure (`--retention-data PATH`), the model's own detections of common things on the validation
images, before training, stand in for boxes. The AP of the fine-tuned model on them is agreement with its former self, not
accuracy: it falls where the model forgets, and also where it was wrong and learned better.

Self-replay (`--self-distillation`): the model's own detections of what a data set does not name join its training images.

Fine-tuning teaches every query that no box was drawn for as background, also where it shows a thing that the model knew and
nobody labeled. So before the first step the model looks at the training images for other names (`text.other_names`), and
what it finds away from the labeled boxes is trained on too, as soft targets. Such a name is asked for only in images where
it was found, so it is never a negative elsewhere, and the fine-tuned model's own classes stay the data set's.

The boxes that people drew say what its scores mean: the score that it has, before training, for the middle one of them under
its own name counts as a confidence of 1, what it is half as sure of as one half, and less is left out. Scores of different
models, and of names that a model knows more or less, differ too much for one number.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from groundtune.boxes import pairwise_iou
from groundtune.data.prefetch import evaluation_images
from groundtune.data.sample import Dataset, Sample, join_examples
from groundtune.model.bundle import ModelBundle
from groundtune.predict.detect import class_prompts, detect_batch, inference_mode
from groundtune.predict.features import extract
from groundtune.predict.postprocess import ImageDetections
from groundtune.progress import Progress
from groundtune.text.prompt import COMMON_NAMES, recombined_names

_OWN, _SAME = (
    0.3,
    0.5,
)  # IoU above which a detection is a labeled object, or the same thing as a better detection
_LEAST = 0.5  # confidence
UNSURE = 0.2  # the score that counts as sure in a model that does not know the data set's names


def add_self_distillation(
    bundle: ModelBundle,
    dataset: Dataset,
    device: torch.device,
    batch_size: int,
    progress: Progress,
    precision: str = "fp32",
) -> Dataset:
    """Give the data set with what the model finds beside its boxes.

    Args:
        bundle: the model before training.
        dataset: the training images; those with captions stay as they are. It is not changed.
        device: where to compute; the network is moved there.
        batch_size: images at a time.
        progress: told about the images done and what was found.
        precision: "fp32" or "bf16".

    Returns:
        A data set whose classes are the same and after them the names that were found; a message says how many.

    Raises:
        DataError: an image cannot be read.
    """
    likely = recombined_names(dataset.class_names)
    others = [*likely, *(name for name in COMMON_NAMES if name not in likely + dataset.class_names)]
    places = [place for place, sample in enumerate(dataset.samples) if sample.grounding is None]
    asked = replace(dataset, samples=[dataset.samples[place] for place in places])
    groups = [dataset.class_names, others]
    own, other = detect_groups(bundle, asked, groups, device, batch_size, progress, precision)
    sure = _usual_score(asked.samples, own)
    kept = [
        _unlabeled(sample, found, _LEAST * sure, len(likely))
        for sample, found in zip(asked.samples, other, strict=True)
    ]
    used = np.unique(
        np.concatenate([found.class_indices[rows].numpy() for found, rows in zip(other, kept, strict=True)])
    )
    samples = list(dataset.samples)
    for place, found, rows in zip(places, other, kept, strict=True):
        class_ids = len(dataset.class_names) + np.searchsorted(used, found.class_indices[rows].numpy())
        confidence = (found.scores[rows].numpy() / sure).clip(max=1)
        samples[place] = _with_boxes(
            samples[place], found.boxes_xyxy[rows].numpy(), class_ids, confidence, len(dataset.class_names)
        )
    new = [others[index] for index in used]
    count = sum(map(len, kept))
    progress.message(
        f"Replay: {count} objects that nobody labeled join the training images: {join_examples(new, 10) or 'none'}."
    )
    free = max(dataset.category_ids, default=0) + 1
    ids = [*dataset.category_ids, *range(free, free + len(used))]
    return replace(dataset, class_names=[*dataset.class_names, *new], category_ids=ids, samples=samples)


def detect_groups(
    bundle: ModelBundle,
    dataset: Dataset,
    groups: Sequence[Sequence[str]],
    device: torch.device,
    batch_size: int,
    progress: Progress,
    precision: str = "fp32",
) -> list[list[ImageDetections]]:
    """Detect groups of names that do not compete for an image's 300 places.

    Returns:
        For each group the detections of each image.

    Raises:
        DataError: an image cannot be read, or a name cannot be used.
    """
    tokenizer, most = bundle.tokenizer, bundle.config.max_text_len
    prompts = [class_prompts(tokenizer, names, most, bundle.tuned_names).to(device) for names in groups]
    network = bundle.to(device)
    found: list[list[ImageDetections]] = [[] for _ in groups]
    with inference_mode(network, precision):
        for batch in evaluation_images(dataset, bundle.image_format, batch_size):
            maps = extract(network, [image for image in batch.images if image is not None], device)
            for of_group, asked in zip(found, prompts, strict=True):
                sizes_hw = [sample.size_hw for sample in batch.samples]
                of_group += detect_batch(network, maps, asked, sizes_hw, bundle.base_network)
            progress.evaluation(len(found[0]), len(dataset.samples), "looking for other things")
    return found


def _usual_score(samples: Sequence[Sample], found: Sequence[ImageDetections]) -> float:
    """The median score of the labeled boxes under their own names; those not found at all have 0."""
    best = [np.zeros(0)]
    for sample, detections in zip(samples, found, strict=True):
        same = sample.class_ids[None] == detections.class_indices.numpy()[:, None]
        right = (_overlaps(detections, sample) >= _SAME) & same
        best.append((right * detections.scores.numpy()[:, None]).max(0, initial=0.0)[~sample.crowd])
    scores = np.concatenate(best)
    return max(UNSURE, float(np.median(scores))) if len(scores) else UNSURE


def _unlabeled(sample: Sample, found: ImageDetections, threshold: float, likely: int) -> list[int]:
    """The detections at or above the threshold away from the image's boxes, one of each place.

    That is the best of the `likely` first names, which the data set's own names speak for, otherwise of the common ones.
    """
    away = np.flatnonzero(
        (found.scores.numpy() >= threshold) & (_overlaps(found, sample) < _OWN).all(1)
    )  # best first
    common = found.class_indices.numpy()[away] >= likely
    between = pairwise_iou(found.boxes_xyxy, found.boxes_xyxy).numpy()
    kept: list[int] = []
    for row in [*away[~common].tolist(), *away[common].tolist()]:
        if not kept or between[row, kept].max() < _SAME:
            kept.append(row)
    return kept


def _with_boxes(
    sample: Sample, boxes_xyxy: np.ndarray, class_ids: np.ndarray, confidence: np.ndarray, own: int
) -> Sample:
    """The image with more boxes; `own` is how many classes the data set has itself."""
    names = frozenset(range(own)) if sample.annotated is None else sample.annotated
    drawn = np.ones(len(sample.class_ids)) if sample.confidence is None else sample.confidence
    return replace(
        sample,
        boxes_xyxy=np.concatenate([sample.boxes_xyxy, boxes_xyxy]).astype(np.float32),
        class_ids=np.concatenate([sample.class_ids, class_ids]),
        crowd=np.concatenate([sample.crowd, np.zeros(len(class_ids), bool)]),
        confidence=np.concatenate([drawn, confidence]).astype(np.float32),
        annotated=names.union(class_ids.tolist()),
    )


def _overlaps(detections: ImageDetections, sample: Sample) -> np.ndarray:
    """IoU (K, N) of an image's detections with its boxes."""
    iou: np.ndarray = pairwise_iou(detections.boxes_xyxy, torch.from_numpy(sample.boxes_xyxy)).numpy()
    return iou


AGREEMENT = "common things (agreement with itself before)"
_MOST_IMAGES = 50


def base_detections(
    bundle: ModelBundle, valid: Dataset, device: torch.device, batch_size: int, progress: Progress
) -> dict[str, Dataset]:
    """Give the model's confident detections of common names as a data set to measure on.

    Args:
        bundle: the model before training.
        valid: at most 50 of its images, evenly spread, are used. Its own class names are left out.
        device: where to compute; the network is moved there.
        batch_size: images at a time.
        progress: told about the images done.

    Returns:
        The data set under the name `AGREEMENT`; nothing where the model is sure of nothing.

    Raises:
        DataError: an image cannot be read.
    """
    names = [name for name in COMMON_NAMES if name not in valid.class_names]
    every = np.linspace(0, len(valid.samples) - 1, min(_MOST_IMAGES, len(valid.samples))).round().astype(int)
    shown = replace(
        valid, samples=[replace(valid.samples[place], grounding=None) for place in every], lvis=None
    )
    found = detect_groups(bundle, shown, [names], device, batch_size, progress)[0]
    sure = [detections.scores.numpy() >= UNSURE for detections in found]
    used = sorted(
        {i for of, kept in zip(found, sure, strict=True) for i in of.class_indices.numpy()[kept].tolist()}
    )
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
