"""Boxes and labels drawn into a picture."""

import warnings
from pathlib import Path
from typing import cast

import matplotlib
from PIL import Image

with warnings.catch_warnings():  # drawing by NumPy is what we want: OpenCV's fonts lack most letters
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    import supervision as sv

COLOURS = sv.ColorPalette.DEFAULT
_LETTERS = sv.ColorPalette(  # dark on the light colours
    [sv.Color.BLACK if 0.3 * c.r + 0.59 * c.g + 0.11 * c.b > 140 else sv.Color.WHITE for c in COLOURS.colors]
)


def draw(picture: Image.Image, detections: sv.Detections) -> Image.Image:
    """A copy of the picture with boxes and labels, a colour for each class; the best ones lie on top."""
    shown = cast(sv.Detections, detections[::-1])
    scores = [] if shown.confidence is None else shown.confidence.tolist()
    labels = [f"{name} {score:.2f}" for name, score in zip(shown.data.get("class_name", []), scores, strict=True)]
    by_class = sv.ColorLookup.CLASS
    thickness = max(2, round(min(picture.size) / 300))
    picture = sv.BoxAnnotator(COLOURS, thickness, color_lookup=by_class).annotate(picture.copy(), shown)
    # not LabelAnnotator: with OpenCV installed it draws "?" for every letter beyond ASCII
    annotator = sv.RichLabelAnnotator(
        COLOURS,
        text_color=_LETTERS,
        font_path=str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"),
        font_size=max(11, round(min(picture.size) / 60)),
        text_padding=max(3, round(min(picture.size) / 250)),
        color_lookup=by_class,
        smart_position=True,
    )
    return annotator.annotate(picture, shown, labels)
