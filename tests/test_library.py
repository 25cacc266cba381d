"""The example of Groundtune's loss in an own training loop, on a small random model of
transformers.
"""

import importlib.util
import statistics
from pathlib import Path

import pytest
import torch
from oracle_models import oracle
from transformers import GroundingDinoImageProcessor, GroundingDinoProcessor

from groundtune.data.scenes import write_scenes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("own_training_loop", ROOT / "examples/own_training_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def processor(tokenizer):
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return GroundingDinoProcessor(images, tokenizer)


def test_the_loss_of_four_images_falls(example, processor, tmp_path):
    write_scenes(tmp_path, train=4, valid=1, size=64, classes=["red circle", "blue star"])
    samples, names = example.read_coco(tmp_path / "train/_annotations.coco.json", tmp_path / "train")
    model = oracle("grounding-dino", {"decoder_bbox_embed_share": True}, [2, 3, 4])
    losses = example.train(model, processor, samples, names, steps=40, batch_size=4, lr=2e-3)
    assert statistics.mean(losses[-5:]) < 0.7 * statistics.mean(losses[:2])
    assert all(parameter.grad is None for parameter in model.model.backbone.parameters())


def test_the_heads_are_those_of_transformers(example, processor):
    model = oracle("grounding-dino", {"decoder_bbox_embed_share": False}, [1, 2, 3, 4])
    pixels = torch.zeros(1, 3, 64, 96)
    text = processor.tokenizer(["cat. red dog. "], return_tensors="pt")
    with torch.no_grad():
        outputs = model(pixel_values=pixels, **text)
        heads = example.prediction_heads(model, outputs, text["attention_mask"].bool())
    torch.testing.assert_close(heads["pred_logits"], outputs.logits)
    torch.testing.assert_close(heads["pred_boxes"], outputs.pred_boxes)
    assert len(heads["aux_outputs"]) == model.config.decoder_layers - 1


def test_targets_are_relative_to_the_image_and_mark_the_tokens_of_the_phrase(example, tokenizer):
    from groundtune.text.prompt import class_prompt
    from groundtune.text.tokens import create_positive_map

    prompt = class_prompt(["cat", "red dog"])
    phrase_map = create_positive_map(tokenizer([prompt.caption]), prompt.spans)
    target = example.make_target(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), [1], (100, 200), phrase_map)
    assert target.boxes_cxcywh.tolist() == [
        [0.25, pytest.approx(0.2), pytest.approx(0.3), pytest.approx(0.2)]
    ]
    assert target.positive_map.nonzero()[:, 1].tolist() == [3, 4]  # [CLS] cat . red dog .
