"""The box head: contrastive class logits and box refinements, one branch each per layer.

Reference: MMDetection `ContrastiveEmbed` and `GroundingDINOHead`. Inside the network the logits
have T columns; `pad_logits` widens them once, in the outputs.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundtune.contracts import LayerOutput
from groundtune.model.attention import at_least_float32

# Logit of a query that no position fills: a probability of 1e-13, too small for any loss or top-k.
ABSENT_LOGIT = -30.0


class ContrastiveEmbed(nn.Module):
    """Class logit of a query for a token: their dot product, optionally scaled and shifted.

    Args:
        scale: "none" (IDEA), "auto" (÷ sqrt(D)) or "learnable" (× exp(log_scale)).
        bias: add a learned bias, which starts at a prior probability of 1 %.
    """

    def __init__(self, scale: str, bias: bool) -> None:
        super().__init__()
        if scale not in ("none", "auto", "learnable"):
            raise ValueError(f"contrastive scale {scale!r}: expected 'none', 'auto' or 'learnable'")
        self.auto_scale = scale == "auto"
        self.log_scale = nn.Parameter(torch.zeros(1)) if scale == "learnable" else None
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - 0.01) / 0.01))) if bias else None

    def forward(self, queries: Tensor, tokens: Tensor, text_token_mask: Tensor) -> Tensor:
        """(B, Q, D), (B, T, D), (B, T) bool True = real → (B, Q, T), −inf on padded tokens."""
        with torch.autocast(queries.device.type, enabled=False):
            logits = at_least_float32(queries) @ at_least_float32(tokens).transpose(-1, -2)
            if self.log_scale is not None:
                logits = logits * self.log_scale.exp()
            if self.auto_scale:
                logits = logits / math.sqrt(queries.shape[-1])
            if self.bias is not None:
                logits = logits + self.bias
        return logits.masked_fill(~text_token_mask[:, None], float("-inf"))


def pad_logits(logits: Tensor, max_text_len: int) -> Tensor:
    """(…, T) → (…, max_text_len), −inf in the new columns."""
    return F.pad(logits, (0, max_text_len - logits.shape[-1]), value=float("-inf"))


class MLP(nn.Module):
    """Linear layers with ReLU between them; with `zero_last` the initial output is 0."""

    def __init__(self, widths: list[int], zero_last: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        if zero_last:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(…, widths[0]) → (…, widths[-1])."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class BoxHead(nn.Module):
    """Class and box branches of all decoder layers, which may share one, and, last, of the encoder.

    `eps` is the lower clamp of the inverse sigmoid in the boxes, `max_text_len` the number of
    columns of the logits in the network's outputs.
    """

    def __init__(
        self,
        cls_branches: Sequence[ContrastiveEmbed],
        reg_branches: Sequence[MLP],
        eps: float,
        max_text_len: int,
    ) -> None:
        super().__init__()
        self.eps, self.max_text_len = eps, max_text_len
        self.cls_branches, self.reg_branches = nn.ModuleList(cls_branches), nn.ModuleList(reg_branches)

    def layer_output(
        self, logits: Tensor, boxes: Tensor, absent: Tensor | None, text_token_mask: Tensor
    ) -> LayerOutput:
        """Pad the logits (B, Q, T), with `ABSENT_LOGIT` for absent queries."""
        if absent is not None:
            absent = F.pad(absent, (logits.shape[1] - absent.shape[1], 0), value=False)
            logits = logits.masked_fill(absent[..., None] & text_token_mask[:, None], ABSENT_LOGIT)
        return LayerOutput(pred_logits=pad_logits(logits, self.max_text_len), pred_boxes=boxes)
