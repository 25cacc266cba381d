"""Two frozen towers, EfficientNet-Lite0 and NanoDet-g, and the text in what they detect.

EfficientNet-Lite0 classifies the 1,000 names of ImageNet at every place. The vectors of its ten
best names, weighted by their probabilities, are a text vector (ConSE, Norouzi et al., 2014).
NanoDet-g scores COCO's 80 names and predicts a box at every cell.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from groundtune.model.backbone import EfficientNetLite0, WordMap, lite0_weights
from groundtune.model.nanodet import NUM_NAMES, WIDTH, NanoDet

TEXT_WIDTH = 384  # of MiniLM
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILE = Path(__file__).parent / "presets" / "nanodet.safetensors"


class TwoTowers(nn.Module):
    """The maps of both towers, one behind the other, at strides 8, 16 and 32.

    `channels` are those of the neck's inputs: the maps, and NanoDet's 80 scores behind them.
    """

    channels = [40 + WIDTH + NUM_NAMES, 112 + WIDTH + NUM_NAMES, 320 + TEXT_WIDTH + WIDTH + NUM_NAMES]

    def __init__(self, lite: EfficientNetLite0, words: WordMap, nanodet: NanoDet) -> None:
        super().__init__()
        self.lite, self.words, self.nanodet = lite, words, nanodet
        self.name_vectors: Tensor
        self.register_buffer("name_vectors", torch.zeros(NUM_NAMES, TEXT_WIDTH))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized by ImageNet's mean and std → maps of strides 8, 16, 32."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        fine, middle, coarse = self.lite(((images * std + mean) * 255 - 127) / 128)  # as it was trained
        first, second, third = self.nanodet(images.contiguous(memory_format=torch.channels_last))
        coarse = torch.cat((coarse, self.words(coarse)), 1)
        return [torch.cat(pair, 1) for pair in ((fine, first), (middle, second), (coarse, third))]

    def detect(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return NanoDet's scores and distances in the maps, per level; see `NanoDet.detect`."""
        with torch.no_grad():
            return self.nanodet.detect([x[:, -WIDTH:] for x in maps])


def text_map(coarse: Tensor) -> Tensor:
    """Return the text vectors (B, 384, h, w) in the coarsest map."""
    return coarse[:, 320 : 320 + TEXT_WIDTH]


def load_towers() -> TwoTowers:
    """Load EfficientNet-Lite0 from its package, NanoDet-g and the names' vectors from this one."""
    published = lite0_weights()
    towers = TwoTowers(EfficientNetLite0(published), WordMap(published), NanoDet())
    weights = {name: tensor.float() for name, tensor in load_file(_FILE).items()}
    towers.words.vectors.copy_(weights.pop("word_vectors"))
    towers.name_vectors.copy_(weights.pop("name_vectors"))
    towers.nanodet.load_state_dict(weights)
    return towers
