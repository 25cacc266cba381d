"""Label images with a model and write a data set to review and train on.

Each processed image is a line of a journal (OUT.labels.jsonl), from which an interrupted run
resumes; the data set is written at the end. Of a data set only training images without boxes are
labeled. COCO keeps the scores, which training uses as soft targets.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from groundtune.config import LabelConfig
from groundtune.data.formats.convert import Converted, ensure_empty_output, write_data
from groundtune.data.formats.detect import read_splits
from groundtune.data.formats.files import read_text, stored_size
from groundtune.data.images import load_image
from groundtune.data.prefetch import read_ahead
from groundtune.data.sample import Dataset, Grounding, Sample, join_examples, match_class_names
from groundtune.errors import ConfigError, DataError
from groundtune.predict.predictor import Detections, Predictor, batched
from groundtune.predict.ray import RayPool, on_ray, pack, unpack
from groundtune.predict.run import build_predictor
from groundtune.predict.sources import OnError, OnMessage, check_inputs_exist, files, is_stream
from groundtune.progress import Progress
from groundtune.text.prompt import sentence_prompt

Record = dict[str, Any]  # a line of the journal


@dataclass
class Labeled:
    """What was written, and the paths of unreadable images with the reasons."""

    written: Converted
    unreadable: dict[str, str]


def read_given(config: LabelConfig) -> dict[str, Dataset]:
    """Check the options, and read the data set whose images without boxes are labeled, if any."""
    ensure_empty_output(Path(config.output_dir))
    if config.captions:
        if config.images or config.data or config.classes or config.ray:
            raise ConfigError(
                "captions: remove images, data, classes and ray; the file has images and phrases."
            )
        if config.format not in ("odvg", "coco"):
            raise ConfigError(f"format: {config.format} cannot store captions; choose odvg or coco.")
        return {}
    if not config.images and config.data is None:
        raise ConfigError("images: missing; name images or directories, or a data set with --data.")
    if streams := ", ".join(filter(is_stream, config.images)):
        raise ConfigError(f"images: only files can be labeled, got {streams}.")
    if config.images:
        check_inputs_exist(config.images, config.recursive)
    splits = {} if config.data is None else read_splits(Path(config.data), format=config.input_format)
    if any(sample.grounding for dataset in splits.values() for sample in dataset.samples):
        raise DataError(f"{config.data} has captions. Expected a data set with classes.")
    if splits and "train" not in splits:
        raise DataError(f"{config.data} has no split 'train', which is the one that is labeled.")
    return splits


def label(
    config: LabelConfig, predictor: Predictor, splits: Mapping[str, Dataset], progress: Progress
) -> Labeled:
    """Detect objects in images and write them as a data set; `splits` comes from `read_given`.

    Other options than those of the interrupted run are a `ConfigError`; all else is a `DataError`.
    """
    names = [] if config.captions else predictor.names
    train = splits.get("train") or Dataset("train", Path(), names, [], list(range(1, len(names) + 1)))
    class_ids, captions = list[int](), dict[str, str]()
    if config.captions:
        samples, captions = _read_captions(Path(config.captions))
    else:
        phrases = predictor.bundle.phrases_of(train.class_names)
        match_class_names(names, train.class_names, phrases)  # lists all unknown names at once
        class_ids = [match_class_names([name], train.class_names, phrases)[0] for name in names]
        samples = _images_to_label(config, train.samples, progress.message)
    if not samples:
        raise DataError(f"Nothing to label: all training images of {config.data} have boxes.")
    unreadable: dict[str, str] = {}

    def on_error(path: str, reason: str) -> None:
        unreadable[path] = reason
        progress.message(f"groundtune: skipped: {reason}")

    journal = Path(f"{config.output_dir}.labels.jsonl")
    settings: dict[str, Any] = {"model": config.model, "classes": predictor.names, "data": config.data}
    settings |= {"nms": config.nms, "agnostic_nms": config.agnostic_nms or None}
    settings |= {"max_detections": config.max_detections}
    settings |= {"threshold": predictor.threshold, "thresholds": dict(predictor.thresholds)}
    settings |= {"captions": config.captions}
    records = _read_journal(journal, settings)
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as file:
            if not file.tell():
                file.write(json.dumps({"settings": settings}) + "\n")
            remaining = [sample for sample in samples if str(sample.image_path) not in records]
            for record in _records(config, predictor, remaining, captions, on_error):
                file.write(json.dumps(record) + "\n")
                file.flush()
                records[record["image"]] = record
                progress.evaluation(len(records) + len(unreadable), len(samples), "labeling")
    except OSError as error:
        raise DataError(f"Cannot write {journal}: {error.strerror or error}.") from error
    finally:
        progress.close()
    data = {**splits, "train": _with_records(train, samples, records, class_ids)}
    written = write_data(data, Path(config.output_dir), config.format, link=config.link)
    journal.unlink()
    return Labeled(written, unreadable)


def _read_captions(path: Path) -> tuple[list[Sample], dict[str, str]]:
    """Read lines such as {"image": "a.jpg", "caption": "a [cat] on the [left sofa]"}.

    Paths are relative to the file; a caption without brackets is one phrase.
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
                raise DataError(f"{row['image']} already has a caption; only one is possible.")
        except DataError as error:
            problems.append(f"line {number}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"line {number}: expected a JSON object with the strings 'image' and 'caption'.")
        else:
            captions[image] = caption
            samples.append(_unlabeled(image, number, Grounding(prompt.caption, prompt.spans)))
    if problems or not samples:
        raise DataError(f"{path}: {join_examples(problems, 3) if problems else 'the file has no captions.'}")
    return samples, captions


def _images_to_label(config: LabelConfig, train: list[Sample], on_message: OnMessage) -> list[Sample]:
    """Return the data set's images without boxes, then the other images, with size 0."""
    paths = (os.path.abspath(p) for name in config.images for p in files(name, config.recursive, on_message))
    known = {os.path.abspath(sample.image_path) for sample in train}
    first_id = max((sample.image_id for sample in train), default=0) + 1
    new = [path for path in dict.fromkeys(paths) if path not in known]
    others = [_unlabeled(path, image_id) for image_id, path in enumerate(new, start=first_id)]
    return [sample for sample in train if not len(sample.boxes_xyxy)] + others


def _unlabeled(path: str, image_id: int, grounding: Grounding | None = None) -> Sample:
    no_boxes = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Sample(Path(path), image_id, (0, 0), *no_boxes, grounding)


def _records(
    config: LabelConfig,
    predictor: Predictor,
    samples: Sequence[Sample],
    captions: Mapping[str, str],
    on_error: OnError,
) -> Iterator[Record]:
    if config.ray:
        pool = RayPool(config.ray, config.ray_workers, config.threads, gpus=config.device != "cpu")
        work = _RayWork(pack(predictor.bundle), predictor.names, predictor.thresholds, config)
        for _, (records, unreadable) in on_ray(work, batched(samples, config.batch_size), pool):
            for path, reason in unreadable.items():
                on_error(path, reason)
            yield from records
    elif captions:
        for sample in samples:
            path = str(sample.image_path)
            try:
                of_caption = replace(predictor, names=[captions[path]], sentences=True)
            except DataError as error:  # it is too long
                on_error(path, str(error))
            else:
                yield from _detect(of_caption, [sample], on_error)
    else:
        yield from _detect(predictor, samples, on_error)


@dataclass
class _RayWork:
    """The work of a Ray worker on a batch of samples."""

    model: dict[str, bytes]
    names: list[str]
    thresholds: Mapping[str, float]
    config: LabelConfig

    @cached_property
    def predictor(self) -> Predictor:
        return build_predictor(unpack(self.model), self.config, self.names, self.thresholds)

    def __call__(self, samples: list[Sample]) -> tuple[list[Record], dict[str, str]]:
        unreadable: dict[str, str] = {}
        return list(_detect(self.predictor, samples, unreadable.__setitem__)), unreadable


def _detect(predictor: Predictor, samples: Iterable[Sample], on_error: OnError) -> Iterator[Record]:
    """Yield the record of each readable image. Unreadable ones count in batches, as with Ray."""
    opened = ((sample.image_path, _open(sample)) for sample in samples)
    for group in batched(read_ahead(opened, 2 * predictor.batch_size), predictor.batch_size):
        for path, error in group:
            if isinstance(error, DataError):
                on_error(str(path), str(error))
        images = [(path, image) for path, image in group if isinstance(image, Image.Image)]
        found = predictor.find([image for _, image in images])
        for (path, image), detections in zip(images, found, strict=True):
            kept = detections[np.flatnonzero((detections.xyxy[:, 2:] > detections.xyxy[:, :2]).all(axis=1))]
            assert isinstance(kept, Detections)
            yield {
                "image": str(path),
                "size_hw": [image.height, image.width],
                "boxes_xyxy": kept.xyxy.tolist(),
                "class_ids": [] if kept.class_id is None else kept.class_id.tolist(),
                "scores": [] if kept.confidence is None else kept.confidence.tolist(),
            }


def _open(sample: Sample) -> Image.Image | DataError:
    """Decode an image in the orientation that the written data set will have."""
    size_hw = sample.size_hw if sample.size_hw[0] else None
    try:
        if size_hw is None:
            with suppress(Exception):  # any kind, of a broken file; `load_image` reports it
                size_hw = stored_size(sample.image_path, upright=True)
        return load_image(sample.image_path, size_hw)
    except DataError as error:
        return error


def _read_journal(journal: Path, settings: Mapping[str, Any]) -> dict[str, Record]:
    """Return the records of an interrupted run by image; a truncated last line is removed."""
    if not journal.exists():
        return {}
    complete = journal.read_bytes().rpartition(b"\n")[0]
    try:
        first, *rows = [json.loads(line) for line in complete.splitlines()] or [{"settings": settings}]
        records = {row["image"]: row for row in rows}
        previous = first["settings"]
        changed = [name for name, value in settings.items() if previous.get(name) != value]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{journal} is not a journal of label. Remove it, or choose another --output-dir."
        ) from error
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: differs from the interrupted run in {journal}. "
            "Use the same options to resume, or delete the file to start over."
        )
    os.truncate(journal, len(complete) + bool(complete))
    return records


def _with_records(
    train: Dataset, samples: Sequence[Sample], records: Mapping[str, Record], class_ids: Sequence[int]
) -> Dataset:
    """Return the training split with the labeled images and without the unreadable ones."""
    labeled = {}
    for sample in samples:
        if record := records.get(str(sample.image_path)):
            labeled[sample.image_id] = replace(
                sample,
                size_hw=tuple(record["size_hw"]),
                boxes_xyxy=np.array(record["boxes_xyxy"], np.float32).reshape(-1, 4),
                class_ids=np.array([class_ids[i] if class_ids else i for i in record["class_ids"]], np.int64),
                crowd=np.zeros(len(record["scores"]), bool),
                confidence=np.array(record["scores"], np.float32),
            )
    unreadable = {sample.image_id for sample in samples} - labeled.keys()
    merged = {sample.image_id: sample for sample in train.samples} | labeled
    written = [sample for image_id, sample in merged.items() if image_id not in unreadable]
    if not written:
        raise DataError("None of the images could be read. Expected JPEG, PNG or similar.")
    return replace(train, samples=written)
