"""A detector small enough to train in a second, with the six modules and the real freezing, for the
tests of the engine.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundtune.contracts import Output
from groundtune.model.detector import GroundingDINO
from groundtune.text.tokens import TextInput

WIDTH = 16
GRID = 4  # queries are the cells of a 4 x 4 grid over the image


class FakeLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Embedding(30522, WIDTH)  # named so that substring matching would confuse it
        self.dropout = nn.Dropout(0.5)

    def forward(self, text: TextInput) -> Tensor:
        return self.dropout(self.backbone(text.input_ids))

    def forget(self) -> None: ...


class FakeNetwork(GroundingDINO):
    """Grid cells answer for the classes whose token embeddings they resemble. Dropout 0.1 while
    training.
    """

    def __init__(self, seed: int = 0) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)
        )
        self.language_model = FakeLanguageModel()
        self.neck = nn.Conv2d(8, WIDTH, 1)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.1))
        self.encoder.absolute_pos_embed = nn.Parameter(0.1 * torch.randn(GRID * GRID, WIDTH))
        self.decoder = nn.Linear(WIDTH, WIDTH)
        self.bbox_head = nn.ModuleDict({"reg": nn.Linear(WIDTH, 4), "cls": nn.Linear(WIDTH, WIDTH)})
        self.frozen: set[str] = set()
        self.exact_padding, self.max_text_len = True, 256
        self.passes: list[tuple[int, int]] = []  # (images, tokens) of every call
        self.extracted = 0

    def init_label_embedding(self, class_names: list[str], tokenizer: object) -> None: ...

    def extract_features(self, images: Tensor, sizes_hw: list[tuple[int, int]]) -> list[list[Tensor]]:
        self.extracted += len(images)
        return super().extract_features(images, sizes_hw)

    def _run_backbone(self, images: Tensor) -> list[Tensor]:
        return [self.backbone(images)]

    def forward_features(self, features, text, targets=None, most_boxes=None) -> Output:
        self.passes.append((len(features), text.input_ids.shape[1]))
        cells = torch.stack(
            [F.adaptive_avg_pool2d(self.neck(maps[0]), GRID).flatten(1).T for maps in features]
        )
        queries = self.decoder(
            self.encoder[2](self.encoder[1](self.encoder[0](cells + self.encoder.absolute_pos_embed)))
        )
        words = self.language_model(text)
        logits = self.bbox_head["cls"](queries) @ words.mT / 4 - 2
        logits = logits.masked_fill(~text.text_token_mask[:, None], float("-inf"))
        logits = F.pad(logits, (0, 256 - logits.shape[-1]), value=float("-inf"))
        boxes = self.bbox_head["reg"](queries).sigmoid()
        return Output(
            pred_logits=logits,
            pred_boxes=boxes,
            text_token_mask=text.text_token_mask,
            aux_outputs=[],
            enc_outputs={"pred_logits": logits, "pred_boxes": boxes},
        )
