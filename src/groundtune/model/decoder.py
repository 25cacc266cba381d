"""The cross-modality decoder and the proposals that it starts from.

Paper sections 3.3–3.4; reference MMDetection `GroundingDinoTransformerDecoder` and Deformable
DETR's two-stage proposals. Each layer refines the boxes: it predicts from the previous layer's
undetached reference (look-forward-twice), and the next layer samples from a detached copy.
"""

import torch
from torch import Tensor, nn

from groundtune.model.attention import (
    FeedForward,
    MultiheadAttention,
    inverse_sigmoid,
    sides_wh,
    sine_position_boxes,
)
from groundtune.model.deformable import DeformableAttention
from groundtune.model.encoder import Memory, cell_centers
from groundtune.model.head import MLP


class DecoderLayer(nn.Module):
    """Self-attention, attention to the tokens, deformable attention to the image, feed-forward."""

    def __init__(
        self, d_model: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, num_heads, dropout)
        self.cross_attn_text = MultiheadAttention(d_model, num_heads, dropout)
        self.cross_attn = DeformableAttention(d_model, num_heads, num_levels, num_points)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.norm3, self.norm4 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.ffn = FeedForward(d_model, ffn_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, positions: Tensor, references: Tensor, memory: Memory, allowed: Tensor | None
    ) -> Tensor:
        """Update the queries: (B, Q, D) → (B, Q, D).

        Args:
            queries, positions: (B, Q, D) content, and encoding of the reference boxes.
            references: (B, Q, L, 4) boxes cxcywh on each level's canvas.
            memory: both modalities.
            allowed: bool, broadcastable to (B, heads, Q, Q), True = may attend; None: all may.
        """
        query = queries + positions
        queries = self.norm1(queries + self.dropout(self.self_attn(query, query, queries, allowed)))
        real = memory.text_token_mask[:, None, None]
        attended = self.cross_attn_text(queries + positions, memory.text, memory.text, real)
        queries = self.norm2(queries + self.dropout(attended))
        image = memory.vision, memory.level_shapes, memory.padding_mask
        attended = self.cross_attn(queries + positions, references, *image)
        queries = self.norm3(queries + self.dropout(attended))
        return self.norm4(self.ffn(queries))


class Decoder(nn.Module):
    """Query selection's projection, the query and label embeddings, and the stack of layers.

    Args:
        num_queries: Q.
        learned_queries: learn the queries' content (the reference) or take that of the positions.
        num_labels: rows of the denoising label embedding.
        eps: lower clamp of the inverse sigmoid between layers.
    """

    def __init__(
        self,
        layers: list[DecoderLayer],
        d_model: int,
        num_queries: int,
        learned_queries: bool,
        num_labels: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.num_queries, self.eps, self.d_model = num_queries, eps, d_model
        self.memory_trans_fc, self.memory_trans_norm = nn.Linear(d_model, d_model), nn.LayerNorm(d_model)
        self.query_embedding = nn.Embedding(num_queries, d_model) if learned_queries else None
        self.label_embedding = nn.Embedding(num_labels, d_model)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(d_model)
        self.ref_point_head = MLP([2 * d_model, d_model, d_model])

    def proposals(self, memory: Memory, detected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Propose a box at every position (Deformable DETR, appendix A.4).

        `detected` (B, S', 4) cxcywh, S' ≤ S, replace the boxes of the first positions.

        Returns:
            Features (B, S, D), computed from 0 at padding and within 1 % of the border; and boxes
            (B, S, 4), 0.05·2^level wide and high, as logits of cxcywh relative to the unpadded
            image, +inf where the features are computed from 0.
        """
        boxes = []
        images_wh = memory.valid_ratios * sides_wh(memory.level_shapes, memory.valid_ratios)  # (B, L, 2)
        for level, (h, w) in enumerate(memory.level_shapes):
            centers = cell_centers(h, w, images_wh) / images_wh[:, None, level]
            boxes.append(torch.cat((centers, torch.full_like(centers, 0.05 * 2.0**level)), dim=-1))
        boxes_cxcywh = torch.cat(boxes, dim=1)
        if detected is not None:
            boxes_cxcywh = torch.cat((detected, boxes_cxcywh[:, detected.shape[1] :]), 1)
        invalid = ~((boxes_cxcywh > 0.01) & (boxes_cxcywh < 0.99)).all(-1, keepdim=True)
        if memory.padding_mask is not None:
            invalid = invalid | memory.padding_mask[..., None]
        logits = torch.log(boxes_cxcywh / (1 - boxes_cxcywh)).masked_fill(invalid, float("inf"))
        features = self.memory_trans_norm(self.memory_trans_fc(memory.vision.masked_fill(invalid, 0.0)))
        return features, logits

    def forward(
        self,
        queries: Tensor,
        boxes_cxcywh: Tensor,
        memory: Memory,
        allowed: Tensor | None,
        reg_branches: nn.ModuleList,
        canvas_positions: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Refine queries and boxes.

        Args:
            queries: (B, Q, D) content.
            boxes_cxcywh: (B, Q, 4) in [0, 1], relative to the unpadded image, detached.
            memory, allowed: as in `DecoderLayer.forward`.
            reg_branches: box branches of the head, one per layer.
            canvas_positions: encode boxes relative to the padded canvas, as the reference does;
                the result then depends on the padding.

        Returns:
            Per layer the normalized queries (B, Q, D), and the boxes (B, Q, 4) that its
            prediction starts from.
        """
        ratios = memory.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4)
        hidden, starts = [], [boxes_cxcywh]
        for layer, reg_branch in zip(self.layers, reg_branches, strict=False):
            references = boxes_cxcywh[:, :, None] * ratios
            encoded = references[:, :, 0] if canvas_positions else boxes_cxcywh
            positions = self.ref_point_head(sine_position_boxes(encoded, self.d_model))
            queries = layer(queries, positions, references, memory, allowed)
            refined = (reg_branch(queries) + inverse_sigmoid(boxes_cxcywh, self.eps)).sigmoid()
            starts.append(refined)
            boxes_cxcywh = refined.detach()
            hidden.append(self.norm(queries))
        return hidden, starts[:-1]
