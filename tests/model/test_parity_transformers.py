"""transformers' models, saved by transformers and loaded by us: the same logits, the same boxes,
for both families.
"""

import pytest
import torch
from oracle_models import CASES, oracle

from groundtune.model.checkpoint.load import load_bundle
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import tokenize


@pytest.fixture
def load_ours(tokenizer, tmp_path):
    def load(model):
        """Through the files, as a user would."""
        model.save_pretrained(tmp_path / "theirs")
        tokenizer.save_pretrained(tmp_path / "theirs")
        bundle = load_bundle(tmp_path / "theirs")
        bundle.network.exact_padding = False  # the oracle lets padding leak, see detector.py
        return bundle.network

    return load


def differences(expected, output):
    finite = expected.logits.isfinite()
    assert torch.equal(finite, output["pred_logits"].isfinite())
    logits = (expected.logits[finite] - output["pred_logits"][finite]).abs().max()
    return float(logits), float((expected.pred_boxes - output["pred_boxes"]).abs().max())


@pytest.mark.parametrize(("family", "heads", "stages"), CASES)
def test_logits_and_boxes_equal_transformers(family, heads, stages, load_ours, tokenizer):
    """Ragged prompts and padded images; 20 queries of hundreds of positions, whose scores are far
    apart in float32.
    """
    model = oracle(family, heads, stages)
    network = load_ours(model)
    images = torch.randn(3, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    sizes_hw = [(128, 192), (96, 128), (64, 192)]
    pixel_mask = torch.zeros(3, 128, 192, dtype=torch.long)
    for row, (h, w) in enumerate(sizes_hw):
        images[row, :, h:], images[row, :, :, w:] = 0.0, 0.0
        pixel_mask[row, :h, :w] = 1
    names = [["cat"], ["red blood cell", "remote control", "platelet"], ["zebra", "traffic light"]]
    text, _ = tokenize(tokenizer, [class_prompt(group) for group in names])
    with torch.no_grad():
        expected = model(
            pixel_values=images,
            pixel_mask=pixel_mask,
            input_ids=text.input_ids,
            attention_mask=text.text_token_mask.long(),
        )
        logits, boxes = differences(expected, network(images, sizes_hw, text))
    assert logits <= 1e-4 and boxes <= 1e-5


@pytest.mark.parametrize(("family", "heads", "stages"), CASES)
def test_float64_parity(family, heads, stages, load_ours, tokenizer):
    """In float64 no near-tie of the query selection can swap: the outputs agree far below float32's
    resolution.
    """
    model = oracle(family, heads, stages, queries=30)
    network = load_ours(model).double()
    model = model.double()
    images = torch.randn(1, 3, 160, 128, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    text, _ = tokenize(tokenizer, [class_prompt(["cat", "sofa"])])
    with torch.no_grad():
        torch.set_default_dtype(torch.float64)  # the oracle pads its logits in the default type
        try:
            expected = model(pixel_values=images, input_ids=text.input_ids)
        finally:
            torch.set_default_dtype(torch.float32)
        logits, boxes = differences(expected, network(images, [(160, 128)], text))
    assert logits <= 1e-8 and boxes <= 1e-8


def test_heads_that_differ_stay_apart_where_the_configuration_leaves_the_flags_out(load_ours, tmp_path):
    import json

    model = oracle(
        "mm-grounding-dino", {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}, [2, 3, 4]
    )
    load_ours(model)
    path = tmp_path / "theirs/config.json"
    settings = json.loads(path.read_text())
    del settings["decoder_bbox_embed_share"], settings["decoder_cls_embed_share"]
    path.write_text(json.dumps(settings))
    head = load_bundle(tmp_path / "theirs").network.bbox_head
    for layer in range(3):
        assert torch.equal(
            head.reg_branches[layer].layers[0].weight, model.bbox_embed[layer].layers[0].weight
        )
        assert head.cls_branches[layer].bias.item() == model.class_embed[layer].bias.item()
