"""`groundtune label`: a model draws the boxes, and pictures become a data set to review and to train on.

Each picture that was looked at is a line of a journal beside the data set (OUT.labels.jsonl), so that a labelling that was
stopped goes on where it was. The data set appears whole in the end, and the journal is gone then. What a person drew is never
touched: of a data set only the training pictures without any box are looked at.

Scores stay with the boxes as their confidence where the format has a place for them (COCO), and training takes them as soft
targets. Suppression is within a class: two names for one thing are two answers, which a person may want to see.
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

from groundtune.data.formats.convert import Converted, write_data
from groundtune.data.formats.pictures import stored_size
from groundtune.data.sample import Dataset, Sample, match_class_names
from groundtune.data.transforms import load_picture
from groundtune.device import pick_device, pick_precision
from groundtune.engine.ray_stream import RayPool, on_ray, pack, unpack
from groundtune.errors import ConfigError, DataError
from groundtune.label_input import read_captions, wanted_pictures
from groundtune.predict import Finder, batched
from groundtune.progress import Progress
from groundtune.text.prompt import clean_name, unique_names
from groundtune.verb_configs import LabelConfig

if TYPE_CHECKING:
    from supervision import Detections


@dataclass
class Labelled:
    """What was written, and the pictures that could not be read, with the reason."""

    written: Converted
    unreadable: dict[str, str]


def label(config: LabelConfig, finder: Finder, splits: Mapping[str, Dataset], progress: Progress) -> Labelled:
    """Find objects in pictures, and write them as a data set.

    Args:
        config: the options.
        finder: the model with the names to look for; those of the data set where there is one.
        splits: what `read_given` gave. Pictures that are named too are added to its split train.
        progress: told of every picture.

    Raises:
        ConfigError: the journal is of a labelling with other settings.
        DataError: a name is not one of the data set's, there is nothing to label, none of the pictures can be read, or the
            data cannot be written.
    """
    names = [] if config.captions else splits["train"].class_names if splits else unique_names(finder.names)[0]
    captions: dict[str, str] = {}
    if config.captions:
        wanted, captions = read_captions(Path(config.captions))
    else:
        match_class_names(finder.names, names)  # says which do not exist
        wanted = wanted_pictures(config, splits)
    if not wanted:
        raise DataError(f"There is nothing to label: every training picture of {config.data} has boxes.")
    unreadable: dict[str, str] = {}

    def failed(path: Path, reason: str) -> None:
        unreadable[str(path)] = reason
        progress.message(f"groundtune: left out: {reason}")

    journal = Path(f"{config.out}.labels.jsonl")
    settings = {"model": config.model, "classes": finder.names, "nms": config.nms, "data": config.data}
    settings |= {"threshold": finder.threshold, "thresholds": dict(finder.thresholds), "captions": config.captions}
    done = _done(journal, settings)
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as file:
            if not file.tell():  # it is a new one
                _note(file, {"settings": settings})
            left = [sample for sample in wanted if str(sample.image_path) not in done]
            for record in _records(config, finder, left, captions, failed):
                _note(file, record)
                done[record["picture"]] = record
                progress.evaluation(len(done) + len(unreadable), len(wanted), "labelling")
    except OSError as error:
        raise DataError(f"Cannot write {journal}: {error.strerror or error}.") from error
    finally:
        progress.close()
    class_of = [] if captions else [names.index(clean_name(name)) for name in finder.names]
    found = {
        sample.image_id: _sample(sample, done[str(sample.image_path)], class_of)
        for sample in wanted
        if str(sample.image_path) in done
    }
    written = write_data(_data(splits, names, wanted, found), Path(config.out), config.format, link=config.link)
    journal.unlink()
    return Labelled(written, unreadable)


def _records(
    config: LabelConfig,
    finder: Finder,
    samples: list[Sample],
    captions: Mapping[str, str],
    failed: Callable[[Path, str], None],
) -> Iterator[dict[str, Any]]:
    """The line of each picture that can be read, from wherever it is looked at."""
    if config.ray:
        return _on_ray(config, finder, samples, failed)
    if captions:
        return _look_for_captions(finder, samples, captions, config.nms, failed)
    return _look(finder, samples, config.nms, failed)


def _look_for_captions(
    finder: Finder,
    samples: Iterable[Sample],
    captions: Mapping[str, str],
    nms: float,
    failed: Callable[[Path, str], None],
) -> Iterator[dict[str, Any]]:
    """The line of each picture that can be read, which is asked for its own caption."""
    for sample in samples:
        try:
            asked = replace(finder, names=[captions[str(sample.image_path)]], sentences=True)
        except DataError as error:  # it is too long
            failed(sample.image_path, str(error))
        else:
            yield from _look(asked, [sample], nms, failed)


def _look(
    finder: Finder, samples: Iterable[Sample], nms: float, failed: Callable[[Path, str], None]
) -> Iterator[dict[str, Any]]:
    """The line of each picture that can be read."""
    for group in batched(samples, finder.batch_size):  # also of unreadable ones, so that Ray's workers have the same
        readable = list(_pictures(group, failed))
        for (sample, picture), found in zip(readable, finder.find([p for _, p in readable]), strict=True):
            wide = np.flatnonzero((found.xyxy[:, 2:] > found.xyxy[:, :2]).all(axis=1))
            kept = cast("Detections", found[wide]).with_nms(nms)
            yield {
                "picture": str(sample.image_path),
                "size_hw": [picture.height, picture.width],
                "boxes_xyxy": kept.xyxy.tolist(),
                "class_ids": [] if kept.class_id is None else kept.class_id.tolist(),
                "scores": [] if kept.confidence is None else kept.confidence.tolist(),
            }


@dataclass
class _Share:
    """The work of one of Ray's workers: the lines of a batch of pictures, and those that cannot be read."""

    model: dict[str, bytes]
    names: list[str]
    thresholds: Mapping[str, float]
    config: LabelConfig

    @cached_property
    def finder(self) -> Finder:
        device, own = pick_device(self.config.device), self.config
        precision = pick_precision(own.precision, device)
        return Finder(
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
        return list(_look(self.finder, samples, self.config.nms, unreadable.__setitem__)), unreadable


def _on_ray(
    config: LabelConfig, finder: Finder, samples: Iterable[Sample], failed: Callable[[Path, str], None]
) -> Iterator[dict[str, Any]]:
    """The same lines, as Ray's workers have them."""
    pool = RayPool(config.ray or "", config.ray_workers, config.threads, gpus=config.device != "cpu")
    work = _Share(pack(finder.bundle), finder.names, finder.thresholds, config)
    for _, (records, unreadable) in on_ray(work, batched(samples, config.batch_size), pool):
        for path, reason in unreadable.items():
            failed(path, reason)
        yield from records


def _pictures(samples: Iterable[Sample], failed: Callable[[Path, str], None]) -> Iterator[tuple[Sample, Image.Image]]:
    for sample in samples:
        try:
            size_hw = sample.size_hw if sample.size_hw[0] else _size(sample.image_path)
            yield sample, load_picture(sample.image_path, size_hw)
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
    """The lines of an earlier labelling by their pictures; one that was cut off is taken away."""
    if not journal.exists():
        return {}
    whole = journal.read_bytes().rpartition(b"\n")[0]
    try:
        first, *records = [json.loads(line) for line in whole.splitlines()] or [{"settings": settings}]
        done = {record["picture"]: record for record in records}
        before = first["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{journal} is not the journal of a labelling. Remove it, or choose another --out.") from error
    if before != settings:
        changed = [name for name, value in settings.items() if before.get(name) != value]
        raise ConfigError(
            f"{', '.join(changed)}: other than in the labelling that {journal} is of. "
            "Repeat that one's options to go on, or remove the file to begin anew."
        )
    os.truncate(journal, len(whole) + bool(whole))
    return done


def _sample(sample: Sample, record: Mapping[str, Any], class_of: list[int]) -> Sample:
    return replace(
        sample,
        size_hw=tuple(record["size_hw"]),
        boxes_xyxy=np.array(record["boxes_xyxy"], np.float32).reshape(-1, 4),
        class_ids=np.array([class_of[place] if class_of else place for place in record["class_ids"]], np.int64),
        crowd=np.zeros(len(record["scores"]), bool),
        confidence=np.array(record["scores"], np.float32),
    )


def _data(
    splits: Mapping[str, Dataset], names: list[str], wanted: list[Sample], found: Mapping[int, Sample]
) -> dict[str, Dataset]:
    """The data set to write: the pictures that were looked at with what was found in them, everything else as it was."""
    ids = {sample.image_id for sample in wanted}
    given = splits["train"] if splits else Dataset("train", Path(), names, [], list(range(1, len(names) + 1)))
    kept = [found.get(s.image_id, s) for s in given.samples if s.image_id in found or s.image_id not in ids]
    own = {sample.image_id for sample in given.samples}
    samples = kept + [sample for sample in found.values() if sample.image_id not in own]
    if not samples:
        raise DataError("None of the pictures could be read. Expected JPEG, PNG or the like.")
    return {**splits, "train": replace(given, samples=samples)}
