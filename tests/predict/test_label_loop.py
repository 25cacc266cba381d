"""The recipe examples/label_loop.sh, on generated images: as its users call it."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groundtune.boxes import pairwise_iou
from groundtune.data.formats.detect import read_splits
from groundtune.data.scenes import write_scenes

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_recipe_goes_round_and_labels_every_second_image(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", train=8, valid=4, classes=["red circle", "blue star"], size=160)
    for name, command in (("groundtune", "-m groundtune.cli"), ("python", "")):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {command} "$@"\n')
        file.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    options = [
        "--epochs",
        "1",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--retention-data",
        "none",
        "--no-self-distillation",
    ]
    done = subprocess.run(
        ["bash", ROOT / "examples/label_loop.sh", tmp_path / "data", tmp_path / "out", *options],
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scores = {
        run: json.loads((tmp_path / f"out/{run}/metrics.json").read_text())["best"]
        for run in ("half", "both")
    }
    assert done.stdout.splitlines()[-2:] == [
        f"{r} valid AP {round(s['valid/AP'], 3)}" for r, s in scores.items()
    ]
    before, after = (
        read_splits(folder)["train"].samples for folder in (tmp_path / "data", tmp_path / "out/labeled")
    )
    assert [len(s.class_ids) for s in after[::2]] == [len(s.class_ids) for s in before[::2]]
    assert all(s.confidence is None for s in after)  # all boxes are a person's: drawn, or accepted
    found = 0
    for drawn, true in zip(after[1::2], before[1::2], strict=True):
        overlap = pairwise_iou(torch.from_numpy(drawn.boxes_xyxy), torch.from_numpy(true.boxes_xyxy)).numpy()
        same = drawn.class_ids[:, None] == true.class_ids[None]
        assert ((overlap >= 0.5) & same).any(1).all() and len(drawn.class_ids) <= len(true.class_ids)
        found += len(drawn.class_ids)
    assert found > 0
