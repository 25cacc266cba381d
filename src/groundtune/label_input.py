"""What `groundtune label` looks at: pictures, a data set's training pictures without any box, or pictures with captions."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from groundtune.data.formats.convert import refuse_written
from groundtune.data.formats.detect import read_splits
from groundtune.data.formats.files import read_text
from groundtune.data.sample import Dataset, Grounding, Sample, listed
from groundtune.errors import ConfigError, DataError
from groundtune.media import STDIN, files, is_camera, refuse_missing
from groundtune.text.prompt import sentence_prompt
from groundtune.verb_configs import LabelConfig


def read_given(config: LabelConfig) -> dict[str, Dataset]:
    """Read the data set whose pictures without boxes are to be labelled, if there is one; refuse what cannot be done.

    Raises:
        ConfigError: there is nothing to label.
        DataError: pictures or the data set cannot be used, or the folder to write is not empty.
    """
    refuse_written(Path(config.out))
    if config.captions:
        if config.images or config.data or config.classes or config.ray:
            raise ConfigError(
                "captions: the file names the pictures and what to look for; leave IMAGES, data, classes and ray out."
            )
        if config.format not in ("odvg", "coco"):
            raise ConfigError(f"format: {config.format} has no place for captions; choose odvg or coco.")
        return {}
    if not config.images and config.data is None:
        raise ConfigError("images: missing; name pictures or folders of them, or a data set with --data.")
    if odd := [name for name in config.images if name == STDIN or is_camera(name)]:
        raise ConfigError(f"images: {', '.join(odd)}: only files can be labelled; name pictures or folders of them.")
    if config.images:
        refuse_missing(config.images, config.recursive)
    splits = {} if config.data is None else read_splits(Path(config.data))
    if any(sample.grounding for dataset in splits.values() for sample in dataset.samples):
        raise DataError(f"{config.data} has captions. Expected a data set of classes.")
    if splits and "train" not in splits:
        raise DataError(f"{config.data} has no split 'train', which is the one that is labelled.")
    return splits


def read_captions(path: Path) -> tuple[list[Sample], dict[str, str]]:
    """Read what is said about pictures: lines of JSON, {"picture": "a.jpg", "caption": "a [cat] on the [left sofa]"}.

    Args:
        path: the file; pictures are named as seen from its folder. Brackets mark what is looked for; without any, it is what
            the caption as a whole describes.

    Returns:
        A sample for each picture, of which the size is not yet known, and the captions by the pictures' paths.

    Raises:
        DataError: the file or lines of it cannot be used; all of them are counted, a few listed.
    """
    samples: list[Sample] = []
    captions: dict[str, str] = {}
    problems = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            picture, caption = os.path.abspath(path.parent / row["picture"]), row["caption"]
            prompt = sentence_prompt(caption)
            if picture in captions:
                raise DataError(f"{row['picture']} has a caption already; a picture can have one.")
        except DataError as error:
            problems.append(f"line {number}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"line {number}: it is no JSON object with the texts 'picture' and 'caption'.")
        else:
            captions[picture] = caption
            samples.append(_unseen(picture, number, Grounding(prompt.caption, prompt.spans)))
    if problems or not samples:
        raise DataError(f"{path}: {listed(problems, 3) if problems else 'there is no caption in it.'}")
    return samples, captions


def wanted_pictures(config: LabelConfig, splits: Mapping[str, Dataset]) -> list[Sample]:
    """The pictures to look at: of the data set those without a box, then those that are named, whose size is yet 0."""
    given = splits["train"].samples if splits else []
    paths = (os.path.abspath(file) for name in config.images for file in files(name, config.recursive))
    own = {os.path.abspath(sample.image_path) for sample in given}
    first = max((sample.image_id for sample in given), default=0) + 1
    named = [
        _unseen(path, number)
        for number, path in enumerate((path for path in dict.fromkeys(paths) if path not in own), start=first)
    ]
    return [sample for sample in given if not len(sample.boxes_xyxy)] + named


def _unseen(path: str, number: int, grounding: Grounding | None = None) -> Sample:
    """A picture that nobody has opened yet: without boxes, and of the size 0."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Sample(Path(path), number, (0, 0), *none, grounding)
