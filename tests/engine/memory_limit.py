"""A run whose address space is limited before its first step. A process of its own:
test_out_of_memory.py starts it.

Arguments: a folder to work in, and how many MB there may be beyond those that are in use then.
"""

import dataclasses
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from engine_runs import Recorder, options, run, scenes, tiny_bundle

from groundtune.engine import validate as measure
from groundtune.model.language import bert_tokenizer


class Limit(Recorder):
    def batches(self, batches: Any) -> Any:
        most = psutil.Process().memory_info().vms + int(sys.argv[2]) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        return batches

    def message(self, text: str) -> None:
        print(text)


torch.set_num_threads(1)
measure.run_task = lambda *_: measure.Evaluation({"AP": 0.0}, {}, [])
bundle = tiny_bundle(bert_tokenizer())
bundle.image_format = dataclasses.replace(bundle.image_format, short_side=640, max_side=640)
data, watcher = scenes(Path(sys.argv[1]) / "data", train=16, valid=1, size=320), Limit()
run(options(data, epochs=1, batch_size=8), bundle, Path(sys.argv[1]) / "run", watcher)
print("steps", [value for name, value in watcher.events if name == "step"])
