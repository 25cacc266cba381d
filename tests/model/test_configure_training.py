"""`configure_training`: denoising adds outputs; buckets and gradient checkpointing change no
number.
"""

import math

import pytest
import torch

from groundtune.loss.criterion import GroundingDINOCriterion, total
from groundtune.model.neck import pad_features

CRITERION = GroundingDINOCriterion()
NAMES = [["cat", "red blood cell"], ["zebra"], ["traffic light", "dog", "sofa"]]
SIZES_HW = [(64, 96), (48, 80), (96, 64)]
OFF = {"denoising": False, "gradient_checkpointing": False, "bucket": None}


ON = [(True, True, [1, 2])]  # in training, denoising, boxes of each image
OTHERS = [(True, True, [0, 0]), (True, False, [1, 2]), (False, True, [1, 2])]


@pytest.mark.parametrize(("training", "denoising", "counts"), ON + OTHERS)
def test_output_keys(training, denoising, counts, tiny, make_case):
    expected = (training, denoising, counts) in ON
    network = tiny("swin", decoder_layers=3).train(training)
    network.configure_training(**OFF | {"denoising": denoising})
    case = make_case(NAMES[:2], SIZES_HW[:2], counts)
    output = case.run(network)
    keys = {"pred_logits", "pred_boxes", "text_token_mask", "aux_outputs", "enc_outputs"}
    assert set(output) == keys | ({"dn_outputs", "dn_meta"} if expected else set())
    assert len(output["aux_outputs"]) == 2
    mask = output["text_token_mask"]
    assert mask.dtype == torch.bool and torch.equal(mask, case.text.text_token_mask)
    valid = torch.zeros(2, 256, dtype=torch.bool)
    valid[:, : mask.shape[1]] = mask
    heads = [(output, 12), *((aux, 12) for aux in output["aux_outputs"]), (output["enc_outputs"], 12)]
    if expected:
        assert output["dn_meta"] == {"num_groups": 50, "group_size": 4} and len(output["dn_outputs"]) == 3
        heads += [(head, 200) for head in output["dn_outputs"]]
    for head, queries in heads:
        assert head["pred_logits"].shape == (2, queries, 256) and head["pred_boxes"].shape == (2, queries, 4)
        assert ((head["pred_boxes"] >= 0) & (head["pred_boxes"] <= 1)).all()
        by_token = head["pred_logits"].transpose(1, 2)
        assert by_token[valid].isfinite().all() and (by_token[~valid] == -math.inf).all()


@pytest.mark.parametrize("kind", ["swin", "nano"])
def test_a_bucket_changes_no_output(kind, tiny, make_case):
    network = tiny(kind, ("backbone", "language_model"))
    case = make_case(NAMES, SIZES_HW, [0] * 3)
    with torch.no_grad():
        plain = case.run(network)
        network.configure_training(**OFF | {"bucket": 4})
        bucketed = case.run(network)
    finite = plain["pred_logits"].isfinite()
    assert torch.equal(finite, bucketed["pred_logits"].isfinite())
    assert (plain["pred_logits"][finite] - bucketed["pred_logits"][finite]).abs().max() <= 1e-4
    assert (plain["pred_boxes"] - bucketed["pred_boxes"]).abs().max() <= 1e-4


def test_a_bucket_makes_few_shapes_and_counts_the_same_positions():
    shapes = set()
    for h, w in [(29, 40), (25, 37), (32, 33), (30, 39)]:
        features = [[torch.ones(1, -(-h // n), -(-w // n)) for n in (1, 2, 4)]]
        plain, _ = pad_features(features, 4)
        maps, masks = pad_features(features, 4, bucket=4)
        assert masks is None or [int((~mask).sum()) for mask in masks[:3]] == [
            level[0, 0].numel() for level in plain
        ]
        shapes.add(tuple(tuple(level.shape) for level in maps))
    assert shapes == {((1, 1, 32, 48), (1, 1, 16, 24), (1, 1, 8, 12))}


def test_recomputed_layers_give_the_same_loss_and_gradients(tiny, make_case):
    network = tiny("swin", ("backbone", "language_model"), encoder_layers=2)
    network.train()
    case = make_case(NAMES, SIZES_HW, [2, 0, 1])
    found = []
    for gradient_checkpointing in (False, True):
        network.configure_training(denoising=True, gradient_checkpointing=gradient_checkpointing, bucket=None)
        network.zero_grad()
        loss = total(CRITERION(case.run(network), case.targets))
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert len(found[0][1]) == len(found[1][1]) > 0
    for ours, theirs in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
