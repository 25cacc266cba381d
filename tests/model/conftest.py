"""Small networks and made-up batches for the tests of the network."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from groundtune.contracts import Output, Target
from groundtune.data.batch import pad_images
from groundtune.model.bundle import build_network
from groundtune.model.config import ModelConfig
from groundtune.model.detector import GroundingDINO
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import TextInput, tokenize

SWIN = {
    "image_size": 32,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES = {
    "d_model": 64,
    "num_heads": 4,
    "encoder_points": 2,
    "decoder_points": 2,
    "num_queries": 12,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_dim": 64,
    "fusion_dim": 32,
    "fusion_heads": 2,
    "fusion_droppath": 0.0,
    "text_ffn_dim": 64,
    "num_labels": 8,
}
KINDS = {
    "swin": {"backbone_config": SWIN, "language_config": BERT},
    "nano": {
        "backbone": "efficientnet-lite0",
        "language_config": BERT,
        "query_content": "selected",
        "contrastive_scale": "auto",
        "contrastive_bias": True,
    },
}


@dataclass
class Case:
    """A batch as the network takes it."""

    images: Tensor
    sizes_hw: list[tuple[int, int]]
    text: TextInput
    targets: list[Target]

    def run(self, network: GroundingDINO) -> Output:
        return network(self.images, self.sizes_hw, self.text, self.targets)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """`tiny_config(kind, **overrides)`: kind "swin" is IDEA's family in small, "nano" the preset's."""
    return lambda kind="swin", **overrides: ModelConfig(**{**SIZES, **KINDS[kind], **overrides})


@pytest.fixture(scope="session")
def tiny(tiny_config) -> Callable[..., GroundingDINO]:
    """`tiny(kind, frozen, **overrides)`: a network in eval mode whose zero and near-zero weights are made visible."""

    def make(kind: str = "swin", frozen=("backbone", "language_model"), **overrides) -> GroundingDINO:
        network = build_network(tiny_config(kind, **overrides))
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not name.startswith("backbone."):
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        network.freeze(list(frozen))
        return network

    return make


@pytest.fixture(scope="session")
def make_case(tokenizer) -> Callable[..., Case]:
    """`make_case(names, sizes_hw, counts, seed)`: noise images, and that many boxes of random classes in each."""

    def make(
        names: list[list[str]], sizes_hw: list[tuple[int, int]], counts: list[int], seed: int = 0
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)
        text, maps = tokenize(tokenizer, [class_prompt(group) for group in names])
        images, targets = [], []
        for index, (size_hw, count) in enumerate(zip(sizes_hw, counts, strict=True)):
            images.append(torch.randn(3, *size_hw, generator=generator))
            labels = torch.randint(len(names[index]), (count,), generator=generator)
            boxes = torch.rand(count, 4, generator=generator) * 0.4 + 0.2
            targets.append(Target(boxes, labels, labels, maps[index][labels], seed + index))
        return Case(pad_images(images), sizes_hw, text, targets)

    return make
