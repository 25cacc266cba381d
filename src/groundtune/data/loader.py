"""Training batches: images, prompts and targets, equal for equal seeds.

Every random choice has its own generator: the order is seeded by (seed, epoch), the view of an
image by (seed, image, view), its prompt and denoising noise by (seed, image, epoch). So nothing
depends on the batch size, on the number of threads, or on where a run was interrupted.

With `cache_features`, each image has up to `cache_views` fixed views that take turns, so that the
features of a frozen backbone can be computed once.

An image with a caption has the caption as its prompt and the phrases as its classes. It is never
cropped ("the left cup" could be cut off). Labels are mirrored with the image (`data.mirror`).

Deviation from MMDetection: classes of the image that have no box in this view (they are cropped
away, or are crowds) are not in the prompt. They could be visible, and would be trained as absent.
"""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor
from transformers import BertTokenizer

from groundtune.config import TrainConfig
from groundtune.contracts import ImageFormat
from groundtune.data.batch import Batch, make_target, trained_boxes
from groundtune.data.mirror import mirror_labels, mirrored_classes
from groundtune.data.prefetch import decode_view, prefetch
from groundtune.data.sample import Dataset, Grounding, Sample, join_examples
from groundtune.data.transforms import ImageView, draw_view, resize_keep_ratio
from groundtune.errors import DataError
from groundtune.text.prompt import Prompt, caption_prompt, phrase_prompt
from groundtune.text.sampling import sample_prompt
from groundtune.text.tokens import count_tokens, create_positive_map, tokenize

_WINDOW_BATCHES = 4  # batches among which images are sorted by shape: little padding, still random


