"""What was found, in files: drawn images and videos, JSON, COCO, YOLO labels, CSV, the objects cut out.

Everything is written as it comes and nothing is kept, so that the number of images does not matter; a prediction that is
interrupted leaves whole files of what was done. Images of one name from different folders are numbered, so that none is lost.

    drawn  NAME.png, NAME.mp4                        coco   coco.json: images, annotations with "score", categories
    json   predictions.json                          yolo   labels/NAME.txt, classes.txt
    csv    predictions.csv, a row for each box       crops  crops/CLASS/NAME-1.png

Of a video's frames the names are NAME/000012.

Boxes and labels drawn into an image.
"""

import csv
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

import av
import matplotlib
import numpy as np
from PIL import Image
from supervision import Detections

from groundtune.data.formats.yolo import write_yolo_labels
from groundtune.data.sample import Sample
from groundtune.errors import ConfigError
from groundtune.predict.sources import Frame, VideoStream, is_seen

with warnings.catch_warnings():  # drawing by NumPy is what we want: OpenCV's fonts lack most letters
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    import supervision as sv

COLORS = sv.ColorPalette.DEFAULT
_LETTERS = sv.ColorPalette(  # dark on the light colors
    [sv.Color.BLACK if 0.3 * c.r + 0.59 * c.g + 0.11 * c.b > 140 else sv.Color.WHITE for c in COLORS.colors]
)


def draw(image: Image.Image, detections: sv.Detections) -> Image.Image:
    """A copy of the image with boxes and labels, a color for each class; the best ones lie on top."""
    shown = cast(sv.Detections, detections[::-1])
    scores = [] if shown.confidence is None else shown.confidence.tolist()
    labels = [
        f"{name} {score:.2f}" for name, score in zip(shown.data.get("class_name", []), scores, strict=True)
    ]
    by_class = sv.ColorLookup.CLASS
    thickness = max(2, round(min(image.size) / 300))
    image = sv.BoxAnnotator(COLORS, thickness, color_lookup=by_class).annotate(image.copy(), shown)
    # not LabelAnnotator: with OpenCV installed it draws "?" for every letter beyond ASCII
    annotator = sv.RichLabelAnnotator(
        COLORS,
        text_color=_LETTERS,
        font_path=str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"),
        font_size=max(11, round(min(image.size) / 60)),
        text_padding=max(3, round(min(image.size) / 250)),
        color_lookup=by_class,
        smart_position=True,
    )
    return annotator.annotate(image, shown, labels)


_LONGEST = 200  # bytes of a file's name without what is added; file systems take 255


class Writer(Protocol):
    """One kind of result."""

    def add(self, shot: Frame, name: str, found: Detections) -> None:
        """Write what was found in an image; `name` is its own, without ending."""

    def close(self, unreadable: Mapping[str, str]) -> None:
        """Write the end of what was begun."""


