"""Prompts of pictures that have a caption, and whether the model can read them."""

from transformers import BertTokenizer

from groundtune.data.sample import Dataset, Grounding, listed
from groundtune.errors import DataError
from groundtune.text.prompt import Prompt, caption_prompt, mirror_caption
from groundtune.text.tokens import create_positive_map


def grounding_prompt(grounding: Grounding, mirrored: bool = False) -> Prompt:
    """Give the prompt of a picture with a caption; of the mirrored picture with left and right exchanged."""
    caption, spans = grounding.caption, grounding.spans
    if mirrored:
        caption, spans = mirror_caption(caption, spans)
    return caption_prompt(caption, spans)


def refuse_unreadable_captions(dataset: Dataset, tokenizer: BertTokenizer, max_text_len: int) -> None:
    """See to it that the model can read every caption and phrase, before the first step; nothing is cut (semantics 6).

    Raises:
        DataError: captions have more tokens than the model reads, or phrases have none. All are counted, a few listed.
    """
    captioned = [(s.image_path.name, grounding_prompt(s.grounding)) for s in dataset.samples if s.grounding is not None]
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
            f"{listed(long)}. Shorten them, or state one picture several times with a part of the caption each."
        )
    if silent:
        problems.append(
            f"{len(silent)} captions of {dataset.root} have phrases in which the tokenizer finds no token: {listed(silent)}. "
            "They have no visible character; correct their spans."
        )
    if problems:
        raise DataError("\n  ".join(problems))
