"""Detections of a whole data set, and COCO's or LVIS's numbers for them; of captions, where their phrases are and recall.

Everything goes by name and by the data set's own category ids (semantics 22): the model sees class names, the predictions
carry `dataset.category_ids`, which may have gaps and any order. In a data set with captions each image is asked for its own
caption; a query's score for a phrase is the largest over the phrase's tokens (semantics 23).

Where processes share an evaluation, whole batches are dealt out: every image has the company that it has in one process,
and with it the same last bits, on the same kind of device with as many threads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from groundtune.boxes import cxcywh_to_xyxy, xyxy_to_xywh
from groundtune.data.batch import EvalBatch
from groundtune.data.loader import check_captions, grounding_prompt
from groundtune.data.prefetch import evaluation_images
from groundtune.data.sample import Dataset, Sample
from groundtune.engine.distributed import from_main, gather, processes
from groundtune.errors import DataError
from groundtune.metrics.coco import Prediction, coco_metrics, lvis_metrics
from groundtune.metrics.grounding import RANKS, THRESHOLD, PhraseResult, grounding_metrics
from groundtune.model.bundle import ModelBundle
from groundtune.predict.detect import Prompts, class_prompts, detect_batch, inference_mode
from groundtune.predict.features import FeatureCache, extract
from groundtune.predict.postprocess import ImageDetections, class_scores
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
        unreadable: the paths of images that could not be read, and why; they count as ones without detections.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    predictions: list[Prediction]
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The number that the best weights are chosen by: AP, or recall@1 of captions."""
        return self.metrics["AP"] if "AP" in self.metrics else self.metrics["recall@1"]


@dataclass
class ImageResult:
    """What was found in one image; `phrases` where it has a caption."""

    predictions: list[Prediction]
    phrases: list[PhraseResult]


