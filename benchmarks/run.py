"""Side by side with the peers: alternating processes, medians, ratios with their spread, into
RESULTS.md.

    python benchmarks/run.py --peers DIR [--rounds 3] [--only predict] [--no-scaling]

DIR is what `peers/setup.sh DIR` built: `DIR/mmdet`, `DIR/hf` and `DIR/bench`. In every round each
side runs once, in an order that turns round by round; a ratio is taken within a round, and its
spread is the lowest and the highest of them.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ours import made_up_names

HERE = Path(__file__).resolve().parent
OURS = (sys.executable, str(HERE / "ours.py"))
UNITS = {"cpu_s": "CPU s", "seconds": "s", "peak_rss_mb": "MB"}
NOT_MEASURED = """
## GPU

Not measured: no GPU was at hand. `python benchmarks/gpu_check.py --out gpu` writes this table.

| what | ours | transformers | ratio | our peak memory | theirs |
|---|---|---|---|---|---|
| train at 800 x 1333, batch 1, 2, 4, 8, bf16 and fp32 | not measured | not measured | – | – | – |
| predict at 800 x 1333, batch 1 and 8 | not measured | not measured | – | – | – |
| share of the roofline, profile of a step | not measured | | | | |
"""


@dataclass(frozen=True)
class Side:
    """One measured command: its name in the table, its arguments, and its working directory."""

    name: str
    command: tuple[str, ...]
    folder: Path = HERE


@dataclass(frozen=True)
class Comparison:
    """Two sides, what is compared of them (a key of UNITS), and the largest ratio that is wanted,
    if any is.
    """

    title: str
    ours: Side
    theirs: Side
    key: str
    wanted: float | None = None


def comparisons(peers: Path) -> list[Comparison]:
    """The bars: Swin-T + BERT-base sizes, 640 px, batch 1, "cat", 5 boxes, two threads."""

    def hf(script: str, *options: str) -> Side:
        version = "transformers 5.23" + (", frozen towers" if "grad" in options else "")
        return Side(version, (str(peers / "hf/bin/python"), script, *options), peers / "bench")

    def step(name: str, *options: str) -> Side:
        return Side(name, (*OURS, "step", *options))

    def predict(name: str, *options: str) -> Side:
        return Side(name, (*OURS, "predict", *options))

    mmdet = Side(
        "MMDetection 3.3, cat recipe", (str(peers / "mmdet/bin/python"), "mmdet_step.py"), peers / "bench"
    )
    default = step("default: bf16, frozen towers, denoising", "--precision", "bf16")
    like = step("fp32, frozen towers, no denoising", "--no-denoising")
    everything, frozen = hf("hf_step.py"), hf("hf_step.py", "--freeze", "grad")
    loop = str(HERE / "transformers_predict.py")
    few, all_names = (("--steps", "1", "--classes", ",".join(made_up_names(count))) for count in (80, 1203))
    chunked = ("--precision", "bf16", "--repeat", "1", "--names")
    loading = [str(HERE / "loading.py"), "groundtune"]
    return [
        Comparison("step, against MMDetection", default, mmdet, "cpu_s", 1 / 5),
        Comparison("step, transformers trains everything", default, everything, "cpu_s", 1 / 3.4),
        Comparison("step, both fp32 and frozen", like, frozen, "cpu_s", 0.55),
        Comparison("step memory, transformers trains everything", default, everything, "peak_rss_mb", 0.4),
        Comparison("step memory, both fp32 and frozen", like, frozen, "peak_rss_mb", 0.6),
        Comparison("predict", predict("default: bf16", "--precision", "bf16"), hf(loop), "seconds", 1 / 3.5),
        Comparison("predict, both fp32", predict("fp32"), hf(loop), "seconds", 0.6),
        Comparison(
            "evaluate with 80 names", predict("default: bf16", *chunked, "80"), hf(loop, *few), "seconds"
        ),
        Comparison(
            "evaluate with 1203 names",
            predict("default: bf16", *chunked, "1203"),
            hf(loop, *all_names, "--warmup", "0"),
            "seconds",
            1 / 4,
        ),
        Comparison(
            "load an image",
            Side("to 1066 x 800", (sys.executable, *loading)),
            Side("transformers 5.23", (str(peers / "hf/bin/python"), loading[0], "transformers")),
            "seconds",
        ),
        Comparison(
            "start",
            Side("groundtune --help", (sys.executable, "-m", "groundtune.cli", "--help")),
            Side(
                "import of transformers' model",
                (*hf("-c").command, "from transformers import GroundingDinoModel"),
            ),
            "seconds",
        ),
    ]


def measure(side: Side) -> dict[str, float]:
    """Run one process and read the JSON of its last line; of a command that prints none, the whole
    time.
    """
    begin = time.perf_counter()
    done = subprocess.run(side.command, cwd=side.folder, capture_output=True, text=True)
    elapsed = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{' '.join(side.command)[:200]} failed:\n{done.stderr[-2000:]}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if not last.startswith("{"):
        return {"seconds": elapsed}
    found = json.loads(last)
    return {
        "seconds": found.get("seconds", found.get("step_s")),
        **{k: found[k] for k in ("cpu_s", "peak_rss_mb")},
    }


def compare(chosen: list[Comparison], rounds: int) -> list[str]:
    """Run all sides in turn, and give the rows of the table."""
    sides = list(dict.fromkeys(side for c in chosen for side in (c.ours, c.theirs)))
    values: dict[Side, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 else sides[::-1]:
            values[side].append(measure(side))
            print(f"round {number + 1}  {side.name:45} {values[side][-1]}", file=sys.stderr, flush=True)
    rows = []
    for c in chosen:
        ours, theirs = ([value[c.key] for value in values[side]] for side in (c.ours, c.theirs))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        cells = [
            f"{statistics.median(v):.3g} {UNITS[c.key]}"
            if max(v) < 1000
            else f"{statistics.median(v):.0f} MB"
            for v in (ours, theirs)
        ]
        spread = f"**{statistics.median(ratios):.3f}** ({min(ratios):.3f} – {max(ratios):.3f})"
        wanted = f"≤ {c.wanted:.3f}" if c.wanted else "–"
        rows.append(
            f"| {c.title} | {cells[0]} ({c.ours.name}) | {cells[1]} ({c.theirs.name}) | {spread} | {wanted} |"
        )
    return rows


def nano() -> list[str]:
    """The built-in model: loading it, and one image."""
    done = subprocess.run([sys.executable, HERE / "nano.py"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return [
        "",
        "## nano, an image of 640 x 640, three names",
        "",
        f"Loaded in {found['load_s']:.2f} s (imports apart); the first image {found['first_s']:.2f} s, the "
        f"next ones {found['seconds']:.3f} s or {found['cpu_s']:.3f} CPU s each.",
    ]


def scaling() -> list[str]:
    """Our default step as one thing grows."""
    grown = {
        "image side, px": ("--size", [320, 480, 640, 800, 960]),
        "names in the prompt (tokens)": ("--names", [1, 3, 12, 50]),
        "boxes": ("--boxes", [1, 5, 50, 200]),
        "batch": ("--batch", [1, 2, 4]),
    }
    rows = []
    for title, (option, numbers) in grown.items():
        for number in numbers:
            command = (*OURS, "step", "--precision", "bf16", "--repeat", "2", option, str(number))
            done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            shown = f"{number} ({found['tokens']})" if option == "--names" else number
            rows.append(f"| {title} | {shown} | {found['cpu_s']:.2f} | {found['peak_rss_mb']} |")
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def introduction(rounds: int) -> list[str]:
    """What the table was measured on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].split(":")[1].strip() if names else platform.processor()
    flags = Path("/proc/cpuinfo").read_text()
    bf16 = (
        ", ".join(flag for flag in ("amx_bf16", "avx512_bf16") if f" {flag}" in flags) or "no bf16 arithmetic"
    )
    return [
        "# Results",
        "",
        "Written by `make bench`; see the head of `benchmarks/run.py`. Random weights: times and bytes, "
        "not accuracy.",
        f"Swin-T + BERT-base, 640 px, batch 1, one name, 5 boxes, two threads; {rounds} rounds, medians. "
        f"{cpu}, {bf16}; Python {platform.python_version()}, torch 2.13.0 on all sides. The peers run in "
        "fp32, as they do by default.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of the titles")
    parser.add_argument("--no-scaling", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    args = parser.parse_args()
    chosen = [c for c in comparisons(args.peers.resolve()) if args.only in c.title]
    lines = [
        *introduction(args.rounds),
        "| what | ours | theirs | ratio (lowest – highest) | wanted |",
        "|---|---|---|---|---|",
    ]
    lines += compare(chosen, args.rounds)
    if not args.no_scaling:
        lines += ["", "## How our step grows (bf16, one number changed, the others as above)", ""]
        lines += ["| what | number | CPU s | peak MB |", "|---|---|---|---|", *scaling()]
    lines += nano()
    args.output.write_text("\n".join([*lines, NOT_MEASURED]), encoding="utf-8")
    print(args.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
