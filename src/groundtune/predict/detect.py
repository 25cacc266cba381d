"""Detect classes or phrases in images: the forward path that prediction and evaluation share.

Class names are packed into as few prompts as the token budget allows (docs/semantics.md, rule 6).
The backbone runs once per image; (image, prompt) pairs run as batches, and all prompts of an image
share one ranking. The reference runs its chunks one by one and encodes the text for each image
again.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor
from transformers import BertTokenizer

from groundtune.contracts import LayerOutput
from groundtune.device import REDUCED, autocast, float32_mode, to_device
from groundtune.errors import CheckpointError
from groundtune.model.bundle import Network
from groundtune.predict.postprocess import ImageDetections, ScoreReduction, class_scores, top_detections
from groundtune.text.prompt import Prompt, phrase_prompt
from groundtune.text.sampling import chunk_names
from groundtune.text.tokens import TextInput, check_phrases, count_tokens, tokenize

PAIRS_PER_BATCH = 8
T = TypeVar("T")


class NonFiniteOutput(CheckpointError):
    """The network gives NaN or infinity for an image."""


@dataclass
class Prompts:
    """P prompts that together contain all classes.

    Attributes:
        text: (P, T) tokens, padded to the longest prompt.
        phrase_maps: per prompt (C_p, max_text_len) bool, the tokens of each of its classes.
        class_indices: per prompt the indices of its C_p classes.
        score_reduction: over the tokens of a class (docs/semantics.md, rule 23).
        use_base: per prompt whether the base network of `--keep-base` answers it.
        warning: about class names that the model reads badly, or "".
    """

    text: TextInput
    phrase_maps: list[Tensor]
    class_indices: list[list[int]]
    score_reduction: ScoreReduction
    use_base: list[bool]
    warning: str = ""

    def to(self, device: torch.device | str) -> "Prompts":
        return replace(self, text=self.text.to(device))


def class_prompts(
    tokenizer: BertTokenizer,
    phrases: Sequence[str],
    max_text_len: int = 256,
    tuned_phrases: Collection[str] | None = None,
    names: Sequence[str] | None = None,
) -> Prompts:
    """Pack the phrases of classes into as few prompts as fit the token budget.

    Phrases that are not in `tuned_phrases` (of the bundle; None: all) get prompts of their own.
    `names` are the class names in messages; None: the phrases.

    Raises:
        DataError: a class has no token, the tokens of another one, or does not fit a prompt.
    """
    warning = check_phrases(tokenizer, phrases, phrases if names is None else names)
    tuned = phrases if tuned_phrases is None else tuned_phrases
    chunks: list[list[int]] = []
    use_base: list[bool] = []
    for base in (False, True):
        indices = [i for i, phrase in enumerate(phrases) if base == (phrase not in tuned)]
        if indices:
            group = [phrases[i] for i in indices]
            packed = chunk_names(group, count_tokens(tokenizer, group), max_text_len)
            chunks += [[indices[i] for i in chunk] for chunk in packed]
            use_base += [base] * len(packed)
    captions = [phrase_prompt([phrases[i] for i in chunk]) for chunk in chunks]
    return Prompts(*tokenize(tokenizer, captions, max_text_len), chunks, "mean", use_base, warning)


def sentence_prompts(tokenizer: BertTokenizer, sentences: Sequence[Prompt], max_text_len: int) -> Prompts:
    """Tokenize sentences as one prompt each; their phrases are numbered consecutively."""
    number = itertools.count()
    indices = [[next(number) for _ in prompt.phrases] for prompt in sentences]
    text, phrase_maps = tokenize(tokenizer, sentences, max_text_len)
    return Prompts(text, phrase_maps, indices, "max", [True] * len(indices))


def detect_batch(
    network: Network,
    features: Sequence[Sequence[Tensor]],
    prompts: Prompts,
    sizes_hw: Sequence[tuple[int, int]],
    base_network: Network | None = None,
    limit: int | None = None,
    max_pairs: int | None = None,
) -> list[ImageDetections]:
    """Detect the prompts' classes in a batch of images.

    Args:
        network: in `inference_mode`.
        features: per image the maps (C_l, h_l, w_l) of `network.extract_features`.
        prompts: on the network's device.
        sizes_hw: sizes of the original images, in whose pixels the boxes are.
        base_network: answers the prompts with `use_base`; None: `network` answers all.
        limit: maximum number of detections per image; None: 300.
        max_pairs: maximum number of (image, prompt) pairs at a time; None: no further one.

    Returns:
        Per image its best detections, on the CPU; an empty list for an empty batch.

    Raises:
        NonFiniteOutput: call this within `checked`, which repeats it in float32.
    """
    count = len(prompts.phrase_maps)
    passes = [(network, list(range(count)))]
    if base_network is not None:
        passes = [(network, [p for p in range(count) if not prompts.use_base[p]])]
        passes.append((base_network, [p for p in range(count) if prompts.use_base[p]]))
    scores: list[dict[int, Tensor]] = [{} for _ in features]
    boxes: list[dict[int, Tensor]] = [{} for _ in features]
    batch_size = max(len(features), PAIRS_PER_BATCH)
    batch_size = min(batch_size, max_pairs or batch_size)
    for answering, indices in passes:
        pairs = [(image, prompt) for prompt in indices for image in range(len(features))]
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            text = prompts.text.rows([prompt for _, prompt in batch])
            output = answering.forward_features([list(features[image]) for image, _ in batch], text)
            check_finite(output, [prompts.phrase_maps[prompt] for _, prompt in batch])
            for row, (image, prompt) in enumerate(batch):
                logits, phrase_map = output["pred_logits"][row], prompts.phrase_maps[prompt]
                scores[image][prompt] = class_scores(logits, phrase_map, prompts.score_reduction)
                boxes[image][prompt] = output["pred_boxes"][row]
    detections = []
    for image, size_hw in enumerate(sizes_hw):
        sorted_scores, sorted_boxes = ([part[image][p] for p in range(count)] for part in (scores, boxes))
        best = top_detections(sorted_scores, sorted_boxes, prompts.class_indices, size_hw, limit)
        detections.append(best)
    return _to_cpu(detections)


def _to_cpu(detections: Sequence[ImageDetections]) -> list[ImageDetections]:
    """Move the detections of a batch to the CPU in three copies."""
    if not detections:
        return []
    columns = zip(*((part.boxes_xyxy, part.scores, part.class_indices) for part in detections), strict=True)
    counts = [len(part.scores) for part in detections]
    moved = [torch.cat(column).cpu().split(counts) for column in columns]
    return [ImageDetections(*parts) for parts in zip(*moved, strict=True)]


def check_finite(output: LayerOutput, phrase_maps: Sequence[Tensor]) -> None:
    """Raise `NonFiniteOutput` if a box, or a logit of a phrase's token, is NaN or infinite."""
    used = torch.stack([phrase_map.any(0) for phrase_map in phrase_maps])
    (used,) = to_device([used], output["pred_logits"].device)
    logits = output["pred_logits"][..., : used.shape[1]]  # -inf outside of the prompt
    if not output["pred_boxes"].isfinite().all() & (logits.isfinite() | ~used[:, None]).all():
        raise NonFiniteOutput(
            "The model's output is not finite, so its detections mean nothing: its weights may be corrupted "
            "or have diverged. Load another checkpoint."
        )


