"""Turn prompts into token ids, the phrase mask, and the map from phrases to tokens.

See docs/semantics.md, rules 3 to 5.

A token attends only to its own phrase and the separator that closes it, and positions restart in
each phrase (Grounding DINO, section 3.4). So a phrase has the same features in every prompt.

Deviations from IDEA's `bertwarper.generate_masks_with_special_tokens_and_transfer_map`:

- [SEP] is always a block of its own. In the reference the last phrase of a caption without a final
  "." joins [SEP] if and only if the caption is padded.
- A character without a token is replaced by the nearest one inside its span. The reference tries
  two neighbors, which may mark the separator.
- A prompt over the limit and a phrase without a token are errors. The reference cuts, and leaves an
  all-zero row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import BatchEncoding, BertTokenizer

from groundtune.device import move
from groundtune.errors import CheckpointError, DataError
from groundtune.text.prompt import Prompt

MAX_TEXT_LEN = 256
SEPARATOR_IDS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}  # of the bert-base-uncased vocabulary

Spans = Iterable[tuple[int, int]]


@dataclass
class TextInput:
    """B tokenized prompts, padded to the longest (T tokens)."""

    input_ids: Tensor  # (B, T) long, BERT token ids
    text_token_mask: Tensor  # (B, T) bool, True = real token, False = padding
    position_ids: Tensor  # (B, T) long, position of a token in its phrase; 0 on padding
    # (B, T, T) bool, True = row token attends to column token; padding attends to itself only
    phrase_mask: Tensor
    host: "TextInput | None" = field(default=None, repr=False)  # the input before it was moved to a device

    def rows(self, index: Sequence[int] | slice) -> "TextInput":
        """Return some of the prompts, at least one, cut to the longest of them."""
        if self.host is not None:
            return self.host.rows(index).to(self.input_ids.device)
        mask = self.text_token_mask[index]
        length = int(mask.sum(1).max())
        ids, positions = self.input_ids[index, :length], self.position_ids[index, :length]
        return TextInput(ids, mask[:, :length], positions, self.phrase_mask[index, :length, :length])

    def to(self, device: torch.device | str) -> "TextInput":
        """Return the input with all tensors on `device`."""
        return move([self], torch.device(device))[0]


def build_tokenizer(vocab_file: Path) -> BertTokenizer:
    """Build the lower-casing WordPiece tokenizer of a BERT `vocab.txt`.

    Raises:
        CheckpointError: the file is missing, or is not the vocabulary of bert-base-uncased.
    """
    if not vocab_file.is_file():
        raise CheckpointError(f"The tokenizer's vocabulary {vocab_file} does not exist.")
    # `vocab_file=` is accepted too and gives a tokenizer that reads everything as [UNK]
    # (transformers 5.23)
    return check_separators(BertTokenizer(vocab=str(vocab_file), do_lower_case=True), str(vocab_file))


def check_separators(tokenizer: BertTokenizer, where: str) -> BertTokenizer:
    """Return a tokenizer with the separators of bert-base-uncased, or raise a `CheckpointError`."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SEPARATOR_IDS}
    if ids != SEPARATOR_IDS:
        why = f"the phrase separators have the ids {ids}, expected {SEPARATOR_IDS}."
        raise CheckpointError(f"{where} does not have the vocabulary of bert-base-uncased: {why}")
    return tokenizer


def is_any(input_ids: Tensor, separators: Iterable[str]) -> Tensor:
    """Return where token ids are one of some separators."""
    return torch.stack([input_ids == SEPARATOR_IDS[name] for name in separators]).any(0)


