"""Weights and outputs of the original codes, made with IDEA's GroundingDINO and with MMDetection
3.3.0.
"""

import json

import numpy as np
import pytest
import torch

from groundtune.model.checkpoint.files import read_pth
from groundtune.model.checkpoint.load import bundle_of_pth_state, load_bundle
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import tokenize

FAMILIES = {"idea_tiny": "idea", "mmdet_mm_tiny": "mmdetection"}


@pytest.fixture(scope="module")
def golden(shared):
    """`golden(name)`: the stored numbers, what they were made with, and the model of the file
    beside them.
    """

    def read(name):
        stored = np.load(shared / f"golden/{name}_outputs.npz")
        state, family = read_pth(shared / f"golden/{name}.pth")
        assert family == FAMILIES[name]
        meta = json.loads(str(stored["meta_json"]))
        heads = meta["bert"]["num_attention_heads"]  # 4 of 16 channels, which no tensor tells
        return stored, meta, bundle_of_pth_state(state, family, name, bert_heads=heads)

    return read


def outputs(bundle, stored, meta):
    """Ours for the stored batch, with the padding leaking as it does in the originals."""
    bundle.network.exact_padding = False
    sizes_hw = [(int((~mask).any(1).sum()), int((~mask).any(0).sum())) for mask in stored["padding_mask"]]
    text, _ = tokenize(bundle.tokenizer, [class_prompt(meta["classes"])] * len(sizes_hw))
    with torch.no_grad():
        return bundle.network(torch.from_numpy(stored["pixel_values"]), sizes_hw, text)


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_equal_those_of_the_original_code(name, golden):
    """The 60 queries stand in the same order: no two scores are near enough to swap in float32."""
    stored, meta, bundle = golden(name)
    output = outputs(bundle, stored, meta)
    expected = torch.from_numpy(stored["pred_logits"])
    finite = expected.isfinite()
    assert torch.equal(finite, output["pred_logits"].isfinite()) and finite.sum() == 2 * 60 * 11
    assert (expected[finite] - output["pred_logits"][finite]).abs().max() <= 1e-4
    assert (torch.from_numpy(stored["pred_boxes"]) - output["pred_boxes"]).abs().max() <= 1e-5


def test_what_a_file_says_about_itself(golden):
    """Sizes of meta_json; IDEA shares its box head and clamps at 1e-3; MMDetection's head clamps at
    1e-5.
    """
    _, meta, idea = golden("idea_tiny")
    _, _, mm = golden("mmdet_mm_tiny")
    for config in (idea.config, mm.config):
        sizes, bert = meta["dims"], meta["bert"]
        assert config.d_model == 256
        assert (config.num_heads, config.num_queries) == (sizes["nheads"], sizes["queries"])
        assert (config.encoder_layers, config.decoder_layers, config.num_levels) == (2, 2, sizes["levels"])
        assert (config.ffn_dim, config.encoder_points) == (sizes["ffn"], sizes["points"])
        swin = config.backbone_config
        assert (swin["embed_dim"], swin["window_size"]) == (sizes["swin"]["embed"], sizes["swin"]["window"])
        assert (swin["depths"], swin["num_heads"]) == (sizes["swin"]["depths"], sizes["swin"]["heads"])
        assert {name: config.language_config[name] for name in bert} == bert
    assert (idea.config.decoder_eps, idea.config.head_eps) == (1e-3, 1e-3)
    assert (mm.config.decoder_eps, mm.config.head_eps) == (1e-3, 1e-5)
    assert idea.config.share_box_head and not mm.config.share_box_head and not mm.config.share_class_head
    assert (idea.config.contrastive_scale, idea.config.contrastive_bias) == ("none", False)
    assert (mm.config.contrastive_scale, mm.config.contrastive_bias) == ("auto", True)
    image = idea.image_format
    assert (idea.base_model, image.short_side, image.max_side) == ("idea_tiny", 800, 1333)


def test_mmdetections_denoising_labels_are_kept_through_a_save(golden, shared, tmp_path):
    from groundtune.model.checkpoint.save import save_bundle

    *_, bundle = golden("mmdet_mm_tiny")
    state, _ = read_pth(shared / "golden/mmdet_mm_tiny.pth")
    labels = state["dn_query_generator.label_embedding.weight"].float()
    assert not bundle.config.class_labels and labels.std() > 0
    save_bundle(bundle, tmp_path / "model")
    for kept in (bundle, load_bundle(tmp_path / "model")):
        assert torch.equal(kept.network.decoder.label_embedding.weight, labels)
        assert not kept.config.class_labels, "training must not start them anew"
