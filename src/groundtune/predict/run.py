"""Build a predictor from options, and detect objects in files, with results on disk."""

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from groundtune.config import DetectOptions, PredictConfig, PredictorOptions
from groundtune.data.formats.files import read_text
from groundtune.device import pick_device, pick_precision, set_up_cpu
from groundtune.errors import ConfigError, escape_control_chars
from groundtune.model.bundle import ModelBundle
from groundtune.predict.predictor import Predictor
from groundtune.predict.sources import iter_frames
from groundtune.predict.tiles import Tiles
from groundtune.predict.writers import Results, origin_of, records_of
from groundtune.progress import Progress


def build_predictor(
    bundle: ModelBundle, options: DetectOptions, classes: Sequence[str], thresholds: Mapping[str, float]
) -> Predictor:
    """Build a predictor.

    Args:
        classes: class names to detect, or a .txt file of them; empty means those of the
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
    names = phrases or class_names(classes, bundle)
    set_up_cpu(options.threads)
    device = pick_device(options.device)
    return Predictor(
        bundle,
        names,
        device,
        threshold=options.threshold,
        thresholds=thresholds,
        sentences=bool(phrases),
        tiles=tiles,
        batch_size=options.batch_size,
        precision=pick_precision(options.precision, device),
    )


def class_names(classes: Sequence[str], bundle: ModelBundle) -> list[str]:
    """Return the classes: those given, those in a .txt file, or those of the fine-tuning."""
    if len(classes) == 1 and classes[0].endswith(".txt"):
        classes = [line for line in read_text(Path(classes[0])).splitlines() if line.strip()]
        if not classes:
            raise ConfigError("classes: the file is empty; expected one class name per line.")
    names = [name.strip() for name in classes or bundle.classes]
    if not names:
        raise ConfigError(
            f"classes: the model {bundle.source} has no classes of its own; give class names to detect."
        )
    return names


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
        for frame, detections in predictor.stream(frames):
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
