"""Side by side with the peers: alternating processes, medians, ratios with their spread, into RESULTS.md.

    python benchmarks/run.py --peers DIR [--rounds 3] [--only step,predict]

DIR is what `peers/setup.sh DIR` built: `DIR/mmdet`, `DIR/hf` and `DIR/bench`. A ratio is taken within a round, where the
two sides ran one after the other; its spread is the lowest and the highest round.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OURS = [sys.executable, str(HERE / "ours.py")]


@dataclass
class Side:
    """One measured command.

    Attributes:
        name: for the table.
        command: what to run.
        folder: where.
    """

    name: str
    command: list[str]
    folder: Path = HERE


@dataclass
class Comparison:
    """Two sides, and the largest ratio (ours to theirs) that is wanted."""

    title: str
    ours: Side
    theirs: Side
    key: str  # "cpu_s", "seconds" or "peak_rss_mb"
    bar: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of the titles")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    args = parser.parse_args()
    chosen = [c for c in comparisons(args.peers.resolve()) if args.only in c.title]
    rows = [f"| {compare(c, args.rounds)} |" for c in chosen]
    head = ["| what | ours | theirs | ratio (lowest – highest) | wanted |", "|---|---|---|---|---|"]
    args.out.write_text("\n".join([*introduction(args.rounds), *head, *rows]) + "\n", encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))


def comparisons(peers: Path) -> list[Comparison]:
    """The bars: Swin-T + BERT-base sizes, 640 px, batch 1, "cat", 5 boxes, two threads."""
    bench = peers / "bench"

    def hf(script: str, *options: str) -> Side:
        return Side("transformers 5.23", [str(peers / "hf/bin/python"), script, *options], bench)

    mmdet = Side("MMDetection 3.3.0, cat recipe", [str(peers / "mmdet/bin/python"), "mmdet_step.py"], bench)
    default = Side("default: bf16, frozen towers, denoising", [*OURS, "step", "--precision", "bf16"])
    like = Side("fp32, frozen towers, no denoising", [*OURS, "step", "--precision", "fp32", "--no-denoising"])
    everything, frozen = hf("hf_step.py"), hf("hf_step.py", "--freeze", "grad")
    own = hf(str(HERE / "transformers_predict.py"))
    return [
        Comparison("step, CPU s, against MMDetection", default, mmdet, "cpu_s", 1 / 5),
        Comparison("step, CPU s, against transformers, all trains", default, everything, "cpu_s", 1 / 3.4),
        Comparison("step, CPU s, both fp32 and frozen", like, frozen, "cpu_s", 0.55),
        Comparison("step, peak MB, against transformers, all trains", default, everything, "peak_rss_mb", 0.4),
        Comparison("step, peak MB, both fp32 and frozen", like, frozen, "peak_rss_mb", 0.6),
        Comparison(
            "predict, s", Side("default: bf16", [*OURS, "predict", "--precision", "bf16"]), own, "seconds", 1 / 3.5
        ),
        Comparison("predict, s, both fp32", Side("fp32", [*OURS, "predict"]), own, "seconds", 0.6),
    ]


def compare(comparison: Comparison, rounds: int) -> str:
    """Run both sides in turn, and give the cells of the table's row."""
    pairs = []
    for number in range(rounds):
        sides = [comparison.ours, comparison.theirs]
        values = {side.name: measure(side)[comparison.key] for side in (sides if number % 2 else sides[::-1])}
        pairs.append((values[comparison.ours.name], values[comparison.theirs.name]))
        print(comparison.title, pairs[-1], file=sys.stderr, flush=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    unit = {"cpu_s": "CPU s", "seconds": "s", "peak_rss_mb": "MB"}[comparison.key]
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} – {max(ratios):.3f})"
    cells: Sequence[str] = (
        comparison.title,
        f"{ours:.2f} {unit} ({comparison.ours.name})",
        f"{theirs:.2f} {unit} ({comparison.theirs.name})",
        spread,
        f"≤ {comparison.bar:.3f}",
    )
    return " | ".join(cells)


def measure(side: Side) -> dict[str, float]:
    """Run one process and read the JSON of its last line."""
    done = subprocess.run(side.command, cwd=side.folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(side.command)} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {"seconds": found.get("seconds", found.get("step_s")), **{k: found[k] for k in ("cpu_s", "peak_rss_mb")}}


def introduction(rounds: int) -> list[str]:
    """What the table was measured on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].split(":")[1].strip() if names else platform.processor()
    return [
        "# Results",
        "",
        "Written by `make bench`; see the head of `benchmarks/run.py`. Random weights: times and bytes, not accuracy.",
        f"Swin-T + BERT-base, 640 px, batch 1, one name, 5 boxes, two threads; {rounds} rounds; {cpu}; "
        f"Python {platform.python_version()}, torch 2.13.0.",
        "",
    ]


if __name__ == "__main__":
    main()