def checked(compute: Callable[[], T], device: torch.device) -> T:
    """Return what `compute` makes of images: in float32 if it raises `NonFiniteOutput` in less."""
    try:
        return compute()
    except NonFiniteOutput:
        if not torch.is_autocast_enabled(device.type):
            raise
    warn_of_float32({dtype: name for name, dtype in REDUCED.items()}[torch.get_autocast_dtype(device.type)])
    with torch.autocast(device.type, enabled=False):
        return compute()


@cache  # once per process
def warn_of_float32(precision: str) -> None:
    """Report that a precision is not enough."""
    logging.getLogger("groundtune").warning(
        f"The model's output is not finite in {precision} for some images, "
        "which are computed again in float32."
    )


@contextmanager
def inference_mode(network: Network, precision: str) -> Iterator[None]:
    """Run in eval mode, without gradients and in a precision; restore all modes afterwards.

    With "bf16" and "fp16" the matrix products are in it; coordinates, logits and scores stay
    float32. This is `no_grad`, not torch's inference mode, because training reuses the text
    features cached inside.
    """
    training = [module for module in network.modules() if module.training]
    if training:
        network.eval()
    try:
        device = next(network.parameters()).device
        with torch.no_grad(), autocast(device, precision), float32_mode(device, precision):
            yield
    finally:
        for module in training:
            module.training = True
