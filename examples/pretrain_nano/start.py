"""Start `nano-everyday` from `nano`: least squares maps the new inputs to those of the old network.

The old network reads other maps (EfficientNet-Lite0 alone, other normalization) and other text
(phrases without a frame). Linear maps from the new to the old ones are fitted on both kinds of
images, and on captions, and multiplied into the first layers.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from features import Sample, read_set
from PIL import Image
from torch import Tensor

from groundtune.data.scenes.captions import captioned_scene
from groundtune.data.transforms import resize_keep_ratio
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.load import load_bundle
from groundtune.predict.features import extract
from groundtune.text.prompt import Prompt
from groundtune.text.tokens import tokenize

_SCENES, _PHOTOGRAPHS, _CELLS, _CAPTIONS = 160, 110, 120, 800
_MAP_RIDGE, _TEXT_RIDGE = 3e-3, 1e-3


@torch.no_grad()
def start_from_scenes(bundle: ModelBundle, sets: dict[str, list[Sample]], pool: Path) -> dict[str, Tensor]:
    """Return the trained weights of `nano`, with fitted first layers."""
    old = load_bundle("nano").detector
    new, theirs = bundle.detector.state_dict(), old.state_dict()
    parts = ("neck.", "encoder.", "decoder.", "bbox_head.")
    same = {n: w for n, w in theirs.items() if n.startswith(parts) and n in new and w.shape == new[n].shape}
    state = {name: weight.clone() for name, weight in same.items() if "label_embedding" not in name}
    for level, (inputs, outputs) in enumerate(_cells(bundle, old, pool)):
        weight, bias = _ridge(inputs, outputs, _MAP_RIDGE)
        names = [f"neck.convs.{level}.conv", *(["neck.extra_convs.0.conv"] if level == 2 else [])]
        for name in names:
            kernel = theirs[f"{name}.weight"]
            state[f"{name}.weight"] = torch.einsum("oihw,ij->ojhw", kernel, weight).contiguous()
            state[f"{name}.bias"] = theirs[f"{name}.bias"] + kernel.sum((2, 3)) @ bias
    captions = [Prompt(sample["caption"], (), ()) for sample in sets["scenes"][:_CAPTIONS]]
    inputs, outputs = [], []
    for first in range(0, len(captions), 8):
        text, _ = tokenize(bundle.tokenizer, captions[first : first + 8])
        inputs.append(bundle.detector.language_model(text)[text.text_token_mask])
        projected = old.encoder.text_projection(old.language_model(text))
        outputs.append(projected[text.text_token_mask])
    weight, bias = _ridge(torch.cat(inputs), torch.cat(outputs), _TEXT_RIDGE)
    return state | {"encoder.text_projection.weight": weight, "encoder.text_projection.bias": bias}


def _cells(bundle: ModelBundle, old: torch.nn.Module, pool: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, per level, the channels of both networks' neck inputs at the same cells."""
    generator, cells = torch.Generator().manual_seed(0), [([], []) for _ in range(3)]
    mean, std = (torch.tensor(v)[:, None, None] for v in (bundle.image_format.mean, bundle.image_format.std))
    for image in _images(bundle, pool):
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
            image.height, image.width, 3
        )
        normalized = (pixels.permute(2, 0, 1) / 255 - mean) / std
        maps = [level[None] for level in extract(bundle.network, [normalized], torch.device("cpu"))[0]]
        scores = [level for level, _ in bundle.detector.backbone.detect(maps)]
        theirs = extract(old, [normalized], torch.device("cpu"))[0]
        for (ours, olds), x, y, z in zip(cells, maps, scores, theirs, strict=True):
            rows = torch.cat((x, y), 1)[0].flatten(1).T
            chosen = torch.randperm(len(rows), generator=generator)[:_CELLS]
            ours.append(rows[chosen])
            olds.append(z.flatten(1).T[chosen])
    for ours, olds in cells:
        yield torch.cat(ours), torch.cat(olds)


def _images(bundle: ModelBundle, pool: Path) -> Iterator[Image.Image]:
    for number in range(_SCENES):
        yield captioned_scene(bundle.image_format.max_side, random.Random(f"1000/{number}"))[0].convert("RGB")
    photographs = [row for index, row in enumerate(read_set(pool / "coco_train/train")) if index % 10]
    for path, width, height, *_ in photographs[:_PHOTOGRAPHS]:
        with Image.open(path) as image:
            yield resize_keep_ratio((height, width), bundle.image_format).image(image.convert("RGB"))


def _ridge(inputs: Tensor, outputs: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the weight (out, in) and bias of the least squares from (N, in) to (N, out)."""
    mean, std = inputs.mean(0), inputs.std(0) + 1e-3
    normalized, center = (inputs - mean) / std, outputs.mean(0)
    normal = normalized.T @ normalized + ridge * len(inputs) * torch.eye(inputs.shape[1])
    weight = torch.linalg.solve(normal, normalized.T @ (outputs - center)).T / std
    return weight, center - weight @ mean
