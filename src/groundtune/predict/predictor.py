"""Detect objects by name or sentence in images, with thresholds and tiles."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from groundtune.data.prefetch import read_ahead
from groundtune.data.transforms import resize_keep_ratio, to_tensor
from groundtune.model.bundle import ModelBundle, Network
from groundtune.predict.batch_limit import BatchLimit
from groundtune.predict.detect import class_prompts, detect_batch, inference_mode, sentence_prompts
from groundtune.predict.features import extract, upload
from groundtune.predict.inputs import ImageInput, read_images
from groundtune.predict.postprocess import MAX_DETECTIONS, ImageDetections, Selection
from groundtune.predict.tiles import Tiles, merge
from groundtune.predict.video import Frame
from groundtune.text.prompt import known_phrases, sentence_prompt, split_sentences

with warnings.catch_warnings():  # supervision's NumPy backend is enough
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    from supervision import Detections

T = TypeVar("T")
Prepared = tuple[tuple[int, int], torch.Tensor]  # size of the image, and its resized pixels


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
        self._prompts, self._memory = prompts.to(self.device), BatchLimit()
        self._moved: torch.device | None = None
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
            return [self._to_supervision(part) for part in self._detect([*map(self._prepare, images)])]
        merged = []
        for image in images:
            size_hw = image.height, image.width
            regions = self.tiles.regions(size_hw)
            views = itertools.chain([image], (image.crop(region) for region in regions[1:]))
            groups = batched(map(self._prepare, views), self.batch_size)
            parts = [part for group in groups for part in self._detect(group)]
            merged.append(self._to_supervision(merge(parts, regions, size_hw)))
        return merged

    def each(self, images: ImageInput | Iterable[ImageInput]) -> Iterator[Detections]:
        """Detect in images of all kinds (docs/predict.md); hold few batches in memory.

        A list or tuple is read ahead in a thread, other iterables by one batch at a time.

        Raises:
            DataError: an image cannot be read.
        """
        pairs = ((None, image) for image in read_images(images))
        for _, detections in self._find_each(pairs, isinstance(images, list | tuple)):
            yield detections

    def stream(self, frames: Iterable[Frame], ahead: bool) -> Iterator[tuple[Frame, Detections]]:
        """Detect in the frames of `sources.iter_frames`, read `ahead` in a thread."""
        return self._find_each(((frame, frame.image) for frame in frames), ahead)

    def _find_each(
        self, images: Iterable[tuple[T, Image.Image]], ahead: bool
    ) -> Iterator[tuple[T, Detections]]:
        """Detect in images, each of which comes with a key; `ahead` prepares them in a thread."""
        if self.tiles is not None:
            images = read_ahead(images, self.batch_size) if ahead else images
            yield from ((key, self.find([image])[0]) for key, image in images)
            return
        pairs = ((key, self._prepare(image)) for key, image in images)
        for group in batched(read_ahead(pairs, 2 * self.batch_size) if ahead else pairs, self.batch_size):
            found = map(self._to_supervision, self._detect([prepared for _, prepared in group]))
            yield from zip([key for key, _ in group], found, strict=True)

    def _prepare(self, image: Image.Image) -> Prepared:
        image_format, size_hw = self.bundle.image_format, (image.height, image.width)
        view = resize_keep_ratio(size_hw, image_format)
        return size_hw, to_tensor(view.image(image), image_format, raw=self.device.type != "cpu")

    def _network(self) -> Network:
        """Return the network on its device: moved once, which takes as long as a small batch."""
        network = self.bundle.network
        if self._moved is None or self._moved != next(network.parameters()).device:
            network = self.bundle.to(self.device)
            self._moved = next(network.parameters()).device
        return network

    def _detect(self, images: Sequence[Prepared]) -> list[ImageDetections]:
        if not images:
            return []
        network, sizes_hw = self._network(), [size_hw for size_hw, _ in images]
        limit = max(MAX_DETECTIONS, self.selection.max_detections or 0)  # NMS comes later

        def detect(rows: slice, pairs: int) -> list[ImageDetections]:
            tensors = upload([pixels for _, pixels in images[rows]], self.bundle.image_format, self.device)
            features, base = extract(network, tensors, self.device), self.bundle.base_network
            return detect_batch(network, features, self._prompts, sizes_hw[rows], base, limit, pairs)

        # per batch: a generator would leave the mode on for its caller
        with inference_mode(network, self.precision):
            prompts = len(self._prompts.phrase_maps)
            detected = self._memory.run(detect, len(images), prompts, self.device)
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
