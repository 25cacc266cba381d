"""A closed-set file against its model in PyTorch on the CPU, in one process and turn by turn.

    python benchmarks/export.py [--model nano] [--file FILE] [--threads 1] [--rounds 20]

FILE is a closed set that `groundtune export` made of the model; without one, OpenVINO in float32 is
written for three names. Measured are the network, which gets a normalized image of 4 : 3 on both
sides and in PyTorch has its text features in memory, and `Model.predict` of an image in memory, by
PyTorch in float32 and as it would choose, in bfloat16 on some processors. Before, the file is asked
often enough to have a graph of this size. Printed are the medians of wall and CPU milliseconds, and
of their ratios, which a busy machine leaves whole.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from groundtune import api
from groundtune.predict.detect import class_prompts, inference_mode


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="nano")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = api.load(options.model, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "model.xml"
        if not options.file:
            api.export(model, path, format="openvino", classes=["platelets", "rbc", "wbc"])
        file = api.load(path)
        names = file.bundle.classes
        image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        print(f"{path.name} against {options.model}, {options.threads} threads, {options.rounds} rounds")
        compare("network", lambda asked: _network(asked, names), model, file, options.rounds)
        for precision in ("fp32", "auto"):
            model.precision = precision
            compare(
                f"predict {precision}",
                lambda asked: lambda: asked.predict(image, names),
                model,
                file,
                options.rounds,
            )


def _network(asked: api.Model, names: list[str]) -> Callable[[], object]:
    bundle = asked.bundle
    text = class_prompts(bundle.tokenizer, names, bundle.config.max_text_len).text
    short, most = bundle.image_format.short_side, bundle.image_format.max_side
    size_hw = (most * 3 // 4, most) if short == most else (short, short * 4 // 3)
    image = torch.randn(1, 3, *size_hw, generator=torch.Generator().manual_seed(0))

    def run() -> None:
        with inference_mode(bundle.network, "fp32"):
            bundle.network.forward_features(bundle.network.extract_features(image, [size_hw]), text)

    return run


def compare(
    what: str,
    work: Callable[[api.Model], Callable[[], object]],
    model: api.Model,
    file: api.Model,
    rounds: int,
) -> None:
    """Print how long `work` of a model and of its file take."""
    sides = work(model), work(file)
    for _ in range(105):
        sides[1]()
    times = []  # rounds x sides x (wall, CPU)
    for _ in range(rounds + 2):
        for run in sides:
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    measured = np.array(times).reshape(-1, 2, 2)[2:]
    for clock, (own, exported) in zip(("wall", "CPU"), measured.transpose(2, 1, 0), strict=True):
        low, middle, high = statistics.quantiles(own / exported, n=4)
        print(
            f"{what}  {clock}  PyTorch {1000 * np.median(own):.0f} ms  file {1000 * np.median(exported):.0f} "
            f"ms  ratio {middle:.2f} ({low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
