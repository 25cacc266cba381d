"""transformers' prediction of one image at the sizes of `ours.py predict`; run in the peers'
environment and folder.

Names that do not fit into 256 tokens are asked in chunks, one forward pass each, as its users write
the loop.
"""

import argparse
import json
import resource
import statistics
import sys
import time

sys.path.insert(0, ".")
import common as peers
import torch
from hf_step import build, tokens

MAX_TEXT_LEN = 256


def chunks(args: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """The text inputs of as few prompts as the names fit into."""
    groups: list[list[str]] = [[]]
    for name in peers.class_names(args):
        longer = tokens(args, [*groups[-1], name], peers.dims(args))["input_ids"].shape[1]
        if groups[-1] and longer > MAX_TEXT_LEN:
            groups.append([])
        groups[-1].append(name)
    return [tokens(args, group, peers.dims(args)) for group in groups]


args = peers.parser().parse_args()
peers.setup(args)
model = build(args).eval()
pixels, texts = peers.images_norm(args), chunks(args)
times = []
for _ in range(args.warmup + args.steps):
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        for text in texts:
            model(pixel_values=pixels, **text)
    times.append((time.perf_counter() - wall, time.process_time() - cpu))
times = times[args.warmup :]
found = {"seconds": statistics.median(t[0] for t in times), "cpu_s": statistics.median(t[1] for t in times)}
print(json.dumps(found | {"peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}))
