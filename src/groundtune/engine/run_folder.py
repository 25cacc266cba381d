"""The files of a run, for people, scripts and the report.

config.yaml  env.json  train.log  metrics.jsonl  metrics.json  predictions_valid.json
checkpoints/  model/  samples/

Whole files are written aside and renamed when they are on the disk: whatever kills a run, a reader
sees the old file or the new one. metrics.json is the last one; with it a run is finished.

`samples/` has the first augmented images with their boxes, prompts and tokens: a box off its
object, a swapped class or a phrase without tokens is seen there in a minute, else after a night.
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
from groundtune.data.transforms import normalize
from groundtune.errors import CheckpointError, ConfigError
from groundtune.files import atomic_write, ensure_empty_output


@contextmanager
def disk_faults(folder: Path, resume_command: str) -> Iterator[None]:
    """Turn the OSErrors of a full, read-only or vanished disk into one `CheckpointError`.

    Other OSErrors, such as those of the network, have classes of their own and pass.
    """
    try:
        yield
    except OSError as error:
        if type(error) not in (OSError, PermissionError, FileNotFoundError):
            raise
        raise CheckpointError(
            f"The run directory {folder} cannot be written: {error}. Its checkpoints are whole; free some "
            f"space and resume with: {resume_command}"
        ) from error


def check_usable(folder: Path, resume: bool) -> None:
    """Raise a `ConfigError` unless a run directory is new, empty, or that of the run to resume."""
    if not resume or not folder.is_dir():
        or_resume = f", or resume that run with --resume {folder}" if folder.is_dir() else ""
        fix = f"Choose another --output-dir{or_resume}."
        ensure_empty_output(folder, ConfigError, fix, "output_dir: ")


class RunFolder:
    """Writes the files of one run, if `writes`: only the main process does.

    Raises:
        ConfigError: the folder is not empty and no run is resumed, or it cannot be created.
    """

    def __init__(self, path: Path, resume: bool, writes: bool) -> None:
        self.path = path
        self._writes = writes
        if not writes:
            return
        check_usable(path, resume)
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"output_dir: the run directory {path} cannot be created: {error.strerror}."
            ) from error
        for leftover in (*path.glob(".model.*"), *path.glob(".*.tmp"), *path.glob("checkpoints/.*.tmp")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()  # killed

    def checkpoint(self, name: str) -> Path:
        """Return the path of the training state "last", the one before ("previous"), or "best"."""
        return self.path / "checkpoints" / f"{name}.pt"

    def log(self, text: str) -> None:
        """Append a line with the time to train.log."""
        if self._writes:
            with (self.path / "train.log").open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def metrics(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        if self._writes:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint on the disk must not be ahead of its lines

    def forget_after(self, epoch: int, step: int) -> None:
        """Drop the lines of metrics.jsonl after a step, as those since the last checkpoint.

        The validation after an epoch has the step of its last line and the next epoch's number.
        """
        path = self.path / "metrics.jsonl"
        if not (self._writes and path.is_file()):
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        values = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
        before = [line for line, value in values if (value["epoch"], value["step"]) <= (epoch, step)]
        self.text("metrics.jsonl", "".join(before))

    def finished(self) -> dict[str, Any] | None:
        """Return the content of metrics.json; None if the run is not finished."""
        path = self.path / "metrics.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def reopen(self) -> None:
        """Mark the run as not finished."""
        if self._writes:
            (self.path / "metrics.json").unlink(missing_ok=True)

    def json(self, name: str, value: object, indent: int | None = 2) -> None:
        """Write a whole JSON file."""
        self.text(name, json.dumps(value, indent=indent) + "\n")

    def text(self, name: str, text: str) -> None:
        """Write a whole text file."""
        if self._writes:
            with atomic_write(self.path / name) as file:
                file.write(text.encode())


# Okabe and Ito's colors
_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def write_samples(loader: TrainLoader, folder: Path, limit: int = 8) -> None:
    """Write the first training images as JPEGs with numbered boxes, and `samples.json`."""
    folder.mkdir(exist_ok=True)
    entries = ((batch, index) for batch in loader.epoch(0) for index in range(len(batch.samples)))
    records = []
    for number, (batch, index) in enumerate(islice(entries, limit), start=1):
        record = {"file": f"{number:02}.jpg", "image": batch.samples[index].image_path.name}
        records.append(record | _describe(batch, index, loader))
        pixels, labels = batch.images[index], batch.targets[index].labels.tolist()
        assert pixels is not None  # nothing is cached before the first step
        image = _to_image(normalize(pixels, loader.image_format), loader.image_format)
        _draw(image, [box["box_xyxy"] for box in records[-1]["boxes"]], labels)
        image.save(folder / record["file"], quality=90, subsampling=0)  # keeps thin lines' colors
    text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
    (folder / "samples.json").write_text(text, encoding="utf-8")


def _describe(batch: Batch, index: int, loader: TrainLoader) -> dict[str, Any]:
    prompt, target, (height, width) = batch.prompts[index], batch.targets[index], batch.sizes_hw[index]
    tokens = np.array(loader.tokenizer.convert_ids_to_tokens(batch.text.input_ids[index].tolist()))
    boxes_xyxy = cxcywh_to_xyxy(target.boxes_cxcywh) * torch.tensor([width, height, width, height])
    rows = zip(boxes_xyxy.tolist(), target.labels.tolist(), target.positive_map, strict=True)
    boxes = [
        {
            "number": number,
            "phrase": prompt.phrases[label],
            "tokens": tokens[positive[: len(tokens)].numpy()].tolist(),
            "box_xyxy": [round(value, 1) for value in box],
        }
        for number, (box, label, positive) in enumerate(rows, start=1)
    ]
    return {"size_hw": [height, width], "prompt": prompt.caption, "boxes": boxes}


def _to_image(pixels: Tensor, fmt: ImageFormat) -> Image.Image:
    """Return the image of normalized (3, h, w) pixels: the inverse of `transforms.to_tensor`."""
    values = pixels.permute(1, 2, 0) * torch.tensor(fmt.std) + torch.tensor(fmt.mean)
    return Image.fromarray((255 * values).round().clamp(0, 255).byte().numpy())


def _draw(image: Image.Image, boxes_xyxy: Sequence[Sequence[float]], labels: Sequence[int]) -> None:
    """Draw numbered boxes, colored by phrase."""
    draw = ImageDraw.Draw(image)
    for number, (box, label) in enumerate(zip(boxes_xyxy, labels, strict=True), start=1):
        color, corner = _COLORS[label % len(_COLORS)], (box[0] + 4, box[1] + 2)
        draw.rectangle(tuple(box), outline=color, width=2)
        draw.text(corner, str(number), fill="black", font_size=14, stroke_width=2, stroke_fill=color)
