"""LoRA (Hu et al., 2021): low-rank matrices beside the linear layers of encoder and decoder, by `peft`.

A layer with the weight W computes with W + (alpha / rank)·B·A, where B is 0 at first; A and B train, and the heads with them.
Merged, the network is a plain one again.

peft's LoRA layer, as the network's linear layers need it. Importing it imports peft, which takes a second.

Deviation: the fusion reads weights in place of calling the layers (it folds them into the token side). peft's `weight` is the
base's alone, and adapters behind it would never get a gradient, the fate of those of `nn.MultiheadAttention.out_proj`
elsewhere (pitfall 29); here it is the adapted one.
"""

from __future__ import annotations

import torch
from peft.tuners import lora
from torch import Tensor, nn

from groundtune.model.detector import GroundingDINO


class AdaptedLinear(lora.Linear):
    """A linear layer with the weight W + (alpha / rank)·B·A, for those who call it and for those who read it."""

    @property
    def weight(self) -> Tensor:
        return super().weight + self.get_delta_weight("default")


HEADS = ("bbox_head", "decoder.label_embedding")  # train fully beside the adapters, and are saved with them
_LAYERS = (
    r"(encoder|decoder)\..*"
    r"(_proj|linear[12]|sampling_offsets|attention_weights|text_projection|memory_trans_fc|ref_point_head\.layers\.\d+)"
)


def add_adapters(network: GroundingDINO, rank: int, alpha: float, seed: int = 0) -> None:
    """Put adapters into a network, in place; its outputs stay, bit for bit, until they train.

    Args:
        network: one without adapters.
        rank: of the matrices A (rank, in) and B (out, rank).
        alpha: their product counts alpha / rank.
        seed: of A; the global random state is left as it was, so that all processes have the same.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from groundtune.model.adapters import AdaptedLinear

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_LAYERS)  # type: ignore[arg-type]
    config._register_custom_module({nn.Linear: AdaptedLinear})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)


@torch.no_grad()
def merge_adapters(network: GroundingDINO) -> None:
    """Add the adapters to the weights and take them out, in place; a network without adapters stays as it is."""
    from groundtune.model.adapters import AdaptedLinear

    for name, module in list(network.named_modules()):
        if isinstance(module, AdaptedLinear):
            module.merge()
            network.set_submodule(name, module.get_base_layer())
            network.frozen.discard(f"{name}.base_layer")
    network.__dict__.pop("peft_config", None)  # what peft left there


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's matrix."""
    return ".lora_A." in name or ".lora_B." in name


def adapter_weights(network: GroundingDINO) -> dict[str, Tensor]:
    """The adapters and the heads by their names, a shared head once."""
    heads = tuple(f"{path}." for path in HEADS)
    return {
        name: parameter.detach()
        for name, parameter in network.named_parameters()
        if is_adapter(name) or name.startswith(heads)
    }


def base_weights(network: GroundingDINO) -> dict[str, Tensor]:
    """What the adapters stand on: all weights but the heads, by the names that they have without adapters."""
    heads = tuple(f"{path}." for path in HEADS)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict().items()
        if not is_adapter(name) and not name.startswith(heads)
    }
