"""Detections of a whole data set, and COCO's metrics, LVIS's metrics or the recall of phrases.

The model reads phrases, and predictions carry `dataset.category_ids`, which may have gaps and any
order. In a data set with captions the model reads each image's own caption, and a query's score
for a phrase is the maximum over the phrase's tokens.

Processes share an evaluation by whole batches: each image is computed beside the same images as in
one process, so its results are equal bit for bit (on the same kind of device and as many threads).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from groundtune.boxes import xyxy_to_xywh
from groundtune.data.batch import EvalBatch
from groundtune.data.loader import check_captions, grounding_prompt
from groundtune.data.prefetch import decode_threads, evaluation_images
from groundtune.data.sample import Dataset, Sample
from groundtune.engine.distributed import from_main, gather, own_images, processes
from groundtune.errors import DataError
from groundtune.metrics.coco import Prediction, coco_metrics, lvis_metrics
from groundtune.metrics.grounding import RANKS, THRESHOLD, PhraseResult, grounding_metrics
from groundtune.model.bundle import ModelBundle
from groundtune.predict.batch_limit import BatchLimit
from groundtune.predict.detect import Prompts, check_finite, class_prompts, detect_batch, inference_mode
from groundtune.predict.features import FeatureCache, extract, upload
from groundtune.predict.postprocess import class_scores, top_detections
from groundtune.progress import Progress
from groundtune.text.tokens import tokenize

Metrics = dict[str, float | None]
LoadMaps = Callable[[slice], Sequence[Sequence[Tensor]]]  # of these images each one's levels (C, h, w)
DECODE_THREADS = 2  # threads that decode images ahead of the network; no value depends on them


@dataclass
class Evaluation:
    """Metrics and detections of a model on a data set.

    Attributes:
        metrics: shares in [0, 1], or None if there is nothing to count: AP, AP50, AP75, APs, APm,
            APl, AR1, AR10, AR100; of an LVIS data set APr, APc and APf instead of AR; of captions
            those of `grounding_metrics`.
        per_class: AP and AP50 by class name; empty for captions.
        predictions: detections in COCO's result format (xywh in original pixels, the data set's
            category ids); of captions the best box of each phrase, with "phrase" as its category.
        unreadable: path → reason of images that cannot be read; they count as without detections.
    """

    metrics: Metrics
    per_class: dict[str, Metrics]
    predictions: list[Prediction]
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The metric that selects the best weights: AP, or recall@1 of captions."""
        return self.metrics["AP"] if "AP" in self.metrics else self.metrics["recall@1"]


@dataclass
class ImageResult:
    """Results of one image; `phrases` only if it has a caption."""

    predictions: list[Prediction]
    phrases: list[PhraseResult]


