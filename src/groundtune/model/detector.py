"""Grounding DINO: images and prompts in, boxes with token logits out.

Liu et al., 2023, "Grounding DINO: Marrying DINO with Grounded Pre-Training"; the forward pass follows figure 3 and
MMDetection's `GroundingDINO`. The parameters live under six modules with the reference's names: `backbone`,
`language_model`, `neck`, `encoder`, `decoder`, `bbox_head`.

Deviations, all of them so that an image's result does not depend on the batch around it (`exact_padding=True`):
the backbone runs on each image without padding, the neck's group norms and the query selection leave padding out, and
the decoder encodes boxes relative to the image. `exact_padding=False` is the reference's behavior, for comparisons.
Further: the frozen towers run without autograd (semantics 18); fewer positions than queries work (semantics 9).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer

from groundtune.contracts import LayerOutput, Output, Target
from groundtune.model.attention import at_least_float32, inverse_sigmoid
from groundtune.model.decoder import Decoder
from groundtune.model.denoising import DenoisingQueries, denoising_attention, denoising_queries
from groundtune.model.encoder import Encoder, Memory
from groundtune.model.head import BoxHead, pad_logits
from groundtune.model.language import LanguageModel
from groundtune.model.neck import Neck, pad_features, padding_mask_of
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import TextInput, tokenize

# Logit of a query slot that no position of the image fills: a probability of 1e-13, which no loss or top-k notices.
ABSENT_LOGIT = -30.0


@dataclass
class Selection:
    """The Q best positions as starting points of the decoder."""

    queries: Tensor  # (B, Q, D) content
    boxes_cxcywh: Tensor  # (B, Q, 4) in [0, 1], detached
    outputs: tuple[Tensor, Tensor]  # their own logits (B, Q, T) and boxes (B, Q, 4), with gradient
    absent: Tensor | None  # (B, Q) bool, slots that no position fills; None if there are none


class GroundingDINO(nn.Module):
    """The detector; `head_eps` is of the head's inverse sigmoid, `max_text_len` the columns of the logits that leave it."""

    def __init__(
        self,
        backbone: nn.Module,
        language_model: LanguageModel,
        neck: Neck,
        encoder: Encoder,
        decoder: Decoder,
        bbox_head: BoxHead,
        *,
        head_eps: float,
        max_text_len: int,
    ) -> None:
        super().__init__()
        self.backbone, self.language_model, self.neck = backbone, language_model, neck
        self.encoder, self.decoder, self.bbox_head = encoder, decoder, bbox_head
        self.head_eps, self.max_text_len = head_eps, max_text_len
        self.exact_padding = True
        self.bucket = (
            1  # sides of the coarsest backbone map are padded to multiples of it, see `pad_features`
        )
        self.denoising = True
        self.frozen: set[str] = set()

    def configure_training(
        self, *, denoising: bool, gradient_checkpointing: bool, bucket: int | None
    ) -> None:
        """Set what only training uses.

        Args:
            denoising: whether denoising queries are added.
            gradient_checkpointing: whether the encoder's layers are computed again in the backward pass.
            bucket: sides of the coarsest backbone map are padded to multiples of it; None: unchanged.
        """
        self.denoising = denoising
        self.encoder.gradient_checkpointing = gradient_checkpointing
        if bucket is not None:
            self.bucket = bucket

    def forward(
        self,
        images: Tensor,
        sizes_hw: list[tuple[int, int]],
        text: TextInput,
        targets: list[Target] | None = None,
        most_boxes: int | None = None,
    ) -> Output:
        """Detect.

        Args:
            images: (B, 3, H, W) normalized, each in the upper left corner of its canvas.
            sizes_hw: height and width of each image on the canvas.
            text: B prompts.
            targets: of B images, for the denoising queries in training.
            most_boxes: of an image of the optimizer batch that these are a part of; None: of these.
        """
        if self.exact_padding:
            return self.forward_features(self.extract_features(images, sizes_hw), text, targets, most_boxes)
        maps = self._run_backbone(images)
        real = (~padding_mask_of([*sizes_hw, (images.shape[-2], images.shape[-1])], images.device))[
            :-1, None
        ].float()
        neck_maps = self.neck(maps, None)
        masks = [F.interpolate(real, size=x.shape[-2:])[:, 0] == 0 for x in neck_maps]
        return self._detect(neck_maps, masks, text, targets, most_boxes)

    def extract_features(self, images: Tensor, sizes_hw: list[tuple[int, int]]) -> list[list[Tensor]]:
        """For each image alone its backbone maps (C_l, h_l, w_l), fine to coarse; arguments as in `forward`."""
        features: list[list[Tensor]] = [[] for _ in sizes_hw]
        for h, w in dict.fromkeys(sizes_hw):
            rows = [row for row, size in enumerate(sizes_hw) if size == (h, w)]  # they run together
            for level in self._run_backbone(images[rows, :, :h, :w]):
                for row, single in zip(rows, level, strict=True):
                    features[row].append(single)
        return features

    def _run_backbone(self, images: Tensor) -> list[Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and "backbone" not in self.frozen):
            return self.backbone(images)

    def forward_features(
        self,
        features: list[list[Tensor]],
        text: TextInput,
        targets: list[Target] | None = None,
        most_boxes: int | None = None,
    ) -> Output:
        """Detect from what `extract_features` gave, now or from a cache; other arguments as in `forward`."""
        maps, masks = pad_features(features, self.neck.num_levels, self.bucket)
        return self._detect(self.neck(maps, masks), masks, text, targets, most_boxes)

    def _detect(
        self,
        maps: list[Tensor],
        masks: list[Tensor] | None,
        text: TextInput,
        targets: list[Target] | None,
        most_boxes: int | None,
    ) -> Output:
        """Everything after the neck: enhance, select, add denoising queries, decode, predict."""
        memory = self.encoder(maps, masks, self.language_model(text), text)
        selection = self._select_queries(memory)
        queries, boxes = selection.queries, selection.boxes_cxcywh
        denoising = self._denoising(targets, most_boxes)
        allowed = _allowed(selection.absent, denoising, boxes.shape[1], queries.device)
        if denoising is not None:
            queries = torch.cat((denoising.content.to(queries.dtype), queries), dim=1)
            boxes = torch.cat((denoising.boxes_cxcywh.to(boxes.dtype), boxes), dim=1)
        elif (
            self.training and self.denoising
        ):  # a batch without boxes still gives the embedding its (zero) gradient
            queries = queries + 0.0 * self.decoder.label_embedding.weight[0]
        branches, on_canvas = self.bbox_head.reg_branches, not self.exact_padding
        refined = zip(
            *self.decoder(queries, boxes, memory, allowed, branches, canvas_positions=on_canvas), strict=True
        )
        layers = [
            self._predict(n, hidden, start, memory, selection.absent)
            for n, (hidden, start) in enumerate(refined)
        ]
        return self._output(layers, selection, memory, denoising)

    def _select_queries(self, memory: Memory) -> Selection:
        """Top Q positions by their best token (semantics 9)."""
        features, proposals = self.decoder.proposals(memory)
        classify, regress = self.bbox_head.cls_branches[-1], self.bbox_head.reg_branches[-1]
        logits = classify(features, memory.text, memory.text_token_mask)
        scores = logits.detach().amax(-1)
        if self.exact_padding and memory.padding_mask is not None:
            scores = scores.masked_fill(memory.padding_mask, float("-inf"))
        count = min(self.decoder.num_queries, scores.shape[1])
        best_scores, best = scores.topk(count, dim=1)
        selected = features.gather(1, best[..., None].expand(-1, -1, features.shape[-1]))
        selected_logits = logits.gather(1, best[..., None].expand(-1, -1, logits.shape[-1]))
        boxes = (regress(selected) + proposals.gather(1, best[..., None].expand(-1, -1, 4))).sigmoid()
        absent = best_scores == float("-inf") if memory.padding_mask is not None else None
        if self.decoder.query_embedding is not None:
            queries = self.decoder.query_embedding.weight[:count].expand(len(selected), -1, -1)
        else:
            queries = selected.detach()
        if absent is not None:
            selected_logits = self._absent_logits(selected_logits, absent, memory.text_token_mask)
        return Selection(queries, boxes.detach(), (selected_logits, boxes), absent)

    def _denoising(self, targets: list[Target] | None, most_boxes: int | None) -> DenoisingQueries | None:
        if targets is None or not self.training or not self.denoising:
            return None
        return denoising_queries(targets, self.decoder.label_embedding, most_boxes)

    def _predict(
        self, index: int, hidden: Tensor, starts: Tensor, memory: Memory, absent: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, T) and boxes (B, Q, 4) of one decoder layer."""
        logits = self.bbox_head.cls_branches[index](hidden, memory.text, memory.text_token_mask)
        refinement = at_least_float32(self.bbox_head.reg_branches[index](hidden))
        if absent is not None:
            absent = F.pad(absent, (logits.shape[1] - absent.shape[1], 0), value=False)
            logits = self._absent_logits(logits, absent, memory.text_token_mask)
        return logits, (refinement + inverse_sigmoid(starts, self.head_eps)).sigmoid()

    @staticmethod
    def _absent_logits(logits: Tensor, absent: Tensor, text_token_mask: Tensor) -> Tensor:
        return logits.masked_fill(absent[..., None] & text_token_mask[:, None], ABSENT_LOGIT)

    def _output(
        self,
        layers: list[tuple[Tensor, Tensor]],
        selection: Selection,
        memory: Memory,
        denoising: DenoisingQueries | None,
    ) -> Output:
        """Pad the logits, once, and part denoising from matching queries."""
        split = 0 if denoising is None else denoising.num_groups * denoising.group_size
        (enc_logits, enc_boxes), *padded = (
            (pad_logits(logits, self.max_text_len), boxes) for logits, boxes in (selection.outputs, *layers)
        )
        matching = [LayerOutput(pred_logits=x[:, split:], pred_boxes=boxes[:, split:]) for x, boxes in padded]
        output = Output(
            **matching[-1],
            text_token_mask=memory.text_token_mask,
            aux_outputs=matching[:-1],
            enc_outputs=LayerOutput(pred_logits=enc_logits, pred_boxes=enc_boxes),
        )
        if denoising is not None:
            noised = [
                LayerOutput(pred_logits=x[:, :split], pred_boxes=boxes[:, :split]) for x, boxes in padded
            ]
            output["dn_outputs"] = noised
            output["dn_meta"] = {"num_groups": denoising.num_groups, "group_size": denoising.group_size}
        return output

    def freeze(self, modules: list[str]) -> None:
        """Freeze whole modules (semantics 18): no gradient, eval mode for good, no autograd through the towers.

        Args:
            modules: dotted paths, such as "backbone" or "encoder.layers.0"; what is not named is trainable afterwards.
        """
        self.requires_grad_(True)
        self.frozen = set(modules)
        for path in modules:
            self.get_submodule(path).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> GroundingDINO:
        """Training mode for all but the frozen modules."""
        super().train(mode)
        for path in self.frozen:
            self.get_submodule(path).eval()
        return self

    def init_label_embedding(self, class_names: list[str], tokenizer: BertTokenizer) -> None:
        """Give the denoising labels one row per class, in order, started from the projected text features of its name."""
        embedding = nn.Embedding(max(len(class_names), 1), self.decoder.d_model)
        device = self.decoder.label_embedding.weight.device
        for index, name in enumerate(class_names):
            text, phrase_maps = tokenize(tokenizer, [class_prompt([name])], self.max_text_len)
            with torch.no_grad():
                tokens = self.encoder.text_projection(self.language_model(text.to(device)))[0]
                embedding.weight[index] = tokens[phrase_maps[0][0][: len(tokens)]].mean(0).cpu()
        self.decoder.label_embedding = embedding.to(device)


def _allowed(
    absent: Tensor | None, denoising: DenoisingQueries | None, num_queries: int, device: torch.device
) -> Tensor | None:
    """Self-attention mask of the decoder, broadcastable to (B, heads, Qdn + Q, Qdn + Q), True = may attend."""
    allowed = denoising_attention(denoising, num_queries, device) if denoising is not None else None
    if absent is None:
        return allowed
    total = num_queries if allowed is None else len(allowed)
    present = F.pad(~absent, (total - num_queries, 0), value=True)[:, None, None]
    itself = torch.eye(total, dtype=torch.bool, device=device)
    return (present if allowed is None else present & allowed) | itself
