"""Attention and feed-forward blocks of encoder and decoder; encodings of positions and boxes.

The attention's four projections are separate `nn.Linear`s, which adapters reach, instead of the
packed matrix of `nn.MultiheadAttention`. Same arithmetic.

The sine encodings follow MMDetection `SinePositionalEncoding(normalize=True, offset=0)` and
`coordinate_to_encoding` (IDEA `PositionEmbeddingSineHW`, `gen_sineembed_for_position`). As there,
wavelengths and image positions are float32, also in a float64 network; bfloat16 would lose cells.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention, batch first, with `dropout` on the attention weights."""

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.q_proj, self.k_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.v_proj, self.out_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend: query (B, Q, D), key and value (B, K, D) → (B, Q, D).

        `allowed` is bool, broadcastable to (B, heads, Q, K); every query needs one True.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, ReLU, linear with a residual; the norm after it belongs to the layer."""

    def __init__(self, d_model: int, ffn_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(d_model, ffn_dim), nn.Linear(ffn_dim, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        return x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))


def sine_position_2d(padding_mask: Tensor, d_model: int, temperature: float) -> Tensor:
    """Encode the positions of a feature map, (B, h·w, D) float32; D/2 features for y, then x.

    Coordinates are scaled to (0, 2π] over the unpadded part of each image. `padding_mask` is
    (B, h, w) bool, True = padding; `temperature` is 20 in the Grounding DINO family.
    """
    valid = (~padding_mask).float()
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = y / (y[:, -1:, :] + 1e-6) * 2 * math.pi
    x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    frequencies = _frequencies(d_model // 2, temperature, y)
    encoded = [_interleaved_sine(coordinate[..., None] / frequencies) for coordinate in (y, x)]
    return torch.cat(encoded, dim=-1).flatten(1, 2)


def sine_position_text(position_ids: Tensor, d_model: int, dtype: torch.dtype) -> Tensor:
    """Encode token positions: (B, T) integers, 0 at the start of each phrase → (B, T, D)."""
    angles = position_ids[..., None].to(dtype) * 2 * math.pi
    return _interleaved_sine(angles / _frequencies(d_model, 10000.0, angles))


def sine_position_boxes(boxes_cxcywh: Tensor, d_model: int) -> Tensor:
    """Encode boxes: (B, Q, 4) in [0, 1] → (B, Q, 2·D), in the reference's order y, x, w, h."""
    angles = boxes_cxcywh[..., None] * 2 * math.pi / _frequencies(d_model // 2, 10000.0, boxes_cxcywh)
    x, y, w, h = _interleaved_sine(angles).unbind(-2)
    return torch.cat((y, x, w, h), dim=-1)


def _interleaved_sine(angles: Tensor) -> Tensor:
    """(…, F) angles → (…, F): sine of the even entries and cosine of the odd ones, interleaved."""
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def _frequencies(num_features: int, temperature: float, like: Tensor) -> Tensor:
    index = torch.arange(num_features, dtype=torch.float32, device=like.device)
    return temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / num_features)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """Logit of probabilities; `eps` clamps x and 1 − x from below and belongs to the weights."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def at_least_float32(x: Tensor) -> Tensor:
    """Widen bfloat16 and float16 to float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def sides_wh(level_shapes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 2) width and height of L maps on the device of `like`, in float32 or its float64.

    Bfloat16 would round sides over 256. The copy to a GPU does not make the host wait.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if torch.jit.is_tracing():  # sides are tensors then, which `torch.tensor` would make constants of
        sides = [torch.as_tensor(side).to(like.device, dtype) for h, w in level_shapes for side in (w, h)]
        return torch.stack(sides).view(-1, 2)
    sides_of = [[w, h] for h, w in level_shapes]
    return torch.tensor(sides_of, dtype=dtype).view(-1, 2).to(like.device, non_blocking=True)
