"""Compute the training loss of Grounding DINO: class, L1 and GIoU terms (paper, section 3.5).

Heads are the decoder layers, the encoder's selected proposals and, in training, the denoising
queries of each decoder layer. Three rules (docs/semantics.md, rules 5, 11 and 12):

- Positions outside the text mask (logit -inf) are removed or replaced BEFORE the focal loss.
  BCE(-inf, 0) is NaN and NaN x 0 is NaN, so masking afterwards would be too late.
- All queries enter the class term. Unmatched ones have all-zero targets and full weight: they teach
  background.
- Targets are binary on the tokens of the phrase. Only the model's own detections
  (self-distillation) have soft targets: their confidence, which also weights their box losses.

Deviations from MMDetection 3.3 `GroundingDINOHead`: GIoU is computed in relative coordinates,
`loss_iou` is called `loss_giou`, and the class weight defaults to 2. Terms are normalized by the
pairs of the full batch, so that those of its micro-batches and processes add up (the
reference averages each process's number, at least 1 on each).

On a GPU, heads of equal shape are computed together: a thousand small kernels less. On a CPU one
head at a time stays in the cache.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from groundtune.boxes import cxcywh_to_xyxy, paired_giou
from groundtune.config import TrainConfig
from groundtune.contracts import Target
from groundtune.device import to_device
from groundtune.loss.matcher import Head, Match, MatchingCost, match

_TERMS = ("loss_cls", "loss_bbox", "loss_giou")
_NO_LOSS = -1e4  # a logit whose loss with a target of 0 is exactly 0, as is its gradient


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float = TrainConfig.focal_alpha,
    gamma: float = TrainConfig.focal_gamma,
) -> Tensor:
    """Compute the focal loss of each element (Lin et al. 2017), of any shape.

    Soft targets give the quality focal loss (Li et al. 2020). Both are one formula: |target - p| is
    1 - p for a target of 1 and p for a target of 0.

    Args:
        logits: float, finite: the criterion selects the valid positions first.
        targets: same shape and dtype, in [0, 1].
        alpha: weight of positive elements; negative ones weigh 1 - alpha, soft ones lie in between.
        gamma: focusing exponent.
    """
    probability = logits.sigmoid()
    miss = (targets - probability).abs()
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weight * miss**gamma


class BatchCounts(NamedTuple):
    """Size of the batch of one optimizer step, of which the criterion may see a part."""

    boxes: Sequence[int]  # number of boxes of each image
    tokens: int  # number of real tokens in all prompts


class _Truth(NamedTuple):
    """Ground truth of a batch: the N boxes of all images, concatenated, and the text mask."""

    boxes_cxcywh: Tensor  # (N, 4) float32
    positive_map: Tensor  # (N, T) float32, the box's confidence on the tokens of its phrase, 0 elsewhere
    confidence: Tensor  # (N,) float32
    text_token_mask: Tensor  # (B, T) bool


class _Term(NamedTuple):
    """A head, by the prefix of its loss terms; "" is the last decoder layer."""

    prefix: str
    head: Head  # with T columns of logits
    matched: Match
    normalizer: int  # pairs of the full batch, at least 1


class _Stack(NamedTuple):
    """H heads of equal shape: predictions of Q queries for B images, and K pairs each."""

    logits: Tensor  # (H, B, Q, T)
    boxes_cxcywh: Tensor  # (H, B, Q, 4)
    places: tuple[Tensor, Tensor, Tensor]  # head (H, 1), image (H, K) and query (H, K) of each pair
    box: Tensor  # (H, K), index into the boxes of all images


@dataclass(frozen=True)
class GroundingDINOCriterion:
    """Compute the loss terms of the network's output.

    `loss_` and `cost_` are the weights of the class, L1 and GIoU terms in the loss and in the
    matching. The focal loss and the focal cost have the same alpha and gamma.
    """

    loss_cls: float = TrainConfig.loss_cls
    loss_bbox: float = TrainConfig.loss_bbox
    loss_giou: float = TrainConfig.loss_giou
    focal_alpha: float = TrainConfig.focal_alpha
    focal_gamma: float = TrainConfig.focal_gamma
    cost_cls: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0

    def __call__(
        self, outputs: Mapping[str, Any], targets: Sequence[Target], whole: BatchCounts | None = None
    ) -> dict[str, Tensor]:
        """Match queries with boxes, and compute every term in float32, also under autocast.

        Args:
            outputs: `pred_logits` (B, Q, 256) with -inf outside the text mask, `pred_boxes` (B, Q,
                4) cxcywh relative to the resized, unpadded image, `text_token_mask` (B, T) bool,
                optionally `aux_outputs`, `enc_outputs`, and `dn_outputs` with `dn_meta`.
            targets: one per image. Images without boxes, and batches without any, are valid.
            whole: size of the full batch that these images are a part of; None if they are all
                of it.

        Returns:
            Scalars. Weighted terms `loss_cls`, `loss_bbox`, `loss_giou` of the last decoder layer,
            with the prefix `d{i}.` of layer i, `enc_` of the encoder, `dn_` of denoising queries;
            `total` adds them up. Detached: `class_error`, the percentage of valid (query, token)
            positions on the wrong side of 0.5, and `matched_boxes`, the pairs of the last layer.
            The scalars of the parts of a full batch add up to those of the whole.

        Raises:
            NonFiniteCost: predictions or boxes of an image are not finite.
        """
        truth = _truth(targets, outputs["text_token_mask"])
        if whole is None:
            counts = [len(target.boxes_cxcywh) for target in targets]
            whole = BatchCounts(counts, int(truth.text_token_mask.sum()))
        matched = self._matched_heads(outputs, targets, truth, whole)
        heads = matched + _denoising_heads(outputs, targets, whole)
        terms: dict[str, Tensor] = {}
        with torch.autocast(truth.boxes_cxcywh.device.type, enabled=False):
            for group in _groups(heads):
                stack = _stack(group)
                losses = self.loss_labels(stack, truth), *self.loss_boxes(stack, truth)
                scaled = [(loss / group[0].normalizer).unbind() for loss in losses]
                for head, *values in zip(group, *scaled, strict=True):
                    terms |= {f"{head.prefix}{term}": v for term, v in zip(_TERMS, values, strict=True)}
            terms["class_error"] = _class_error(_stack(matched[:1]), truth, whole.tokens)
        terms["matched_boxes"] = torch.full_like(terms["class_error"], len(matched[0].matched.query))
        return terms

    def _matched_heads(
        self, outputs: Mapping[str, Any], targets: Sequence[Target], truth: _Truth, whole: BatchCounts
    ) -> list[_Term]:
        """Match the decoder layers, the last one first, and the encoder's proposals."""
        mask = truth.text_token_mask
        heads = {"": _head(outputs, mask)}
        earlier = enumerate(outputs.get("aux_outputs") or [])
        heads |= {f"d{layer}.": _head(output, mask) for layer, output in earlier}
        if outputs.get("enc_outputs") is not None:
            heads["enc_"] = _head(outputs["enc_outputs"], mask)
        cost = MatchingCost(self.cost_cls, self.cost_bbox, self.cost_giou, self.focal_alpha, self.focal_gamma)
        found = []
        matches = match(list(heads.values()), mask, targets, cost)
        for (prefix, head), matched in zip(heads.items(), matches, strict=True):
            # boxes beyond the number of queries stay unmatched
            pairs = sum(min(count, head.boxes_cxcywh.shape[1]) for count in whole.boxes)
            found.append(_Term(prefix, head, matched, max(1, pairs)))
        return found

    def loss_labels(self, heads: _Stack, truth: _Truth) -> Tensor:
        """Return the weighted, unnormalized class losses (H,)."""
        logits, labels = _valid_positions(heads, truth)
        losses = sigmoid_focal_loss(logits, labels, self.focal_alpha, self.focal_gamma)
        return self.loss_cls * losses.sum(1)

    def loss_boxes(self, heads: _Stack, truth: _Truth) -> tuple[Tensor, Tensor]:
        """Return the weighted, unnormalized L1 and GIoU losses (H,) of the pairs."""
        predicted = heads.boxes_cxcywh[heads.places].float()  # (H, K, 4)
        true = truth.boxes_cxcywh[heads.box]
        weight = truth.confidence[heads.box]
        l1 = ((predicted - true).abs().sum(2) * weight).sum(1)
        giou = ((1 - paired_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))) * weight).sum(1)
        return self.loss_bbox * l1, self.loss_giou * giou


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Add up the loss terms, without those that are only logged."""
    return torch.stack([value for name, value in terms.items() if "loss_" in name]).sum()


def _truth(targets: Sequence[Target], text_token_mask: Tensor) -> _Truth:
    length = text_token_mask.shape[1]
    boxes = torch.cat([target.boxes_cxcywh for target in targets]).float()
    # > 0 makes the map binary, in whatever form it came
    positive_map = torch.cat([target.positive_map for target in targets])[:, :length] > 0
    confidence = torch.cat(
        [torch.ones_like(t.boxes_cxcywh[:, 0]) if t.confidence is None else t.confidence for t in targets]
    ).float()
    return _Truth(boxes, positive_map * confidence[:, None], confidence, text_token_mask)


def _denoising_heads(
    outputs: Mapping[str, Any], targets: Sequence[Target], whole: BatchCounts
) -> list[_Term]:
    """Return the denoising heads and their pairs, which follow from the layout of the queries.

    Group g has 2M queries: M positives, of which the i-th belongs to the image's i-th box, and M
    negatives. Positives beyond an image's own number of boxes have zero targets and full weight,
    like negatives.
    """
    layers = outputs.get("dn_outputs") or []
    if not layers:
        return []
    counts = [len(target.boxes_cxcywh) for target in targets]
    num_groups, group_size = outputs["dn_meta"]["num_groups"], outputs["dn_meta"]["group_size"]
    num_queries, most = layers[-1]["pred_boxes"].shape[1], max(counts)
    if num_queries != num_groups * group_size or most > group_size // 2:
        groups_text = f"{num_groups} groups of {group_size} for up to {most} boxes"
        raise ValueError(f"{num_queries} denoising queries do not fit {groups_text}")
    groups = torch.arange(num_groups) * group_size
    pairs = []
    first_box = 0
    for image, count in enumerate(counts):
        boxes = torch.arange(count)
        query = (groups.unsqueeze(1) + boxes).flatten()
        box = boxes.repeat(num_groups) + first_box
        pairs.append(torch.stack([torch.full_like(query, image), query, box]))
        first_box += count
    mask = outputs["text_token_mask"]
    matched = Match(*to_device([torch.cat(pairs, dim=1)], mask.device)[0])
    normalizer = max(1, num_groups * sum(whole.boxes))
    prefixes = [*(f"d{layer}.dn_" for layer in range(len(layers) - 1)), "dn_"]
    return [
        _Term(prefix, _head(layer, mask), matched, normalizer)
        for prefix, layer in zip(prefixes, layers, strict=True)
    ]


def _head(output: Mapping[str, Tensor], text_token_mask: Tensor) -> Head:
    return Head(output["pred_logits"][..., : text_token_mask.shape[1]], output["pred_boxes"])


def _groups(heads: Sequence[_Term]) -> list[list[_Term]]:
    """Group the heads to compute together: on a CPU one by one, see the module's docstring."""
    if heads[0].head.logits.device.type == "cpu":
        return [[head] for head in heads]
    groups = itertools.groupby(heads, lambda head: (head.head.logits.shape, head.normalizer))
    return [list(group) for _, group in groups]


