"""What training sees, for the eye: the first augmented images with their boxes, and the prompt and tokens of each.

A box that moved away from its object, a class under another's name or a phrase without its tokens is found here in a
minute, and otherwise after a night.

What a run writes down, for people, scripts and the report (design, section 4).

config.yaml  env.json  train.log  metrics.jsonl  metrics.json  predictions_valid.json  checkpoints/  model/

Whole files are written aside and renamed when they are on the disk: whatever kills a run, a reader sees the old file or the
new one. metrics.json is the last one; with it a run is finished.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from groundtune.boxes import cxcywh_to_xyxy
from groundtune.contracts import ImageFormat
from groundtune.data.batch import Batch
from groundtune.data.loader import TrainLoader
from groundtune.errors import CheckpointError, ConfigError
from groundtune.files import replacing


@contextmanager
def disk_faults(folder: Path, go_on: str) -> Iterator[None]:
    """Turns what a full disk, a read-only or a vanished run folder raises into one message.

    Args:
        go_on: the command that resumes the run.

    Raises:
        CheckpointError: in place of such an OSError. Those of networks, which have classes of their own, are let through.
    """
    try:
        yield
    except OSError as error:
        if type(error) not in (OSError, PermissionError, FileNotFoundError):
            raise
        raise CheckpointError(
            f"The run folder {folder} cannot be written to: {error}. Its checkpoints are whole; when there is room, go on "
            f"with: {go_on}"
        ) from error


class RunFolder:
    """Writes the files of one run; processes other than the main one write nothing.

    Args:
        path: created where it does not exist.
        resume: whether a run in this folder goes on; otherwise the folder must be new or empty.
        writes: whether this process is the one that writes.

    Raises:
        ConfigError: the folder holds something and `resume` is off, or it cannot be written to.
    """

    def __init__(self, path: Path, resume: bool, writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        if not writes:
            return
        if path.exists() and not path.is_dir():
            raise ConfigError(f"out: {path} is a file; name a folder.")
        if not resume and path.is_dir() and any(path.iterdir()):
            raise ConfigError(
                f"out: the run folder {path} is not empty. Name another, or continue that run with --resume."
            )
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: the run folder {path} cannot be created: {error.strerror}.") from error
        for left in (*path.glob(".model.*"), *path.glob(".*.tmp"), *path.glob("checkpoints/.*.tmp")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # by a run that was killed

    def checkpoint(self, name: str) -> Path:
        """Where the training state "last", the one before it ("previous"), or "best" lies."""
        return self.path / "checkpoints" / f"{name}.pt"

    def log(self, text: str) -> None:
        """Adds a line with the time to train.log."""
        if self._writes:
            with (self.path / "train.log").open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def metrics(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        if self._writes:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that is on the disk must not be ahead of its lines

    def forget_after(self, epoch: int, step: int) -> None:
        """Drops the lines of metrics.jsonl behind a place: those of the time between the last checkpoint and the stop.

        The evaluation after an epoch has the step of the epoch's last line and the number of the next epoch.
        """
        path = self.path / "metrics.jsonl"
        if self._writes and path.is_file():
            lines = [
                line
                for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
                if line.endswith("\n")
            ]
            places = [(line["epoch"], line["step"]) for line in map(json.loads, lines)]
            kept = [line for line, place in zip(lines, places, strict=True) if place <= (epoch, step)]
            self.text("metrics.jsonl", "".join(kept))

    def finished(self) -> dict[str, Any] | None:
        """What metrics.json holds, the last file that a run writes; None before."""
        path = self.path / "metrics.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def reopen(self) -> None:
        """The run is not finished (any more)."""
        if self._writes:
            (self.path / "metrics.json").unlink(missing_ok=True)

    def json(self, name: str, value: object, indent: int | None = 2) -> None:
        """Writes a whole JSON file."""
        self.text(name, json.dumps(value, indent=indent) + "\n")

    def text(self, name: str, text: str) -> None:
        """Writes a whole text file."""
        if self._writes:
            with replacing(self.path / name) as file:
                file.write(text.encode())


_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")  # Okabe and Ito's


def write_samples(loader: TrainLoader, folder: Path, most: int = 8) -> None:
    """Write the first images of the first epoch as JPEGs with numbered boxes, colored by phrase, and `samples.json`.

    Args:
        loader: asked for its first batches; training gets the same ones again.
        folder: created.
        most: images at the most.

    Raises:
        DataError: an image cannot be read.
    """
    folder.mkdir(exist_ok=True)
    entries = ((batch, place) for batch in loader.epoch(0) for place in range(len(batch.samples)))
    records = []
    for number, (batch, place) in enumerate(islice(entries, most), start=1):
        record = {"file": f"{number:02}.jpg", "image": batch.samples[place].image_path.name}
        records.append(record | _described(batch, place, loader))
        pixels, colors = (
            batch.images[place],
            [_COLORS[c % len(_COLORS)] for c in batch.targets[place].labels],
        )
        assert pixels is not None  # nothing is cached before the first step
        boxes_xyxy = [box["box_xyxy"] for box in records[-1]["boxes"]]
        drawn = _drawn(_image(pixels, loader.image_format), boxes_xyxy, colors)
        drawn.save(folder / record["file"], quality=90, subsampling=0)  # thin lines keep their colors
    (folder / "samples.json").write_text(
        json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _described(batch: Batch, place: int, loader: TrainLoader) -> dict[str, Any]:
    prompt, target, (height, width) = batch.prompts[place], batch.targets[place], batch.sizes_hw[place]
    tokens = np.array(loader.tokenizer.convert_ids_to_tokens(batch.text.input_ids[place].tolist()))
    boxes_xyxy = cxcywh_to_xyxy(target.boxes_cxcywh) * torch.tensor([width, height, width, height])
    boxes = [
        {
            "number": number,
            "phrase": prompt.phrases[label],
            "tokens": tokens[positive[: len(tokens)].numpy()].tolist(),
            "box_xyxy": [round(value, 1) for value in box],
        }
        for number, (box, label, positive) in enumerate(
            zip(boxes_xyxy.tolist(), target.labels.tolist(), target.positive_map, strict=True), start=1
        )
    ]
    return {"size_hw": [height, width], "prompt": prompt.caption, "boxes": boxes}


def _image(pixels: Tensor, fmt: ImageFormat) -> Image.Image:
    """The image of normalized (3, h, w) pixels: the inverse of `transforms.to_tensor`."""
    values = pixels.permute(1, 2, 0) * torch.tensor(fmt.std) + torch.tensor(fmt.mean)
    return Image.fromarray((255 * values).round().clamp(0, 255).byte().numpy())


def _drawn(image: Image.Image, boxes_xyxy: Sequence[Sequence[float]], colors: Sequence[str]) -> Image.Image:
    draw = ImageDraw.Draw(image)
    for number, (box, color) in enumerate(zip(boxes_xyxy, colors, strict=True), start=1):
        draw.rectangle(tuple(box), outline=color, width=2)
        draw.text(
            (box[0] + 4, box[1] + 2),
            str(number),
            fill="black",
            font_size=14,
            stroke_width=2,
            stroke_fill=color,
        )
    return image
