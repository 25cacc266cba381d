"""peft's LoRA layer, as the network's linear layers need it. Importing it imports peft, which takes a second.

Deviation: the fusion reads weights in place of calling the layers (it folds them into the token side). peft's `weight` is the
base's alone, and adapters behind it would never get a gradient, the fate of those of `nn.MultiheadAttention.out_proj`
elsewhere (pitfall 29); here it is the adapted one.
"""

from peft.tuners import lora
from torch import Tensor


class AdaptedLinear(lora.Linear):
    """A linear layer with the weight W + (alpha / rank)·B·A, for those who call it and for those who read it."""

    @property
    def weight(self) -> Tensor:
        return super().weight + self.get_delta_weight("default")