def _stack(heads: Sequence[_Term]) -> _Stack:
    logits, boxes_cxcywh = map(torch.stack, zip(*(head.head for head in heads), strict=True))
    image, query, box = map(torch.stack, zip(*(head.matched for head in heads), strict=True))
    index = torch.arange(len(heads), device=image.device)[:, None]
    return _Stack(logits, boxes_cxcywh, (index, image, query), box)


def _valid_positions(heads: _Stack, truth: _Truth) -> tuple[Tensor, Tensor]:
    """Return the logits and the targets of all queries at valid tokens, both (H, V) float32.

    On a GPU, which would have to count them first, the other positions stay, without a loss.
    """
    labels = torch.zeros_like(heads.logits, dtype=torch.float32)
    labels[heads.places] = truth.positive_map[heads.box]
    valid = truth.text_token_mask.unsqueeze(1).expand_as(heads.logits)
    if labels.device.type == "cpu":  # H is 1
        return heads.logits.masked_select(valid).float()[None], labels.masked_select(valid)[None]
    logits = heads.logits.masked_fill(~valid, _NO_LOSS)
    return logits.flatten(1).float(), labels.masked_fill(~valid, 0).flatten(1)


@torch.no_grad()
def _class_error(heads: _Stack, truth: _Truth, tokens: int) -> Tensor:
    logits, labels = _valid_positions(heads, truth)
    return 100 * ((logits > 0) != (labels > 0)).sum() / (tokens * heads.logits.shape[2])
