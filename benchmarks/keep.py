"""Measure what fine-tuning forgets: AP on the target and retention, mean and spread over seeds.

    python benchmarks/keep.py TARGET --retention-data DATA,DATA --seeds 0,1,2

Each way is one `groundtune train` with the options below; a finished run is not repeated. The last
lines are a Markdown table: target AP before, after, and the share of full fine-tuning's gain;
retention (the mean over the data sets); each with half of its range over the seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

WAYS: dict[str, list[str]] = {
    "full": ["--no-self-distillation"],
    "blend 0.5": ["--no-self-distillation", "--blend", "0.5"],
    "default": [],
    "lora": ["--tune", "lora"],
    "heads": ["--tune", "heads"],
    "prompt": ["--tune", "prompt"],
    "keep": ["--keep-base"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--retention-data", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/keep"))
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options of each run")
    given = parser.parse_args()
    seeds = given.seeds.split(",")
    found = {}
    for way in (way for way in WAYS if way in given.ways.split(",")):
        for seed in seeds:
            out = given.output_dir / f"{Path(given.data).name}-{way.replace(' ', '-')}-{seed}"
            options = [*WAYS[way], "--retention-data", given.retention_data, "--seed", seed, *given.options]
            if not (out / "metrics.json").is_file():
                command = [
                    sys.executable,
                    "-m",
                    "groundtune.cli",
                    "train",
                    given.data,
                    "--output-dir",
                    str(out),
                    *options,
                ]
                subprocess.run(command, check=True, stdout=sys.stderr)
            found[way, seed] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    print("| way | AP before | AP after | share of the gain | retained | " + " | ".join(_sets(found)) + " |")
    print("|---|---|---|---|---|" + "---|" * len(_sets(found)))
    for way in dict.fromkeys(way for way, _ in found):
        print(
            "| "
            + " | ".join(
                [
                    way,
                    *_row(
                        [found[way, seed] for seed in seeds],
                        [found.get(("full", s), found[way, s]) for s in seeds],
                    ),
                ]
            )
            + " |"
        )


def _sets(found: dict) -> list[str]:
    return list(next(iter(found.values()))["retention"])


def _row(runs: list[dict], full: list[dict]) -> list[str]:
    before = [run["zero_shot"]["valid/AP"] for run in runs]
    after = [run["best"]["valid/AP"] for run in runs]
    gains = [
        (run["best"]["valid/AP"] - run["zero_shot"]["valid/AP"])
        / (f["best"]["valid/AP"] - f["zero_shot"]["valid/AP"])
        for run, f in zip(runs, full, strict=True)
    ]
    shares = [
        {name: of["after"]["AP"] / of["before"]["AP"] for name, of in run["retention"].items()}
        for run in runs
    ]
    means = [statistics.mean(share.values()) for share in shares]
    return [_told(before), _told(after), _told(gains), _told(means)] + [
        _told([s[name] for s in shares]) for name in shares[0]
    ]


def _told(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


if __name__ == "__main__":
    main()
