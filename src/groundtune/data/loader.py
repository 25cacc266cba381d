"""Batches of images, prompts and targets, the same ones for the same seed.

Every random choice has a generator of its own, seeded by what it belongs to: the order by (seed, epoch), the view of a
image by (seed, image, view), its prompt and denoising noise by (seed, epoch, image). So nothing depends on the
batch size, on the number of worker threads, or on where training was interrupted.

With `cache_views = K` an image has K fixed views that are cycled, so that a frozen backbone's features can be computed
once and kept: an image is not even decoded where `needs_pixels` says no. Geometry, prompts and targets never need it.

Boxes of a target are relative to the resized image WITHOUT the padding of its batch (semantics 8, pitfall 7), and classes
go by name and place in the prompt; original category ids do not occur here (semantics 22).

An image with a caption has it as its one prompt, and its phrases as classes. It is never cropped ("the left cup" may be cut
away), and where it is mirrored its caption is too. Images of several sources have weights: how often each is shown in an
epoch, on average over its source; which of them, where that is not a whole number, is drawn anew for each epoch.

An image that cannot be read is left out of its batch, which says so; whether the run goes on is the engine's business.

Deviation from the reference: classes that the image has, but that this view has no box of (all cropped away, or only
crowd boxes), are left out of the prompt. They would be taught as absent while they may be seen.

Prompts of images that have a caption, and whether the model can read them.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from transformers import BertTokenizer

from groundtune.contracts import ImageFormat
from groundtune.data.batch import Batch, make_target, trained_boxes
from groundtune.data.prefetch import decoded, prefetch
from groundtune.data.sample import Dataset, Grounding, Sample, join_examples
from groundtune.data.transforms import ImageView, draw_view, flip, resize_keep_ratio
from groundtune.errors import DataError
from groundtune.text.prompt import Prompt, caption_prompt, class_prompt, mirror_caption
from groundtune.text.sampling import sample_prompt
from groundtune.text.tokens import MAX_TEXT_LEN, count_tokens, create_positive_map, tokenize


def grounding_prompt(grounding: Grounding, mirrored: bool = False) -> Prompt:
    """Give the prompt of an image with a caption; of the mirrored image with left and right exchanged."""
    caption, spans = grounding.caption, grounding.spans
    if mirrored:
        caption, spans = mirror_caption(caption, spans)
    return caption_prompt(caption, spans)


def check_captions(dataset: Dataset, tokenizer: BertTokenizer, max_text_len: int) -> None:
    """See to it that the model can read every caption and phrase, before the first step; nothing is cut (semantics 6).

    Raises:
        DataError: captions have more tokens than the model reads, or phrases have none. All are counted, a few listed.
    """
    captioned = [
        (s.image_path.name, grounding_prompt(s.grounding)) for s in dataset.samples if s.grounding is not None
    ]
    if not captioned:
        return
    tokenized = tokenizer([prompt.caption for _, prompt in captioned])
    long, silent = [], []
    for place, ((name, prompt), ids) in enumerate(zip(captioned, tokenized["input_ids"], strict=True)):
        if len(ids) > max_text_len:
            long.append(f"{name} ({len(ids)} tokens)")
            continue
        try:
            create_positive_map(tokenized, prompt.spans, max_text_len, place)
        except DataError:
            silent.append(f"{name} {prompt.phrases!r}")
    problems = []
    if long:
        problems.append(
            f"The model reads at most {max_text_len} tokens of text, and {len(long)} captions of {dataset.root} have more: "
            f"{join_examples(long)}. Shorten them, or state one image several times with a part of the caption each."
        )
    if silent:
        problems.append(
            f"{len(silent)} captions of {dataset.root} have phrases in which the tokenizer finds no token: "
            f"{join_examples(silent)}. "
            "They have no visible character; correct their spans."
        )
    if problems:
        raise DataError("\n  ".join(problems))


_WINDOW_BATCHES = 4  # images of so many batches are sorted by shape: little padding, and still random company

NeedsPixels = Callable[[int, int], bool]
"""(sample index, view) -> whether the image is to be decoded."""


@dataclass(frozen=True)
class LoaderOptions:
    """How training batches are drawn. The fields are those of `TrainConfig` of the same names."""

    batch_size: int = 4  # images per step, over all processes
    seed: int = 0
    flip: float = 0.5  # how often left and right are swapped
    multi_scale: tuple[float, ...] = ()  # factors on the image size, one drawn per view
    crop: float = 0.0  # how often only a part of the image is shown
    shuffle_classes: bool = True
    negative_probability: float = 0.5
    max_text_len: int = MAX_TEXT_LEN
    cache_views: int = 0  # K fixed views per image; 0 draws a new one in every epoch
    workers: int = 0  # threads that decode images ahead; 0 decodes when the batch is asked for
    rank: int = 0  # of this process; each takes its share of every batch,
    processes: int = 1  # so that any number of processes sees the batches of one


class TrainLoader:
    """Training batches of a data set, epoch by epoch."""

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: BertTokenizer,
        image_format: ImageFormat,
        *,
        options: LoaderOptions | None = None,
        needs_pixels: NeedsPixels | None = None,
    ) -> None:
        """Count the tokens of class names and captions; no image is opened yet.

        Args:
            dataset: at least one image and one class.
            tokenizer: of the model.
            image_format: the model's image format.
            options: None for the defaults.
            needs_pixels: None decodes every image. It is asked when an image is put on its way, with `workers` up to
                `workers` batches before the batch is given out.

        Raises:
            DataError: the data set has no images, or captions that the model cannot read.
        """
        if not dataset.samples:
            raise DataError(f"The split {dataset.name!r} of {dataset.root} has no images to train on.")
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.image_format = image_format
        self.options = options or LoaderOptions()
        self.needs_pixels = needs_pixels
        names = [[name, *dataset.synonyms.get(name, [])] for name in dataset.class_names]
        self.token_counts = [max(count_tokens(tokenizer, group)) for group in names]
        check_captions(dataset, tokenizer, self.options.max_text_len)
        self._by_weight: dict[float, list[int]] = defaultdict(list)
        for index, sample in enumerate(dataset.samples):
            self._by_weight[sample.weight].append(index)

    def __len__(self) -> int:
        """Batches per epoch; the last one may be smaller."""
        return math.ceil(len(self._shown(0)) / self.options.batch_size)

    @property
    def num_views(self) -> int:
        """How many different views an image has with `cache_views`; 0 without.

        No more than the augmentation can tell apart: 1 without any, 2 where it only flips.
        """
        options = self.options
        if options.crop or options.multi_scale:
            return options.cache_views
        return min(options.cache_views, 2 if options.flip else 1)

    def view_of(self, index: int, epoch: int) -> int:
        """Say which view of image `index` is shown in an epoch: one of `num_views` in turn, or the epoch's own."""
        return (epoch + index) % self.num_views if self.num_views else epoch

    def geometry(self, index: int, view: int) -> ImageView:
        """Give a view of an image; the same one for the same arguments, without opening the image.

        With `cache_views`, view 0 is the whole image and view 1 the same flipped (if flipping is on), so that two views
        are as different as they can be; higher ones are drawn. Without, every view is drawn.
        """
        sample, options = self.dataset.samples[index], self.options
        if options.cache_views and view == 0:
            return resize_keep_ratio(sample.size_hw, self.image_format)
        if options.cache_views and view == 1 and options.flip:
            return flip(resize_keep_ratio(sample.size_hw, self.image_format))
        return draw_view(
            sample.size_hw,
            sample.boxes_xyxy[~sample.crowd],
            self.image_format,
            _rng(options.seed, "view", index, view),
            flip_probability=options.flip,
            crop_probability=options.crop if sample.grounding is None else 0.0,
            scales=options.multi_scale,
        )

    def batch_plan(self, epoch: int) -> list[list[int]]:
        """Choose the images of each batch: each as often as its weight says (once, where nothing is mixed), those of like
        aspect ratio together where possible.

        Returns:
            Indices into `Dataset.samples` by batch; all batches but one have `batch_size` of them.
        """
        rng = _rng(self.options.seed, "order", epoch)
        size = self.options.batch_size
        order = self._shown(epoch)
        rng.shuffle(order)
        plan = []
        for begin in range(0, len(order), size * _WINDOW_BATCHES):
            window = order[begin : begin + size * _WINDOW_BATCHES]
            window.sort(
                key=lambda index: self._aspect_ratio(index, epoch)
            )  # stable: equal shapes stay shuffled
            plan += [window[i : i + size] for i in range(0, len(window), size)]
        rng.shuffle(plan)
        return plan

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Give the batches of an epoch; any epoch, any number of times.

        An image whose classes do not fit into one prompt stands in its batch once per prompt (semantics 6), each time
        with the boxes of that prompt, so the batch can be larger than `batch_size`. It can be smaller where images cannot be
        read, and empty where this process has no share of the last one.

        Args:
            epoch: counted from 0.
            first_batch: leave out so many batches, to go on within an epoch.

        Raises:
            OutOfMemory: an image does not fit into memory; the message names it.
        """
        rank, processes = self.options.rank, self.options.processes
        plan = [batch[rank::processes] for batch in self.batch_plan(epoch)[first_batch:]]
        jobs = ([(index, self.view_of(index, epoch)) for index in batch] for batch in plan)
        for batch, images in zip(plan, prefetch(self._pixels, jobs, self.options.workers), strict=True):
            yield self._collate(batch, images, epoch)

    def _shown(self, epoch: int) -> list[int]:
        """The images of an epoch, unordered; always the same number."""
        shown = []
        for weight, indices in self._by_weight.items():
            whole, rest = divmod(max(1, round(weight * len(indices))), len(indices))
            shown += indices * whole + _rng(self.options.seed, "shown", epoch).sample(indices, rest)
        return shown

    def _aspect_ratio(self, index: int, epoch: int) -> float:
        height, width = self.geometry(index, self.view_of(index, epoch)).size_hw
        return float(width / height)

    def _pixels(self, job: tuple[int, int]) -> Callable[[], Tensor | DataError] | None:
        index, view = job
        if self.needs_pixels is not None and not self.needs_pixels(index, view):
            return None
        return partial(decoded, self.dataset.samples[index], self.geometry(index, view), self.image_format)

    def _collate(self, indices: list[int], images: Sequence[Tensor | DataError | None], epoch: int) -> Batch:
        """Put a batch together; here and not in the threads, because a fast tokenizer is not safe to share."""
        entries = []  # (image, index, geometry, prompt, its classes, noise seed)
        unreadable = {}
        for index, image in zip(indices, images, strict=True):
            if isinstance(image, DataError):
                unreadable[str(self.dataset.samples[index].image_path)] = str(image)
                continue
            geometry = self.geometry(index, self.view_of(index, epoch))
            rng = _rng(self.options.seed, "prompt", index, epoch)
            for prompt, classes in self._prompts(self.dataset.samples[index], geometry, rng):
                entries.append((image, index, geometry, prompt, classes, rng.getrandbits(62)))
        prompts = [prompt for *_, prompt, _, _ in entries]
        text, phrase_maps = tokenize(self.tokenizer, prompts, self.options.max_text_len)
        samples = [self.dataset.samples[index] for _, index, *_ in entries]
        targets = [
            make_target(sample, geometry, classes, phrase_map, noise_seed)
            for sample, phrase_map, (_, _, geometry, _, classes, noise_seed) in zip(
                samples, phrase_maps, entries, strict=True
            )
        ]
        return Batch(
            images=[image for image, *_ in entries],
            sizes_hw=[geometry.size_hw for _, _, geometry, *_ in entries],
            text=text,
            phrase_maps=phrase_maps,
            prompts=prompts,
            prompt_classes=[classes for *_, classes, _ in entries],
            targets=targets,
            samples=samples,
            indices=[index for _, index, *_ in entries],
            views=[self.view_of(index, epoch) for _, index, *_ in entries],
            unreadable=unreadable,
        )

    def _prompts(
        self, sample: Sample, geometry: ImageView, rng: random.Random
    ) -> list[tuple[Prompt, Sequence[int]]]:
        """Give the image's prompts, and for each phrase its class; of a caption the number of the phrase."""
        if sample.grounding is not None:
            return [
                (grounding_prompt(sample.grounding, geometry.flipped), range(len(sample.grounding.spans)))
            ]
        drawn = self._prompt_classes(sample, geometry, rng)
        return [(class_prompt([self._name(c, rng) for c in classes]), classes) for classes in drawn]

    def _name(self, class_id: int, rng: random.Random) -> str:
        """The class's name, or one of its synonyms."""
        name = self.dataset.class_names[class_id]
        synonyms = self.dataset.synonyms.get(name)
        return rng.choice([name, *synonyms]) if synonyms else name

    def _prompt_classes(self, sample: Sample, geometry: ImageView, rng: random.Random) -> list[list[int]]:
        """Draw the classes of the image's prompts; see the module about those that are left out."""
        positives = {int(c) for c in sample.class_ids[trained_boxes(sample, geometry)]}
        unsure = {int(c) for c in sample.class_ids} - positives
        names, counts = self.dataset.class_names, self.token_counts
        known = range(len(names)) if sample.annotated is None else sorted(sample.annotated)
        # a prompt needs a class: where all are unsure they stand in it after all
        allowed = [c for c in known if c not in unsure] or list(known)
        place = {c: i for i, c in enumerate(allowed)}
        prompts = sample_prompt(
            [names[c] for c in allowed],
            [counts[c] for c in allowed],
            {place[c] for c in positives},
            rng,
            shuffle=self.options.shuffle_classes,
            negative_probability=self.options.negative_probability,
            max_text_len=self.options.max_text_len,
        )
        return [[allowed[i] for i in prompt] for prompt in prompts]


def _rng(seed: int, purpose: str, *numbers: int) -> random.Random:
    # seeded by text, which Python hashes the same way everywhere; a seed made by arithmetic would collide
    return random.Random(f"{seed}/{purpose}/{'/'.join(map(str, numbers))}")
