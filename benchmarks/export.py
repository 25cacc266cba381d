"""A closed-set file against the network in PyTorch on the CPU, in one process and turn by turn.

    python benchmarks/export.py [--model nano] [--format openvino] [--classes platelets,rbc,wbc] [--threads 1] [--rounds 20]

Both get the same normalised picture; PyTorch's side has its text features in memory, as in prediction. Prints the median
milliseconds of each and the ratio, which is what a busy machine leaves whole.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from groundtune import api
from groundtune.engine.inference import class_prompts, inference_mode
from groundtune.exported.runtime import SUFFIXES


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="nano")
    parser.add_argument("--format", default="openvino", choices=tuple(SUFFIXES.values()))
    parser.add_argument("--classes", default="platelets,rbc,wbc")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, names = api.load(options.model, device="cpu"), options.classes.split(",")
    suffix = next(suffix for suffix, format in SUFFIXES.items() if format == options.format)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        api.export(model, path, format=options.format, classes=names)
        bundles = {"PyTorch": model.bundle, options.format: api.load(path).bundle}
        text = class_prompts(model.bundle.tokenizer, names, model.bundle.config.max_text_len).text
        short = model.bundle.picture.short_side
        size_hw = short * 3 // 4 if short == model.bundle.picture.max_side else short, short
        image = torch.randn(1, 3, *size_hw)
        seconds: dict[str, list[float]] = {name: [] for name in bundles}
        for _ in range(options.rounds + 2):
            for name, bundle in bundles.items():
                with inference_mode(bundle.network):
                    begin = time.perf_counter()
                    features = bundle.network.extract_features(image, [size_hw])
                    bundle.network.forward_features(features, text)
                    seconds[name].append(time.perf_counter() - begin)
    medians = {name: 1000 * statistics.median(own[2:]) for name, own in seconds.items()}
    ratios = sorted(a / b for a, b in zip(*(own[2:] for own in seconds.values()), strict=True))
    print(f"{size_hw[1]} x {size_hw[0]} px, {options.threads} threads, {len(ratios)} rounds")
    print("  ".join(f"{name} {ms:.0f} ms" for name, ms in medians.items()))
    print(f"ratio {statistics.median(ratios):.2f} ({ratios[len(ratios) // 4]:.2f} to {ratios[-len(ratios) // 4]:.2f})")


if __name__ == "__main__":
    main()
