"""What fine-tuning forgets: self-distillation against it, and a measure that needs no other data.

Fine-tuning teaches every query without a box as background, also one on an object that the model
knew and that has no label. With `--self-distillation` the model therefore detects other class names
(`text.prompt`) in the training images before the first step. Its detections away from the labeled
boxes are trained too, as soft targets. Such a name is in the prompts only of images in which it was
detected, so it is never taught as absent, and the fine-tuned model's classes stay the data set's.

Scores of different models, and of names that a model knows more or less, are not comparable. The
labeled boxes calibrate them: the median of the scores for these boxes, before training, is a
confidence of 1; detections below half of it are ignored.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from groundtune.boxes import pairwise_iou
from groundtune.data.sample import Dataset, Sample, join_examples
from groundtune.engine.distributed import from_main, gather, own_images, processes
from groundtune.engine.evaluate import LoadMaps, iter_maps
from groundtune.model.bundle import ModelBundle
from groundtune.predict.batch_limit import BatchLimit
from groundtune.predict.detect import Prompts, class_prompts, detect_batch, inference_mode
from groundtune.predict.postprocess import ImageDetections
from groundtune.progress import Progress, counted
from groundtune.text.prompt import COMMON_NAMES, clean_name, recombined_names

BASE_DETECTIONS = "base model's detections of common classes"  # name of the data set
_LABELED_IOU, _DUPLICATE_IOU = 0.3, 0.5  # a detection on a labeled box, or on a better detection
_MIN_CONFIDENCE = 0.5
MIN_SURE_SCORE = 0.2  # counts as sure in a model that does not know the data set's names
_MAX_IMAGES = 50


def base_detections(
    bundle: ModelBundle, valid: Dataset, device: torch.device, batch_size: int, progress: Progress
) -> dict[str, Dataset]:
    """Return the base model's confident detections of common classes, as a data set to evaluate on.

    The AP of the fine-tuned model on it is retention, not accuracy: it falls where the model
    forgets, and also where the base model was wrong. At most 50 images of `valid` are used, evenly
    spread; its own class names are excluded. Without a confident detection the result is {}.
    """
    own = {*valid.phrases, *map(clean_name, valid.class_names)}
    names = [name for name in COMMON_NAMES if name not in own]
    count = len(valid.samples)
    chosen = np.linspace(0, count - 1, min(_MAX_IMAGES, count)).round().astype(int)
    samples = [replace(valid.samples[index], grounding=None) for index in chosen]
    dataset = replace(valid, samples=samples, lvis=None)
    (detections,) = detect_groups(bundle, dataset, [names], device, batch_size, progress, "fp32")
    confident = [detected.select(detected.scores >= MIN_SURE_SCORE) for detected in detections]

    def decide() -> dict[str, Dataset]:
        used = sorted({index for detected in confident for index in detected.class_indices.tolist()})
        if not used:
            return {}
        labeled = [
            replace(
                sample,
                boxes_xyxy=detected.boxes_xyxy.numpy(),
                class_ids=np.searchsorted(used, detected.class_indices.numpy()),
                crowd=np.zeros(len(detected.scores), bool),
                annotated=None,
                exhaustive=None,
                areas=None,
            )
            for sample, detected in zip(samples, confident, strict=True)
        ]
        classes = [names[index] for index in used]
        return {
            BASE_DETECTIONS: Dataset("valid", valid.root, classes, labeled, list(range(1, len(classes) + 1)))
        }

    return from_main(decide)


def add_self_distillation(
    bundle: ModelBundle,
    dataset: Dataset,
    device: torch.device,
    batch_size: int,
    progress: Progress,
    precision: str,
) -> Dataset:
    """Return a data set with the model's detections of unlabeled objects as further boxes.

    It has the same classes, and after them the detected names. Images with captions get no boxes.
    """
    own_names, phrases = dataset.class_names, dataset.phrases
    known = {*phrases, *map(clean_name, own_names)}
    likely = [name for name in recombined_names(phrases) if name not in known]
    others = [*likely, *(name for name in COMMON_NAMES if name not in {*likely, *known})]
    indices = [index for index, sample in enumerate(dataset.samples) if sample.grounding is None]
    labeled = replace(dataset, samples=[dataset.samples[index] for index in indices])
    groups = [phrases, others]
    own_classes, other = detect_groups(bundle, labeled, groups, device, batch_size, progress, precision)

    def decide() -> Dataset:
        sure_score = _median_score(labeled.samples, own_classes)
        pairs = zip(labeled.samples, other, strict=True)
        new = [found.select(_unlabeled(sample, found, sure_score, len(likely))) for sample, found in pairs]
        used = np.unique(np.concatenate([detections.class_indices.numpy() for detections in new]))
        samples = list(dataset.samples)
        for index, detections in zip(indices, new, strict=True):
            class_ids = len(own_names) + np.searchsorted(used, detections.class_indices.numpy())
            samples[index] = _with_boxes(samples[index], detections, class_ids, sure_score, len(own_names))
        names = [others[index] for index in used]
        progress.message(
            f"Self-distillation: {counted(sum(len(detections.scores) for detections in new), 'detection')} "
            f"of unlabeled objects were added to the training images{': ' if names else ''}"
            f"{join_examples(names, 10)}."
        )
        first_id = max(dataset.category_ids, default=0) + 1
        ids = [*dataset.category_ids, *range(first_id, first_id + len(used))]
        renamed, names = dataset.renamed | dict(zip(own_names, phrases, strict=True)), own_names + names
        return replace(dataset, class_names=names, renamed=renamed, category_ids=ids, samples=samples)

    return from_main(decide)


def detect_groups(
    bundle: ModelBundle,
    dataset: Dataset,
    groups: Sequence[Sequence[str]],
    device: torch.device,
    batch_size: int,
    progress: Progress,
    precision: str,
) -> list[list[ImageDetections]]:
    """Return the detections of each group of phrases by image, 300 per image.

    All processes call this together and share the images; only the main one gets detections.
    """
    tokenizer, max_text_len, tuned = bundle.tokenizer, bundle.config.max_text_len, bundle.tuned_phrases
    prompts = [class_prompts(tokenizer, phrases, max_text_len, tuned).to(device) for phrases in groups]
    network = bundle.to(device)
    memory, most = BatchLimit(), max(len(group.phrase_maps) for group in prompts)
    total, (_, count) = len(dataset.samples), processes()
    indices = own_images(total, batch_size)
    share = replace(dataset, samples=[dataset.samples[index] for index in indices])

    def detect_share() -> dict[int, tuple[ImageDetections, ...]]:
        found: list[tuple[ImageDetections, ...]] = []
        with inference_mode(network, precision):
            for batch, load in iter_maps(bundle, share, batch_size, device):
                detect = partial(_detect_prompts, bundle, prompts, batch.samples, load)
                found += memory.run(detect, len(batch.samples), most, device)
                progress.evaluation(min(len(found) * count, total), total, "detecting other classes")
        return dict(zip(indices, found, strict=True))

    found = {index: image for of_process in gather(detect_share) for index, image in of_process.items()}
    return [[found[index][group] for index in sorted(found)] for group in range(len(groups))]


def _detect_prompts(
    bundle: ModelBundle,
    prompts: Sequence[Prompts],
    samples: Sequence[Sample],
    load: LoadMaps,
    rows: slice,
    max_pairs: int,
) -> list[tuple[ImageDetections, ...]]:
    """Return by image the detections of each group of prompts."""
    maps, sizes_hw = load(rows), [sample.size_hw for sample in samples[rows]]
    networks = bundle.network, bundle.base_network
    groups = [
        detect_batch(networks[0], maps, group, sizes_hw, networks[1], max_pairs=max_pairs)
        for group in prompts
    ]
    return list(zip(*groups, strict=True))


def _median_score(samples: Sequence[Sample], detections: Sequence[ImageDetections]) -> float:
    """Return the median score of the labeled boxes for their classes; undetected ones have 0."""
    best = [np.zeros(0)]
    for sample, detected in zip(samples, detections, strict=True):
        same_class = sample.class_ids[None] == detected.class_indices.numpy()[:, None]
        correct = (_iou_with_labels(detected, sample) >= _DUPLICATE_IOU) & same_class
        best.append((correct * detected.scores.numpy()[:, None]).max(0, initial=0.0)[~sample.crowd])
    scores = np.concatenate(best)
    return max(MIN_SURE_SCORE, float(np.median(scores))) if len(scores) else MIN_SURE_SCORE


def _unlabeled(sample: Sample, detections: ImageDetections, sure_score: float, likely: int) -> torch.Tensor:
    """Return the indices of confident detections away from the labeled boxes, without duplicates.

    Of duplicates the best of the first `likely` names, which resemble the data set's own, is kept,
    otherwise the best of the common names.
    """
    confident = detections.scores.numpy() >= _MIN_CONFIDENCE * sure_score
    away = np.flatnonzero(confident & (_iou_with_labels(detections, sample) < _LABELED_IOU).all(1))
    common = detections.class_indices.numpy()[away] >= likely
    iou = pairwise_iou(detections.boxes_xyxy, detections.boxes_xyxy).numpy()
    chosen: list[int] = []
    for index in [*away[~common].tolist(), *away[common].tolist()]:  # best first
        if not chosen or iou[index, chosen].max() < _DUPLICATE_IOU:
            chosen.append(index)
    return torch.tensor(chosen, dtype=torch.long)


def _with_boxes(
    sample: Sample, detections: ImageDetections, class_ids: np.ndarray, sure_score: float, num_classes: int
) -> Sample:
    """Add soft boxes to an image; the data set itself has `num_classes` classes."""
    annotated = frozenset(range(num_classes)) if sample.annotated is None else sample.annotated
    labeled = np.ones(len(sample.class_ids)) if sample.confidence is None else sample.confidence
    confidence = (detections.scores.numpy() / sure_score).clip(max=1)
    boxes_xyxy = np.concatenate([sample.boxes_xyxy, detections.boxes_xyxy.numpy()])
    return replace(
        sample,
        boxes_xyxy=boxes_xyxy.astype(np.float32),
        class_ids=np.concatenate([sample.class_ids, class_ids]),
        crowd=np.concatenate([sample.crowd, np.zeros(len(class_ids), bool)]),
        confidence=np.concatenate([labeled, confidence]).astype(np.float32),
        annotated=annotated.union(class_ids.tolist()),
        areas=None,
    )


def _iou_with_labels(detections: ImageDetections, sample: Sample) -> np.ndarray:
    """Return the IoU (K, N) of an image's detections with its boxes."""
    iou: np.ndarray = pairwise_iou(detections.boxes_xyxy, torch.from_numpy(sample.boxes_xyxy)).numpy()
    return iou
