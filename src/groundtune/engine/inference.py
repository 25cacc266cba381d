"""Asking the network for classes in pictures: the one path of evaluation and prediction.

The class names become as few prompts as the token budget allows (semantics 6), tokenised once. A picture's features are
computed once and meet every prompt; (picture, prompt) pairs run as batches, and a picture's answers to all its prompts are
ranked together (the reference runs chunk after chunk at batch 1 and encodes the text again for each).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BertTokenizer

from groundtune.model.detector import GroundingDINO
from groundtune.postprocess import PictureDetections, class_scores, top_detections
from groundtune.text.prompt import class_prompt
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
    """

    text: TextInput
    phrase_maps: list[Tensor]
    class_indices: list[list[int]]

    def to(self, device: torch.device | str) -> "Prompts":
        return Prompts(self.text.to(device), self.phrase_maps, self.class_indices)

    def rows(self, prompts: Sequence[int]) -> TextInput:
        """The text of a batch whose i-th picture is asked for prompt `prompts[i]`; cut to its longest prompt."""
        index = torch.tensor(list(prompts), device=self.text.input_ids.device)
        mask = self.text.text_token_mask[index]
        length = int(mask.sum(1).max())
        return TextInput(
            input_ids=self.text.input_ids[index, :length],
            text_token_mask=mask[:, :length],
            position_ids=self.text.position_ids[index, :length],
            phrase_mask=self.text.phrase_mask[index, :length, :length],
        )


def class_prompts(tokenizer: BertTokenizer, names: Sequence[str], max_text_len: int = 256) -> Prompts:
    """Tokenises the class names into as few prompts as fit the budget.

    Args:
        names: at least one name; cleaned and unique, in the order of the class indices.

    Raises:
        DataError: a name has no token, or does not fit a prompt by itself.
    """
    chunks = chunk_names(names, count_tokens(tokenizer, names), max_text_len)
    text, phrase_maps = tokenize(tokenizer, [class_prompt([names[i] for i in chunk]) for chunk in chunks], max_text_len)
    return Prompts(text, phrase_maps, [list(chunk) for chunk in chunks])


def detect_batch(
    network: GroundingDINO, features: Sequence[Sequence[Tensor]], prompts: Prompts, sizes_hw: Sequence[tuple[int, int]]
) -> list[PictureDetections]:
    """Detects the prompts' classes in a batch of pictures.

    Args:
        network: in eval mode (see `inference_mode`).
        features: per picture the backbone's maps (C_l, h_l, w_l), as `network.extract_features` gives them.
        prompts: from `class_prompts`, on the network's device.
        sizes_hw: per picture the size of the ORIGINAL in pixels; boxes come back in it.

    Returns:
        Per picture its best 300 detections, on the CPU; an empty batch gives an empty list.
    """
    count = len(prompts.phrase_maps)
    scores: list[list[Tensor]] = [[] for _ in features]
    boxes: list[list[Tensor]] = [[] for _ in features]
    pairs = [(picture, prompt) for prompt in range(count) for picture in range(len(features))]
    at_once = max(len(features), PAIRS_AT_ONCE)
    for start in range(0, len(pairs), at_once):
        group = pairs[start : start + at_once]
        text = prompts.rows([prompt for _, prompt in group])
        output = network.forward_features([list(features[picture]) for picture, _ in group], text)
        for (picture, prompt), logits, own in zip(group, output["pred_logits"], output["pred_boxes"], strict=True):
            scores[picture].append(class_scores(logits, prompts.phrase_maps[prompt]))
            boxes[picture].append(own)
    return [
        top_detections(scores[picture], boxes[picture], prompts.class_indices, size_hw).cpu()
        for picture, size_hw in enumerate(sizes_hw)
    ]


@contextmanager
def inference_mode(network: GroundingDINO, precision: str = "fp32") -> Iterator[None]:
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
