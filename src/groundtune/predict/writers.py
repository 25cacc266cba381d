"""Write detections to files as they come: images, videos, JSON, COCO, YOLO labels, CSV, crops.

    annotated  NAME.png, NAME.mp4     coco   coco.json, annotations with "score"
    json       predictions.json       yolo   labels/NAME.txt, classes.txt
    csv        predictions.csv        crops  crops/CLASS/NAME-1.png

NAME is the input's stem, numbered if several inputs share it; frames of a video are NAME/000012.
"""

import csv
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import av
import matplotlib
import numpy as np
from PIL import Image

from groundtune.data.formats.yolo import write_yolo_labels
from groundtune.data.sample import Sample
from groundtune.errors import ConfigError
from groundtune.predict.sources import is_media
from groundtune.predict.video import Frame, VideoStream

with warnings.catch_warnings():  # supervision's NumPy backend is enough
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    import supervision as sv

COLORS = sv.ColorPalette.DEFAULT
_TEXT_COLORS = sv.ColorPalette(  # black on light colors
    [sv.Color.BLACK if 0.3 * c.r + 0.59 * c.g + 0.11 * c.b > 140 else sv.Color.WHITE for c in COLORS.colors]
)
_MAX_NAME_BYTES = 200  # file systems allow 255, and suffixes are added


