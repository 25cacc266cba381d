"""What there is to look at: images, folders of them, patterns, paths on stdin, videos, a camera; one image at a time.

Nothing is listed beforehand but what was named, so that a folder may have any number of images, and a pipe or a camera no
end. What cannot be read in the middle is told and left out.
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

from groundtune.data.formats.files import IMAGE_SUFFIXES
from groundtune.data.images import check_pixel_count, load_image
from groundtune.errors import ConfigError, DataError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"}
)
STDIN = "-"

# A file is what its content says, and FFmpeg also reads playlists, which name other files and addresses.
_SAFE = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,matroska,webm,avi,mpeg,mpegts,asf,flv"}
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_CAMERA_RATE = Fraction(30)


@dataclass(frozen=True, eq=False)
class VideoStream:
    """A video that frames come from: how many a second on average, the unit of their times in seconds, whether it has sound."""

    rate: Fraction
    time_base: Fraction
    sound: bool


@dataclass(frozen=True)
class Frame:
    """One image to look at.

    Attributes:
        path: its file; of a camera "camera-0".
        image: RGB, turned as viewers show it.
        clip: of a frame its video.
        frame: its number in the video, from 0.
        time: seconds since the first frame.
    """

    path: Path
    image: Image.Image
    clip: VideoStream | None = None
    frame: int = 0
    time: Fraction = Fraction(0)


def is_camera(name: str) -> bool:
    """Whether a name is the number of a camera; a file of that name is a file."""
    return name.isascii() and name.isdigit() and not Path(name).exists()


def check_inputs_exist(names: Sequence[str], recursive: bool) -> None:
    """See to it that everything named is there, and every folder has something to look at.

    Raises:
        DataError: it is not so. All names are listed.
    """
    problems = []
    for name in names:
        if name == STDIN or is_camera(name) or next(files(name, recursive), None) is not None:
            continue
        if Path(name).is_dir():
            deeper = (
                ""
                if recursive or next(files(name, True), None) is None
                else " itself, but in folders of it: --recursive"
            )
            problems.append(f"{name}: the folder has no images{deeper}")
        else:
            problems.append(f"{name}: there is no such image")
    if problems or not names:
        raise DataError("; ".join(problems) + "." if problems else "images: name at least one image.")


def check_output_not_input(folder: Path, names: Sequence[str], recursive: bool) -> None:
    """See to it that results are not written where images are looked for, which would find them there.

    Raises:
        ConfigError: the folder is one of those named, or is in one that is looked into to its ends.
    """
    folder = folder.resolve()
    for path in (Path(name).resolve() for name in names if Path(name).is_dir()):
        if folder == path or recursive and path in folder.parents:
            raise ConfigError(
                f"save: {folder} is where the images are looked for; name a folder outside of it."
            )


def files(name: str, recursive: bool) -> Iterator[Path]:
    """The files that a name stands for: its own, those of a folder, or those that a pattern (`*`, `?`, `**`) fits; sorted."""
    path = Path(name)
    if path.is_dir():
        for folder, deeper, inside in os.walk(path):
            deeper[:] = sorted(deeper) if recursive else []
            yield from (Path(folder) / file for file in sorted(inside) if is_seen(file))
    elif path.exists():
        yield path
    elif glob.has_magic(name):
        yield from (
            Path(found) for found in sorted(glob.iglob(name, recursive=True)) if os.path.isfile(found)
        )


def iter_frames(
    names: Sequence[str], recursive: bool, every: int, failed: Callable[[str, str], None]
) -> Iterator[Frame]:
    """Read everything that was named, in order.

    Args:
        names: files, folders, patterns, "-" for paths on stdin (one a line), numbers of cameras.
        recursive: whether the folders in a folder are looked into.
        every: of a video each n-th frame.
        failed: told the path and the reason where something cannot be read; the frames before it in a video were given.
    """
    for name in names:
        if is_camera(name):
            yield from _attempt(Path(f"camera-{name}"), camera_frames(name, every), failed)
            continue
        lines = (line.rstrip("\r\n") for line in sys.stdin) if name == STDIN else iter([name])
        for line in filter(None, lines):
            found = files(line, recursive)
            if (
                name == STDIN and not Path(line).exists()
            ):  # a name, never a pattern: reading it says what is wrong
                found = iter([Path(line)])
            for file in found:
                yield from _attempt(file, _read(file, every), failed)


def video_frames(path: Path, every: int) -> Iterator[Frame]:
    """Decode a video.

    Raises:
        DataError: it cannot be opened, or not be read to its end.
    """
    if not path.is_file():
        raise DataError(f"The video {path} {'is not a regular file' if path.exists() else 'does not exist'}.")
    try:
        with av.open(str(path.absolute()), options=_SAFE) as container:
            yield from _frames(path, container, every)
    except av.FFmpegError as error:
        raise DataError(
            f"Cannot read the video {path}: {error.strerror}. Expected a whole MP4, MKV or the like."
        ) from error


def camera_frames(number: str, every: int) -> Iterator[Frame]:
    """Read a camera until the caller stops.

    Raises:
        DataError: there is none, or cameras are not supported here.
    """
    if sys.platform != "linux":
        raise DataError(
            f"Camera {number}: cameras are read on Linux only. Record a video, and name its file."
        )
    try:
        with av.open(f"/dev/video{number}", format="v4l2") as container:
            yield from _frames(Path(f"camera-{number}"), container, every)
    except (av.FFmpegError, OSError) as error:
        told = f"/dev/video{number}: {error.strerror}"
        raise DataError(
            f"Camera {number} cannot be read ({told}). Plug it in, or name a file that exists."
        ) from error


def _frames(path: Path, container: av.container.InputContainer, every: int) -> Iterator[Frame]:
    if not container.streams.video:
        raise DataError(f"{path} has no images, only sound.")
    stream = container.streams.video[0]
    check_pixel_count(path, (stream.codec_context.width, stream.codec_context.height))
    stream.thread_type = "AUTO"
    rate = stream.average_rate or _CAMERA_RATE
    unit = stream.time_base or 1 / rate
    clip = VideoStream(rate, unit, bool(container.streams.audio))
    begin: Fraction | None = None
    last = gap = Fraction(0)
    for number, frame in enumerate(container.decode(stream)):
        time = Fraction(number) / rate if frame.pts is None else frame.pts * (frame.time_base or unit)
        begin = time if begin is None else begin
        gap, last = max(gap, time - begin - last), time - begin
        if number % every == 0:
            image = frame.to_image()
            turn = frame.rotation % 360
            yield Frame(path, image.transpose(_TURNS[turn]) if turn in _TURNS else image, clip, number, last)
    stated = _stated_seconds(container)
    if last + gap < 0.9 * stated:  # a format without an index just ends where it is cut
        raise DataError(f"The video {path} was cut off: it ends after {float(last):.1f} of {stated:.1f} s.")


def _stated_seconds(container: av.container.InputContainer) -> float:
    """How long the images of a video last, by its header; 0 where it does not say."""
    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _read(path: Path, every: int) -> Iterator[Frame]:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        yield from video_frames(path, every)
    else:
        yield Frame(path, load_image(path))


def _attempt(path: Path, read: Iterator[Frame], failed: Callable[[str, str], None]) -> Iterator[Frame]:
    try:
        yield from read
    except DataError as error:
        failed(str(path), str(error))


def is_seen(name: str) -> bool:
    """Whether a file of this name in a folder is looked at."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
