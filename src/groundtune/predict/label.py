"""`groundtune label`: a model draws the boxes, and images become a data set to review and to train on.

Each image that was looked at is a line of a journal beside the data set (OUT.labels.jsonl), so that a labeling that was
stopped goes on where it was. The data set appears whole in the end, and the journal is gone then. What a person drew is never
touched: of a data set only the training images without any box are looked at.

Scores stay with the boxes as their confidence where the format has a place for them (COCO), and training takes them as soft
targets. Suppression is within a class: two names for one thing are two answers, which a person may want to see.

What `groundtune label` looks at: images, a data set's training images without any box, or images with captions.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import numpy as np
from PIL import Image

from groundtune.config import LabelConfig
from groundtune.data.formats.convert import Converted, ensure_empty_output, write_data
from groundtune.data.formats.detect import read_splits
from groundtune.data.formats.files import read_text, stored_size
from groundtune.data.images import load_image
from groundtune.data.sample import Dataset, Grounding, Sample, join_examples, match_class_names
from groundtune.device import pick_device, pick_precision
from groundtune.errors import ConfigError, DataError
from groundtune.predict.predictor import Predictor, batched
from groundtune.predict.ray import RayPool, on_ray, pack, unpack
from groundtune.predict.sources import STDIN, check_inputs_exist, files, is_camera
from groundtune.progress import Progress
from groundtune.text.prompt import clean_name, sentence_prompt, unique_names

if TYPE_CHECKING:
    from supervision import Detections


def read_given(config: LabelConfig) -> dict[str, Dataset]:
    """Read the data set whose images without boxes are to be labeled, if there is one; refuse what cannot be done.

    Raises:
        ConfigError: there is nothing to label.
        DataError: images or the data set cannot be used, or the folder to write is not empty.
    """
    ensure_empty_output(Path(config.output_dir))
    if config.captions:
        if config.images or config.data or config.classes or config.ray:
            raise ConfigError(
                "captions: the file names the images and what to look for; leave IMAGES, data, classes and ray out."
            )
        if config.format not in ("odvg", "coco"):
            raise ConfigError(f"format: {config.format} has no place for captions; choose odvg or coco.")
        return {}
    if not config.images and config.data is None:
        raise ConfigError("images: missing; name images or folders of them, or a data set with --data.")
    if odd := [name for name in config.images if name == STDIN or is_camera(name)]:
        raise ConfigError(
            f"images: {', '.join(odd)}: only files can be labeled; name images or folders of them."
        )
    if config.images:
        check_inputs_exist(config.images, config.recursive)
    splits = {} if config.data is None else read_splits(Path(config.data))
    if any(sample.grounding for dataset in splits.values() for sample in dataset.samples):
        raise DataError(f"{config.data} has captions. Expected a data set of classes.")
    if splits and "train" not in splits:
        raise DataError(f"{config.data} has no split 'train', which is the one that is labeled.")
    return splits


def read_captions(path: Path) -> tuple[list[Sample], dict[str, str]]:
    """Read what is said about images: lines of JSON, {"image": "a.jpg", "caption": "a [cat] on the [left sofa]"}.

    Args:
        path: the file; images are named as seen from its folder. Brackets mark what is looked for; without any, it is what
            the caption as a whole describes.

    Returns:
        A sample for each image, of which the size is not yet known, and the captions by the images' paths.

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
            image, caption = os.path.abspath(path.parent / row["image"]), row["caption"]
            prompt = sentence_prompt(caption)
            if image in captions:
                raise DataError(f"{row['image']} has a caption already; an image can have one.")
        except DataError as error:
            problems.append(f"line {number}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"line {number}: it is no JSON object with the texts 'image' and 'caption'.")
        else:
            captions[image] = caption
            samples.append(_unseen(image, number, Grounding(prompt.caption, prompt.spans)))
    if problems or not samples:
        raise DataError(f"{path}: {join_examples(problems, 3) if problems else 'there is no caption in it.'}")
    return samples, captions


def wanted_images(config: LabelConfig, splits: Mapping[str, Dataset]) -> list[Sample]:
    """The images to look at: of the data set those without a box, then those that are named, whose size is yet 0."""
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
    """An image that nobody has opened yet: without boxes, and of the size 0."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Sample(Path(path), number, (0, 0), *none, grounding)


@dataclass
class Labeled:
    """What was written, and the images that could not be read, with the reason."""

    written: Converted
    unreadable: dict[str, str]


def label(
    config: LabelConfig, predictor: Predictor, splits: Mapping[str, Dataset], progress: Progress
) -> Labeled:
    """Find objects in images, and write them as a data set.

    Args:
        config: the options.
        predictor: the model with the names to look for; those of the data set where there is one.
        splits: what `read_given` gave. Images that are named too are added to its split train.
        progress: told of every image.

    Raises:
        ConfigError: the journal is of a labeling with other settings.
        DataError: a name is not one of the data set's, there is nothing to label, none of the images can be read, or the
            data cannot be written.
    """
    names = (
        [] if config.captions else splits["train"].class_names if splits else unique_names(predictor.names)[0]
    )
    captions: dict[str, str] = {}
    if config.captions:
        wanted, captions = read_captions(Path(config.captions))
    else:
        match_class_names(predictor.names, names)  # says which do not exist
        wanted = wanted_images(config, splits)
    if not wanted:
        raise DataError(f"There is nothing to label: every training image of {config.data} has boxes.")
    unreadable: dict[str, str] = {}

    def failed(path: Path, reason: str) -> None:
        unreadable[str(path)] = reason
        progress.message(f"groundtune: left out: {reason}")

    journal = Path(f"{config.output_dir}.labels.jsonl")
    settings = {"model": config.model, "classes": predictor.names, "nms": config.nms, "data": config.data}
    settings |= {
        "threshold": predictor.threshold,
        "thresholds": dict(predictor.thresholds),
        "captions": config.captions,
    }
    done = _done(journal, settings)
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as file:
            if not file.tell():  # it is a new one
                _note(file, {"settings": settings})
            left = [sample for sample in wanted if str(sample.image_path) not in done]
            for record in _records(config, predictor, left, captions, failed):
                _note(file, record)
                done[record["image"]] = record
                progress.evaluation(len(done) + len(unreadable), len(wanted), "labeling")
    except OSError as error:
        raise DataError(f"Cannot write {journal}: {error.strerror or error}.") from error
    finally:
        progress.close()
    class_of = [] if captions else [names.index(clean_name(name)) for name in predictor.names]
    found = {
        sample.image_id: _sample(sample, done[str(sample.image_path)], class_of)
        for sample in wanted
        if str(sample.image_path) in done
    }
    written = write_data(
        _data(splits, names, wanted, found), Path(config.output_dir), config.format, link=config.link
    )
    journal.unlink()
    return Labeled(written, unreadable)


def _records(
    config: LabelConfig,
    predictor: Predictor,
    samples: list[Sample],
    captions: Mapping[str, str],
    failed: Callable[[Path, str], None],
) -> Iterator[dict[str, Any]]:
    """The line of each image that can be read, from wherever it is looked at."""
    if config.ray:
        return _on_ray(config, predictor, samples, failed)
    if captions:
        return _look_for_captions(predictor, samples, captions, config.nms, failed)
    return _look(predictor, samples, config.nms, failed)


def _look_for_captions(
    predictor: Predictor,
    samples: Iterable[Sample],
    captions: Mapping[str, str],
    nms: float,
    failed: Callable[[Path, str], None],
) -> Iterator[dict[str, Any]]:
    """The line of each image that can be read, which is asked for its own caption."""
    for sample in samples:
        try:
            asked = replace(predictor, names=[captions[str(sample.image_path)]], sentences=True)
        except DataError as error:  # it is too long
            failed(sample.image_path, str(error))
        else:
            yield from _look(asked, [sample], nms, failed)


def _look(
    predictor: Predictor, samples: Iterable[Sample], nms: float, failed: Callable[[Path, str], None]
) -> Iterator[dict[str, Any]]:
    """The line of each image that can be read."""
    for group in batched(
        samples, predictor.batch_size
    ):  # also of unreadable ones, so that Ray's workers have the same
        readable = list(_images(group, failed))
        for (sample, image), found in zip(readable, predictor.find([p for _, p in readable]), strict=True):
            wide = np.flatnonzero((found.xyxy[:, 2:] > found.xyxy[:, :2]).all(axis=1))
            kept = cast("Detections", found[wide]).with_nms(nms)
            yield {
                "image": str(sample.image_path),
                "size_hw": [image.height, image.width],
                "boxes_xyxy": kept.xyxy.tolist(),
                "class_ids": [] if kept.class_id is None else kept.class_id.tolist(),
                "scores": [] if kept.confidence is None else kept.confidence.tolist(),
            }


@dataclass
class _Share:
    """The work of one of Ray's workers: the lines of a batch of images, and those that cannot be read."""

    model: dict[str, bytes]
    names: list[str]
    thresholds: Mapping[str, float]
    config: LabelConfig

    @cached_property
    def predictor(self) -> Predictor:
        device, own = pick_device(self.config.device), self.config
        precision = pick_precision(own.precision, device)
        return Predictor(
            unpack(self.model),
            self.names,
            device,
            own.threshold,
            self.thresholds,
            batch_size=own.batch_size,
            precision=precision,
        )

    def __call__(self, samples: list[Sample]) -> tuple[list[dict[str, Any]], dict[Path, str]]:
        unreadable: dict[Path, str] = {}
        return list(_look(self.predictor, samples, self.config.nms, unreadable.__setitem__)), unreadable


def _on_ray(
    config: LabelConfig, predictor: Predictor, samples: Iterable[Sample], failed: Callable[[Path, str], None]
) -> Iterator[dict[str, Any]]:
    """The same lines, as Ray's workers have them."""
    pool = RayPool(config.ray or "", config.ray_workers, config.threads, gpus=config.device != "cpu")
    work = _Share(pack(predictor.bundle), predictor.names, predictor.thresholds, config)
    for _, (records, unreadable) in on_ray(work, batched(samples, config.batch_size), pool):
        for path, reason in unreadable.items():
            failed(path, reason)
        yield from records


def _images(
    samples: Iterable[Sample], failed: Callable[[Path, str], None]
) -> Iterator[tuple[Sample, Image.Image]]:
    for sample in samples:
        try:
            size_hw = sample.size_hw if sample.size_hw[0] else _size(sample.image_path)
            yield sample, load_image(sample.image_path, size_hw)
        except DataError as error:
            failed(sample.image_path, str(error))


def _size(path: Path) -> tuple[int, int] | None:
    """The size that will be stated: it decides about EXIF orientation, for us now as for who reads the data set."""
    try:
        return stored_size(path, upright=True)
    except Exception:  # any kind, of a broken file; who decodes it says what is wrong
        return None


def _note(file: TextIO, record: Mapping[str, Any]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def _done(journal: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The lines of an earlier labeling by their images; one that was cut off is taken away."""
    if not journal.exists():
        return {}
    whole = journal.read_bytes().rpartition(b"\n")[0]
    try:
        first, *records = [json.loads(line) for line in whole.splitlines()] or [{"settings": settings}]
        done = {record["image"]: record for record in records}
        before = first["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{journal} is not the journal of a labeling. Remove it, or choose another --output-dir."
        ) from error
    if before != settings:
        changed = [name for name, value in settings.items() if before.get(name) != value]
        raise ConfigError(
            f"{', '.join(changed)}: other than in the labeling that {journal} is of. "
            "Repeat that one's options to go on, or remove the file to begin anew."
        )
    os.truncate(journal, len(whole) + bool(whole))
    return done


def _sample(sample: Sample, record: Mapping[str, Any], class_of: list[int]) -> Sample:
    return replace(
        sample,
        size_hw=tuple(record["size_hw"]),
        boxes_xyxy=np.array(record["boxes_xyxy"], np.float32).reshape(-1, 4),
        class_ids=np.array(
            [class_of[place] if class_of else place for place in record["class_ids"]], np.int64
        ),
        crowd=np.zeros(len(record["scores"]), bool),
        confidence=np.array(record["scores"], np.float32),
    )


def _data(
    splits: Mapping[str, Dataset], names: list[str], wanted: list[Sample], found: Mapping[int, Sample]
) -> dict[str, Dataset]:
    """The data set to write: the images that were looked at with what was found in them, everything else as it was."""
    ids = {sample.image_id for sample in wanted}
    given = splits["train"] if splits else Dataset("train", Path(), names, [], list(range(1, len(names) + 1)))
    kept = [found.get(s.image_id, s) for s in given.samples if s.image_id in found or s.image_id not in ids]
    own = {sample.image_id for sample in given.samples}
    samples = kept + [sample for sample in found.values() if sample.image_id not in own]
    if not samples:
        raise DataError("None of the images could be read. Expected JPEG, PNG or the like.")
    return {**splits, "train": replace(given, samples=samples)}
