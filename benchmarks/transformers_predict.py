"""transformers' prediction of one picture at the sizes of `ours.py predict`; run in the peers' environment and folder."""

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

parser = peers.parser()
args = parser.parse_args()
assert isinstance(args, argparse.Namespace)
peers.setup(args)
names = peers.class_names(args)
model = build(args).eval()
pixels, text = peers.images_norm(args), tokens(args, names, peers.dims(args))
times = []
for _ in range(args.warmup + args.steps):
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        model(pixel_values=pixels, **text)
    times.append((time.perf_counter() - wall, time.process_time() - cpu))
times = times[args.warmup :]
found = {"seconds": statistics.median(t[0] for t in times), "cpu_s": statistics.median(t[1] for t in times)}
print(json.dumps(found | {"peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}))
