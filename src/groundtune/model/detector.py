"""Grounding DINO: images and prompts in, boxes with token logits out.

Liu et al., 2023, "Grounding DINO: Marrying DINO with Grounded Pre-Training"; the forward pass
follows figure 3 and MMDetection's `GroundingDINO`, whose names the six modules have.

Deviations: with `exact_padding=True` an image's result does not depend on the batch around it. The
backbone runs on each image without padding, the neck's group norms and the query selection ignore
padding, and the decoder encodes boxes relative to the image. `exact_padding=False` is the
reference's behavior, for comparisons. Frozen towers run without autograd. An image may have fewer
positions than there are queries.
"""

from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer

from groundtune.contracts import LayerOutput, Output, Target
from groundtune.model.attention import at_least_float32, inverse_sigmoid
from groundtune.model.decoder import Decoder
from groundtune.model.denoising import allowed_attention, denoising_queries, pad_denoising
from groundtune.model.encoder import Encoder, Memory
from groundtune.model.evidence import Evidence, EvidenceReader, TowerDetections, read_evidence
from groundtune.model.head import BoxHead
from groundtune.model.language import LanguageModel, sentence_vectors
from groundtune.model.narrow import call_narrow
from groundtune.model.neck import Neck, pad_features, padding_mask_of
from groundtune.model.selection import Selection, best_positions
from groundtune.model.towers import TwoTowers
from groundtune.text.prompt import phrase_prompt
from groundtune.text.tokens import TextInput, tokenize


