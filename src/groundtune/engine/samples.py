"""What training sees, for the eye: the first augmented pictures with their boxes, and the prompt and tokens of each.

A box that moved away from its object, a class under another's name or a phrase without its tokens is found here in a
minute, and otherwise after a night.
"""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from groundtune.boxes import cxcywh_to_xyxy
from groundtune.data.batch import Batch
from groundtune.data.loader import TrainLoader
from groundtune.data.transforms import PictureFormat

_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")  # Okabe and Ito's


def write_samples(loader: TrainLoader, folder: Path, most: int = 8) -> None:
    """Write the first pictures of the first epoch as JPEGs with numbered boxes, coloured by phrase, and `samples.json`.

    Args:
        loader: asked for its first batches; training gets the same ones again.
        folder: created.
        most: pictures at the most.

    Raises:
        DataError: a picture cannot be read.
    """
    folder.mkdir(exist_ok=True)
    entries = ((batch, place) for batch in loader.epoch(0) for place in range(len(batch.samples)))
    records = []
    for number, (batch, place) in enumerate(islice(entries, most), start=1):
        record = {"file": f"{number:02}.jpg", "picture": batch.samples[place].image_path.name}
        records.append(record | _described(batch, place, loader))
        pixels, colours = batch.pictures[place], [_COLOURS[c % len(_COLOURS)] for c in batch.targets[place].labels]
        assert pixels is not None  # nothing is cached before the first step
        boxes_xyxy = [box["box_xyxy"] for box in records[-1]["boxes"]]
        drawn = _drawn(_picture(pixels, loader.picture), boxes_xyxy, colours)
        drawn.save(folder / record["file"], quality=90, subsampling=0)  # thin lines keep their colours
    (folder / "samples.json").write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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


def _picture(pixels: Tensor, fmt: PictureFormat) -> Image.Image:
    """The picture of normalised (3, h, w) pixels: the inverse of `transforms.to_tensor`."""
    values = pixels.permute(1, 2, 0) * torch.tensor(fmt.std) + torch.tensor(fmt.mean)
    return Image.fromarray((255 * values).round().clamp(0, 255).byte().numpy())


def _drawn(picture: Image.Image, boxes_xyxy: Sequence[Sequence[float]], colours: Sequence[str]) -> Image.Image:
    draw = ImageDraw.Draw(picture)
    for number, (box, colour) in enumerate(zip(boxes_xyxy, colours, strict=True), start=1):
        draw.rectangle(tuple(box), outline=colour, width=2)
        draw.text((box[0] + 4, box[1] + 2), str(number), fill="black", font_size=14, stroke_width=2, stroke_fill=colour)
    return picture
