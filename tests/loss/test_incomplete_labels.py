"""The class loss where the objects of some classes may have no box."""

import math
from types import SimpleNamespace

import pytest
import torch

from groundtune.loss.criterion import GroundingDINOCriterion

A, C = 1, 3  # tokens of "[CLS] a . c . [SEP]"
LENGTH = 6
BOXES = [[0.3, 0.3, 0.2, 0.2], [0.34, 0.3, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]]
"""At the labeled box; beside it (16 of 20 parts in common, IoU 16 / 24); elsewhere."""


def head(boxes):
    logits = torch.full((1, len(boxes), 256), -math.inf)
    logits[..., :LENGTH] = -1.0
    logits[0, 0, A] = 3.0  # so that the first query matches
    return {"pred_logits": logits.requires_grad_(), "pred_boxes": torch.tensor([boxes])}


def batch():
    """One image with a box of "a"; all heads predict the same."""
    outputs = head(BOXES) | {
        "text_token_mask": torch.ones(1, LENGTH, dtype=torch.bool),
        "aux_outputs": [head(BOXES)],
        "enc_outputs": head(BOXES),
        "dn_outputs": [head([BOXES[0], BOXES[2]])],  # the copy of the box, and its negative
        "dn_meta": {"num_groups": 1, "group_size": 2},
    }
    positive_map = torch.zeros(1, 256, dtype=torch.bool)
    positive_map[0, A] = True
    target = SimpleNamespace(boxes_cxcywh=torch.tensor(BOXES[:1]), positive_map=positive_map, confidence=None)
    return outputs, [target]


def unlabeled(*tokens):
    mask = torch.zeros(1, LENGTH, dtype=torch.bool)
    mask[0, list(tokens)] = True
    return mask


def test_only_queries_at_labeled_objects_learn_about_unlabeled_classes():
    outputs, targets = batch()
    terms = GroundingDINOCriterion()(outputs, targets, None, unlabeled(C))
    sum(value for name, value in terms.items() if "loss_" in name).backward()
    for each in (outputs, outputs["aux_outputs"][0], outputs["enc_outputs"]):
        learned = each["pred_logits"].grad[0, :, :LENGTH] != 0
        assert learned[:2].all()
        assert learned[2].tolist() == [True, True, True, False, True, True]
    learned = outputs["dn_outputs"][0]["pred_logits"].grad[0, :, :LENGTH] != 0
    assert learned[0].all() and learned[1].tolist() == [True, True, True, False, True, True]


def test_the_loss_by_hand():
    """Of 3 × 6 positions one is a target of 1 with logit 3, and 17 are background with logit -1, of
    which one does not count.
    """
    outputs, targets = batch()
    high, low = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(1))
    positive = 0.25 * (1 - high) ** 2 * -math.log(high)
    negative = 0.75 * low**2 * -math.log(1 - low)
    for mask, count in ((None, 17), (unlabeled(C), 16), (unlabeled(A, C), 15)):
        terms = GroundingDINOCriterion()(outputs, targets, None, mask)
        expected = 2 * (positive + count * negative)
        assert terms["loss_cls"].item() == pytest.approx(expected, rel=1e-5)
        assert terms["enc_loss_cls"].item() == pytest.approx(expected, rel=1e-5)


def test_complete_labels_have_the_same_loss_bit_for_bit():
    outputs, targets = batch()
    criterion = GroundingDINOCriterion()
    plain, masked = criterion(outputs, targets), criterion(outputs, targets, None, unlabeled())
    assert plain.keys() == masked.keys() and all(torch.equal(plain[name], masked[name]) for name in plain)


def test_an_image_without_boxes_teaches_nothing_about_unlabeled_classes():
    outputs, (target,) = batch()
    del outputs["dn_outputs"]
    target.boxes_cxcywh, target.positive_map = torch.zeros(0, 4), torch.zeros(0, 256, dtype=torch.bool)
    terms = GroundingDINOCriterion()(outputs, [target], None, unlabeled(A, C))
    terms["loss_cls"].backward()
    learned = (outputs["pred_logits"].grad[0, :, :LENGTH] != 0).any(0)
    assert learned.tolist() == [True, False, True, False, True, True]


def test_a_matched_query_learns_everything_wherever_it_is():
    outputs, targets = batch()
    outputs |= head([BOXES[2]])  # the only query
    terms = GroundingDINOCriterion()(outputs, targets, None, unlabeled(C))
    terms["loss_cls"].backward()
    assert (outputs["pred_logits"].grad[0, 0, :LENGTH] != 0).all()
