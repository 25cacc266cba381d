"""Convolution that is right in bfloat16 for maps of every shape."""

import torch
from torch import Tensor, nn

_NARROW = 2  # cells of the output; the fault was seen with one


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that computes narrow maps in float32 where it has a stride.

    On CPUs with AMX, torch's (2.13) bfloat16 convolutions with a stride, all of whose channels are
    one group, read uninitialized memory if the map is at most two cells wide: their results are
    NaN now and then, and wrong at all times. The result is rounded to bfloat16 all the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C', h', w')."""
        bf16 = torch.is_autocast_enabled("cpu") and input.device.type == "cpu"
        if not bf16 or self.groups > 1 or self.stride == (1, 1) or not self._is_narrow(input):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))

    def _is_narrow(self, input: Tensor) -> bool:
        sides = [input.shape[2 + i] + 2 * int(self.padding[i]) - self.kernel_size[i] for i in (0, 1)]
        return min(side // step for side, step in zip(sides, self.stride, strict=True)) < _NARROW
