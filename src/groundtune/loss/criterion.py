"""Compute the training loss of Grounding DINO: class, L1 and GIoU terms (paper, section 3.5).

Heads are the decoder layers, the encoder's selected proposals and, in training, the denoising
queries of each decoder layer. Three rules (docs/semantics.md, rules 5, 11 and 12):

- Positions outside the text mask (logit -inf) are removed or replaced BEFORE the focal loss.
  BCE(-inf, 0) is NaN and NaN x 0 is NaN, so masking afterwards would be too late.
- All queries enter the class term. Unmatched ones have all-zero targets and full weight: they teach
  background, except on tokens of classes whose objects may have no box in the image. On these only
  queries at a labeled object are taught that it is of no such class.
- Targets are binary on the tokens of the phrase. Only the model's own detections
  (self-distillation) have soft targets: their confidence, which also weights their box losses.

Deviations from MMDetection 3.3 `GroundingDINOHead`: GIoU is computed in relative coordinates,
`loss_iou` is called `loss_giou`, and the class weight defaults to 2. Terms are normalized by the
pairs of the full batch, so that those of its micro-batches and processes add up (the
reference averages each process's number, at least 1 on each).

A CPU computes one head at a time, which fits into its cache. Other devices compute all heads side
by side, as one head with the queries of all: a GPU starts two thousand small kernels less.
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
from groundtune.loss.matcher import Head, Match, MatchingCost, match, on_labeled_objects

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
    unlabeled_tokens: Tensor | None  # (B, T) bool, of classes that may be present without a box
    counts: list[int]  # boxes of each image


class _Joined(NamedTuple):
    """Heads side by side, with all their queries and pairs."""

    head: Head
    matched: Match
    num_queries: list[int]  # of each head
    num_pairs: list[int]


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
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Target],
        whole: BatchCounts | None = None,
        unlabeled_tokens: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Match queries with boxes, and compute every term in float32, also under autocast.

        Args:
            outputs: `pred_logits` (B, Q, 256) with -inf outside the text mask, `pred_boxes` (B, Q,
                4) cxcywh relative to the resized, unpadded image, `text_token_mask` (B, T) bool,
                optionally `aux_outputs`, `enc_outputs`, and `dn_outputs` with `dn_meta`.
            targets: one per image. Images without boxes, and batches without any, are valid.
            whole: size of the full batch that these images are a part of; None if they are all
                of it.
            unlabeled_tokens: (B, T) bool, tokens of classes whose objects may have no box, or None.

        Returns:
            Scalars. Weighted terms `loss_cls`, `loss_bbox`, `loss_giou` of the last decoder layer,
            with the prefix `d{i}.` of layer i, `enc_` of the encoder, `dn_` of denoising queries;
            `total` adds them up. Detached: `class_error`, the percentage of valid (query, token)
            positions on the wrong side of 0.5, and `matched_boxes`, the pairs of the last layer.
            The scalars of the parts of a full batch add up to those of the whole.

        Raises:
            NonFiniteCost: predictions or boxes of an image are not finite.
        """
        truth = _truth(targets, outputs["text_token_mask"], unlabeled_tokens)
        heads = _matching_heads(outputs)
        cost = MatchingCost(self.cost_cls, self.cost_bbox, self.cost_giou, self.focal_alpha, self.focal_gamma)
        pairs = match(list(heads.values()), truth.text_token_mask, targets, cost)
        matches = dict(zip(heads, pairs, strict=True))
        if whole is None:
            counts = [len(target.boxes_cxcywh) for target in targets]
            whole = BatchCounts(counts, int(truth.text_token_mask.sum()))
        # boxes beyond the number of queries stay unmatched
        normalizer = {
            name: max(1, sum(min(count, head.boxes_cxcywh.shape[1]) for count in whole.boxes))
            for name, head in heads.items()
        }
        denoising, dn_match = _denoising_heads(outputs, targets)
        for name, head in denoising.items():
            heads[name], matches[name] = head, dn_match
            normalizer[name] = max(1, outputs["dn_meta"]["num_groups"] * sum(whole.boxes))

        groups = [[name] for name in heads] if truth.confidence.device.type == "cpu" else [list(heads)]
        terms: dict[str, Tensor] = {}
        with torch.autocast(truth.boxes_cxcywh.device.type, enabled=False):
            for names in groups:
                joined = _join([heads[name] for name in names], [matches[name] for name in names])
                losses = self.loss_labels(joined, truth), *self.loss_boxes(joined, truth)
                divisors = torch.tensor([normalizer[name] for name in names]).float()
                (divisors,) = to_device([divisors], truth.confidence.device)
                for term, loss in zip(_TERMS, losses, strict=True):
                    scaled = (loss / divisors).unbind()
                    terms |= zip((f"{name}{term}" for name in names), scaled, strict=True)
            terms["class_error"] = _class_error(heads[""], matches[""], truth, whole.tokens)
        terms["matched_boxes"] = torch.full_like(terms["class_error"], len(matches[""].query))
        return terms

    def loss_labels(self, joined: _Joined, truth: _Truth) -> Tensor:
        """Return the weighted, unnormalized class loss of each head."""
        logits, labels = _valid_positions(joined.head, joined.matched, truth)
        losses = sigmoid_focal_loss(logits, labels, self.focal_alpha, self.focal_gamma)
        if losses.ndim == 3:
            return self.loss_cls * _sums(losses.sum((0, 2)), joined.num_queries)
        return self.loss_cls * _sums(losses, [len(losses)])

    def loss_boxes(self, joined: _Joined, truth: _Truth) -> tuple[Tensor, Tensor]:
        """Return the weighted, unnormalized L1 and GIoU losses of each head's pairs."""
        matched = joined.matched
        predicted = joined.head.boxes_cxcywh[matched.image, matched.query].float()
        true = truth.boxes_cxcywh[matched.box]
        weight = truth.confidence[matched.box]
        l1 = (predicted - true).abs().sum(1) * weight
        giou = (1 - paired_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))) * weight
        l1, giou = _sums(l1, joined.num_pairs), _sums(giou, joined.num_pairs)
        return self.loss_bbox * l1, self.loss_giou * giou


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Add up the loss terms, without those that are only logged."""
    return torch.stack([value for name, value in terms.items() if "loss_" in name]).sum()


def _truth(targets: Sequence[Target], text_token_mask: Tensor, unlabeled_tokens: Tensor | None) -> _Truth:
    length = text_token_mask.shape[1]
    boxes = torch.cat([target.boxes_cxcywh for target in targets]).float()
    # > 0 makes the map binary, in whatever form it came
    positive_map = torch.cat([target.positive_map for target in targets])[:, :length] > 0
    confidence = torch.cat(
        [torch.ones_like(t.boxes_cxcywh[:, 0]) if t.confidence is None else t.confidence for t in targets]
    ).float()
    positive_map, counts = positive_map * confidence[:, None], [len(t.boxes_cxcywh) for t in targets]
    return _Truth(boxes, positive_map, confidence, text_token_mask, unlabeled_tokens, counts)


def _matching_heads(outputs: Mapping[str, Any]) -> dict[str, Head]:
    """Return the matched heads by the prefix of their terms; "" is the last decoder layer."""
    heads = {"": _head(outputs)}
    heads |= {f"d{layer}.": _head(aux) for layer, aux in enumerate(outputs.get("aux_outputs") or [])}
    if outputs.get("enc_outputs") is not None:
        heads["enc_"] = _head(outputs["enc_outputs"])
    return heads


def _denoising_heads(outputs: Mapping[str, Any], targets: Sequence[Target]) -> tuple[dict[str, Head], Match]:
    """Return the denoising heads and their pairs, which follow from the layout of the queries.

    Group g has 2M queries: M positives, of which the i-th belongs to the image's i-th box, and M
    negatives. Positives beyond an image's own number of boxes have zero targets and full weight,
    like negatives.
    """
    counts = [len(target.boxes_cxcywh) for target in targets]
    device = outputs["text_token_mask"].device
    layers = outputs.get("dn_outputs") or []
    if not layers:
        return {}, Match(*torch.zeros(3, 0, dtype=torch.long, device=device))
    num_groups, group_size = outputs["dn_meta"]["num_groups"], outputs["dn_meta"]["group_size"]
    num_queries, most = layers[-1]["pred_boxes"].shape[1], max(counts)
    if num_queries != num_groups * group_size or most > group_size // 2:
        groups_text = f"{num_groups} groups of {group_size} for up to {most} boxes"
        raise ValueError(f"{num_queries} denoising queries do not fit {groups_text}")
    heads = {f"d{layer}.dn_": _head(output) for layer, output in enumerate(layers[:-1])}
    heads["dn_"] = _head(layers[-1])
    groups = torch.arange(num_groups) * group_size
    pairs = []
    first_box = 0
    for image, count in enumerate(counts):
        boxes = torch.arange(count)
        query = (groups.unsqueeze(1) + boxes).flatten()
        box = boxes.repeat(num_groups) + first_box
        pairs.append(torch.stack([torch.full_like(query, image), query, box]))
        first_box += count
    return heads, Match(*to_device([torch.cat(pairs, dim=1)], device)[0])


def _head(output: Mapping[str, Tensor]) -> Head:
    return Head(output["pred_logits"], output["pred_boxes"])


def _join(heads: Sequence[Head], matches: Sequence[Match]) -> _Joined:
    num_queries = [head.boxes_cxcywh.shape[1] for head in heads]
    num_pairs = [len(matched.query) for matched in matches]
    if len(heads) == 1:
        return _Joined(heads[0], matches[0], num_queries, num_pairs)
    head = Head(*(torch.cat(parts, dim=1) for parts in zip(*heads, strict=True)))
    image, query, box = map(torch.cat, zip(*matches, strict=True))
    firsts = torch.tensor([0, *itertools.accumulate(num_queries[:-1])])
    (first,) = to_device([firsts.repeat_interleave(torch.tensor(num_pairs))], query.device)
    return _Joined(head, Match(image, query + first, box), num_queries, num_pairs)


def _sums(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum consecutive parts of a vector; neighbors of equal size together."""
    runs = [(size, len(list(run))) for size, run in itertools.groupby(sizes)]
    parts = values.split([size * count for size, count in runs])
    return torch.cat([p.view(count, size).sum(1) for p, (size, count) in zip(parts, runs, strict=True)])