@dataclass
class EvalTask:
    """What the images of a data set are asked for. With its model it can travel to another process.

    Attributes:
        bundle: the model.
        prompts: of the classes; None asks each image for its own caption.
        category_ids: of the classes, in the order of the prompts.
        precision: "fp32" or "bf16".
    """

    bundle: ModelBundle
    prompts: Prompts | None
    category_ids: list[int]
    precision: str

    def answers(
        self,
        dataset: Dataset,
        batch_size: int,
        device: torch.device,
        told: Callable[[int], None] = lambda _: None,
        features: FeatureCache | None = None,
        unreadable: dict[str, str] | None = None,
    ) -> dict[int, ImageResult]:
        """The answers by the images' places in a data set.

        Args:
            dataset: the images; none give no answer.
            batch_size: images at a time; the last ones may be fewer.
            device: where to compute; the network is moved there.
            told: called with the number of images of each batch that is done.
            features: keeps the backbone's maps, by the same places.
            unreadable: gets the images that cannot be read, which have no answer; None: such an image is an error.
        """
        network = self.bundle.to(device)
        needs_pixels = None if features is None else (lambda index: features.needs_pixels(index, 0))
        answer = self._of_captions if self.prompts is None else self._of_classes
        found: dict[int, ImageResult] = {}
        with inference_mode(network, self.precision):
            for batch in evaluation_images(
                dataset, self.bundle.image_format, batch_size, needs_pixels, unreadable=unreadable
            ):
                maps = _maps(self.bundle, batch.images, batch.indices, features, device)
                found |= zip(batch.indices, answer(batch, maps, device), strict=True)
                told(len(batch.samples))
        return found

    def _of_classes(
        self, batch: EvalBatch, maps: Sequence[Sequence[Tensor]], device: torch.device
    ) -> list[ImageResult]:
        assert self.prompts is not None
        sizes_hw = [sample.size_hw for sample in batch.samples]
        found = detect_batch(
            self.bundle.network, maps, self.prompts.to(device), sizes_hw, self.bundle.base_network
        )
        return [
            ImageResult(_coco_results(sample, detections, self.category_ids), [])
            for sample, detections in zip(batch.samples, found, strict=True)
        ]

    def _of_captions(
        self, batch: EvalBatch, maps: Sequence[Sequence[Tensor]], device: torch.device
    ) -> list[ImageResult]:
        self.bundle.network.forget_phrases()  # a phrase's last bits depend on those that it was met with
        found = []
        for sample, ranked in zip(
            batch.samples, _best_for_phrases(self.bundle, batch, maps, device), strict=True
        ):
            answer = ImageResult([], [])
            assert sample.grounding is not None
            for number, (phrase, (boxes, scores)) in enumerate(
                zip(sample.grounding.phrases, ranked, strict=True)
            ):
                true = sample.boxes_xyxy[(sample.class_ids == number) & ~sample.crowd]
                answer.phrases.append(PhraseResult(boxes, scores, true))
                best = {"phrase": phrase, "bbox": xyxy_to_xywh(boxes[0]).tolist(), "score": float(scores[0])}
                answer.predictions.append({"image_id": sample.image_id, **best})
            found.append(answer)
        self.bundle.network.forget_phrases()
        return found


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
    keep_going: bool = False,
) -> Evaluation:
    """Detects the data set's classes in each of its images and scores the detections.

    In a run of several processes all of them call it, and share the images. All get the numbers, or the error of one of
    them; the predictions are those of the whole data set in the main process, and none in the others.

    Args:
        class_indices: the classes to ask for and to count; None takes all.
        batch_size: images at a time.
        device: where to compute; the network is moved there.
        precision: "fp32" or "bf16".
        progress: told (images done, images in all) after each batch.
        features: keeps the backbone's maps of this data set between evaluations.
        keep_going: whether images that cannot be read are told in the result, in place of an error.

    Raises:
        DataError: the data set has no image or no class, has captions in some images only, or an image cannot be read.
    """
    questions = ask(bundle, dataset, class_indices, precision)
    rank, count = processes()
    total, done = len(dataset.samples), 0
    starts = range(rank * batch_size, total, count * batch_size)
    places = [place for start in starts for place in range(start, min(start + batch_size, total))]
    own = replace(dataset, samples=[dataset.samples[place] for place in places])

    def told(images: int) -> None:
        nonlocal done
        done += images * count
        if progress is not None:
            progress.evaluation(min(done, total), total)

    def share() -> tuple[dict[int, ImageResult], dict[str, str]]:
        unreadable: dict[str, str] = {}
        found = questions.answers(own, batch_size, device, told, features, unreadable if keep_going else None)
        return {places[place]: answer for place, answer in found.items()}, unreadable

    answers: dict[int, ImageResult] = {}
    unreadable: dict[str, str] = {}
    for found, missing in gather(share):
        answers |= found
        unreadable |= missing
    return scored(dataset, class_indices, answers, unreadable)


def ask(
    bundle: ModelBundle, dataset: Dataset, class_indices: Sequence[int] | None = None, precision: str = "fp32"
) -> EvalTask:
    """The questions of `evaluate`, which has the same arguments and errors."""
    if dataset.is_grounding:
        check_captions(dataset, bundle.tokenizer, bundle.config.max_text_len)
        return EvalTask(bundle, None, [], precision)
    if any(sample.grounding is not None for sample in dataset.samples):
        raise DataError(
            f"{dataset.name}: some images have captions and some have classes, which are measured differently. Evaluate on "
            "each kind by itself; train on both with --extra-data."
        )
    indices = _indices(dataset, class_indices)
    if not dataset.samples or not indices:
        raise DataError(
            f"{dataset.name}: there is nothing to evaluate on, {len(dataset.samples)} images, {len(indices)} classes."
        )
    names = [dataset.class_names[index] for index in indices]
    prompts = class_prompts(bundle.tokenizer, names, bundle.config.max_text_len, bundle.tuned_names)
    return EvalTask(bundle, prompts, [dataset.category_ids[index] for index in indices], precision)


