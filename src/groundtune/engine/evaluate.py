"""Detections of a whole data set, and COCO's numbers for them.

Everything goes by name and by the data set's own category ids (semantics 22): the model sees class names, the predictions
carry `dataset.category_ids`, which may have gaps and any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from groundtune.boxes import xyxy_to_xywh
from groundtune.data.loader import evaluation_pictures
from groundtune.data.sample import Dataset, Sample
from groundtune.engine.features import FeatureCache, extract
from groundtune.engine.inference import class_prompts, detect_batch, inference_mode
from groundtune.engine.record import Progress
from groundtune.errors import DataError
from groundtune.metrics.coco import Prediction, coco_metrics
from groundtune.model.bundle import ModelBundle
from groundtune.postprocess import PictureDetections


@dataclass
class Evaluation:
    """What `evaluate` found.

    Attributes:
        metrics: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100; shares, or None where there is nothing to count.
        per_class: AP and AP50 of each class, by name.
        predictions: the detections in COCO's result format, original pixels, the data set's own ids.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    predictions: list[Prediction]


def evaluate(
    bundle: ModelBundle,
    dataset: Dataset,
    *,
    class_indices: Sequence[int] | None = None,
    batch_size: int = 8,
    device: torch.device,
    progress: Progress | None = None,
    features: FeatureCache | None = None,
) -> Evaluation:
    """Detects the data set's classes in each of its pictures and scores the detections.

    Args:
        class_indices: the classes to ask for and to count; None takes all.
        batch_size: pictures at a time.
        device: where to compute; the network is moved there.
        progress: told (pictures done, pictures in all) after each batch.
        features: keeps the backbone's maps of this data set between evaluations.

    Raises:
        DataError: the data set has no picture or no class, or a picture cannot be read.
    """
    indices = list(range(len(dataset.class_names))) if class_indices is None else list(class_indices)
    if not dataset.samples or not indices:
        raise DataError(
            f"{dataset.name}: there is nothing to evaluate on, {len(dataset.samples)} pictures, {len(indices)} classes."
        )
    network = bundle.network.to(device)
    names = [dataset.class_names[index] for index in indices]
    prompts = class_prompts(bundle.tokenizer, names, bundle.config.max_text_len).to(device)
    needs_pixels = None if features is None else (lambda index: features.needs_pixels(index, 0))
    predictions: list[Prediction] = []
    done = 0
    with inference_mode(network):
        for samples, pictures, _, places in evaluation_pictures(dataset, bundle.picture, batch_size, needs_pixels):
            if features is not None:
                maps = features.get(pictures, places, [0] * len(places), device)
            else:
                maps = extract(network, [picture for picture in pictures if picture is not None], device)
            found = detect_batch(network, maps, prompts, [sample.size_hw for sample in samples])
            for sample, detections in zip(samples, found, strict=True):
                predictions += _coco_results(sample, detections, [dataset.category_ids[index] for index in indices])
            done += len(samples)
            if progress is not None:
                progress.evaluation(done, len(dataset.samples))
    scored = coco_metrics(dataset, predictions, indices)
    return Evaluation(scored.metrics, scored.per_class, predictions)


def _coco_results(sample: Sample, detections: PictureDetections, category_ids: Sequence[int]) -> list[Prediction]:
    boxes = xyxy_to_xywh(detections.boxes_xyxy).tolist()
    found = zip(boxes, detections.scores.tolist(), detections.class_indices.tolist(), strict=True)
    return [
        {"image_id": sample.image_id, "category_id": category_ids[index], "bbox": box, "score": score}
        for box, score, index in found
    ]
