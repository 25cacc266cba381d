"""Asking the network for classes in images: the one path of evaluation and prediction.

The class names become as few prompts as the token budget allows (semantics 6), tokenized once. An image's features are
computed once and meet every prompt; (image, prompt) pairs run as batches, and an image's answers to all its prompts are
ranked together (the reference runs chunk after chunk at batch 1 and encodes the text again for each).
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import BertTokenizer

from groundtune.model.bundle import Network
from groundtune.predict.postprocess import ImageDetections, class_scores, top_detections
from groundtune.text.prompt import Prompt, class_prompt
from groundtune.text.sampling import chunk_names
from groundtune.text.tokens import TextInput, count_tokens, tokenize

PAIRS_AT_ONCE = 8


@dataclass
class Prompts:
    """The prompts that together hold every class name.

    Attributes:
        text: one row per prompt, padded to the longest.
        phrase_maps: per prompt (C_p, max_text_len) bool, the tokens of each of its classes.
        class_indices: per prompt the indices of its C_p classes in the list of names.
        how: what a class's score is of those of its tokens (semantics 23).
        foreign: per prompt whether it has names that a model with a kept base was not trained on; empty: no prompt has.
    """

    text: TextInput
    phrase_maps: list[Tensor]
    class_indices: list[list[int]]
    how: Literal["mean", "max"] = "mean"
    foreign: Sequence[bool] = ()

    def to(self, device: torch.device | str) -> "Prompts":
        return Prompts(self.text.to(device), self.phrase_maps, self.class_indices, self.how, self.foreign)

    def rows(self, prompts: Sequence[int]) -> TextInput:
        """The text of a batch whose i-th image is asked for prompt `prompts[i]`; cut to its longest prompt."""
        return self.text.rows(torch.tensor(list(prompts), device=self.text.input_ids.device))


def class_prompts(
    tokenizer: BertTokenizer,
    names: Sequence[str],
    max_text_len: int = 256,
    own: Collection[str] | None = None,
) -> Prompts:
    """Tokenizes the class names into as few prompts as fit the budget.

    Args:
        names: at least one name; cleaned and unique, in the order of the class indices.
        own: names that share no prompt with others (`ModelBundle.tuned_names`); None makes no difference between names.

    Raises:
        DataError: a name has no token, or does not fit a prompt by itself.
    """
    chunks: list[list[int]] = []
    foreign: list[bool] = []
    for is_foreign in (False, True):
        places = [
            place for place, name in enumerate(names) if is_foreign == (own is not None and name not in own)
        ]
        asked = [names[place] for place in places]
        if asked:
            chunks += [
                [places[i] for i in c]
                for c in chunk_names(asked, count_tokens(tokenizer, asked), max_text_len)
            ]
        foreign += [is_foreign] * (len(chunks) - len(foreign))
    text, phrase_maps = tokenize(
        tokenizer, [class_prompt([names[i] for i in chunk]) for chunk in chunks], max_text_len
    )
    return Prompts(text, phrase_maps, chunks, foreign=foreign)


def sentence_prompts(
    tokenizer: BertTokenizer, sentences: Sequence[Prompt], max_text_len: int = 256
) -> Prompts:
    """Tokenizes sentences, each of which is a prompt; the phrases of all of them are counted one after the other.

    Raises:
        DataError: a sentence does not fit the budget, or a phrase has no token.
    """
    text, phrase_maps = tokenize(tokenizer, sentences, max_text_len)
    numbers = itertools.count()
    indices = [[next(numbers) for _ in prompt.phrases] for prompt in sentences]
    return Prompts(text, phrase_maps, indices, "max", foreign=[True] * len(indices))


def detect_batch(
    network: Network,
    features: Sequence[Sequence[Tensor]],
    prompts: Prompts,
    sizes_hw: Sequence[tuple[int, int]],
    kept: Network | None = None,
) -> list[ImageDetections]:
    """Detects the prompts' classes in a batch of images.

    Args:
        network: in eval mode (see `inference_mode`).
        features: per image the backbone's maps (C_l, h_l, w_l), as `network.extract_features` gives them.
        prompts: from `class_prompts`, on the network's device.
        sizes_hw: per image the size of the ORIGINAL in pixels; boxes come back in it.
        kept: answers the foreign prompts (`ModelBundle.base_network`); None: `network` answers them too.

    Returns:
        Per image its best 300 detections, on the CPU; an empty batch gives an empty list.
    """
    count = len(prompts.phrase_maps)
    foreign = prompts.foreign if kept is not None else ()
    scores: list[dict[int, Tensor]] = [{} for _ in features]
    boxes: list[dict[int, Tensor]] = [{} for _ in features]
    at_once = max(len(features), PAIRS_AT_ONCE)
    for answering, asked in ((network, False), (kept, True)):
        rows = [prompt for prompt in range(count) if asked == (bool(foreign) and foreign[prompt])]
        pairs = [(image, prompt) for prompt in rows for image in range(len(features))]
        for start in range(0, len(pairs), at_once):
            assert answering is not None
            group = pairs[start : start + at_once]
            text = prompts.rows([prompt for _, prompt in group])
            output = answering.forward_features([list(features[image]) for image, _ in group], text)
            for (image, prompt), logits, own in zip(
                group, output["pred_logits"], output["pred_boxes"], strict=True
            ):
                scores[image][prompt] = class_scores(logits, prompts.phrase_maps[prompt], prompts.how)
                boxes[image][prompt] = own
    order = range(count)
    return [
        top_detections(
            [scores[p][n] for n in order], [boxes[p][n] for n in order], prompts.class_indices, size_hw
        ).cpu()
        for p, size_hw in enumerate(sizes_hw)
    ]


@contextmanager
def inference_mode(network: Network, precision: str = "fp32") -> Iterator[None]:
    """Eval mode, no autograd and a precision inside; afterwards every module is back in the mode that it was in.

    In "bf16" the matrix products are bfloat16; coordinates, logits and scores stay float32.

    `no_grad` and not torch's inference mode: what the network caches inside (phrase features) is used in training too.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        device = next(network.parameters()).device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        for module, training in modes:
            module.training = training