def scored(
    dataset: Dataset,
    class_indices: Sequence[int] | None,
    answers: Mapping[int, ImageResult],
    unreadable: Mapping[str, str],
) -> Evaluation:
    """The evaluation of the answers by the images' places, which need only be there in the main process."""
    ordered = [answers.get(place) or _no_answer(sample) for place, sample in enumerate(dataset.samples)]
    predictions = [prediction for answer in ordered for prediction in answer.predictions]

    def numbers() -> Evaluation:  # sent to the others without the predictions
        if dataset.is_grounding:
            metrics = grounding_metrics([phrase for answer in ordered for phrase in answer.phrases])
            return Evaluation(metrics, {}, [], dict(unreadable))
        measure = coco_metrics if dataset.lvis is None else lvis_metrics
        found = measure(dataset, predictions, _indices(dataset, class_indices))
        return Evaluation(found.metrics, found.per_class, [], dict(unreadable))

    return replace(from_main(numbers), predictions=predictions)


def _no_answer(sample: Sample) -> ImageResult:
    phrases = 0 if sample.grounding is None else len(sample.grounding.phrases)
    true = [sample.boxes_xyxy[(sample.class_ids == number) & ~sample.crowd] for number in range(phrases)]
    return ImageResult([], [PhraseResult(torch.zeros(0, 4), torch.zeros(0), boxes) for boxes in true])


def _indices(dataset: Dataset, class_indices: Sequence[int] | None) -> list[int]:
    return list(range(len(dataset.class_names)) if class_indices is None else class_indices)


def _coco_results(
    sample: Sample, detections: ImageDetections, category_ids: Sequence[int]
) -> list[Prediction]:
    boxes = xyxy_to_xywh(detections.boxes_xyxy).tolist()
    found = zip(boxes, detections.scores.tolist(), detections.class_indices.tolist(), strict=True)
    return [
        {"image_id": sample.image_id, "category_id": category_ids[index], "bbox": box, "score": score}
        for box, score, index in found
    ]


def _best_for_phrases(
    bundle: ModelBundle, batch: EvalBatch, maps: Sequence[Sequence[Tensor]], device: torch.device
) -> list[list[tuple[Tensor, Tensor]]]:
    """For each image and phrase the boxes (K, 4) in original pixels and their scores (K,), best first, on the CPU.

    They are the 10 best and all at or above `THRESHOLD`.
    """
    prompts = [grounding_prompt(sample.grounding) for sample in batch.samples if sample.grounding is not None]
    text, phrase_maps = tokenize(bundle.tokenizer, prompts, bundle.config.max_text_len)
    network = bundle.base_network or bundle.network
    output = network.forward_features([list(levels) for levels in maps], text.to(device))
    found = []
    for sample, logits, boxes, phrase_map in zip(
        batch.samples, output["pred_logits"], output["pred_boxes"], phrase_maps, strict=True
    ):
        height, width = sample.size_hw
        size = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes_xyxy = (cxcywh_to_xyxy(boxes.float().cpu()) * size).clamp(min=0).minimum(size)
        scores, rows = (
            class_scores(logits, phrase_map, "max").cpu().sort(dim=0, descending=True, stable=True)
        )  # (Q, P)
        kept = (scores >= THRESHOLD).sum(0).clamp(min=max(RANKS)).tolist()
        found.append([(boxes_xyxy[rows[:k, number]], scores[:k, number]) for number, k in enumerate(kept)])
    return found


def _maps(
    bundle: ModelBundle,
    images: Sequence[Tensor | None],
    indices: Sequence[int],
    features: FeatureCache | None,
    device: torch.device,
) -> list[list[Tensor]]:
    """The backbone's maps of a batch, kept ones where there is a cache."""
    if features is not None:
        return features.get(images, indices, [0] * len(indices), device)
    return extract(bundle.network, [image for image in images if image is not None], device)
