"""Detections of a whole data set, and COCO's or LVIS's numbers for them; of captions, where their phrases are and recall.

Everything goes by name and by the data set's own category ids (semantics 22): the model sees class names, the predictions
carry `dataset.category_ids`, which may have gaps and any order. In a data set with captions each picture is asked for its own
caption; a query's score for a phrase is the largest over the phrase's tokens (semantics 23).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groundtune.boxes import cxcywh_to_xyxy, xyxy_to_xywh
from groundtune.data.batch import EvalBatch
from groundtune.data.captions import grounding_prompt, refuse_unreadable_captions
from groundtune.data.loader import evaluation_pictures
from groundtune.data.sample import Dataset, Sample
from groundtune.engine.features import FeatureCache, extract
from groundtune.engine.inference import class_prompts, detect_batch, inference_mode
from groundtune.errors import DataError
from groundtune.metrics.coco import Prediction, coco_metrics
from groundtune.metrics.grounding import RANKS, THRESHOLD, PhraseAnswer, grounding_metrics
from groundtune.metrics.lvis import lvis_metrics
from groundtune.model.bundle import ModelBundle
from groundtune.postprocess import PictureDetections, class_scores
from groundtune.progress import Progress
from groundtune.text.tokens import tokenize


@dataclass
class Evaluation:
    """What `evaluate` found.

    Attributes:
        metrics: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100; by LVIS's rules, where the data set carries them, APr, APc
            and APf in place of AR; of captions those of `grounding_metrics`. Shares, or None where there is nothing to count.
        per_class: AP and AP50 of each class, by name; empty for captions.
        predictions: the detections in COCO's result format, original pixels, the data set's own ids. Of captions the best
            box of each phrase, with the phrase in place of a category.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    predictions: list[Prediction]

    @property
    def score(self) -> float | None:
        """The number that the best weights are chosen by: AP, or recall@1 of captions."""
        return self.metrics["AP"] if "AP" in self.metrics else self.metrics["recall@1"]


def evaluate(
    bundle: ModelBundle,
    dataset: Dataset,
    *,
    class_indices: Sequence[int] | None = None,
    batch_size: int = 8,
    device: torch.device,
    precision: str = "fp32",
    progress: Progress | None = None,
    features: FeatureCache | None = None,
) -> Evaluation:
    """Detects the data set's classes in each of its pictures and scores the detections.

    Args:
        class_indices: the classes to ask for and to count; None takes all.
        batch_size: pictures at a time.
        device: where to compute; the network is moved there.
        precision: "fp32" or "bf16".
        progress: told (pictures done, pictures in all) after each batch.
        features: keeps the backbone's maps of this data set between evaluations.

    Raises:
        DataError: the data set has no picture or no class, has captions in some pictures only, or a picture cannot be read.
    """
    if dataset.is_grounding:
        return _evaluate_captions(bundle, dataset, batch_size, device, progress, features)
    if any(sample.grounding is not None for sample in dataset.samples):
        raise DataError(
            f"{dataset.name}: some pictures have captions and some have classes, which are measured differently. Evaluate on "
            "each kind by itself; train on both with --mix."
        )
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
    with inference_mode(network, precision):
        for samples, pictures, _, places in evaluation_pictures(dataset, bundle.picture, batch_size, needs_pixels):
            maps = _maps(bundle, pictures, places, features, device)
            found = detect_batch(network, maps, prompts, [sample.size_hw for sample in samples])
            for sample, detections in zip(samples, found, strict=True):
                predictions += _coco_results(sample, detections, [dataset.category_ids[index] for index in indices])
            done += len(samples)
            if progress is not None:
                progress.evaluation(done, len(dataset.samples))
    measure = coco_metrics if dataset.lvis is None else lvis_metrics
    scored = measure(dataset, predictions, indices)
    return Evaluation(scored.metrics, scored.per_class, predictions)


def _coco_results(sample: Sample, detections: PictureDetections, category_ids: Sequence[int]) -> list[Prediction]:
    boxes = xyxy_to_xywh(detections.boxes_xyxy).tolist()
    found = zip(boxes, detections.scores.tolist(), detections.class_indices.tolist(), strict=True)
    return [
        {"image_id": sample.image_id, "category_id": category_ids[index], "bbox": box, "score": score}
        for box, score, index in found
    ]


def _evaluate_captions(
    bundle: ModelBundle,
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    progress: Progress | None,
    features: FeatureCache | None,
) -> Evaluation:
    """Looks for the phrases of each picture's caption and counts those that are found."""
    refuse_unreadable_captions(dataset, bundle.tokenizer, bundle.config.max_text_len)
    network = bundle.network.to(device)
    needs_pixels = None if features is None else (lambda index: features.needs_pixels(index, 0))
    answers: list[PhraseAnswer] = []
    predictions: list[Prediction] = []
    done = 0
    with inference_mode(network):
        for batch in evaluation_pictures(dataset, bundle.picture, batch_size, needs_pixels):
            maps = _maps(bundle, batch.pictures, batch.indices, features, device)
            for sample, ranked in zip(batch.samples, _best_for_phrases(bundle, batch, maps, device), strict=True):
                assert sample.grounding is not None
                for number, (phrase, (boxes, scores)) in enumerate(zip(sample.grounding.phrases, ranked, strict=True)):
                    true = sample.boxes_xyxy[(sample.class_ids == number) & ~sample.crowd]
                    answers.append(PhraseAnswer(boxes, scores, true))
                    box = xyxy_to_xywh(boxes[0]).tolist()
                    predictions.append(
                        {"image_id": sample.image_id, "phrase": phrase, "bbox": box, "score": float(scores[0])}
                    )
            done += len(batch.samples)
            if progress is not None:
                progress.evaluation(done, len(dataset.samples))
    return Evaluation(grounding_metrics(answers), {}, predictions)


def _best_for_phrases(
    bundle: ModelBundle, batch: EvalBatch, maps: Sequence[Sequence[Tensor]], device: torch.device
) -> list[list[tuple[Tensor, Tensor]]]:
    """For each picture and phrase the boxes (K, 4) in original pixels and their scores (K,), best first, on the CPU.

    They are the 10 best and all at or above `THRESHOLD`.
    """
    prompts = [grounding_prompt(sample.grounding) for sample in batch.samples if sample.grounding is not None]
    text, phrase_maps = tokenize(bundle.tokenizer, prompts, bundle.config.max_text_len)
    output = bundle.network.forward_features([list(levels) for levels in maps], text.to(device))
    found = []
    for sample, logits, boxes, phrase_map in zip(
        batch.samples, output["pred_logits"], output["pred_boxes"], phrase_maps, strict=True
    ):
        height, width = sample.size_hw
        size = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes_xyxy = (cxcywh_to_xyxy(boxes.float().cpu()) * size).clamp(min=0).minimum(size)
        scores, rows = class_scores(logits, phrase_map, "max").cpu().sort(dim=0, descending=True, stable=True)  # (Q, P)
        kept = (scores >= THRESHOLD).sum(0).clamp(min=max(RANKS)).tolist()
        found.append([(boxes_xyxy[rows[:k, number]], scores[:k, number]) for number, k in enumerate(kept)])
    return found


def _maps(
    bundle: ModelBundle,
    pictures: Sequence[Tensor | None],
    indices: Sequence[int],
    features: FeatureCache | None,
    device: torch.device,
) -> list[list[Tensor]]:
    """The backbone's maps of a batch, kept ones where there is a cache."""
    if features is not None:
        return features.get(pictures, indices, [0] * len(indices), device)
    return extract(bundle.network, [picture for picture in pictures if picture is not None], device)
