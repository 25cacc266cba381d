"""Small networks and made-up batches for the tests of the network."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tiny_models import tiny_network
from torch import Tensor

from groundtune.contracts import Output, Target
from groundtune.data.batch import pad_images
from groundtune.model.detector import GroundingDINO
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import TextInput, tokenize


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
def tiny() -> Callable[..., GroundingDINO]:
    """`tiny(kind, frozen, **overrides)`: see `tiny_models.tiny_network`."""
    return tiny_network


@pytest.fixture(scope="session")
def make_case(tokenizer) -> Callable[..., Case]:
    """`make_case(names, sizes_hw, counts, seed)`: noise images, and that many boxes of random
    classes in each.
    """

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
