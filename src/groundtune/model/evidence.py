"""What the towers say about a prompt: class logits and boxes before any training.

A cell's name term is the p-norm over NanoDet's names of score × similarity to the phrase; its word
term is the cosine of its text vector and the phrase. Both are added to the class logits with
learned weights. NanoDet's boxes are the proposals of the two-stage selection.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundtune.boxes import xyxy_to_cxcywh
from groundtune.model.attention import sides_wh
from groundtune.model.encoder import Memory, cell_centers
from groundtune.model.towers import text_map
from groundtune.text.tokens import SEPARATOR_IDS, TextInput, is_any

_UNRELATED = 0.45  # cosine of two names that have nothing in common, at most
_NORM = 4.0  # a soft maximum over the names
_FLOOR = 0.01  # score that adds nothing
_WORD_SHIFT = 0.3
_SMALLEST = 0.011  # side of a box, and distance of its center from the border


class Evidence(NamedTuple):
    """What the towers say about a prompt, at S positions, S' ≤ S of which have boxes."""

    terms: Tensor  # (B, S, T, 2) of each position for each token
    boxes_cxcywh: Tensor  # (B, S', 4)


class TowerDetections(NamedTuple):
    """What the towers detect in a batch."""

    levels: list[tuple[Tensor, Tensor]]  # NanoDet's scores (B, 80, h, w) and distances (B, 4, h, w)
    coarse: Tensor  # the coarsest map of the towers
    name_vectors: Tensor  # (80, 384) of NanoDet's names


class EvidenceReader(nn.Module):
    """Turn the towers' detections into evidence; with a weight per term and class branch."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 2.0]).repeat(branches, 1))

    def logits(self, terms: Tensor, branch: int) -> Tensor:
        """(B, Q, T, 2) terms → (B, Q, T) to be added to the logits of a class branch."""
        return terms @ self.weights[branch]


def read_evidence(detected: TowerDetections, sentences: Tensor, text: TextInput, memory: Memory) -> Evidence:
    """Compare the detections with the phrases.

    Args:
        detected: by the towers.
        sentences: (B, T, 384) normalized vector of each token's phrase.
        text, memory: the prompts, and the encoder's output, for the padding.
    """
    with torch.autocast(sentences.device.type, enabled=False):
        return _read(detected, sentences.float(), text, memory)


def _read(detected: TowerDetections, sentences: Tensor, text: TextInput, memory: Memory) -> Evidence:
    levels = detected.levels
    scores = torch.cat([level.flatten(2) for level, _ in levels], 2).float()  # (B, 80, S')
    similarity = ((sentences @ detected.name_vectors.T - _UNRELATED) / (1 - _UNRELATED)).clamp(min=0) ** 2
    found = (similarity**_NORM @ scores**_NORM + 1e-12) ** (1 / _NORM)  # (B, T, S')
    names = torch.log(found / _FLOOR + 1)
    cosine = sentences @ F.normalize(text_map(detected.coarse).float(), dim=1).flatten(2)  # (B, T, h·w)
    cosine = _extended(cosine.unflatten(2, detected.coarse.shape[-2:]) - _WORD_SHIFT, memory, len(levels) - 1)
    words = []
    for step, (level, _) in zip((4, 2, 1), levels, strict=True):  # cells of a level per coarse cell
        fine = F.interpolate(cosine, scale_factor=step, mode="bilinear")
        words.append(fine[..., : level.shape[2], : level.shape[3]].flatten(2))
    terms = torch.stack((names, torch.cat(words, 2)), -1)
    terms = terms.masked_fill(is_any(text.input_ids, SEPARATOR_IDS)[:, :, None, None], 0.0)
    missing = sum(h * w for h, w in memory.level_shapes[len(levels) :])
    terms = F.pad(terms.transpose(1, 2), (0, 0, 0, 0, 0, missing))
    return Evidence(terms, torch.cat([_boxes(d, memory, i) for i, (_, d) in enumerate(levels)], 1))


def _extended(x: Tensor, memory: Memory, level: int) -> Tensor:
    """Repeat the image's last row and column of (B, T, h, w) in the padding, for interpolation."""
    h, w = x.shape[-2:]
    wh = sides_wh([(h, w)], memory.valid_ratios)[0]
    last = (memory.valid_ratios[:, level] * wh).round().long() - 1  # (B, 2) xy
    column = torch.arange(w, device=x.device).minimum(last[:, :1])[:, None, None].expand_as(x)
    row = torch.arange(h, device=x.device).minimum(last[:, 1:])[:, None, :, None].expand_as(x)
    return x.gather(3, column).gather(2, row)


def _boxes(distances: Tensor, memory: Memory, level: int) -> Tensor:
    """(B, 4, h, w) distances in cells → (B, h·w, 4) cxcywh relative to the unpadded image."""
    h, w = memory.level_shapes[level]
    like = memory.valid_ratios
    canvas_wh = like[:, None, level] * sides_wh([(h, w)], like)  # (B, 1, 2), cells
    centers, sides = cell_centers(h, w, like), distances.float().flatten(2).transpose(1, 2)
    corners = torch.cat((centers - sides[..., :2], centers + sides[..., 2:]), -1) / canvas_wh.repeat(1, 1, 2)
    return xyxy_to_cxcywh(corners.clamp(0, 1)).clamp(_SMALLEST, 1 - _SMALLEST)
