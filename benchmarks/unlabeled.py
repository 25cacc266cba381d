"""Measure whether classes without labels can still be detected after fine-tuning.

    python benchmarks/unlabeled.py DATA --without "white queen,black knight" --output-dir runs/x

DATA has Roboflow's COCO layout. A copy of its annotations loses the boxes and names of these
classes, `groundtune train` fine-tunes on it (with the options after `--options`), and the result is
evaluated with all class names on the whole validation split. The last lines are AP by class.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from groundtune.text.prompt import clean_name

FILE = "_annotations.coco.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--without", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    given = parser.parse_args()
    without = {clean_name(name) for name in given.without.split(",")}
    names: dict[str, None] = {}
    for split in ("train", "valid"):
        names |= take_out(given.data / split, given.output_dir / "data" / split, without)
    groundtune = [sys.executable, "-m", "groundtune.cli"]
    run = [
        *groundtune,
        "train",
        str(given.output_dir / "data"),
        "--output-dir",
        str(given.output_dir / "run"),
        *given.options,
    ]
    subprocess.run(run, check=True)
    asked = ",".join(names)
    subprocess.run(
        [*groundtune, "evaluate", str(given.output_dir / "run"), str(given.data), "--classes", asked],
        check=True,
    )


def take_out(source: Path, target: Path, without: set[str]) -> dict[str, None]:
    """Write the annotations of a split without some names, beside links to its images; all names
    that have boxes.
    """
    target.mkdir(parents=True, exist_ok=True)
    data = json.loads((source / FILE).read_text(encoding="utf-8"))
    used = {row["category_id"] for row in data["annotations"]}
    names = {row["id"]: clean_name(row["name"]) for row in data["categories"]}
    gone = {number for number, name in names.items() if name in without}
    if len(gone) < len(without):
        sys.exit(f"{source} has not all of: {', '.join(sorted(without))}")
    data["categories"] = [row for row in data["categories"] if row["id"] not in gone]
    data["annotations"] = [row for row in data["annotations"] if row["category_id"] not in gone]
    (target / FILE).write_text(json.dumps(data), encoding="utf-8")
    for row in data["images"]:
        link = target / row["file_name"]
        if not link.exists():
            link.symlink_to((source / row["file_name"]).resolve())
    return dict.fromkeys(name for number, name in names.items() if number in used)


if __name__ == "__main__":
    main()
