"""Detect objects by name or sentence in images, with thresholds and tiles."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from groundtune.data.transforms import resize_keep_ratio, to_tensor
from groundtune.model.bundle import ModelBundle
from groundtune.predict.detect import checked, class_prompts, detect_batch, inference_mode, sentence_prompts
from groundtune.predict.features import extract
from groundtune.predict.inputs import ImageInput, read_images
from groundtune.predict.postprocess import MAX_DETECTIONS, ImageDetections, Selection
from groundtune.predict.tiles import Tiles, merge
from groundtune.predict.video import Frame
from groundtune.text.prompt import known_phrases, sentence_prompt, split_sentences

with warnings.catch_warnings():  # supervision's NumPy backend is enough
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    from supervision import Detections

T = TypeVar("T")


@dataclass
class Predictor:
    """A model with the classes or sentences to detect.

    Example::

        predictor = groundtune.load("nano").predictor(["cat", "remote control"], threshold=0.4)
        for detections in predictor.each(Path("images").glob("*.jpg")):
            print(detections.xyxy, detections.confidence, detections.data["class_name"])

    Attributes:
        bundle: the model; its network is moved to `device`.
        names: unique class names, at least one. Sentences are replaced by their phrases.
        device: device of the network.
        threshold: confidence threshold in [0, 1].
        thresholds: confidence thresholds of single classes.
        selection: non-maximum suppression and the number of detections, after tiles are merged.
        sentences: whether `names` are sentences about one object, or [several] in [brackets].
        tiles: size of the tiles of large images; None: no tiles.
        batch_size: images or tiles per batch.
        precision: "fp32", "tf32", "bf16" or "fp16".

    Raises:
        DataError: a name or sentence cannot be used.
    """

    bundle: ModelBundle
    names: list[str]
    device: torch.device
    threshold: float
    thresholds: Mapping[str, float]
    selection: Selection
    sentences: bool
    tiles: Tiles | None
    batch_size: int
    precision: str

    def __post_init__(self) -> None:
        tokenizer, max_text_len = self.bundle.tokenizer, self.bundle.config.max_text_len
        if self.sentences:
            sentences = (sentence for text in self.names for sentence in split_sentences(text))
            captions = [sentence_prompt(sentence) for sentence in sentences]
            self.names = phrases = [phrase for caption in captions for phrase in caption.phrases]
            prompts = sentence_prompts(tokenizer, captions, max_text_len)
        else:
            phrases = self.bundle.phrases_of(self.names)
            tuned = self.bundle.tuned_phrases
            prompts = class_prompts(tokenizer, phrases, max_text_len, tuned, self.names)
        self.warning = prompts.warning
        self._prompts = prompts.to(self.device)
        classes = list(self.thresholds)
        meant = dict(zip(classes, self.bundle.phrases_of(classes), strict=True))
        meant |= known_phrases(classes, dict(zip(self.names, phrases, strict=True)))
        self.unmatched = [name for name in classes if meant[name] not in phrases]
        by_phrase = {meant[name]: value for name, value in self.thresholds.items()}
        self._thresholds = torch.tensor([by_phrase.get(phrase, self.threshold) for phrase in phrases])

    def find(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Detect in RGB images.

        Returns:
            Per image its detections, best first: `xyxy` in pixels, `confidence`, `class_id` (index
            into `names`) and `data["class_name"]`. No images give an empty list.
        """
        if self.tiles is None:
            return [self._to_supervision(part) for part in self._detect(images)]
        merged = []
        for image in images:
            size_hw = image.height, image.width
            regions = self.tiles.regions(size_hw)
            views = itertools.chain([image], (image.crop(region) for region in regions[1:]))
            parts = [part for group in batched(views, self.batch_size) for part in self._detect(group)]
            merged.append(self._to_supervision(merge(parts, regions, size_hw)))
        return merged

    def each(self, images: ImageInput | Iterable[ImageInput]) -> Iterator[Detections]:
        """Detect in images of all kinds (docs/predict.md); hold one batch in memory.

        Raises:
            DataError: an image cannot be read.
        """
        for group in batched(read_images(images), self.batch_size):
            yield from self.find(group)

    def stream(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Detections]]:
        """Detect in the frames of `sources.iter_frames`; hold one batch in memory."""
        for group in batched(frames, self.batch_size):
            yield from zip(group, self.find([frame.image for frame in group]), strict=True)

    def _detect(self, images: Sequence[Image.Image]) -> list[ImageDetections]:
        if not images:
            return []
        network, image_format = self.bundle.to(self.device), self.bundle.image_format
        sizes_hw = [(image.height, image.width) for image in images]
        tensors = [
            to_tensor(resize_keep_ratio(size_hw, image_format).image(image), image_format)
            for size_hw, image in zip(sizes_hw, images, strict=True)
        ]
        limit = max(MAX_DETECTIONS, self.selection.max_detections or 0)  # NMS comes later

        def detect() -> list[ImageDetections]:
            features = extract(network, tensors, self.device)
            base_network = self.bundle.base_network
            return detect_batch(network, features, self._prompts, sizes_hw, base_network, limit)

        # per batch: a generator would leave the mode on for its caller
        with inference_mode(network, self.precision):
            detected = checked(detect, self.device)
        return [part.select(part.scores >= self._thresholds[part.class_indices]) for part in detected]

    def _to_supervision(self, part: ImageDetections) -> Detections:
        part = self.selection.apply(part)
        class_id = part.class_indices.numpy()
        return Detections(
            xyxy=part.boxes_xyxy.numpy().reshape(-1, 4),
            confidence=part.scores.numpy(),
            class_id=class_id,
            data={"class_name": np.array([self.names[i] for i in class_id], dtype=object)},
        )


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
