"""Finding objects by name in images.

The path through the network is that of evaluation (`engine.inference`). What is added: a smallest score, one for all classes
or one for each; sentences in the place of names; tiles for large images (`tiles`).
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from groundtune.data.images import load_image, to_rgb
from groundtune.data.transforms import resize_keep_ratio, to_tensor
from groundtune.errors import DataError
from groundtune.model.bundle import ModelBundle
from groundtune.predict.detect import class_prompts, detect_batch, inference_mode, sentence_prompts
from groundtune.predict.features import extract
from groundtune.predict.postprocess import ImageDetections
from groundtune.predict.tiles import Tiles, merge
from groundtune.text.prompt import clean_name, sentence_prompt, unique_names

with warnings.catch_warnings():  # drawing by NumPy is what we want: OpenCV's fonts lack most letters
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    from supervision import Detections

T = TypeVar("T")
ImageInput = Path | Image.Image | np.ndarray


@dataclass
class Predictor:
    """A model, and what images are asked for.

    Attributes:
        bundle: the model; its network is moved to the device.
        names: what to look for, at least one. Names that clean to the same text are looked for once. Sentences become the
            phrases that are looked for in them.
        device: where to compute.
        threshold: smallest score in [0, 1].
        thresholds: those of single names, however these are written.
        sentences: whether `names` are sentences, each describing an object as a whole, or [several] in [brackets].
        tiles: how large images are divided; None: not at all.
        batch_size: images, or tiles, at a time.
        precision: "fp32" or "bf16".

    Raises:
        DataError: a name or a sentence cannot be used.
    """

    bundle: ModelBundle
    names: list[str]
    device: torch.device
    threshold: float = 0.3
    thresholds: Mapping[str, float] = field(default_factory=dict)
    sentences: bool = False
    tiles: Tiles | None = None
    batch_size: int = 4
    precision: str = "fp32"

    def __post_init__(self) -> None:
        tokenizer, longest = self.bundle.tokenizer, self.bundle.config.max_text_len
        if self.sentences:
            asked = [sentence_prompt(sentence) for sentence in self.names]
            self.names = [phrase for prompt in asked for phrase in prompt.phrases]
            self._first = list(range(len(self.names)))
            self._prompts = sentence_prompts(tokenizer, asked, longest).to(self.device)
        else:
            names, index, _ = unique_names(self.names)
            self._first = [index.index(place) for place in range(len(names))]
            self._prompts = class_prompts(tokenizer, names, longest, self.bundle.tuned_names).to(self.device)
        own = {clean_name(name): value for name, value in self.thresholds.items()}
        self._least = torch.tensor(
            [own.get(clean_name(self.names[place]), self.threshold) for place in self._first]
        )

    def find(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Find what is asked for in RGB images; none give none.

        Returns:
            Per image its detections, best first: `xyxy` in pixels of the image, `confidence`, `class_id` the index into
            `names`, `data["class_name"]` the names.
        """
        if self.tiles is None:
            return [self._detections(part) for part in self._answers(images)]
        found = []
        for image in images:
            size_hw = image.height, image.width
            regions = self.tiles.regions(size_hw)
            views = (image.crop(region) for region in regions)
            parts = [part for group in batched(views, self.batch_size) for part in self._answers(group)]
            found.append(self._detections(merge(parts, regions, size_hw)))
        return found

    def each(self, images: Iterable[ImageInput]) -> Iterator[Detections]:
        """Find what is asked for in one image after the other: files, which are turned as viewers show them, PIL images,
        or (H, W, 3) uint8 RGB arrays. No more than a batch of them is held.

        Raises:
            DataError: an image cannot be read.
        """
        for group in batched(images, self.batch_size):
            yield from self.find([_rgb(image) for image in group])

    def _answers(self, images: Sequence[Image.Image]) -> list[ImageDetections]:
        """At or above the thresholds; `class_indices` count the names that are looked for."""
        if not images:
            return []
        network, fmt = self.bundle.to(self.device), self.bundle.image_format
        sizes_hw = [(image.height, image.width) for image in images]
        tensors = [
            to_tensor(resize_keep_ratio(size_hw, fmt).image(image), fmt)
            for size_hw, image in zip(sizes_hw, images, strict=True)
        ]
        with inference_mode(
            network, self.precision
        ):  # not around all images: a generator would leave it to its caller
            features = extract(network, tensors, self.device)
            detected = detect_batch(network, features, self._prompts, sizes_hw, self.bundle.base_network)
        return [part.of(part.scores >= self._least[part.class_indices]) for part in detected]

    def _detections(self, part: ImageDetections) -> Detections:
        class_id = np.array([self._first[place] for place in part.class_indices.tolist()], dtype=int)
        return Detections(
            xyxy=part.boxes_xyxy.numpy().reshape(-1, 4),
            confidence=part.scores.numpy(),
            class_id=class_id,
            data={"class_name": np.array([self.names[place] for place in class_id], dtype=object)},
        )


def predict(
    bundle: ModelBundle,
    images: Sequence[ImageInput],
    classes: Sequence[str],
    *,
    threshold: float,
    device: torch.device,
    batch_size: int,
    precision: str = "fp32",
) -> list[Detections]:
    """Find objects by name: the arguments and errors of `Predictor`, the images and detections of `Predictor.each`."""
    predictor = Predictor(
        bundle, list(classes), device, threshold, batch_size=batch_size, precision=precision
    )
    return list(predictor.each(images))


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many items, the last one of fewer."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _rgb(image: ImageInput) -> Image.Image:
    if isinstance(image, Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except OSError as error:  # its file is read only now
            raise DataError(f"Cannot read the image {getattr(image, 'filename', '')}: {error}.") from error
    if not isinstance(image, np.ndarray):
        raise DataError(f"An image must be a Path, a PIL image or an array, found {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"An array must be (H, W, 3) uint8 in RGB order, found {image.shape} {image.dtype}.")
    return Image.fromarray(image)
