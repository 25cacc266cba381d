"""The feature enhancer: fusion, text self-attention and deformable self-attention in each layer.

Paper section 3.2 and figure 3, block 2; reference MMDetection `GroundingDinoTransformerEncoder`.
Deviation: the text mask is broadcast over heads per image (the reference repeats it in an order
that mixes images).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groundtune.model.attention import (
    FeedForward,
    MultiheadAttention,
    sides_wh,
    sine_position_2d,
    sine_position_text,
)
from groundtune.model.deformable import DeformableAttention
from groundtune.model.fusion import FusionLayer
from groundtune.model.prompt_tuning import PhraseOffsets
from groundtune.text.tokens import TextInput


@dataclass
class Memory:
    """The encoder's output, which the decoder reads."""

    vision: Tensor  # (B, S, D) positions of all levels, one level after another
    text: Tensor  # (B, T, D) tokens
    text_token_mask: Tensor  # (B, T) bool, True = real
    level_shapes: list[tuple[int, int]]  # (h, w) of each of the L levels
    padding_mask: Tensor | None  # (B, S) bool, True = padding; None if nothing is padded
    valid_ratios: Tensor  # (B, L, 2) xy, the share of each level's canvas that is image; 1 without padding


class TextLayer(nn.Module):
    """Self-attention of the tokens within their phrase."""

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, num_heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.ffn = FeedForward(d_model, ffn_dim, dropout)

    def forward(self, text: Tensor, positions: Tensor, phrase_mask: Tensor) -> Tensor:
        """(B, T, D) tokens and positions, (B, T, T) bool True = may attend → (B, T, D)."""
        query = text + positions
        text = self.norm1(text + self.self_attn(query, query, text, phrase_mask[:, None]))
        return self.norm2(self.ffn(text))


class DeformableLayer(nn.Module):
    """Deformable self-attention of the image positions over all levels."""

    def __init__(
        self, d_model: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float
    ):
        super().__init__()
        self.self_attn = DeformableAttention(d_model, num_heads, num_levels, num_points)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.ffn = FeedForward(d_model, ffn_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        vision: Tensor,
        positions: Tensor,
        references: Tensor,
        level_shapes: list[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """(B, S, D) features, (B, S', D) positions, (B, S', L, 2) reference points → (B, S, D).

        Only the last S' positions attend; those before them are read.
        """
        first = vision.shape[1] - positions.shape[1]
        queries = vision[:, first:]
        attended = self.self_attn(queries + positions, references, vision, level_shapes, padding_mask)
        queries = self.norm2(self.ffn(self.norm1(queries + self.dropout(attended))))
        return torch.cat((vision[:, :first], queries), 1) if first else queries


class Encoder(nn.Module):
    """Text projection, level embedding, and a stack of (fusion, text layer, deformable layer)."""

    def __init__(
        self,
        text_width: int,
        layers: list[tuple[FusionLayer, TextLayer, DeformableLayer]],
        d_model: int,
        num_levels: int,
        position_temperature: float,
        skip_finest: bool = False,
    ) -> None:
        super().__init__()
        self.d_model, self.position_temperature = d_model, position_temperature
        self.skip_finest = skip_finest  # its positions attend to the text only (Lite DETR, Li et al. 2023)
        self.gradient_checkpointing = False  # recompute each layer's activations in the backward pass
        self.text_projection = nn.Linear(text_width, d_model)
        nn.init.xavier_uniform_(self.text_projection.weight)
        nn.init.zeros_(self.text_projection.bias)
        self.phrase_offsets: PhraseOffsets | None = None  # of prompt tuning
        self.level_embed = nn.Parameter(torch.empty(num_levels, d_model).normal_())
        self.fusion_layers = nn.ModuleList(fusion for fusion, _, _ in layers)
        self.text_layers = nn.ModuleList(text for _, text, _ in layers)
        self.layers = nn.ModuleList(deformable for _, _, deformable in layers)

    def with_offsets(self, text_features: Tensor, text: TextInput) -> Tensor:
        """Add the learned offsets of class names, if there are any."""
        return text_features if self.phrase_offsets is None else self.phrase_offsets(text_features, text)

    def forward(
        self, maps: list[Tensor], masks: list[Tensor] | None, text_features: Tensor, text: TextInput
    ) -> Memory:
        """Enhance image and text features by each other.

        Args:
            maps: L neck maps (B, D, h_l, w_l).
            masks: L padding masks (B, h_l, w_l), True = padding; None if nothing is padded.
            text_features: (B, T, text width) of the language model.
            text: masks and positions of its tokens.
        """
        level_shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        vision = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        positions, valid_ratios = self._image_positions(maps, masks)
        references = reference_points(level_shapes, valid_ratios)
        first = level_shapes[0][0] * level_shapes[0][1] if self.skip_finest else 0
        positions, references = positions[:, first:], references[:, first:]
        padding_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1) if masks is not None else None
        tokens = self.text_projection(text_features)
        token_positions = sine_position_text(text.position_ids, self.d_model, tokens.dtype)

        def enhance(parts: tuple[nn.Module, ...], vision: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            fusion, text_layer, layer = parts
            vision, tokens = fusion(vision, tokens, padding_mask, text.text_token_mask)
            tokens = text_layer(tokens, token_positions, text.phrase_mask)
            return layer(vision, positions, references, level_shapes, padding_mask), tokens

        for parts in zip(self.fusion_layers, self.text_layers, self.layers, strict=True):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                vision, tokens = checkpoint(enhance, parts, vision, tokens, use_reentrant=False)
            else:
                vision, tokens = enhance(parts, vision, tokens)
        return Memory(vision, tokens, text.text_token_mask, level_shapes, padding_mask, valid_ratios)

    def _image_positions(self, maps: list[Tensor], masks: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return position plus level embedding (B or 1, S, D), and valid ratios (B, L, 2)."""
        dtype = torch.float64 if maps[0].dtype == torch.float64 else torch.float32
        if masks is None:
            masks = [torch.zeros(1, *x.shape[-2:], dtype=torch.bool, device=x.device) for x in maps]
            valid_ratios = torch.ones(maps[0].shape[0], len(maps), 2, dtype=dtype, device=maps[0].device)
        else:
            valid_ratios = torch.stack([valid_ratio(mask, dtype) for mask in masks], dim=1)
        positions = [
            sine_position_2d(mask, self.d_model, self.position_temperature).to(dtype) + embedding
            for mask, embedding in zip(masks, self.level_embed, strict=True)
        ]
        return torch.cat(positions, dim=1), valid_ratios


def valid_ratio(padding_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, h, w) bool, True = padding → (B, 2) xy share of the canvas that is image."""
    real = (~padding_mask).to(dtype)
    return torch.stack((real[:, 0].mean(-1), real[:, :, 0].mean(-1)), dim=-1)


def reference_points(level_shapes: list[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """Return the center of every position, (B, S, L, 2) xy in [0, 1] of every level's canvas."""
    centers = []
    for level, ((h, w), canvas_wh) in enumerate(
        zip(level_shapes, sides_wh(level_shapes, valid_ratios), strict=True)
    ):
        centers.append(cell_centers(h, w, valid_ratios) / canvas_wh / valid_ratios[:, None, level])
    return torch.cat(centers, dim=1)[:, :, None] * valid_ratios[:, None]


def cell_centers(h: int, w: int, like: Tensor) -> Tensor:
    """Return the centers of a map's cells, (1, h·w, 2) xy in cells, row by row."""
    y, x = (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5 for side in (h, w))
    return torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).view(1, -1, 2)
