"""Measure one card: training, prediction, memory, share of the roofline, against transformers.

    python benchmarks/gpu_check.py --out gpu                       (about eight minutes)
    python benchmarks/gpu_check.py --device cpu --tiny --out gpu   (the same code, without a card)

Random weights at the sizes of Grounding DINO tiny, images of 800 x 1333. Both models take turns in
one process, so that they meet the same card. OUT/table.md is for RESULTS.md, OUT/results.json has
all numbers; both are written again after each row. OUT/profile.txt has a step's time by kernel.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ours import SWIN_T, VOCABULARY

from groundtune.contracts import Target
from groundtune.device import autocast, float32_mode, is_out_of_memory
from groundtune.environment import describe
from groundtune.loss.criterion import BatchCounts, GroundingDINOCriterion, total
from groundtune.model.bundle import build_network
from groundtune.model.config import ModelConfig
from groundtune.predict.detect import class_prompts, detect_batch, inference_mode
from groundtune.predict.features import extract
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import build_tokenizer, tokenize

NAMES = ["cat", "remote control", "red bus", "old lamp", "striped umbrella"]
BOXES = 10
TINY_SWIN = {
    "image_size": 64,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
}
TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TINY = {
    "d_model": 64,
    "num_heads": 2,
    "num_queries": 20,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_dim": 64,
}
TOWERS = (".backbone.conv_encoder", ".text_backbone")  # of transformers' model, frozen like ours


class Inputs:
    """Images, text and boxes of a batch on the device."""

    def __init__(self, batch: int, size: tuple[int, int], device: torch.device) -> None:
        generator = torch.Generator().manual_seed(batch)
        text, maps = tokenize(build_tokenizer(VOCABULARY), [class_prompt(NAMES)] * batch)
        self.sizes = [size] * batch
        self.images = torch.randn(batch, 3, *size, generator=generator).to(device)
        self.text, self.targets = text.to(device), []
        for number, phrase_map in enumerate(maps):
            wh = 0.05 + 0.3 * torch.rand(BOXES, 2, generator=generator)
            center = wh / 2 + torch.rand(BOXES, 2, generator=generator) * (1 - wh)
            labels = torch.randint(len(NAMES), (BOXES,), generator=generator)
            target = Target(torch.cat([center, wh], 1), labels, labels, phrase_map[labels], number)
            self.targets.append(target.to(device))
        self.counts = BatchCounts([BOXES] * batch, int(text.text_token_mask.sum()))


class Ours:
    def __init__(self, device: torch.device, tiny: bool) -> None:
        sizes: dict[str, Any] = {"backbone_config": TINY_SWIN, "language_config": TINY_BERT, **TINY}
        self.network = build_network(ModelConfig(**(sizes if tiny else {"backbone_config": SWIN_T}))).to(
            device
        )
        self.network.freeze(["backbone", "language_model"])
        self.criterion = GroundingDINOCriterion()

    def loss(self, given: Inputs) -> torch.Tensor:
        outputs = self.network(given.images, given.sizes, given.text, given.targets, BOXES)
        with torch.autocast(given.images.device.type, enabled=False):
            return total(self.criterion(outputs, given.targets, given.counts))

    def predict(self, given: Inputs, precision: str) -> None:
        device = given.images.device
        prompts = class_prompts(build_tokenizer(VOCABULARY), NAMES).to(device)
        with inference_mode(self.network, precision):
            maps = extract(self.network, list(given.images.cpu()), device)
            detect_batch(self.network, maps, prompts, given.sizes)


class Theirs:
    """transformers' model with its own loss, auxiliary losses included, and frozen towers."""

    def __init__(self, device: torch.device, tiny: bool) -> None:
        from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

        sizes: dict[str, Any] = {"auxiliary_loss": True, "dropout": 0.0}
        sizes["backbone_config"] = SwinConfig(**(TINY_SWIN if tiny else SWIN_T), out_indices=[2, 3, 4])
        if tiny:
            sizes |= {"text_config": BertConfig(**TINY_BERT), "d_model": 64, "num_queries": 20}
            sizes |= {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")}
            sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
            sizes |= {"encoder_layers": 1, "decoder_layers": 2}
        self.network = GroundingDinoForObjectDetection(GroundingDinoConfig(**sizes)).to(device)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not any(tower in name for tower in TOWERS))

    def _given(self, given: Inputs) -> dict[str, torch.Tensor]:
        text, images = given.text, given.images
        return {
            "pixel_values": images,
            "pixel_mask": torch.ones(len(images), *given.sizes[0], dtype=torch.long, device=images.device),
            "input_ids": text.input_ids,
            "attention_mask": text.text_token_mask.long(),
            "token_type_ids": torch.zeros_like(text.input_ids),
        }

    def loss(self, given: Inputs) -> torch.Tensor:
        labels = [{"class_labels": t.labels, "boxes": t.boxes_cxcywh} for t in given.targets]
        loss: torch.Tensor = self.network(**self._given(given), labels=labels).loss
        return loss

    def predict(self, given: Inputs, precision: str) -> None:
        device = given.images.device
        self.network.eval()
        given.images = given.images.cpu().to(device)  # as ours: from the host
        with torch.no_grad(), autocast(device, precision), float32_mode(device, precision):
            logits = self.network(**self._given(given)).logits.sigmoid().amax(-1)
            logits.topk(min(300, logits.shape[1]))[0].cpu()


