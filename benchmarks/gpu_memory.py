"""Compute the memory of a training step on a GPU without one: the table in docs/gpu.md.

    python benchmarks/gpu_memory.py --model swin-t --size 800x1333 --tune full

A real step of one image runs on the CPU, with the sampling that a GPU without Triton uses. The
bytes of all tensors that live at once are added up. The last line is JSON, in GB: "weights",
"state" (gradients and AdamW's moments) and "image". B images need weights + state + B × image, and
besides what the GPU's allocator loses (some percent) and about 0.5 GB for CUDA itself.
"""

import argparse
import json
import weakref
from typing import Any

import torch
from ours import SWIN_T, VOCABULARY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import groundtune
from groundtune.config import TrainConfig
from groundtune.contracts import Target
from groundtune.device import autocast
from groundtune.engine import optim
from groundtune.loss.criterion import BatchCounts, GroundingDINOCriterion, total
from groundtune.model import deformable
from groundtune.model.bundle import build_network
from groundtune.model.config import ModelConfig
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import build_tokenizer, tokenize

SWIN_B = {
    "image_size": 384,
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 12,
}
NAMES = ["cat", "remote control", "red bus", "old lamp", "striped umbrella"]
BOXES = 20


class LiveStorages(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[int] = set()
        self.now = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["nano", "swin-t", "swin-b"], default="swin-t")
    parser.add_argument("--size", default="800x1333", help="height x width in pixels")
    parser.add_argument("--tune", choices=["full", "lora", "heads", "prompt"], default="full")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    tokenizer = build_tokenizer(VOCABULARY)
    if args.model == "nano":
        network = groundtune.load("nano").bundle.detector
    else:
        network = build_network(ModelConfig(backbone_config=SWIN_T if args.model == "swin-t" else SWIN_B))
    config = TrainConfig(data="", tune=args.tune)
    network.configure_training(
        denoising=True, gradient_checkpointing=args.gradient_checkpointing, bucket=None
    )
    optim.add_tuned_parameters(network, config, NAMES, tokenizer)
    groups = optim.param_groups(config)
    optim.freeze(network, groups)
    deformable.use_sampling(network, as_on_a_gpu)
    text, (phrase_map,) = tokenize(tokenizer, [class_prompt(NAMES)])
    labels = torch.arange(BOXES) % len(NAMES)
    boxes = torch.rand(BOXES, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.1
    targets = [Target(boxes, labels, labels, phrase_map[labels], 0)]
    counts = BatchCounts([BOXES], int(text.text_token_mask.sum()))
    with LiveStorages() as memory:
        for tensor in (*network.parameters(), *network.buffers()):
            memory.add(tensor)
        weights = memory.now
        with autocast("cpu", args.precision):
            network.train()
            outputs = network(torch.zeros(1, 3, height, width), [(height, width)], text, targets, BOXES)
        total(GroundingDINOCriterion()(outputs, targets, counts)).backward()
    state = 3 * sum(p.nbytes for p in network.parameters() if p.requires_grad)  # gradients, two moments
    image = memory.peak - weights
    gigabytes = {"weights": weights / 1e9, "state": state / 1e9, "image": image / 1e9}
    print(json.dumps(vars(args) | {name: round(value, 2) for name, value in gigabytes.items()}))


def as_on_a_gpu(value: Tensor, level_shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    if torch.is_grad_enabled() and locations.shape[1] >= 4000:
        result: Tensor = checkpoint(
            deformable.sample_levels, value, level_shapes, locations, weights, use_reentrant=False
        )
        return result
    return deformable.sample_levels(value, level_shapes, locations, weights)


if __name__ == "__main__":
    main()