class Results:
    """A directory of results. Earlier ones are replaced, images in directories of inputs never.

    Its methods raise a `ConfigError` if it cannot be written.
    """

    def __init__(self, folder: Path, kinds: list[str], classes: list[str], inputs: Iterable[Path]) -> None:
        self.classes = classes
        self._folder = folder
        self._inputs = {path.resolve() for path in inputs}
        self._names: set[str] = set()
        self._video: tuple[VideoStream | None, str] = None, ""
        self.files = ExitStack()
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            self._writers = [WRITERS[kind](self) for kind in kinds]

    def add(self, frame: Frame, detections: sv.Detections) -> None:
        """Write the detections of an image; frames of a video must be consecutive."""
        self._inputs.add(frame.path.parent.resolve())
        name = self._name(frame)
        with self._writing():
            for writer in self._writers:
                writer.add(frame, name, detections)

    def close(self, unreadable: Mapping[str, str]) -> None:
        """Complete all files; `unreadable` maps the paths of skipped inputs to reasons."""
        with self._writing(), self.files:
            for writer in self._writers:
                writer.close(unreadable)

    def target(self, name: str) -> Path:
        """Return the path of a new file and create its directory."""
        path = self._folder / name
        if is_media(name) and path.exists() and self._folder.resolve() in self._inputs:
            raise ConfigError(f"output_dir: {path} is an input and would be replaced; choose another.")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def open(self, name: str) -> TextIO:
        """Open a text file until `close`; file names in it may not be UTF-8."""
        file = self.target(name).open("w", encoding="utf-8", errors="surrogateescape", newline="")
        return self.files.enter_context(file)

    def _name(self, frame: Frame) -> str:
        video, name = self._video
        if frame.video is None or frame.video is not video:
            stem, number = frame.path.stem, 2
            if len(os.fsencode(stem)) > _MAX_NAME_BYTES:
                stem = stem[: _MAX_NAME_BYTES // 4]
            name = stem
            while name.casefold() in self._names:
                name, number = f"{stem}-{number}", number + 1
            self._names.add(name.casefold())
            self._video = frame.video, name
        return name if frame.video is None else f"{name}/{frame.index:06d}"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            raise ConfigError(
                f"output_dir: cannot write to {self._folder}: {error.strerror or error}."
            ) from error


class JsonArray:
    """A JSON array that is written item by item, after `head` and before `tail`."""

    def __init__(self, file: TextIO, head: str = "") -> None:
        file.write(f"{head}[\n")
        self._file, self._separator = file, ""

    def add(self, item: Mapping[str, Any]) -> None:
        self._file.write(self._separator + json.dumps(item))
        self._separator = ",\n"

    def close(self, tail: str = "") -> None:
        self._file.write(f"\n]{tail}\n")


def records_of(detections: sv.Detections) -> list[dict[str, Any]]:
    """Return detections as plain values: class, score, and box xyxy in pixels."""
    names = detections.data.get("class_name", [])
    scores = [] if detections.confidence is None else detections.confidence.tolist()
    return [
        {"class": str(name), "score": score, "box_xyxy": box}
        for name, score, box in zip(names, scores, detections.xyxy.tolist(), strict=True)
    ]


def origin_of(frame: Frame) -> dict[str, Any]:
    """Return the path of an image and, in a video, the frame's number and time as plain values."""
    position = {} if frame.video is None else {"frame": frame.index, "seconds": float(frame.time)}
    return {"image": frame.address or str(frame.path), **position}


class Writer:
    """One kind of result; `name` is the name of an image without suffix."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def add(self, frame: Frame, name: str, detections: sv.Detections) -> None:
        raise NotImplementedError

    def close(self, unreadable: Mapping[str, str]) -> None: ...


class _Annotated(Writer):
    _video: "tuple[VideoStream, _VideoFile] | None" = None

    def add(self, frame: Frame, name: str, detections: sv.Detections) -> None:
        if self._video is not None and frame.video is not self._video[0]:
            self.close({})
        image = draw(frame.image, detections)
        if frame.video is None:
            image.save(self.results.target(f"{name}.png"), "PNG")
            return
        if self._video is None:
            path = self.results.target(f"{name.rpartition('/')[0]}.mp4")
            self._video = frame.video, _VideoFile(path, frame.video, image.size)
        self._video[1].add(image, frame.time)

    def close(self, unreadable: Mapping[str, str]) -> None:
        if self._video is not None:
            self._video[1].close()
        self._video = None


class _Json(Writer):
    def __init__(self, results: Results) -> None:
        head = f'{{"classes": {json.dumps(results.classes)}, "images": '
        self._array = JsonArray(results.open("predictions.json"), head)

    def add(self, frame: Frame, name: str, detections: sv.Detections) -> None:
        self._array.add({**origin_of(frame), "name": name, "detections": records_of(detections)})

    def close(self, unreadable: Mapping[str, str]) -> None:
        self._array.close(f', "unreadable": {json.dumps(dict(unreadable))}}}')


class _Coco(Writer):
    def __init__(self, results: Results) -> None:
        self._file = results.open("coco.json")
        categories = [{"id": number, "name": name} for number, name in enumerate(results.classes, start=1)]
        self._boxes = JsonArray(self._file, f'{{"categories": {json.dumps(categories)}, "annotations": ')
        self._image_rows = results.files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))  # noqa: SIM115
        self._images = JsonArray(self._image_rows)  # appended to the file at the end
        self._num_images = self._num_boxes = 0

    def add(self, frame: Frame, name: str, detections: sv.Detections) -> None:
        self._num_images += 1
        origin = origin_of(frame)
        size = {"file_name": origin.pop("image"), "width": frame.image.width, "height": frame.image.height}
        self._images.add({"id": self._num_images, **size, **origin})
        for record, class_id in zip(
            records_of(detections), np.array(detections.class_id).tolist(), strict=True
        ):
            self._num_boxes += 1
            x0, y0, x1, y1 = record["box_xyxy"]
            ids = {"id": self._num_boxes, "image_id": self._num_images, "category_id": class_id + 1}
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            self._boxes.add({**ids, **box, "score": record["score"]})

    def close(self, unreadable: Mapping[str, str]) -> None:
        self._boxes.close(', "images": ')
        self._images.close("}")
        self._image_rows.seek(0)
        shutil.copyfileobj(self._image_rows, self._file)


class _Yolo(Writer):
    def __init__(self, results: Results) -> None:
        super().__init__(results)
        results.open("classes.txt").writelines(f"{' '.join(name.splitlines())}\n" for name in results.classes)

    def add(self, frame: Frame, name: str, detections: sv.Detections) -> None:
        ids, size_hw = np.array(detections.class_id, np.int64), (frame.image.height, frame.image.width)
        sample = Sample(frame.path, 0, size_hw, detections.xyxy, ids, np.zeros(len(ids), bool))
        write_yolo_labels(sample, self.results.target(f"labels/{name}.txt"))


class _Csv(Writer):
    def __init__(self, results: Results) -> None:
        self._rows = csv.writer(results.open("predictions.csv"))
        self._rows.writerow(["image", "frame", "seconds", "class", "score", "x0", "y0", "x1", "y1"])

    def add(self, frame: Frame, name: str, detections: sv.Detections) -> None:
        origin = origin_of(frame)
        position = [origin["image"], origin.get("frame", ""), origin.get("seconds", "")]
        for record in records_of(detections):
            self._rows.writerow([*position, record["class"], record["score"], *record["box_xyxy"]])


class _Crops(Writer):
    def add(self, frame: Frame, name: str, detections: sv.Detections) -> None:
        for number, record in enumerate(records_of(detections), start=1):
            folder = re.sub(r"[^\w -]", "_", record["class"])[: _MAX_NAME_BYTES // 4].strip() or "_"
            x0, y0, x1, y1 = record["box_xyxy"]
            box = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
            if box[0] < box[2] and box[1] < box[3]:
                frame.image.crop(box).save(self.results.target(f"crops/{folder}/{name}-{number}.png"), "PNG")


WRITERS: dict[str, type[Writer]] = {
    "annotated": _Annotated, "json": _Json, "coco": _Coco, "yolo": _Yolo, "csv": _Csv, "crops": _Crops
}  # fmt: skip


def draw(image: Image.Image, detections: sv.Detections) -> Image.Image:
    """Return a copy with boxes and labels, one color per class, the best detections on top."""
    worst_first = detections[::-1]
    assert isinstance(worst_first, sv.Detections)
    labels = [f"{record['class']} {record['score']:.2f}" for record in records_of(worst_first)]
    side = min(image.size)
    box_annotator = sv.BoxAnnotator(COLORS, max(2, round(side / 300)))
    # not LabelAnnotator: with OpenCV it draws "?" for letters beyond ASCII
    label_annotator = sv.RichLabelAnnotator(
        COLORS,
        text_color=_TEXT_COLORS,
        font_path=str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"),
        font_size=max(11, round(side / 60)),
        text_padding=max(3, round(side / 250)),
        smart_position=True,
    )
    return label_annotator.annotate(box_annotator.annotate(image.copy(), worst_first), worst_first, labels)


class _VideoFile:
    """An H.264 file whose frames keep their times. Odd sides get a black line."""

    def __init__(self, path: Path, video: VideoStream, size: tuple[int, int]) -> None:
        self._file = av.open(str(path.absolute()), "w")
        options = {"preset": "veryfast", "crf": "20"}
        self._stream = self._file.add_stream("libx264", rate=video.rate, options=options)
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = self._unit = video.time_base
        self._last = -1

    def add(self, image: Image.Image, time: Fraction) -> None:
        """Append a frame, resized if necessary; times that do not rise (damaged videos) move."""
        size = self._stream.width, self._stream.height
        fits = all(0 <= full - given <= 1 for full, given in zip(size, image.size, strict=True))
        frame = av.VideoFrame.from_image(image.crop((0, 0, *size)) if fits else image.resize(size))
        self._last = frame.pts = max(round(time / self._unit), self._last + 1)
        frame.time_base = self._unit
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._file.mux(self._stream.encode())
        self._file.close()
