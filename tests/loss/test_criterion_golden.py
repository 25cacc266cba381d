"""Every loss term and every gradient of MMDetection 3.3.0's head, from its own run (tests/golden)."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from groundtune.boxes import xyxy_to_cxcywh
from groundtune.loss.criterion import GroundingDINOCriterion, total

IMAGES = 4


def _golden(golden_files, seed):
    stored = np.load(golden_files / f"mmdet_head_seed{seed}.npz")
    arrays = {name: torch.from_numpy(stored[name]) for name in stored.files if name != "meta_json"}
    return arrays, json.loads(str(stored["meta_json"]))


def _targets(arrays, meta):
    height, width = meta["image_size_hw"]
    targets = []
    for i in range(IMAGES):
        boxes = xyxy_to_cxcywh(arrays[f"gt{i}_boxes_xyxy"] / torch.tensor([width, height, width, height]))
        positive_map = arrays[f"gt{i}_positive_map"] > 0
        targets.append(SimpleNamespace(boxes_cxcywh=boxes, positive_map=positive_map, confidence=None))
    return targets


def _outputs(arrays, meta):
    num_dn, groups = meta["dn_meta"]["num_denoising_queries"], meta["dn_meta"]["num_denoising_groups"]
    layers = list(zip(arrays["cls"], arrays["box"], strict=True))
    matching = [{"pred_logits": cls[:, num_dn:], "pred_boxes": box[:, num_dn:]} for cls, box in layers]
    return {
        **matching[-1],
        "text_token_mask": arrays["mask"],
        "aux_outputs": matching[:-1],
        "enc_outputs": {"pred_logits": arrays["enc_cls"], "pred_boxes": arrays["enc_box"]},
        "dn_outputs": [
            {"pred_logits": cls[:, :num_dn], "pred_boxes": box[:, :num_dn]} for cls, box in layers
        ],
        "dn_meta": {"num_groups": groups, "group_size": num_dn // groups},
    }


def _criterion(meta):
    weights, cost = meta["loss_weights"], meta["matcher"]
    return GroundingDINOCriterion(
        weights["loss_cls"], weights["loss_bbox"], weights["loss_iou"], **_focal(meta),
        cost_cls=cost["focal"], cost_bbox=cost["l1"], cost_giou=cost["giou"],
    )  # fmt: skip


def _focal(meta):
    return {"focal_alpha": meta["focal"]["alpha"], "focal_gamma": meta["focal"]["gamma"]}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_golden_terms_of_every_head(golden_files, seed):
    """The cases also have prompts that differ, costs of both signs and targets of auxiliary layers."""
    arrays, meta = _golden(golden_files, seed)
    terms = _criterion(meta)(_outputs(arrays, meta), _targets(arrays, meta))
    losses = {name: value.item() for name, value in terms.items() if "loss_" in name}
    ours = {name.replace("loss_giou", "loss_iou"): value for name, value in losses.items()}
    assert ours == pytest.approx(meta["losses"], rel=1e-4)
    assert total(terms).item() == pytest.approx(meta["total"], rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_golden_gradients_of_logits_and_boxes(golden_files, seed):
    arrays, meta = _golden(golden_files, seed)
    names = ["cls", "box", "enc_cls", "enc_box"]
    for name in names:
        arrays[name].requires_grad_()
    total(_criterion(meta)(_outputs(arrays, meta), _targets(arrays, meta))).backward()
    for name in names:
        ours, theirs = arrays[name].grad, arrays[f"grad_{name}"]
        assert torch.isfinite(ours).all(), name
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item() * 1e-2, msg=name
        )
        if name.endswith("cls"):
            assert (ours[~torch.isfinite(arrays[name])] == 0).all()


def test_default_class_weight_doubles_the_reference_term(golden_files):
    arrays, meta = _golden(golden_files, 0)
    terms = GroundingDINOCriterion()(_outputs(arrays, meta), _targets(arrays, meta))
    assert terms["loss_cls"].item() == pytest.approx(2 * meta["losses"]["loss_cls"], rel=1e-4)
    assert terms["loss_bbox"].item() == pytest.approx(meta["losses"]["loss_bbox"], rel=1e-4)
