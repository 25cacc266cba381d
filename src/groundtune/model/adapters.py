"""LoRA (Hu et al., 2021): low-rank matrices beside the linear layers of encoder and decoder.

An adapted layer computes with W + (alpha / rank)·B·A, where B is initially 0; A and B train, and
the heads with them. Merging adds the product to W and restores the plain network. Names,
initialization and arithmetic are those of `peft`, which can read the saved adapters.
"""

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from groundtune.model.detector import GroundingDINO

HEADS = ("bbox_head", "decoder.label_embedding")  # train fully beside the adapters, and are saved with them
LAYERS = (
    r"(encoder|decoder)\..*"
    r"(_proj|linear[12]|sampling_offsets|attention_weights|text_projection|memory_trans_fc|ref_point_head\.layers\.\d+)"
)


class AdaptedLinear(nn.Module):
    """A linear layer with an adapter.

    The fusion reads weights instead of calling layers. `weight` therefore includes the adapter,
    which would get no gradient otherwise.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.base_layer = base
        a, b = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        nn.init.zeros_(b.weight)
        self.lora_A = nn.ModuleDict({"default": a.to(base.weight)})
        self.lora_B = nn.ModuleDict({"default": b.to(base.weight)})

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x)) * self.scaling

    @property
    def delta(self) -> Tensor:
        """The adapter's part of the weight, (out, in)."""
        a, b = (self.get_parameter(f"lora_{letter}.default.weight") for letter in "AB")
        return (b @ a) * self.scaling

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight + self.delta

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias


def add_adapters(network: GroundingDINO, rank: int, alpha: float, seed: int = 0) -> None:
    """Put adapters into a network without any, in place, and freeze its other weights.

    Its outputs do not change, bit for bit, until the adapters train. The product of the matrices A
    (rank, in) and B (out, rank) is scaled by alpha / rank. A is drawn from the seed, equal in all
    processes; the global random state does not change.
    """
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.Linear) and re.fullmatch(LAYERS, name):
                network.set_submodule(name, AdaptedLinear(module, rank, alpha))


def adapted_layers(network: GroundingDINO) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield the adapted layers with their names."""
    for name, module in network.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


@torch.no_grad()
def merge_adapters(network: GroundingDINO) -> None:
    """Add the adapters, if any, to the weights and remove them, in place."""
    for name, layer in list(adapted_layers(network)):
        layer.base_layer.weight += layer.delta
        network.set_submodule(name, layer.base_layer)
        network.frozen.discard(f"{name}.base_layer")


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's matrix."""
    return ".lora_A." in name or ".lora_B." in name


def is_head(name: str) -> bool:
    """Whether a parameter's name is that of one of `HEADS`."""
    return name.startswith(tuple(f"{path}." for path in HEADS))


def adapter_weights(network: GroundingDINO) -> dict[str, Tensor]:
    """Return the adapters and the heads by their names, a shared head once."""
    parameters = network.named_parameters()
    return {name: value.detach() for name, value in parameters if is_adapter(name) or is_head(name)}


def base_weights(network: GroundingDINO) -> dict[str, Tensor]:
    """Return all weights but adapters and heads, by the names that they have without adapters."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict().items()
        if not is_adapter(name) and not is_head(name)
    }
