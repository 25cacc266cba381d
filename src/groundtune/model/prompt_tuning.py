"""Prompt tuning: learned offsets of class names for a frozen network.

Each token of a learned phrase has a vector that is added to the language model's features of that
token, wherever the whole phrase occurs in a prompt. This happens before the text projection, where
the features of a phrase depend on that phrase alone: cached phrase features stay valid, and a
prompt without learned phrases does not change, bit for bit. A phrase is recognized by its token ids
with the "." that closes it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import BertTokenizer

from groundtune.device import to_device
from groundtune.errors import CheckpointError
from groundtune.text.tokens import TextInput, phrase_blocks

VECTORS = "encoder.phrase_offsets.vectors"  # name of the parameter in a network


class PhraseOffsets(nn.Module):
    """One vector for each token of each of `names`, of the language model's width; initially 0.

    The names are cleaned and in the order of the vectors; the "." that closes a phrase has none.
    """

    def __init__(self, names: Sequence[str], tokenizer: BertTokenizer, width: int) -> None:
        super().__init__()
        self.names = list(names)
        self._first_row: dict[tuple[int, ...], int] = {}
        count = 0
        for ids in tokenizer([f"{name}." for name in names], add_special_tokens=False)["input_ids"]:
            self._first_row[tuple(ids)] = count
            count += len(ids) - 1
        self.vectors = nn.Parameter(torch.zeros(count, width))

    def forward(self, features: Tensor, text: TextInput) -> Tensor:
        """(B, T, width) features of the tokens of `text` → the same with the offsets added."""
        places = [
            (image, block.start + offset, self._first_row[ids] + offset)
            for image, blocks in enumerate(phrase_blocks(text))
            for block, ids in blocks
            if ids in self._first_row
            for offset in range(len(ids) - 1)
        ]
        (index,) = to_device([torch.tensor(places, dtype=torch.long).view(-1, 3)], features.device)
        added = self.vectors[index[:, 2]].to(features.dtype)
        return features.index_put((index[:, 0], index[:, 1]), added, accumulate=True)


def extended(
    offsets: PhraseOffsets | None, names: Sequence[str], tokenizer: BertTokenizer, width: int
) -> PhraseOffsets:
    """Add names to offsets; those already learned keep their vectors."""
    known = [] if offsets is None else offsets.names
    grown = PhraseOffsets(list(dict.fromkeys([*known, *names])), tokenizer, width)
    if offsets is not None:
        with torch.no_grad():
            grown.vectors[: len(offsets.vectors)] = offsets.vectors
        grown.to(offsets.vectors.device)
    return grown


def offsets_of(
    names: object, vectors: Tensor, tokenizer: BertTokenizer, width: int, where: str
) -> PhraseOffsets:
    """Make the offsets of a model folder from its `names` and `vectors`.

    Raises:
        CheckpointError: they do not fit each other; it names the folder `where`.
    """
    problem = f"{where} has offsets of class names"
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(f"{problem}, but its groundtune.json has no such names.")
    offsets = PhraseOffsets(names, tokenizer, width)
    if offsets.vectors.shape != vectors.shape:
        shape, expected = list(vectors.shape), list(offsets.vectors.shape)
        raise CheckpointError(f"{problem} of shape {shape}, expected {expected}.")
    offsets.load_state_dict({"vectors": vectors})
    return offsets
