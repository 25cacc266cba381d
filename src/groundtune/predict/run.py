"""Build a predictor from options, and detect objects in files, with results on disk."""

import os
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from yaml import BaseLoader

from groundtune.config import DetectOptions, PredictConfig, PredictorOptions
from groundtune.device import pick_device, pick_precision, set_up_cpu
from groundtune.errors import ConfigError, escape_control_chars, suggestion
from groundtune.files import parse_yaml, read_text
from groundtune.model.bundle import ModelBundle
from groundtune.options import resolve
from groundtune.predict.postprocess import Selection
from groundtune.predict.predictor import Predictor
from groundtune.predict.sources import is_stream, iter_frames
from groundtune.predict.tiles import Tiles
from groundtune.predict.writers import Results, origin_of, records_of
from groundtune.progress import Progress
from groundtune.text.prompt import split_names

_PAIR = re.compile(r"\s*(.+?)\s*=([^=,]*)(?:,|$)")  # of a name, which may have commas, and a number


def build_predictor(
    bundle: ModelBundle, options: DetectOptions, default: Sequence[str], thresholds: Mapping[str, float]
) -> Predictor:
    """Build a predictor.

    Args:
        default: class names to detect without `options.classes`; empty means those of the
            fine-tuning.
        thresholds: confidence thresholds by class name; `options.threshold` applies to other
            classes.

    Raises:
        ConfigError: there are no class names.
        DataError: a class name cannot be used.
    """
    phrases, tiles = [], None
    if isinstance(options, PredictorOptions):
        phrases = options.phrase
        if Image.MAX_IMAGE_PIXELS is not None:  # the limit is Pillow's, and global
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, round(options.max_megapixels * 1e6))
        tiles = Tiles(options.tiles, options.tile_overlap) if options.tiles else None
    names = phrases or class_names(options.classes, bundle, default)
    set_up_cpu(options.threads)
    device = pick_device(options.device)
    return Predictor(
        bundle,
        names,
        device,
        threshold=options.threshold,
        thresholds=thresholds,
        selection=Selection(options.nms, options.agnostic_nms, options.max_detections),
        sentences=bool(phrases),
        tiles=tiles,
        batch_size=options.batch_size,
        precision=pick_precision(options.precision, device),
    )


def class_names(
    given: str | Sequence[str] | None, bundle: ModelBundle, default: Sequence[str] = ()
) -> list[str]:
    """Return the given classes, also of a .txt file; else the default, or the fine-tuning's."""
    default = default or bundle.classes
    names = split_names(given, {*default, *bundle.classes, *bundle.phrases.values()})
    if len(names) == 1 and names[0].endswith(".txt") and names[0] not in default:
        names = [line.strip() for line in read_text(Path(names[0])).splitlines() if line.strip()]
        if not names:
            raise ConfigError("classes: the file is empty; expected one class name per line.")
    names = list(dict.fromkeys(names or default))
    if not names:
        raise ConfigError(
            f"classes: the model {bundle.source} has no classes of its own; give class names to detect."
        )
    return names


def read_thresholds(given: str | Mapping[str, float]) -> dict[str, float]:
    """Read confidence thresholds by class name: a mapping, a file of one, or "cat=0.5,dog=0.3".

    Raises:
        ConfigError: the text is none of these, or a threshold is not between 0 and 1.
    """
    if not isinstance(given, str):
        return dict(given)
    content: Any = None if _PAIR.sub("", given) else dict(_PAIR.findall(given))
    if os.path.isfile(given):
        try:  # JSON is YAML but for tabs; all names are text
            content = parse_yaml(read_text(Path(given), ConfigError).replace("\t", " "), BaseLoader)
        except ValueError as error:
            raise ConfigError(f"thresholds: {given} is neither YAML nor JSON{error}.") from error
    if not isinstance(content, dict):
        expected = "cat=0.5,dog=0.3, a YAML or JSON file such as `cat: 0.5`, or a run directory"
        raise ConfigError(f"thresholds: expected {expected}; got {given!r}.")
    checked = resolve(DetectOptions, [(given, {"thresholds": content})]).thresholds
    return checked if isinstance(checked, dict) else {}


def check_thresholds(predictor: Predictor) -> None:
    """Raise a ConfigError that lists the thresholds of classes that are not to be detected."""
    names = predictor.names
    if predictor.unmatched:
        hints = [f"{name!r}.{suggestion(name, names)}" for name in predictor.unmatched]
        raise ConfigError(
            f"thresholds: no such class: {' '.join(hints)} Expected some of {', '.join(names)}."
        )


def predict_files(
    config: PredictConfig, predictor: Predictor, progress: Progress
) -> Generator[dict[str, Any], None, None]:
    """Detect objects in `config.images`, and write the results to `config.output_dir`, if given.

    Yields:
        {"image": path, "detections": [{"class", "score", "box_xyxy"}, …]}, for a video also "frame"
        and "seconds"; in the end {"image": path, "error": reason} for each file that cannot be
        read.
    """
    unreadable: dict[str, str] = {}

    def skip(path: str, reason: str) -> None:
        unreadable[path] = reason
        progress.message(f"groundtune: skipped: {escape_control_chars(reason)}")

    results, folders = None, [Path(name).parent for name in config.images]
    if config.output_dir is not None:
        results = Results(Path(config.output_dir), config.save_as, predictor.names, folders)
    saves_video = results is not None and "annotated" in config.save_as
    frames = iter_frames(config.images, config.recursive, config.frame_stride, skip, progress.message)
    try:
        for frame, detections in predictor.stream(frames, ahead=not any(map(is_stream, config.images))):
            if results is not None:
                results.add(frame, detections)
            if saves_video and frame.video is not None and frame.video.sound:
                progress.message("The sound of videos is not saved.")
                saves_video = False
            yield {**origin_of(frame), "detections": records_of(detections)}
        yield from ({"image": path, "error": reason} for path, reason in unreadable.items())
    finally:
        if results is not None:
            results.close(unreadable)
