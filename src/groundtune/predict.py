"""Finding objects by name in pictures.

The path through the network is that of evaluation (`engine.inference`). What is added: a smallest score, one for all classes
or one for each; sentences in the place of names; tiles for large pictures (`tiles`).
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

from groundtune.data.transforms import load_picture, resize_keep_ratio, to_rgb, to_tensor
from groundtune.engine.features import extract
from groundtune.engine.inference import class_prompts, detect_batch, inference_mode, sentence_prompts
from groundtune.errors import DataError
from groundtune.model.bundle import ModelBundle
from groundtune.postprocess import PictureDetections
from groundtune.text.prompt import clean_name, sentence_prompt, unique_names
from groundtune.tiles import Tiles, merge

with warnings.catch_warnings():  # drawing by NumPy is what we want: OpenCV's fonts lack most letters
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    from supervision import Detections

T = TypeVar("T")
Picture = Path | Image.Image | np.ndarray


@dataclass
class Finder:
    """A model, and what pictures are asked for.

    Attributes:
        bundle: the model; its network is moved to the device.
        names: what to look for, at least one. Names that clean to the same text are looked for once. Sentences become the
            phrases that are looked for in them.
        device: where to compute.
        threshold: smallest score in [0, 1].
        thresholds: those of single names, however these are written.
        sentences: whether `names` are sentences, each describing an object as a whole, or [several] in [brackets].
        tiles: how large pictures are divided; None: not at all.
        batch_size: pictures, or tiles, at a time.
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
            self._prompts = class_prompts(tokenizer, names, longest, self.bundle.own_names).to(self.device)
        own = {clean_name(name): value for name, value in self.thresholds.items()}
        self._least = torch.tensor([own.get(clean_name(self.names[place]), self.threshold) for place in self._first])

    def find(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """Find what is asked for in RGB pictures; none give none.

        Returns:
            Per picture its detections, best first: `xyxy` in pixels of the picture, `confidence`, `class_id` the index into
            `names`, `data["class_name"]` the names.
        """
        if self.tiles is None:
            return [self._detections(part) for part in self._answers(pictures)]
        found = []
        for picture in pictures:
            size_hw = picture.height, picture.width
            regions = self.tiles.regions(size_hw)
            views = (picture.crop(region) for region in regions)
            parts = [part for group in batched(views, self.batch_size) for part in self._answers(group)]
            found.append(self._detections(merge(parts, regions, size_hw)))
        return found

    def each(self, images: Iterable[Picture]) -> Iterator[Detections]:
        """Find what is asked for in one picture after the other: files, which are turned as viewers show them, PIL pictures,
        or (H, W, 3) uint8 RGB arrays. No more than a batch of them is held.

        Raises:
            DataError: a picture cannot be read.
        """
        for group in batched(images, self.batch_size):
            yield from self.find([_rgb(image) for image in group])

    def _answers(self, pictures: Sequence[Image.Image]) -> list[PictureDetections]:
        """At or above the thresholds; `class_indices` count the names that are looked for."""
        if not pictures:
            return []
        network, fmt = self.bundle.to(self.device), self.bundle.picture
        sizes_hw = [(picture.height, picture.width) for picture in pictures]
        tensors = [
            to_tensor(resize_keep_ratio(size_hw, fmt).picture(picture), fmt)
            for size_hw, picture in zip(sizes_hw, pictures, strict=True)
        ]
        with inference_mode(
            network, self.precision
        ):  # not around all pictures: a generator would leave it to its caller
            features = extract(network, tensors, self.device)
            detected = detect_batch(network, features, self._prompts, sizes_hw, self.bundle.kept)
        return [part.of(part.scores >= self._least[part.class_indices]) for part in detected]

    def _detections(self, part: PictureDetections) -> Detections:
        class_id = np.array([self._first[place] for place in part.class_indices.tolist()], dtype=int)
        return Detections(
            xyxy=part.boxes_xyxy.numpy().reshape(-1, 4),
            confidence=part.scores.numpy(),
            class_id=class_id,
            data={"class_name": np.array([self.names[place] for place in class_id], dtype=object)},
        )


def predict(
    bundle: ModelBundle,
    images: Sequence[Picture],
    classes: Sequence[str],
    *,
    threshold: float,
    device: torch.device,
    batch_size: int,
    precision: str = "fp32",
) -> list[Detections]:
    """Find objects by name: the arguments and errors of `Finder`, the pictures and detections of `Finder.each`."""
    finder = Finder(bundle, list(classes), device, threshold, batch_size=batch_size, precision=precision)
    return list(finder.each(images))


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many items, the last one of fewer."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _rgb(image: Picture) -> Image.Image:
    if isinstance(image, Path):
        return load_picture(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except OSError as error:  # its file is read only now
            raise DataError(f"Cannot read the picture {getattr(image, 'filename', '')}: {error}.") from error
    if not isinstance(image, np.ndarray):
        raise DataError(f"A picture must be a Path, a PIL picture or an array, found {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"An array must be (H, W, 3) uint8 in RGB order, found {image.shape} {image.dtype}.")
    return Image.fromarray(image)