@dataclass
class EvalTask:
    """A model and what it detects in the images of a data set."""

    bundle: ModelBundle
    prompts: Prompts | None  # of the classes; None: the prompt of each image is its caption
    category_ids: list[int]  # of the classes
    class_indices: list[int]  # of the classes in the data set
    precision: str  # "fp32", "tf32", "bf16" or "fp16"
    memory: BatchLimit = field(default_factory=BatchLimit)

    def predict_dataset(
        self,
        dataset: Dataset,
        batch_size: int,
        device: torch.device,
        on_batch: Callable[[int], None] = lambda _: None,
        features: FeatureCache | None = None,
        unreadable: dict[str, str] | None = None,
    ) -> dict[int, ImageResult]:
        """Run the model on all images and return the results by image index.

        `on_batch` receives the number of images of each finished batch, `unreadable` the unreadable
        images, which get no result; without it their error is raised.
        """
        network = self.bundle.to(device)
        detect = self._detect_phrases if self.prompts is None else self._detect_classes
        results: dict[int, ImageResult] = {}
        prompts = 1 if self.prompts is None else len(self.prompts.phrase_maps)
        with inference_mode(network, self.precision):
            for batch, load in iter_maps(self.bundle, dataset, batch_size, device, features, unreadable):
                compute = partial(detect, batch, load, device)
                detected = self.memory.run(compute, len(batch.samples), prompts, device)
                results |= zip(batch.indices, detected, strict=True)
                on_batch(len(batch.samples))
        return results

    def _detect_classes(
        self, batch: EvalBatch, load: LoadMaps, device: torch.device, rows: slice, max_pairs: int
    ) -> list[ImageResult]:
        assert self.prompts is not None
        samples, ids, networks = batch.samples[rows], self.category_ids, self.bundle
        sizes_hw, prompts = [sample.size_hw for sample in samples], self.prompts.to(device)
        detections = detect_batch(
            networks.network, load(rows), prompts, sizes_hw, networks.base_network, max_pairs=max_pairs
        )
        results = []
        for sample, detected in zip(samples, detections, strict=True):
            boxes_xywh = xyxy_to_xywh(detected.boxes_xyxy).tolist()
            found = zip(detected.class_indices.tolist(), boxes_xywh, detected.scores.tolist(), strict=True)
            predictions: list[Prediction] = [
                {"image_id": sample.image_id, "category_id": ids[index], "bbox": box, "score": score}
                for index, box, score in found
            ]
            results.append(ImageResult(predictions, []))
        return results

    def _detect_phrases(
        self, batch: EvalBatch, load: LoadMaps, device: torch.device, rows: slice, _: int
    ) -> list[ImageResult]:
        """Detect each phrase of the captions: the 10 best boxes, and all from `THRESHOLD` on."""
        bundle, network = self.bundle, self.bundle.base_network or self.bundle.network
        samples = batch.samples[rows]
        captions = [sample.grounding for sample in samples if sample.grounding is not None]
        prompts = [grounding_prompt(caption) for caption in captions]
        text, phrase_maps = tokenize(bundle.tokenizer, prompts, bundle.config.max_text_len)
        network.forget_phrases()  # else last bits depend on earlier batches
        output = network.forward_features([list(levels) for levels in load(rows)], text.to(device))
        network.forget_phrases()
        check_finite(output, phrase_maps)
        results = []
        outputs = zip(output["pred_logits"].cpu(), output["pred_boxes"].cpu(), phrase_maps, strict=True)
        for sample, caption, (logits, boxes, phrase_map) in zip(samples, captions, outputs, strict=True):
            result, scores = ImageResult([], []), class_scores(logits, phrase_map, "max")
            for index, phrase in enumerate(caption.phrases):
                of_phrase = scores[:, index : index + 1]  # (Q, 1)
                limit = max(*RANKS, int((of_phrase >= THRESHOLD).sum()))
                best = top_detections([of_phrase], [boxes], [[index]], sample.size_hw, limit)
                row: Prediction = {"image_id": sample.image_id, "phrase": phrase}
                row |= {"bbox": xyxy_to_xywh(best.boxes_xyxy[0]).tolist(), "score": float(best.scores[0])}
                result.predictions.append(row)
                labels = _boxes_of_phrase(sample, index)
                result.phrases.append(PhraseResult(best.boxes_xyxy, best.scores, labels))
            results.append(result)
        return results


def iter_maps(
    bundle: ModelBundle,
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    features: FeatureCache | None = None,
    unreadable: dict[str, str] | None = None,
) -> Iterator[tuple[EvalBatch, LoadMaps]]:
    """Iterate over batches and functions that compute the backbone's maps, or get cached ones."""
    needs_pixels = None if features is None else partial(features.needs_pixels, view=0)
    batches = evaluation_images(
        dataset,
        bundle.image_format,
        batch_size,
        needs_pixels,
        threads=decode_threads(device, DECODE_THREADS),
        unreadable=unreadable,
        raw=device.type != "cpu",
    )

    def load(batch: EvalBatch, rows: slice) -> Sequence[Sequence[Tensor]]:
        indices = batch.indices[rows]
        images = upload(batch.images[rows], bundle.image_format, device)
        if features is not None:
            return features.get(images, indices, [0] * len(indices), device)
        return extract(bundle.network, [image for image in images if image is not None], device)

    for batch in batches:
        yield batch, partial(load, batch)


