"""Finding objects by name in pictures, and showing them: pictures with boxes drawn, and a JSON file.

The path through the network is that of evaluation (`engine.inference`); only the score threshold is added.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from PIL import Image

from groundtune.data.transforms import load_picture, resize_keep_ratio, to_rgb, to_tensor
from groundtune.engine.features import extract
from groundtune.engine.inference import class_prompts, detect_batch, inference_mode
from groundtune.errors import ConfigError, DataError
from groundtune.model.bundle import ModelBundle
from groundtune.postprocess import PictureDetections
from groundtune.text.prompt import unique_names

with warnings.catch_warnings():  # drawing by NumPy is what we want: OpenCV's fonts lack most letters
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    import supervision as sv
    from supervision import Detections

Picture = Path | Image.Image | np.ndarray

_COLOURS = sv.ColorPalette.DEFAULT
_LETTERS = sv.ColorPalette(  # dark on the light colours
    [sv.Color.BLACK if 0.3 * c.r + 0.59 * c.g + 0.11 * c.b > 140 else sv.Color.WHITE for c in _COLOURS.colors]
)


def predict(
    bundle: ModelBundle,
    images: Sequence[Picture],
    classes: Sequence[str],
    *,
    threshold: float,
    device: torch.device,
    batch_size: int,
    precision: str = "fp32",
) -> list[Detections]:
    """Find objects by name.

    Args:
        bundle: the model.
        images: files, PIL pictures, or (H, W, 3) uint8 RGB arrays; none gives none. Files are turned as viewers show them.
        classes: names to look for, at least one. Names that clean to the same text are looked for once.
        threshold: smallest score, in [0, 1].
        device: where to compute; the network is moved there.
        batch_size: pictures at a time.
        precision: "fp32" or "bf16".

    Returns:
        Per picture its detections, best first: `xyxy` in pixels of the picture, `confidence`, `class_id` the index into
        `classes`, `data["class_name"]` the names as they were given.

    Raises:
        DataError: a picture cannot be read, or a name cannot be used.
    """
    names, index, _ = unique_names(classes)
    first_of = [index.index(place) for place in range(len(names))]
    network = bundle.network.to(device)
    prompts = class_prompts(bundle.tokenizer, names, bundle.config.max_text_len).to(device)
    found: list[Detections] = []
    with inference_mode(network, precision):
        for start in range(0, len(images), batch_size):
            pictures = [_rgb(image) for image in images[start : start + batch_size]]
            sizes_hw = [(picture.height, picture.width) for picture in pictures]
            views = [resize_keep_ratio(size_hw, bundle.picture) for size_hw in sizes_hw]
            tensors = [to_tensor(v.picture(p), bundle.picture) for v, p in zip(views, pictures, strict=True)]
            detected = detect_batch(network, extract(network, tensors, device), prompts, sizes_hw)
            found += [_detections(part, classes, first_of, threshold) for part in detected]
    return found


def save_predictions(paths: Sequence[Path], found: Sequence[Detections], classes: Sequence[str], folder: Path) -> None:
    """Draw the boxes into copies of the pictures, and write `predictions.json`.

    Files of one name from different folders are numbered, so that none is lost.

    Args:
        paths: the pictures' files.
        found: per picture its detections.
        classes: the names that `class_id` counts.
        folder: made where it does not exist.

    Raises:
        ConfigError: the folder cannot be written, or the drawn pictures would replace the pictures themselves.
    """
    names = _file_names(paths)
    replaced = {(folder / name).resolve() for name in names} & {path.resolve() for path in paths}
    if replaced:
        raise ConfigError(f"save: {min(replaced)} would be replaced by its drawn copy; name another folder.")
    records = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, name, detections in zip(paths, names, found, strict=True):
            _drawn(load_picture(path), detections).save(folder / name)
            records.append({"image": str(path), "drawn": name, "detections": records_of(detections)})
        content = {"classes": list(classes), "images": records}
        (folder / "predictions.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"save: cannot write to {folder}: {error.strerror or error}.") from error


def records_of(found: Detections) -> list[dict[str, Any]]:
    """Detections as plain values: class, score, and box xyxy in pixels."""
    names = found.data.get("class_name", [])
    scores = [] if found.confidence is None else found.confidence.tolist()
    return [
        {"class": str(name), "score": score, "box_xyxy": box}
        for name, score, box in zip(names, scores, found.xyxy.tolist(), strict=True)
    ]


def _drawn(picture: Image.Image, detections: Detections) -> Image.Image:
    """The picture with boxes and labels; the best ones lie on top."""
    shown = cast(Detections, detections[::-1])
    labels = [f"{one['class']} {one['score']:.2f}" for one in records_of(shown)]
    by_class = sv.ColorLookup.CLASS
    thickness = max(2, round(min(picture.size) / 300))
    picture = sv.BoxAnnotator(_COLOURS, thickness, color_lookup=by_class).annotate(picture, shown)
    # not LabelAnnotator: with OpenCV installed it draws "?" for every letter beyond ASCII
    annotator = sv.RichLabelAnnotator(
        _COLOURS,
        text_color=_LETTERS,
        font_path=str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"),
        font_size=max(11, round(min(picture.size) / 45)),
        text_padding=max(3, round(min(picture.size) / 250)),
        color_lookup=by_class,
        smart_position=True,
    )
    return annotator.annotate(picture, shown, labels)


def _rgb(image: Picture) -> Image.Image:
    if isinstance(image, Path):
        return load_picture(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except OSError as error:  # its file is read only now
            raise DataError(f"Cannot read the picture {getattr(image, 'filename', '')}: {error}.") from error
    if not isinstance(image, np.ndarray):
        raise DataError(f"A picture must be a Path, a PIL picture or an array, found {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"An array must be (H, W, 3) uint8 in RGB order, found {image.shape} {image.dtype}.")
    return Image.fromarray(image)


def _detections(
    part: PictureDetections, classes: Sequence[str], first_of: Sequence[int], threshold: float
) -> Detections:
    kept = part.scores >= threshold
    class_id = np.array([first_of[place] for place in part.class_indices[kept].tolist()], dtype=int)
    return Detections(
        xyxy=part.boxes_xyxy[kept].numpy().reshape(-1, 4),
        confidence=part.scores[kept].numpy(),
        class_id=class_id,
        data={"class_name": np.array([classes[place] for place in class_id], dtype=object)},
    )


def _file_names(paths: Iterable[Path]) -> list[str]:
    taken: set[str] = set()
    names = []
    for path in paths:
        name, number = f"{path.stem}.png", 2
        while name in taken:
            name, number = f"{path.stem}-{number}.png", number + 1
        taken.add(name)
        names.append(name)
    return names
