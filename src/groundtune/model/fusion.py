"""Vision-language fusion: attention between image positions and tokens in both directions.

Paper section 3.2; reference MMDetection `SingleScaleBiAttentionBlock`, IDEA `BiAttentionBlock`.

The reference projects every image position to the inner width three times. There are some thousand
positions and a dozen tokens, so here the three weights are folded into the token side, which gives
the same numbers: scores `(X Wq + bq) Kᵀ = X (Wq Kᵀ) + bq Kᵀ`; the vision update
`Σ_h P_h (V_h Wo_h)`; and the text update `(P_hᵀ X) Wv_h + bv_h`, because the weights of a row add
up to 1. No tensor of positions × inner width exists.

Deviations: the reference's text padding mask has no effect in MMDetection (a bool tensor filled
with −9e15 is True everywhere); here padded tokens and positions get weight 0. The reference's shift
by the global maximum is omitted, to which softmax is invariant. Its clamps at ±50000 apply in fp16
only, where a score can overflow.
"""

import torch
from torch import Tensor, nn


class BiAttention(nn.Module):
    """One score matrix, read by rows for one direction and by columns for the other."""

    def __init__(self, d_model: int, fusion_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (fusion_dim // num_heads) ** -0.5
        self.vision_proj = nn.Linear(d_model, fusion_dim)
        self.text_proj = nn.Linear(d_model, fusion_dim)
        self.values_vision_proj = nn.Linear(d_model, fusion_dim)
        self.values_text_proj = nn.Linear(d_model, fusion_dim)
        self.out_vision_proj = nn.Linear(fusion_dim, d_model)
        self.out_text_proj = nn.Linear(fusion_dim, d_model)
        for projection in self.children():
            assert isinstance(projection, nn.Linear)
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, inner) → (B, heads, T, c)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _split_heads(self, weight: Tensor) -> Tensor:
        """(inner, …) → (heads, c, …)."""
        return weight.unflatten(0, (self.num_heads, -1))

    def forward(
        self, vision: Tensor, text: Tensor, padding_mask: Tensor | None, text_token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the updates of both streams, (B, S, D) and (B, T, D).

        Args:
            vision, text: (B, S, D) and (B, T, D), normalized.
            padding_mask: (B, S) bool, True = padding; None if nothing is padded.
            text_token_mask: (B, T) bool, True = real token.
        """
        keys = self._heads(self.text_proj(text)) * self.scale  # (B, heads, T, c)
        text_values = self._heads(self.values_text_proj(text))
        into_scores = keys @ self._split_heads(self.vision_proj.weight)  # (B, heads, T, D)
        shift = keys @ self._split_heads(self.vision_proj.bias[:, None])  # (B, heads, T, 1)
        scores = into_scores.flatten(1, 2) @ vision.transpose(1, 2)  # (B, heads·T, S)
        scores = scores.unflatten(1, (self.num_heads, -1)) + shift
        out_weight = self._split_heads(self.out_vision_proj.weight.T)  # (heads, c, D)
        if scores.dtype == torch.float16:
            scores = scores.clamp(-50000, 50000)
        to_text = scores.masked_fill(~text_token_mask[:, None, :, None], float("-inf")).softmax(2)
        vision_update = to_text.flatten(1, 2).transpose(1, 2) @ (text_values @ out_weight).flatten(1, 2)
        vision_update = vision_update + self.out_vision_proj.bias
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask[:, None, None], float("-inf"))
        read = scores.softmax(-1).flatten(1, 2) @ vision
        read = read.unflatten(1, (self.num_heads, -1))  # (B, heads, T, D)
        values = read @ self._split_heads(self.values_vision_proj.weight).transpose(1, 2)
        values = values + self._split_heads(self.values_vision_proj.bias[:, None]).transpose(1, 2)
        return vision_update, self.out_text_proj(values.transpose(1, 2).flatten(2))


class FusionLayer(nn.Module):
    """Layer norm, bi-attention, layer scale (initially `gamma`) and stochastic depth.

    The residual is added to the normalized stream.
    """

    def __init__(self, d_model: int, fusion_dim: int, num_heads: int, drop_path: float, gamma: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.layer_norm_vision, self.layer_norm_text = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attn = BiAttention(d_model, fusion_dim, num_heads)
        self.gamma_vision = nn.Parameter(torch.full((d_model,), gamma))
        self.gamma_text = nn.Parameter(torch.full((d_model,), gamma))

    def _drop(self, update: Tensor) -> Tensor:
        """Apply stochastic depth, one draw per image, rescaled to preserve the expectation."""
        if self.drop_path == 0.0 or not self.training:
            return update
        survival = 1.0 - self.drop_path
        survives = torch.rand(len(update), 1, 1, dtype=update.dtype, device=update.device) < survival
        return update * survives / survival

    def forward(
        self, vision: Tensor, text: Tensor, padding_mask: Tensor | None, text_token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fuse: shapes and masks as in `BiAttention.forward`, returns the two updated streams."""
        vision, text = self.layer_norm_vision(vision), self.layer_norm_text(text)
        vision_update, text_update = self.attn(vision, text, padding_mask, text_token_mask)
        vision = vision + self._drop(self.gamma_vision * vision_update)
        return vision, text + self._drop(self.gamma_text * text_update)