class Results:
    """A folder of results.

    Args:
        folder: made where it does not exist; what an earlier prediction wrote there is replaced.
        kinds: what is written: drawn, json, coco, yolo, csv, crops.
        classes: the names that `class_id` counts.
        inputs: folders of the images, as far as they are known; no image or video in them is replaced.

    Raises:
        ConfigError: here and in every method, where the folder cannot be written, or an image would be replaced.
    """

    def __init__(
        self, folder: Path, kinds: Sequence[str], classes: Sequence[str], inputs: Iterable[Path]
    ) -> None:
        self.classes = list(classes)
        self._folder = folder
        self._inputs = set(inputs)
        self._kept = folder.resolve() in {path.resolve() for path in self._inputs}
        self._taken: set[str] = set()
        self._clip: tuple[VideoStream | None, str] = None, ""
        self._open = ExitStack()
        with self._written():
            folder.mkdir(parents=True, exist_ok=True)
            self._writers: list[Writer] = [_WRITERS[kind](self) for kind in kinds]

    def add(self, shot: Frame, found: Detections) -> None:
        """Write what was found in an image; the frames of a video come one after the other."""
        if shot.path.parent not in self._inputs:
            self._inputs.add(shot.path.parent)
            self._kept |= self._folder.resolve() == shot.path.parent.resolve()
        name = self._name(shot)
        with self._written():
            for writer in self._writers:
                writer.add(shot, name, found)

    def close(self, unreadable: Mapping[str, str]) -> None:
        """Finish all files; `unreadable` are the files that could not be read, and why."""
        with self._written(), self._open:
            for writer in self._writers:
                writer.close(unreadable)

    def target(self, name: str) -> Path:
        """The path of a file that is written once, with its folder."""
        path = self._folder / name
        if self._kept and is_seen(name) and path.exists():
            raise ConfigError(
                f"save: {path} would be replaced, and lies where the images are; name another folder."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def open(self, name: str) -> TextIO:
        """A text file that is closed with the others. Names of files may hold bytes that are no text."""
        return self._open.enter_context(
            self.target(name).open("w", encoding="utf-8", errors="surrogateescape", newline="")
        )

    def spool(self) -> TextIO:
        """A text file without a name, that is gone in the end."""
        return self._open.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))

    def _name(self, shot: Frame) -> str:
        clip, name = self._clip
        if shot.clip is None or shot.clip is not clip:
            stem, number = shot.path.stem, 2
            name = stem = stem if len(os.fsencode(stem)) <= _LONGEST else stem[: _LONGEST // 4]
            while name.casefold() in self._taken:
                name, number = f"{stem}-{number}", number + 1
            self._taken.add(name.casefold())
            self._clip = shot.clip, name
        return name if shot.clip is None else f"{name}/{shot.frame:06d}"

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            raise ConfigError(f"save: cannot write to {self._folder}: {error.strerror or error}.") from error


class JsonArray:
    """A JSON array that is written item by item, after a head and before a tail."""

    def __init__(self, file: TextIO, head: str = "") -> None:
        self._file, self._before = file, f"{head}[\n"

    def add(self, item: Mapping[str, Any]) -> None:
        self._file.write(self._before + json.dumps(item))
        self._before = ",\n"

    def close(self, tail: str = "") -> None:
        if self._before != ",\n":
            self._file.write(self._before)
        self._file.write(f"\n]{tail}\n")


def records_of(found: Detections) -> list[dict[str, Any]]:
    """Detections as plain values: class, score, and box xyxy in pixels."""
    names = found.data.get("class_name", [])
    scores = [] if found.confidence is None else found.confidence.tolist()
    return [
        {"class": str(name), "score": score, "box_xyxy": box}
        for name, score, box in zip(names, scores, found.xyxy.tolist(), strict=True)
    ]


def _class_ids(found: Detections) -> np.ndarray:
    return np.zeros(0, np.int64) if found.class_id is None else found.class_id.astype(np.int64)


def origin_of(shot: Frame) -> dict[str, Any]:
    """Where an image comes from, as plain values: its file, and of a frame its number and time."""
    return {
        "image": str(shot.path),
        **({"frame": shot.frame, "seconds": float(shot.time)} if shot.clip else {}),
    }


class _Drawn:
    def __init__(self, results: Results) -> None:
        self._results = results
        self._clip: VideoStream | None = None
        self._video: DrawnVideo | None = None

    def add(self, shot: Frame, name: str, found: Detections) -> None:
        if shot.clip is not self._clip:
            self.close({})
        drawn = draw(shot.image, found)
        if shot.clip is None:
            drawn.save(self._results.target(f"{name}.png"), "PNG")
            return
        if self._video is None:
            self._clip = shot.clip
            self._video = DrawnVideo(
                self._results.target(f"{name.rpartition('/')[0]}.mp4"), shot.clip, drawn.size
            )
        self._video.add(drawn, shot.time)

    def close(self, unreadable: Mapping[str, str]) -> None:
        if self._video is not None:
            self._video.close()
        self._clip = self._video = None


class DrawnVideo:
    """A video in H.264 whose frames have the times that they are given.

    Args:
        path: an .mp4.
        clip: gives rate and unit of time.
        size: width and height in pixels; H.264 wants even ones, so a black line may be added.
    """

    def __init__(self, path: Path, clip: VideoStream, size: tuple[int, int]) -> None:
        self._file = av.open(str(path.absolute()), "w")
        self._stream = self._file.add_stream(
            "libx264", rate=clip.rate, options={"preset": "veryfast", "crf": "20"}
        )
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._unit = clip.time_base
        self._stream.codec_context.time_base = clip.time_base
        self._last = -1

    def add(self, image: Image.Image, time: Fraction) -> None:
        """Append a frame; one of another size is resized. Times that do not rise, of damaged videos, are moved on."""
        size = self._stream.width, self._stream.height
        fits = all(0 <= side - own <= 1 for side, own in zip(size, image.size, strict=True))
        shown = image.crop((0, 0, *size)) if fits else image.resize(size)
        frame = av.VideoFrame.from_image(shown)
        self._last = frame.pts = max(round(time / self._unit), self._last + 1)
        frame.time_base = self._unit
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._file.mux(self._stream.encode())
        self._file.close()


class _Json:
    def __init__(self, results: Results) -> None:
        head = f'{{"classes": {json.dumps(results.classes)}, "images": '
        self._array = JsonArray(results.open("predictions.json"), head)

    def add(self, shot: Frame, name: str, found: Detections) -> None:
        self._array.add({**origin_of(shot), "name": name, "detections": records_of(found)})

    def close(self, unreadable: Mapping[str, str]) -> None:
        self._array.close(f', "unreadable": {json.dumps(dict(unreadable))}}}')


class _Coco:
    def __init__(self, results: Results) -> None:
        self._file = results.open("coco.json")
        categories = [{"id": number, "name": name} for number, name in enumerate(results.classes, start=1)]
        self._boxes = JsonArray(self._file, f'{{"categories": {json.dumps(categories)}, "annotations": ')
        self._spool = results.spool()  # the images, until the boxes are over
        self._images = JsonArray(self._spool)
        self._count = self._count_boxes = 0

    def add(self, shot: Frame, name: str, found: Detections) -> None:
        self._count += 1
        origin = origin_of(shot)
        size = {"file_name": origin.pop("image"), "width": shot.image.width, "height": shot.image.height}
        self._images.add({"id": self._count, **size, **origin})
        for record, class_id in zip(records_of(found), _class_ids(found).tolist(), strict=True):
            self._count_boxes += 1
            x0, y0, x1, y1 = record["box_xyxy"]
            box = {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "score": record["score"],
            }
            self._boxes.add(
                {"id": self._count_boxes, "image_id": self._count, "category_id": class_id + 1, **box}
            )

    def close(self, unreadable: Mapping[str, str]) -> None:
        self._boxes.close(', "images": ')
        self._images.close("}")
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, self._file)