def _valid_positions(head: Head, matched: Match, truth: _Truth) -> tuple[Tensor, Tensor]:
    """Return the logits and the targets of all queries at valid tokens, float32.

    On a CPU both are (V,). Other devices would have to count the valid positions first: there both
    are (B, Q, T), without a loss at the other positions.
    """
    length = truth.text_token_mask.shape[1]
    logits = head.logits[..., :length]
    labels = torch.zeros_like(logits, dtype=torch.float32)
    labels[matched.image, matched.query] = truth.positive_map[matched.box]
    valid = truth.text_token_mask.unsqueeze(1).expand_as(logits)
    if truth.unlabeled_tokens is not None:
        known = on_labeled_objects(head, matched, truth.boxes_cxcywh, truth.counts).unsqueeze(2)
        valid = valid & (known | ~truth.unlabeled_tokens.unsqueeze(1))
    if logits.device.type == "cpu":
        return torch.masked_select(logits, valid).float(), torch.masked_select(labels, valid)
    invalid = ~valid
    return logits.masked_fill(invalid, _NO_LOSS).float(), labels.masked_fill(invalid, 0)


@torch.no_grad()
def _class_error(head: Head, matched: Match, truth: _Truth, tokens: int) -> Tensor:
    logits, labels = _valid_positions(head, matched, truth)
    return 100 * ((logits > 0) != (labels > 0)).sum() / (tokens * head.logits.shape[1])