def run_task(
    task: EvalTask,
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    progress: Progress | None,
    features: FeatureCache | None = None,
    skip_unreadable: bool = False,
) -> Evaluation:
    """Evaluate, optionally with a feature cache or with unreadable images in the result.

    All processes of a distributed run call this together and share the images. Each gets the
    metrics, or the error of one of them; the main process gets the predictions, the others none.
    """
    total, done, (_, count) = len(dataset.samples), 0, processes()
    indices = own_images(total, batch_size)
    share = replace(dataset, samples=[dataset.samples[index] for index in indices])

    def on_batch(images: int) -> None:
        nonlocal done
        done += images * count
        if progress is not None:
            progress.evaluation(min(done, total), total)

    def predict_share() -> tuple[dict[int, ImageResult], dict[str, str]]:
        skipped: dict[str, str] | None = {} if skip_unreadable else None
        results = task.predict_dataset(share, batch_size, device, on_batch, features, skipped)
        return {indices[index]: result for index, result in results.items()}, skipped or {}

    results: dict[int, ImageResult] = {}
    unreadable: dict[str, str] = {}
    for of_process, skipped in gather(predict_share):
        results |= of_process
        unreadable |= skipped
    return score_results(dataset, task.class_indices, results, unreadable)


def eval_task(
    bundle: ModelBundle, dataset: Dataset, class_indices: Sequence[int] | None, precision: str
) -> EvalTask:
    """Prepare the prompts of a data set for all classes or some; precision as "fp32".

    Raises:
        DataError: the data set has no image or no class, or only some of its images have captions.
    """
    if dataset.is_grounding:
        check_captions(dataset, bundle.tokenizer, bundle.config.max_text_len)
        return EvalTask(bundle, None, [], [], precision)
    if any(sample.grounding is not None for sample in dataset.samples):
        raise DataError(
            f"{dataset.name}: some images have captions and some have classes, whose metrics differ. "
            "Evaluate on each kind alone; train on both with --extra-data."
        )
    indices = list(range(len(dataset.class_names)) if class_indices is None else class_indices)
    if not dataset.samples or not indices:
        raise DataError(
            f"{dataset.name}: expected images and classes to evaluate on, got {len(dataset.samples)} images "
            f"and {len(indices)} classes."
        )
    names, phrases = ([texts[i] for i in indices] for texts in (dataset.class_names, dataset.phrases))
    max_text_len, tuned = bundle.config.max_text_len, bundle.tuned_phrases
    prompts = class_prompts(bundle.tokenizer, phrases, max_text_len, tuned, names)
    return EvalTask(bundle, prompts, [dataset.category_ids[index] for index in indices], indices, precision)


def score_results(
    dataset: Dataset,
    class_indices: Sequence[int],
    results: Mapping[int, ImageResult],
    unreadable: dict[str, str],
) -> Evaluation:
    """Score the results by image index, which only the main process needs to have."""
    ordered = [results.get(index) or _no_result(sample) for index, sample in enumerate(dataset.samples)]
    predictions = [prediction for result in ordered for prediction in result.predictions]

    def score() -> Evaluation:  # sent to the other processes without the predictions
        if dataset.is_grounding:
            phrases = [phrase for result in ordered for phrase in result.phrases]
            return Evaluation(grounding_metrics(phrases), {}, [], unreadable)
        measure = coco_metrics if dataset.lvis is None else lvis_metrics
        scores = measure(dataset, predictions, class_indices)
        return Evaluation(scores.metrics, scores.per_class, [], unreadable)

    return replace(from_main(score), predictions=predictions)


def name_images_and_classes(dataset: Dataset, predictions: Sequence[Prediction]) -> None:
    """Add the names that the ids of predictions stand for; other tools ignore them."""
    files = {sample.image_id: sample.file_name or sample.image_path.name for sample in dataset.samples}
    classes = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    for row in predictions:
        row["file_name"] = files[row["image_id"]]
        if "category_id" in row:
            row["category_name"] = classes[row["category_id"]]


def _no_result(sample: Sample) -> ImageResult:
    phrases = 0 if sample.grounding is None else len(sample.grounding.phrases)
    boxes_xyxy, scores = torch.zeros(0, 4), torch.zeros(0)
    labels = [_boxes_of_phrase(sample, index) for index in range(phrases)]
    return ImageResult([], [PhraseResult(boxes_xyxy, scores, boxes) for boxes in labels])


def _boxes_of_phrase(sample: Sample, index: int) -> np.ndarray:
    boxes_xyxy: np.ndarray = sample.boxes_xyxy[(sample.class_ids == index) & ~sample.crowd]
    return boxes_xyxy