class TrainLoader:
    """Training batches of a data set, epoch by epoch.

    Attributes:
        needs_pixels: returns whether to decode a view, from (index, view). It is called when the
            image is queued, up to `workers` batches early. None: decode all.
        workers: threads that decode ahead; by default those of the options, or none.
        raw: whether images are uint8, to be normalized on their device.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: BertTokenizer,
        image_format: ImageFormat,
        config: TrainConfig,
        max_text_len: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Count the tokens of class names and captions. No image is opened.

        Process `rank` of `processes` gets its share of every batch.

        Raises:
            DataError: the data set has no images, or captions that the model cannot read.
        """
        if not dataset.samples:
            raise DataError(f"The split {dataset.name!r} of {dataset.root} has no images to train on.")
        classes = mirrored_classes(dataset)
        self._mirrored = [
            mirror_labels(sample, classes) if config.flip else None for sample in dataset.samples
        ]
        for samples in (dataset.samples, [sample for sample in self._mirrored if sample is not None]):
            check_captions(replace(dataset, samples=samples), tokenizer, max_text_len)
        self.dataset, self.tokenizer, self.image_format = dataset, tokenizer, image_format
        self.config, self.max_text_len = config, max_text_len
        self.rank, self.processes = rank, processes
        self.needs_pixels: Callable[[int, int], bool] | None = None
        self.workers, self.raw = config.workers or 0, False
        self.phrases = [
            [phrase, *dataset.synonyms.get(name, [])]
            for name, phrase in zip(dataset.class_names, dataset.phrases, strict=True)
        ]
        self.token_counts = [max(count_tokens(tokenizer, group)) for group in self.phrases]
        self._by_weight: dict[float, list[int]] = defaultdict(list)
        for index, sample in enumerate(dataset.samples):
            self._by_weight[sample.weight].append(index)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return math.ceil(len(self._images_of(0)) / self.config.batch_size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, any number of times. `first_batch` resumes within it.

        A batch is larger if the classes of an image need several prompts: the image is repeated,
        each time with one prompt and the boxes of its classes. It is smaller, or even empty, if
        images are unreadable, or if the last batch has too few images for all processes.

        Raises:
            OutOfMemory: an image does not fit into memory; the message names it.
        """
        plan = [batch[self.rank :: self.processes] for batch in self.batch_plan(epoch)[first_batch:]]
        jobs = ([(index, self.view_of(index, epoch)) for index in batch] for batch in plan)
        results = prefetch(self._decoding, jobs, self.workers)
        for indices, images in zip(plan, results, strict=True):
            yield self.collate(indices, images, epoch)

    def batch_plan(self, epoch: int) -> list[list[int]]:
        """Choose the images of each batch, by index. Those of similar aspect ratio are together."""
        rng = _rng(self.config.seed, "order", epoch)
        size = self.config.batch_size
        order = self._images_of(epoch)
        rng.shuffle(order)
        plan = []
        for begin in range(0, len(order), size * _WINDOW_BATCHES):
            window = order[begin : begin + size * _WINDOW_BATCHES]
            window.sort(key=lambda index: self._aspect_ratio(index, epoch))  # equal shapes stay shuffled
            plan += [window[i : i + size] for i in range(0, len(window), size)]
        rng.shuffle(plan)
        return plan

    def _images_of(self, epoch: int) -> list[int]:
        """Return the images of an epoch, unordered; the fraction of a weight is drawn each time."""
        images = []
        for weight, indices in self._by_weight.items():
            whole, rest = divmod(max(1, round(weight * len(indices))), len(indices))
            images += indices * whole + _rng(self.config.seed, "shown", epoch).sample(indices, rest)
        return images

    def _aspect_ratio(self, index: int, epoch: int) -> float:
        height, width = self.geometry(index, self.view_of(index, epoch)).size_hw
        return width / height

    @property
    def num_views(self) -> int:
        """Number of cached views of an image: 0 without a cache, at most as many as differ."""
        config = self.config
        if not config.cache_features:
            return 0
        if config.crop or config.multi_scale:
            return config.cache_views
        return min(config.cache_views, 2 if any(self._mirrored) else 1)

    def view_of(self, index: int, epoch: int) -> int:
        """Return the number of an image's view in an epoch. Cached views take turns."""
        return (epoch + index) % self.num_views if self.num_views else epoch

    def geometry(self, index: int, view: int) -> ImageView:
        """Return a view of an image, always the same one for the same arguments.

        With a cache, view 0 is the whole image and view 1 the flipped one, which differ most. An
        image whose labels cannot be mirrored is not flipped.
        """
        sample, config, mirrors = self.dataset.samples[index], self.config, self._mirrored[index] is not None
        if config.cache_features and (view == 0 or (view == 1 and mirrors)):
            return replace(resize_keep_ratio(sample.size_hw, self.image_format), flip=view == 1)
        rng = _rng(config.seed, "view", index, view)
        drawn = draw_view(
            sample.size_hw,
            sample.boxes_xyxy[~sample.crowd],
            self.image_format,
            rng,
            crop=config.crop if sample.grounding is None else 0.0,
            multi_scale=config.multi_scale,
        )
        return replace(drawn, flip=rng.random() < config.flip and mirrors)

    def _decoding(self, job: tuple[int, int]) -> Callable[[], Tensor | DataError] | None:
        index, view = job
        if self.needs_pixels is not None and not self.needs_pixels(index, view):
            return None
        return partial(
            decode_view, self.dataset.samples[index], self.geometry(index, view), self.image_format, self.raw
        )

    def collate(self, indices: list[int], images: Sequence[Tensor | DataError | None], epoch: int) -> Batch:
        """Make a batch of decoded images. It is not thread-safe, because the tokenizer is not."""
        entries = []  # (image, index, sample, view, prompt, its classes, noise seed)
        unreadable = {}
        for index, image in zip(indices, images, strict=True):
            if isinstance(image, DataError):
                unreadable[str(self.dataset.samples[index].image_path)] = str(image)
                continue
            view = self.geometry(index, self.view_of(index, epoch))
            sample = (view.flip and self._mirrored[index]) or self.dataset.samples[index]
            rng = _rng(self.config.seed, "prompt", index, epoch)
            for prompt, classes in self._prompts(sample, view, rng):
                entries.append((image, index, sample, view, prompt, classes, rng.getrandbits(62)))
        prompts = [prompt for *_, prompt, _, _ in entries]
        text, phrase_maps = tokenize(self.tokenizer, prompts, self.max_text_len)
        targets = [
            make_target(sample, view, classes, phrase_map, noise_seed)
            for (_, _, sample, view, _, classes, noise_seed), phrase_map in zip(
                entries, phrase_maps, strict=True
            )
        ]
        return Batch(
            images=[image for image, *_ in entries],
            sizes_hw=[view.size_hw for _, _, _, view, *_ in entries],
            text=text,
            prompts=prompts,
            targets=targets,
            samples=[sample for _, _, sample, *_ in entries],
            indices=[index for _, index, *_ in entries],
            views=[self.view_of(index, epoch) for _, index, *_ in entries],
            unreadable=unreadable,
        )

    def _prompts(
        self, sample: Sample, view: ImageView, rng: random.Random
    ) -> list[tuple[Prompt, Sequence[int]]]:
        """Return the image's prompts, and the class of each phrase (in a caption, its index)."""
        grounding = sample.grounding
        if grounding is not None:
            return [(grounding_prompt(grounding), range(len(grounding.spans)))]
        prompts = self._prompt_classes(sample, view, rng)
        return [(phrase_prompt([self._draw_phrase(c, rng) for c in classes]), classes) for classes in prompts]

    def _prompt_classes(self, sample: Sample, view: ImageView, rng: random.Random) -> list[list[int]]:
        """Draw the classes of the image's prompts."""
        positives = {int(c) for c in sample.class_ids[trained_boxes(sample, view)]}
        hidden = {int(c) for c in sample.class_ids} - positives  # see the module's docstring
        counts = self.token_counts
        annotated = range(len(counts)) if sample.annotated is None else sorted(sample.annotated)
        # a prompt needs a class, so hidden ones are used if there are no others
        allowed = [c for c in annotated if c not in hidden] or list(annotated)
        if sample.exhaustive is not None:
            allowed = self._known_first(allowed, positives | sample.exhaustive, rng)
        position = {c: i for i, c in enumerate(allowed)}
        prompts = sample_prompt(
            [self.phrases[c][0] for c in allowed],
            [counts[c] for c in allowed],
            {position[c] for c in positives},
            rng,
            shuffle=self.config.shuffle_classes,
            negative_probability=self.config.negative_probability,
            max_text_len=self.max_text_len,
        )
        return [[allowed[i] for i in prompt] for prompt in prompts]

    def _known_first(
        self, allowed: list[int], known: frozenset[int] | set[int], rng: random.Random
    ) -> list[int]:
        """Return the known classes of an image, and as many random others as fit beside them."""
        others = rng.sample(unknown := [c for c in allowed if c not in known], len(unknown))
        room = self.max_text_len - sum(self.token_counts[c] for c in allowed if c in known)
        totals = itertools.accumulate(self.token_counts[c] for c in others)
        fitting = {c for c, tokens in zip(others, totals, strict=True) if tokens <= room}
        return [c for c in allowed if c in known or c in fitting]

    def _draw_phrase(self, class_id: int, rng: random.Random) -> str:
        phrases = self.phrases[class_id]
        return rng.choice(phrases) if len(phrases) > 1 else phrases[0]


def _rng(seed: int, purpose: str, *numbers: int) -> random.Random:
    # text seeds are hashed equally everywhere, and sums of numbers would collide
    return random.Random(f"{seed}/{purpose}/{'/'.join(map(str, numbers))}")


def grounding_prompt(grounding: Grounding) -> Prompt:
    """Return a caption as a prompt."""
    return caption_prompt(grounding.caption, grounding.spans)


def check_captions(dataset: Dataset, tokenizer: BertTokenizer, max_text_len: int) -> None:
    """Check that the model can read every caption and phrase of a data set.

    Raises:
        DataError: captions are too long, or phrases have no token. All are counted, a few listed.
    """
    captioned = [(s.image_path.name, grounding_prompt(s.grounding)) for s in dataset.samples if s.grounding]
    if not captioned:
        return
    tokenized = tokenizer([prompt.caption for _, prompt in captioned])
    problems = []
    for row, ((name, prompt), ids) in enumerate(zip(captioned, tokenized["input_ids"], strict=True)):
        if len(ids) > max_text_len:
            problems.append(f"{name} ({len(ids)} tokens)")
            continue
        try:
            create_positive_map(tokenized, prompt.spans, max_text_len, row)
        except DataError:
            problems.append(f"{name} (no token in one of {prompt.phrases!r})")
    if problems:
        raise DataError(
            f"The model cannot read {len(problems)} captions of {dataset.root}: {join_examples(problems)}. "
            f"It reads at most {max_text_len} tokens, and each phrase needs one. Shorten long captions, or "
            "list an image several times with a part of the caption each; correct spans without visible "
            "characters."
        )