def training_step(model: Any, given: Inputs, precision: str) -> Callable[[], None]:
    parameters = [p for p in model.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    device = given.images.device

    def step() -> None:
        model.network.train()
        with float32_mode(device, precision):
            with autocast(device, precision):
                loss = model.loss(given)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.1).item()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


class Check:
    """Runs and writes the measurements until the time is up."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device, self.began = args, torch.device(args.device), time.monotonic()
        self.size = (64, 80) if args.tiny else (800, 1333)
        self.results: dict[str, Any] = {"environment": describe(), "rows": []}
        self.lines = [
            "| what | ours | transformers | ratio | our peak memory | theirs |",
            "|---|---|---|---|---|---|",
        ]
        args.out.mkdir(parents=True, exist_ok=True)

    def measure(self, call: Callable[[], None]) -> dict[str, float] | None:
        """Return seconds per call and the peak memory in GB, or None without enough of it."""
        cuda = self.device.type == "cuda"
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            times = []
            for number in range(2 + self.args.repeat):
                began = time.perf_counter()
                call()
                if cuda:
                    torch.cuda.synchronize()
                times += [time.perf_counter() - began] if number >= 2 else []
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
        return {"seconds": statistics.median(times), "gb": peak}

    def row(self, what: str, images: int, calls: list[Callable[[], None]]) -> None:
        """Measure ours and theirs, and write the table again."""
        if time.monotonic() - self.began > self.args.budget:
            return
        found = [self.measure(call) for call in calls]
        cells = [f"{images / f['seconds']:.2f} images/s" if f else "out of memory" for f in found]
        ratio = f"{found[1]['seconds'] / found[0]['seconds']:.2f}" if found[0] and found[1] else "–"
        memory = [f"{f['gb']:.1f} GB" if f else "–" for f in found]
        self.lines.append(f"| {' | '.join([what, *cells, ratio, *memory])} |")
        self.results["rows"].append(
            {"what": what, "images": images, "ours": found[0], "transformers": found[1]}
        )
        self.write()

    def roofline(self, step: Callable[[], None]) -> None:
        """Compare a step's matrix products with those of the card, and write its profile."""
        from torch.profiler import ProfilerActivity, profile
        from torch.utils.flop_counter import FlopCounterMode

        n, device = 256 if self.args.tiny else 8192, self.device
        matrix = torch.randn(n, n, device=device, dtype=torch.bfloat16)
        product = self.measure(lambda: (matrix @ matrix, None)[1])
        with FlopCounterMode(display=False) as counter:
            step()
        took = self.measure(step)
        if took and product:
            share = counter.get_total_flops() / took["seconds"] / (2 * n**3 / product["seconds"])
            self.lines.append(
                f"\nA bf16 step of one image reaches {share:.1%} of the card's matrix products."
            )
            self.results["roofline"] = share
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities) as recorded:
            step()
        by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=by, row_limit=40)
        (self.args.out / "profile.txt").write_text(table)
        self.write()

    def write(self) -> None:
        (self.args.out / "table.md").write_text("\n".join(self.lines) + "\n")
        (self.args.out / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks and images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=420.0, help="seconds")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    check = Check(args)
    models: list[Any] = [Ours(check.device, args.tiny), Theirs(check.device, args.tiny)]
    given = {batch: Inputs(batch, check.size, check.device) for batch in (1, 2, 4, 8)}
    check.roofline(training_step(models[0], given[1], "bf16"))
    for precision in ("bf16", "fp32"):
        for batch, inputs in given.items():
            steps = [training_step(model, inputs, precision) for model in models]
            check.row(f"train, {precision}, batch {batch}", batch, steps)
        for batch in (1, 8):
            calls = [lambda m=model, b=batch, p=precision: m.predict(given[b], p) for model in models]
            check.row(f"predict, {precision}, batch {batch}", batch, calls)
    print((args.out / "table.md").read_text())


if __name__ == "__main__":
    main()
