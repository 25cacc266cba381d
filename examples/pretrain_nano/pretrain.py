"""Pretrain `nano-everyday` on photographs, generated scenes and its towers' evidence.

    python examples/pretrain_nano/pretrain.py WORK POOL

POOL has the sets of photographs in Roboflow's COCO layout, SET/train/_annotations.coco.json. WORK
gets the towers' features (about 4 GB), the network as it starts, a checkpoint every few minutes,
and at the end `nano-everyday.safetensors`. After an interruption, run the same command again.

The network starts from `nano` (start.py). Each step draws one image per place of the batch:
its set by `SHARES`, then the image and its view. Everything is drawn from the seed.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from features import SCENES_PER_FILE, Sample, cached, samples_of_set, scenes
from prompts import COCO, batch_of
from safetensors.torch import save_file
from start import start_from_scenes
from torch import Tensor

from groundtune.loss.criterion import GroundingDINOCriterion, total
from groundtune.model.bundle import ModelBundle, packaged_towers
from groundtune.model.checkpoint.convert import LABELS
from groundtune.model.checkpoint.load import load_bundle
from groundtune.model.detector import GroundingDINO

SHARES = {"coco_train": 0.5, "openimages5": 0.08, "garbage": 0.05, "oysters": 0.02, "scenes": 0.35}
BATCH_SIZE, WARMUP_STEPS, EMA_DECAY, FLAT = 8, 100, 0.998, 0.6  # FLAT: share of the steps before the decay
SAVE_STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--scenes", type=int, default=6, help=f"files of {SCENES_PER_FILE} generated scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    (args.work / "features").mkdir(parents=True, exist_ok=True)
    bundle = load_bundle("nano-everyday-untrained", args.seed)
    sets = read_sets(bundle, args.work / "features", args.pool, args.scenes)
    if not (start := args.work / "start.pt").exists():
        torch.save(start_from_scenes(bundle, sets, args.pool), start)
    bundle.detector.load_state_dict(torch.load(start, weights_only=True), strict=False)
    train(bundle, sets, args.work / "checkpoint.pt", args.steps, args.lr, args.seed)
    save_half(bundle, args.work / "nano-everyday.safetensors")


def read_sets(bundle: ModelBundle, folder: Path, pool: Path, parts: int) -> dict[str, list[Sample]]:
    """Return the samples of each set, computed on first use."""
    sets = {
        name: cached(folder / f"{name}.pt", samples_of_set(bundle, name, pool / name / "train"))
        for name in SHARES
        if name != "scenes"
    }
    drawn = [cached(folder / f"scenes{part}.pt", scenes(bundle, part)) for part in range(parts)]
    return sets | {"scenes": [sample for part in drawn for sample in part]}


def train(
    bundle: ModelBundle, sets: dict[str, list[Sample]], checkpoint: Path, steps: int, lr: float, seed: int
) -> None:
    """Train all but the towers, and put the moving average of the weights into the network."""
    network, criterion = bundle.detector, GroundingDINOCriterion()
    network.configure_training(denoising=False, gradient_checkpointing=False, bucket=None)
    vocabulary = {name: sorted({n for s in sets[name] for n in s.get("names", ())}) for name in sets}
    vocabulary["coco_train"] = COCO
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    average = [parameter.detach().clone() for parameter in trained]
    optimizer, first = torch.optim.AdamW(trained, lr, weight_decay=1e-4), 0
    if checkpoint.exists():
        first = resume(checkpoint, network, optimizer, average)
    network.train()
    begin, mean = time.perf_counter(), 0.0
    for step in range(first, steps):
        rng = random.Random(f"{seed}/{step}")  # a resumed run draws the same
        for group in optimizer.param_groups:
            group["lr"] = lr * rate_at(step, steps)
        names = rng.choices(list(SHARES), list(SHARES.values()), k=BATCH_SIZE)
        samples = [(name, rng.choice(sets[name])) for name in names]
        features, text, targets = batch_of(samples, vocabulary, bundle.tokenizer, rng)
        with torch.autocast("cpu", torch.bfloat16):
            output = network.forward_features(features, text, targets)
        loss = total(criterion(output, targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, trained, 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
        mean = loss.item() if step == first else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % SAVE_STEPS == 0 or step + 1 == steps:
            save(checkpoint, step + 1, network, optimizer, average)
            print(
                f"step {step + 1}/{steps}: loss {mean:.3f}, {time.perf_counter() - begin:.0f} s", flush=True
            )
    with torch.no_grad():
        torch._foreach_copy_(trained, average)
    network.eval()


def rate_at(step: int, steps: int) -> float:
    """Return the factor of the learning rate: warm-up, flat, then a cosine to 2 %."""
    decay = max(0.0, (step / steps - FLAT) / (1 - FLAT))
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * decay)))


def save(
    file: Path, step: int, network: GroundingDINO, optimizer: torch.optim.Optimizer, average: list[Tensor]
) -> None:
    """Write a checkpoint, all or nothing."""
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    state = {"step": step, "weights": weights, "optimizer": optimizer.state_dict(), "average": average}
    torch.save(state, file.with_suffix(".partial"))
    file.with_suffix(".partial").rename(file)


def resume(
    file: Path, network: GroundingDINO, optimizer: torch.optim.Optimizer, average: list[Tensor]
) -> int:
    """Read a checkpoint; return the number of finished steps."""
    state = torch.load(file, weights_only=True)
    network.load_state_dict(state["weights"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    torch._foreach_copy_(average, state["average"])
    return int(state["step"])


def save_half(bundle: ModelBundle, out: Path) -> None:
    """Write the trained weights as float16, without the towers and the labels of a data set."""
    skipped = (*(f"{tower}." for tower in packaged_towers(bundle.config)), LABELS)
    state = bundle.detector.state_dict()
    save_file({k: v.half().clone() for k, v in state.items() if not k.startswith(skipped)}, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
