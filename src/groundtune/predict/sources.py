"""Read images, directories, patterns, paths from stdin, videos and cameras as a stream of frames.

Directories and stdin are read lazily, so their length does not matter. Unreadable files are
reported to a callback and skipped.
"""

import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from groundtune.data.formats.tree import IMAGE_SUFFIXES
from groundtune.data.images import check_pixel_count, load_image
from groundtune.errors import ConfigError, DataError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"}
)
STDIN = "-"

# FFmpeg recognizes files by content and also reads playlists, which open other files and addresses.
_SAFE = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,matroska,webm,avi,mpeg,mpegts,asf,flv"}
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_CAMERA_RATE = Fraction(30)
OnError = Callable[[str, str], None]  # gets the path and the reason


@dataclass(frozen=True, eq=False)
class VideoStream:
    """Properties of a video: average frames per second, unit of its times in seconds, sound."""

    rate: Fraction
    time_base: Fraction
    sound: bool


@dataclass(frozen=True)
class Frame:
    """An upright RGB image, or a frame of a video."""

    path: Path  # "camera-0" for a camera
    image: Image.Image
    video: VideoStream | None = None
    index: int = 0  # in the video
    time: Fraction = Fraction(0)  # seconds since the first frame


def is_camera(name: str) -> bool:
    """Return whether a name is a camera's number and not a file."""
    return name.isascii() and name.isdigit() and not Path(name).exists()


def is_media(name: str) -> bool:
    """Return whether a file of this name in a directory is read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def check_inputs_exist(names: Sequence[str], recursive: bool) -> None:
    """Raise a `DataError` that lists the inputs without images."""
    problems = []
    for name in names:
        if name == STDIN or is_camera(name) or next(files(name, recursive), None) is not None:
            continue
        if not Path(name).is_dir():
            problems.append(f"{name}: no such image")
        elif next(files(name, True), None) is not None:
            problems.append(f"{name}: only its subdirectories have images; add --recursive")
        else:
            problems.append(f"{name}: the directory has no images")
    if problems or not names:
        raise DataError("; ".join(problems) + "." if problems else "images: expected at least one image.")


def check_output_not_input(folder: Path, names: Sequence[str], recursive: bool) -> None:
    """Raise a `ConfigError` if `iter_frames` would read the output directory."""
    folder = folder.resolve()
    for path in (Path(name).resolve() for name in names if Path(name).is_dir()):
        if folder == path or recursive and path in folder.parents:
            raise ConfigError(f"output_dir: images are read from {folder}; choose a directory outside of it.")


def files(name: str, recursive: bool) -> Iterator[Path]:
    """Yield the files of a path, a directory or a glob pattern (`*`, `?`, `**`), sorted."""
    path = Path(name)
    if path.is_dir():
        for folder, subfolders, inside in os.walk(path):
            subfolders[:] = sorted(subfolders) if recursive else []
            yield from (Path(folder) / file for file in sorted(inside) if is_media(file))
    elif path.exists():
        yield path
    elif glob.has_magic(name):
        yield from (Path(file) for file in sorted(glob.iglob(name, recursive=True)) if os.path.isfile(file))


def iter_frames(
    names: Sequence[str], recursive: bool, frame_stride: int, on_error: OnError
) -> Iterator[Frame]:
    """Yield every n-th frame of all inputs in order, and report unreadable files.

    Inputs are files, directories, glob patterns, camera numbers, and "-" for one path per line of
    stdin.
    """
    for name in names:
        if is_camera(name):
            yield from _reporting(Path(f"camera-{name}"), camera_frames(name, frame_stride), on_error)
            continue
        lines = (line.rstrip("\r\n") for line in sys.stdin) if name == STDIN else iter([name])
        for line in filter(None, lines):
            # a line of stdin is a path, never a pattern; reading a missing one reports it
            missing = name == STDIN and not Path(line).exists()
            for file in [Path(line)] if missing else files(line, recursive):
                yield from _reporting(file, _read(file, frame_stride), on_error)


def _reporting(path: Path, frames: Iterator[Frame], on_error: OnError) -> Iterator[Frame]:
    try:
        yield from frames
    except DataError as error:
        on_error(str(path), str(error))


def _read(path: Path, frame_stride: int) -> Iterator[Frame]:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        yield from video_frames(path, frame_stride)
    else:
        yield Frame(path, load_image(path))


def video_frames(path: Path, frame_stride: int) -> Iterator[Frame]:
    """Decode a video; raise a `DataError` if it is damaged, after the frames before the damage."""
    if not path.is_file():
        raise DataError(f"The video {path} {'is not a regular file' if path.exists() else 'does not exist'}.")
    try:
        with av.open(str(path.absolute()), options=_SAFE) as container:
            yield from _decode(path, container, frame_stride)
    except av.FFmpegError as error:
        raise DataError(
            f"Cannot read the video {path}: {error.strerror}. Expected MP4, MKV or similar."
        ) from error


def camera_frames(number: str, frame_stride: int) -> Iterator[Frame]:
    """Read a camera on Linux until the caller stops; raise a `DataError` if that is impossible."""
    if sys.platform != "linux":
        raise DataError(f"Camera {number}: cameras are only supported on Linux. Record a video instead.")
    device = f"/dev/video{number}"
    try:
        with av.open(device, format="v4l2") as container:
            yield from _decode(Path(f"camera-{number}"), container, frame_stride)
    except (av.FFmpegError, OSError) as error:
        raise DataError(
            f"Cannot read camera {number} ({device}: {error.strerror}). Connect it, or name a file."
        ) from error


def _decode(path: Path, container: av.container.InputContainer, frame_stride: int) -> Iterator[Frame]:
    if not container.streams.video:
        raise DataError(f"{path} has no images, only sound.")
    stream = container.streams.video[0]
    check_pixel_count(path, (stream.codec_context.width, stream.codec_context.height))
    stream.thread_type = "AUTO"
    rate = stream.average_rate or _CAMERA_RATE
    unit = stream.time_base or 1 / rate
    video = VideoStream(rate, unit, bool(container.streams.audio))
    start: Fraction | None = None
    last = longest_gap = Fraction(0)
    for index, frame in enumerate(container.decode(stream)):
        time = Fraction(index) / rate if frame.pts is None else frame.pts * (frame.time_base or unit)
        start = time if start is None else start
        longest_gap, last = max(longest_gap, time - start - last), time - start
        if index % frame_stride == 0:
            image, turn = frame.to_image(), frame.rotation % 360
            yield Frame(path, image.transpose(_TURNS[turn]) if turn in _TURNS else image, video, index, last)
    expected = _stated_seconds(container)
    if (
        last + longest_gap < 0.9 * expected
    ):  # formats without an index end without an error where they are cut
        raise DataError(
            f"The video {path} is truncated: it ends after {float(last):.1f} of {expected:.1f} s."
        )


def _stated_seconds(container: av.container.InputContainer) -> float:
    """Return the duration in the header, 0 if it has none."""
    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0