class GroundingDINO(nn.Module):
    """The detector, made of its six modules (`bundle.build_network`)."""

    def __init__(
        self,
        backbone: nn.Module,
        language_model: LanguageModel,
        neck: Neck,
        encoder: Encoder,
        decoder: Decoder,
        bbox_head: BoxHead,
        evidence: EvidenceReader | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.language_model, self.neck = backbone, language_model, neck
        self.encoder, self.decoder, self.bbox_head = encoder, decoder, bbox_head
        self.evidence = evidence
        self.max_text_len = bbox_head.max_text_len
        self.exact_padding = True
        self.selection_iou = 1.0
        self.denoising = True
        self.bucket = 1
        self.frozen: set[str] = set()

    def configure_training(
        self, *, denoising: bool, gradient_checkpointing: bool, bucket: int | None
    ) -> None:
        """Choose how the network trains; its results in eval mode do not change.

        Args:
            denoising: add denoising queries to the training batches.
            gradient_checkpointing: recompute the encoder's activations in the backward pass.
            bucket: pad feature maps to multiples of this, for fewer shapes; None: do not.
        """
        self.denoising = denoising
        self.encoder.gradient_checkpointing = gradient_checkpointing
        self.bucket = bucket or 1

    def compile_layers(self) -> None:
        """Compile the layers that read the image; the first steps then take minutes.

        torch compiles each kind of layer for any size, with and without padding; if it ever
        compiled one too often, that would run as without this.
        """
        for layer in (*self.encoder.fusion_layers, *self.encoder.layers, *self.decoder.layers):
            layer.compile(dynamic=True)

    def freeze(self, modules: list[str]) -> None:
        """Freeze whole modules: no gradient, eval mode for good, no autograd through the towers.

        `modules` are dotted paths, such as "encoder.layers.0"; all others become trainable.
        """
        self.requires_grad_(True)
        self.frozen = set(modules)
        for path in modules:
            self.get_submodule(path).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of all but the frozen modules."""
        super().train(mode)
        for path in self.frozen:
            self.get_submodule(path).eval()
        return self

    def forget_phrases(self) -> None:
        """Empty the language model's cache."""
        self.language_model.forget()

    def init_label_embedding(self, phrases: list[str], tokenizer: BertTokenizer) -> None:
        """Make one denoising label per class from the projected text features of its phrase."""
        embedding = nn.Embedding(max(len(phrases), 1), self.decoder.d_model)
        device = self.decoder.label_embedding.weight.device
        for index, phrase in enumerate(phrases):
            text, phrase_maps = tokenize(tokenizer, [phrase_prompt([phrase])], self.max_text_len)
            with torch.no_grad():
                tokens = self.encoder.text_projection(self.language_model(text.to(device)))[0]
                embedding.weight[index] = tokens[phrase_maps[0][0][: len(tokens)]].mean(0).cpu()
        self.decoder.label_embedding = embedding.to(device)

    def forward(
        self,
        images: Tensor,
        sizes_hw: list[tuple[int, int]],
        text: TextInput,
        targets: list[Target] | None = None,
        max_boxes: int | None = None,
    ) -> Output:
        """Detect.

        Args:
            images: (B, 3, H, W) normalized, each in the upper left corner of its canvas.
            sizes_hw: height and width of each image on the canvas.
            text: B prompts.
            targets: of B images, for the denoising queries in training.
            max_boxes: largest number of boxes of an image in the full batch; None: of these.
        """
        if self.exact_padding:
            return self.forward_features(self.extract_features(images, sizes_hw), text, targets, max_boxes)
        maps, detected = self._with_scores(self._run_backbone(images))
        maps = self.neck(maps, None)
        canvas = (images.shape[-2], images.shape[-1])
        real = (~padding_mask_of([*sizes_hw, canvas], images.device))[:-1, None].float()
        masks = [F.interpolate(real, size=x.shape[-2:])[:, 0] == 0 for x in maps]
        return self._detect(maps, masks, detected, text, targets, max_boxes)

    def extract_features(self, images: Tensor, sizes_hw: list[tuple[int, int]]) -> list[list[Tensor]]:
        """Return each image's backbone maps (C_l, h_l, w_l), fine to coarse; see `forward`."""
        # Images are cut out of the padded canvas, run through the backbone without padding, and
        # their maps are padded again in `forward_features`: an image's features must not depend on
        # its batch, and can then be cached.
        features: list[list[Tensor]] = [[] for _ in sizes_hw]
        for h, w in dict.fromkeys(sizes_hw):
            rows = [row for row, size in enumerate(sizes_hw) if size == (h, w)]  # equal sizes run together
            for level in self._run_backbone(torch.stack([images[row, :, :h, :w] for row in rows])):
                for row, single in zip(rows, level, strict=True):
                    features[row].append(single)
        return features

    def _run_backbone(self, images: Tensor) -> list[Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and "backbone" not in self.frozen):
            return call_narrow(lambda: self.backbone(images), [self.backbone], images.device)

    def forward_features(
        self,
        features: list[list[Tensor]],
        text: TextInput,
        targets: list[Target] | None = None,
        max_boxes: int | None = None,
    ) -> Output:
        """Detect in features of `extract_features`, new or cached; see `forward`."""
        maps, masks = pad_features(features, self.neck.num_levels, self.bucket)
        # Not the fusion, which adds biases itself, and not BERT, whose cache is float32.
        layers = self.encoder.text_projection, self.encoder.text_layers, self.encoder.layers
        parts = (self.neck, *layers, self.decoder, self.bbox_head)
        detect = partial(self.detect_in_maps, maps, masks, text, targets, max_boxes)
        return call_narrow(detect, parts, maps[0].device)

    def detect_in_maps(
        self,
        maps: list[Tensor],
        masks: list[Tensor] | None,
        text: TextInput,
        targets: list[Target] | None = None,
        max_boxes: int | None = None,
    ) -> Output:
        """Detect in the batched maps of the backbone, with the padding masks of all levels."""
        maps, detected = self._with_scores(maps)
        return self._detect(self.neck(maps, masks), masks, detected, text, targets, max_boxes)

    def _with_scores(self, maps: list[Tensor]) -> tuple[list[Tensor], TowerDetections | None]:
        """Append the scores of a detecting tower to its maps."""
        if not isinstance(self.backbone, TwoTowers):
            return maps, None
        levels = self.backbone.detect(maps)
        joined = [torch.cat((x, scores), 1) for x, (scores, _) in zip(maps, levels, strict=True)]
        return joined, TowerDetections(levels, maps[-1], self.backbone.name_vectors)

    def _detect(
        self,
        maps: list[Tensor],
        masks: list[Tensor] | None,
        detected: TowerDetections | None,
        text: TextInput,
        targets: list[Target] | None,
        max_boxes: int | None,
    ) -> Output:
        """Detect in the neck's maps: enhance, select, add denoising queries, decode, predict."""
        features = self.encoder.with_offsets(self.language_model(text), text)
        memory = self.encoder(maps, masks, features, text)
        found = read_evidence(detected, sentence_vectors(features, text), text, memory) if detected else None
        selection = self._select_queries(memory, found)
        queries, boxes, denoising = selection.queries, selection.boxes_cxcywh, None
        if self.training and self.denoising:
            labels = self.decoder.label_embedding
            denoising = None if targets is None else denoising_queries(targets, labels, max_boxes)
            if denoising is None:  # without boxes the labels still get their (zero) gradient
                queries = queries + 0.0 * labels.weight[0]
        if denoising is not None and queries.device.type != "cpu":
            denoising = pad_denoising(denoising, boxes.shape[1])
        allowed = allowed_attention(selection.absent, denoising, boxes.shape[1], queries.device)
        if denoising is not None:
            queries = torch.cat((denoising.content.to(queries.dtype), queries), dim=1)
            boxes = torch.cat((denoising.boxes_cxcywh.to(boxes.dtype), boxes), dim=1)
            if selection.terms is not None:  # denoising queries come from no position
                selection.terms = F.pad(selection.terms, (0, 0, 0, 0, denoising.boxes_cxcywh.shape[1], 0))
        branches = self.bbox_head.reg_branches
        hidden, starts = self.decoder(queries, boxes, memory, allowed, branches, not self.exact_padding)
        layers = [
            self._predict(index, *layer, memory, selection)
            for index, layer in enumerate(zip(hidden, starts, strict=True))
        ]
        split = 0 if denoising is None else denoising.content.shape[1]
        matching = [_queries(layer, slice(split, None)) for layer in layers]
        output = Output(
            **matching[-1],
            text_token_mask=memory.text_token_mask,
            aux_outputs=matching[:-1],
            enc_outputs=selection.output,
        )
        if denoising is not None:
            count = denoising.num_groups * denoising.group_size
            output["dn_outputs"] = [_queries(layer, slice(count)) for layer in layers]
            output["dn_meta"] = {"num_groups": denoising.num_groups, "group_size": denoising.group_size}
        return output

    def _select_queries(self, memory: Memory, found: Evidence | None) -> Selection:
        """Select the Q positions with the highest logit of any token."""
        features, proposals = self.decoder.proposals(memory, None if found is None else found.boxes_cxcywh)
        logits = self.bbox_head.cls_branches[-1](features, memory.text, memory.text_token_mask)
        if found is not None and self.evidence is not None:
            logits = logits + self.evidence.logits(found.terms, -1)
        scores = logits.detach().amax(-1)
        if self.exact_padding and memory.padding_mask is not None:
            scores = scores.masked_fill(memory.padding_mask, float("-inf"))
        count, iou = self.decoder.num_queries, self.selection_iou
        best_scores, best, distinct = best_positions(
            scores, count, iou, partial(self._boxes_at, features, proposals)
        )

        def selected(x: Tensor) -> Tensor:
            return x.gather(1, best[..., None].expand(-1, -1, x.shape[-1]))

        content, boxes = selected(features), self._boxes_at(features, proposals, best)
        absent = best_scores == float("-inf") if memory.padding_mask is not None else None
        if self.decoder.query_embedding is None:
            queries = content.detach()
        else:
            queries = self.decoder.query_embedding.weight[: best.shape[1]].expand(content.shape[0], -1, -1)
        output = self.bbox_head.layer_output(selected(logits), boxes, absent, memory.text_token_mask)
        terms = None
        if found is not None:
            terms = found.terms.gather(1, best[..., None, None].expand(-1, -1, *found.terms.shape[2:]))
            terms = terms * distinct[..., None, None]  # the towers' detections count once
        return Selection(queries, boxes.detach(), output, absent, terms)

    def _boxes_at(self, features: Tensor, proposals: Tensor, index: Tensor) -> Tensor:
        """Return the encoder's boxes (B, K, 4) at K positions (B, K)."""
        content, starts = (
            x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])) for x in (features, proposals)
        )
        boxes: Tensor = (self.bbox_head.reg_branches[-1](content) + starts).sigmoid()
        return boxes

    def _predict(
        self, index: int, hidden: Tensor, starts: Tensor, memory: Memory, selection: Selection
    ) -> LayerOutput:
        """Predict from the queries (B, Q, D) and starting boxes (B, Q, 4) of one decoder layer."""
        logits = self.bbox_head.cls_branches[index](hidden, memory.text, memory.text_token_mask)
        if selection.terms is not None and self.evidence is not None:
            logits = logits + self.evidence.logits(selection.terms, index)
        refinement = at_least_float32(self.bbox_head.reg_branches[index](hidden))
        boxes = (refinement + inverse_sigmoid(starts, self.bbox_head.eps)).sigmoid()
        return self.bbox_head.layer_output(logits, boxes, selection.absent, memory.text_token_mask)


def _queries(layer: LayerOutput, part: slice) -> LayerOutput:
    return LayerOutput(pred_logits=layer["pred_logits"][:, part], pred_boxes=layer["pred_boxes"][:, part])
