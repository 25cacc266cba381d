"""Same weights in our network and in transformers' port: same logits, same boxes."""

import pytest
import torch
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

from groundtune.model.bundle import build_network
from groundtune.model.checkpoint.names import transformers_to_ours
from groundtune.model.config import ModelConfig
from groundtune.model.detector import GroundingDINO
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import tokenize

SWIN = {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def oracle(share: bool, queries: int) -> GroundingDinoForObjectDetection:
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**SWIN, out_indices=[2, 3, 4]),
        text_config=BertConfig(**BERT),
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=queries,
        decoder_bbox_embed_share=share,
        dropout=0.0,
    )
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # zeros and tiny scales at initialisation would hide mistakes
            if "fusion_layer" in name and name.endswith("param"):
                parameter.fill_(0.3)
            elif "backbone" not in name and parameter.std() < 0.2:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def ours(model: GroundingDinoForObjectDetection, share: bool, queries: int) -> GroundingDINO:
    network = build_network(
        ModelConfig(
            backbone_config=SWIN,
            language_config=BERT,
            d_model=64,
            num_heads=4,
            encoder_layers=2,
            decoder_layers=3,
            ffn_dim=128,
            fusion_dim=64,
            fusion_heads=2,
            text_ffn_dim=64,
            num_queries=queries,
            share_box_head=share,
            num_labels=4,
        )
    )
    state = {transformers_to_ours(name, 3, 3): tensor for name, tensor in model.state_dict().items()}
    assert None not in state
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and missing == ["decoder.label_embedding.weight"]
    return network.eval()


@pytest.mark.parametrize("share", [True, False])
def test_logits_and_boxes_equal_transformers(share, tokenizer):
    """Ragged prompts and a padded picture. The oracle lets padding leak (`exact_padding=False`), see detector.py."""
    model = oracle(share, queries=20)
    network = ours(model, share, queries=20)
    network.exact_padding = False
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
        output = network(images, sizes_hw, text)
    finite = expected.logits.isfinite()
    assert torch.equal(finite, output["pred_logits"].isfinite())
    assert (expected.logits[finite] - output["pred_logits"][finite]).abs().max() <= 1e-4
    assert (expected.pred_boxes - output["pred_boxes"]).abs().max() <= 1e-5


def test_float64_parity(tokenizer):
    """In float64 no near-tie of the query selection can swap: the outputs agree far below float32's resolution."""
    model = oracle(True, queries=30).double()
    network = ours(model, True, queries=30).double()
    images = torch.randn(1, 3, 160, 128, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    text, _ = tokenize(tokenizer, [class_prompt(["cat", "sofa"])])
    with torch.no_grad():
        torch.set_default_dtype(torch.float64)  # the oracle pads its logits in the default type
        try:
            expected = model(pixel_values=images, input_ids=text.input_ids)
        finally:
            torch.set_default_dtype(torch.float32)
        output = network(images, [(160, 128)], text)
    finite = expected.logits.isfinite()
    assert (expected.logits[finite] - output["pred_logits"][finite]).abs().max() <= 1e-8
    assert (expected.pred_boxes - output["pred_boxes"]).abs().max() <= 1e-8