def phrase_mask_and_positions(input_ids: Tensor, text_token_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the phrase mask (B, T, T) and position ids (B, T) of token ids, as in `TextInput`."""
    index = torch.arange(input_ids.shape[1], device=input_ids.device)
    begins = torch.ones_like(text_token_mask)  # a block begins after every separator ...
    begins[:, 1:] = is_any(input_ids, SEPARATOR_IDS)[:, :-1]
    begins |= input_ids == SEPARATOR_IDS["[SEP]"]  # ... and [SEP] never belongs to a phrase
    first = torch.where(begins, index, 0).cummax(dim=1).values
    same_block = first.unsqueeze(2) == first.unsqueeze(1)
    real = text_token_mask.unsqueeze(2) & text_token_mask.unsqueeze(1)
    itself = index.unsqueeze(1) == index
    return (same_block & real) | itself, torch.where(text_token_mask, index - first, 0)


def tokenize(
    tokenizer: BertTokenizer, prompts: Sequence[Prompt], max_text_len: int = MAX_TEXT_LEN
) -> tuple[TextInput, list[Tensor]]:
    """Tokenize one prompt per image, pad to the longest, and map phrases to tokens.

    Args:
        tokenizer: result of `build_tokenizer`.
        prompts: one per image; none give (0, 0) tensors. A prompt without phrases gives `[CLS]
            [SEP]` and a (0, max_text_len) map.
        max_text_len: maximum tokens of a prompt, [CLS] and [SEP] included, and columns of the maps.

    Returns:
        The text input on the CPU, and for each image a (C, max_text_len) bool map, True on the
        tokens of phrase c.

    Raises:
        DataError: prompts have more than `max_text_len` tokens, or phrases have no token (only
            zero-width characters, for example); all of them are listed.
    """
    if not prompts:
        ids = torch.zeros(0, 0, dtype=torch.long)
        return TextInput(ids, ids.bool(), ids, torch.zeros(0, 0, 0, dtype=torch.bool)), []
    tokenized = tokenizer([prompt.caption for prompt in prompts], padding="longest", return_tensors="pt")
    input_ids, text_token_mask = tokenized["input_ids"], tokenized["attention_mask"].bool()
    lengths = text_token_mask.sum(1).tolist()
    too_long = [f"{n} tokens in prompt {i}" for i, n in enumerate(lengths) if n > max_text_len]
    if too_long:
        raise DataError(
            f"The model reads at most {max_text_len} tokens of text, got {', '.join(too_long)}. Use fewer "
            "classes per prompt, or split them into chunks (text.sampling.chunk_names)."
        )
    maps: list[Tensor] = []
    unreadable: list[str] = []
    for image, prompt in enumerate(prompts):
        rows, without_token = _positive_rows(tokenized, prompt.spans, max_text_len, image)
        maps.append(rows)
        unreadable += [repr(prompt.phrases[row]) for row, _ in without_token]
    if unreadable:
        raise DataError(
            f"Class names in which the tokenizer finds no token: {', '.join(dict.fromkeys(unreadable))}. "
            "They have no visible character; rename these classes."
        )
    phrase_mask, position_ids = phrase_mask_and_positions(input_ids, text_token_mask)
    return TextInput(input_ids, text_token_mask, position_ids, phrase_mask), maps


def create_positive_map(
    tokenized: BatchEncoding,
    tokens_positive: Sequence[Spans],
    max_num_entities: int = MAX_TEXT_LEN,
    batch_index: int = 0,
) -> Tensor:
    """Map phrases (or boxes) to tokens: the binary map, which is the training target.

    Args:
        tokenized: output of the fast tokenizer, with the caption at `batch_index`.
        tokens_positive: for each of N rows its character spans [begin, end) in the caption.

    Returns:
        (N, max_num_entities) float, 1 on every token from the first to the last one of each span,
        else 0. If a span's last character became several tokens, all of them count (the reference
        takes the first).

    Raises:
        DataError: spans have no token, or one past the last column; all of them are listed.
    """
    rows, without_token = _positive_rows(tokenized, tokens_positive, max_num_entities, batch_index)
    if without_token:
        spans = ", ".join(f"row {row} characters [{begin}, {end})" for row, (begin, end) in without_token)
        raise DataError(
            f"Phrases without a token among the first {max_num_entities} of text {batch_index}: {spans}."
        )
    return rows.float()


def create_positive_map_from_span(
    tokenized: BatchEncoding,
    token_span_per_class: Sequence[Spans],
    max_text_len: int = MAX_TEXT_LEN,
    batch_index: int = 0,
) -> Tensor:
    """Return `create_positive_map` with each row divided by (its sum + 1e-6).

    It averages token scores into class scores. It is no training target: with 1/n as the target,
    the best reachable probability of a name falls with its number of tokens. Arguments and errors
    are those of `create_positive_map`.
    """
    rows = create_positive_map(tokenized, token_span_per_class, max_text_len, batch_index)
    return rows / (rows.sum(-1, keepdim=True) + 1e-6)


def check_phrases(tokenizer: BertTokenizer, phrases: Sequence[str], names: Sequence[str]) -> str:
    """Check that the model can read and distinguish classes, by their phrases.

    Returns:
        A warning about names with characters that are read as [UNK], or "".

    Raises:
        DataError: classes have no token, or several have the same tokens; all are listed.
    """
    classes_of: dict[tuple[int, ...], list[str]] = {}
    rows = tokenizer(list(phrases), add_special_tokens=False)["input_ids"] if phrases else []
    for ids, name in zip(rows, names, strict=True):
        classes_of.setdefault(tuple(ids), []).append(repr(name))
    empty = classes_of.pop((), [])
    problems = [f"it reads no text in {', '.join(empty)}"] if empty else []
    equal = ((tokenizer.decode(list(ids)), group) for ids, group in classes_of.items() if len(group) > 1)
    problems += [f"it reads {' and '.join(group)} as the same {text!r}" for text, group in equal]
    if problems:
        raise DataError(
            f"The model cannot distinguish all classes: {'; '.join(problems)}. Give them other words with "
            "--rename 'NAME=words', or equal words if they are one class; without that option name only one."
        )
    unread = [group[0] for ids, group in classes_of.items() if tokenizer.unk_token_id in ids]
    warning = f"The model cannot read all letters of {', '.join(unread)}: they are [UNK] to it. It detects "
    return warning + "these classes better with words that it knows: --rename 'NAME=words'." if unread else ""


def count_tokens(tokenizer: BertTokenizer, names: Sequence[str]) -> list[int]:
    """Count the tokens of each cleaned name with its closing ".".

    A prompt needs their sum and 2 more for [CLS] and [SEP]: WordPiece never joins tokens over white
    space or punctuation.
    """
    if not names:
        return []
    tokenized = tokenizer([f"{name}." for name in names], add_special_tokens=False)
    return [len(ids) for ids in tokenized["input_ids"]]


def phrase_blocks(text: TextInput) -> list[list[tuple[slice, tuple[int, ...]]]]:
    """Split each of B prompts into blocks that the language model can read one by one.

    Returns:
        For each image the token range and the token ids of every block: [CLS], each phrase with its
        closing separator, [SEP]. Padding is in no range. A block's token ids alone determine its
        language-model features.
    """
    images = []
    text = text.host or text
    columns = text.input_ids.tolist(), text.text_token_mask.sum(1).tolist(), text.position_ids.tolist()
    for ids, length, positions in zip(*columns, strict=True):
        begins = [i for i in range(length) if positions[i] == 0]
        ends = [*begins[1:], length]
        images.append([(slice(b, e), tuple(ids[b:e])) for b, e in zip(begins, ends, strict=True)])
    return images


def _positive_rows(
    tokenized: BatchEncoding, row_spans: Sequence[Spans], columns: int, batch_index: int
) -> tuple[Tensor, list[tuple[int, tuple[int, int]]]]:
    """Return the (N, columns) bool map, and (row, span) of each span without a token in it."""
    rows = torch.zeros(len(row_spans), columns, dtype=torch.bool)
    without_token = []
    offsets = tokenized[batch_index].offsets
    for row, spans in enumerate(row_spans):
        for begin, end in spans:
            first = _first_token(tokenized, batch_index, range(begin, end))
            last = _first_token(tokenized, batch_index, range(end - 1, begin - 1, -1))
            while last is not None and offsets[last + 1 : last + 2] == [offsets[last]]:
                last += 1  # the last character became several tokens, as a Korean syllable does
            if first is None or last is None or last >= columns:
                without_token.append((row, (begin, end)))
            else:
                rows[row, first : last + 1] = True
    return rows, without_token


def _first_token(tokenized: BatchEncoding, batch_index: int, characters: range) -> int | None:
    # the tokenizer drops accents, control and zero-width characters
    tokens = (tokenized.char_to_token(batch_index, character) for character in characters)
    return next((token for token in tokens if token is not None), None)