class _Yolo:
    def __init__(self, results: Results) -> None:
        self._results = results
        results.open("classes.txt").writelines(f"{' '.join(name.split())}\n" for name in results.classes)

    def add(self, shot: Frame, name: str, found: Detections) -> None:
        ids, size_hw = _class_ids(found), (shot.image.height, shot.image.width)
        sample = Sample(shot.path, 0, size_hw, found.xyxy, ids, np.zeros(len(ids), bool))
        write_yolo_labels(sample, self._results.target(f"labels/{name}.txt"))

    def close(self, unreadable: Mapping[str, str]) -> None: ...


class _Csv:
    def __init__(self, results: Results) -> None:
        self._rows = csv.writer(results.open("predictions.csv"))
        self._rows.writerow(["image", "frame", "seconds", "class", "score", "x0", "y0", "x1", "y1"])

    def add(self, shot: Frame, name: str, found: Detections) -> None:
        origin = origin_of(shot)
        where = [origin["image"], origin.get("frame", ""), origin.get("seconds", "")]
        self._rows.writerows(
            [*where, one["class"], one["score"], *one["box_xyxy"]] for one in records_of(found)
        )

    def close(self, unreadable: Mapping[str, str]) -> None: ...


class _Crops:
    def __init__(self, results: Results) -> None:
        self._results = results

    def add(self, shot: Frame, name: str, found: Detections) -> None:
        for number, record in enumerate(records_of(found), start=1):
            folder = re.sub(r"[^\w -]", "_", record["class"])[: _LONGEST // 4].strip() or "_"
            x0, y0, x1, y1 = record["box_xyxy"]
            part = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
            if part[0] < part[2] and part[1] < part[3]:
                shot.image.crop(part).save(self._results.target(f"crops/{folder}/{name}-{number}.png"), "PNG")

    def close(self, unreadable: Mapping[str, str]) -> None: ...


_WRITERS: dict[str, Callable[[Results], Writer]] = {
    "annotated": _Drawn,
    "json": _Json,
    "coco": _Coco,
    "yolo": _Yolo,
    "csv": _Csv,
    "crops": _Crops,
}
