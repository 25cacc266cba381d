"""Read images, directories, patterns, paths from stdin, addresses, videos and cameras as frames.

Directories and stdin are read lazily, so their length does not matter. Unreadable files are
reported to a callback and skipped.
"""

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import UnidentifiedImageError

from groundtune.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, has_suffix, is_visible, load_image
from groundtune.errors import ConfigError, DataError
from groundtune.predict.addresses import fetch, is_address, path_of
from groundtune.predict.video import VIDEO_SUFFIXES, Frame, camera_frames, stream_frames, video_frames

STDIN = "-"
OnError = Callable[[str, str], None]  # gets the path or address and the reason
OnMessage = Callable[[str], None]


def is_camera(name: str) -> bool:
    """Return whether a name is a camera's number and not a file."""
    return name.isascii() and name.isdigit() and not Path(name).exists()


def is_stream(name: str) -> bool:
    """Return whether a name is stdin, a camera or an address, and not a file."""
    return name == STDIN or is_camera(name) or is_address(name)


def is_media(name: str) -> bool:
    """Return whether a file of this name in a directory is read."""
    return has_suffix(name, IMAGE_SUFFIXES | VIDEO_SUFFIXES)


def check_inputs_exist(names: Sequence[str], recursive: bool) -> None:
    """Raise a `DataError` that lists the inputs without images."""
    problems: list[str] = []
    for name in names:
        notes: list[str] = []
        if is_stream(name) or any(files(name, recursive, notes.append)):
            continue
        if not Path(name).is_dir():
            problems.append(f"{name}: no such image")
        elif any(files(name, True, lambda _: None)):
            problems.append(f"{name}: only its subdirectories have images; add --recursive")
        else:
            problems += [f"{name}: the directory has no images", *(note.rstrip(".") for note in notes)]
    if problems or not names:
        raise DataError("; ".join(problems) + "." if problems else "images: expected at least one image.")


def check_output_not_input(folder: Path, names: Sequence[str], recursive: bool) -> None:
    """Raise a `ConfigError` if `iter_frames` would read the output directory."""
    folder = folder.resolve()
    for path in (Path(name).resolve() for name in names if Path(name).is_dir()):
        if folder == path or recursive and path in folder.parents:
            raise ConfigError(f"output_dir: images are read from {folder}; choose a directory outside of it.")


def files(name: str, recursive: bool, on_message: OnMessage) -> Iterator[Path]:
    """Yield the files of a path, a directory or a glob pattern (`*`, `?`, `**`), sorted.

    Directories give what is not hidden and can be read; a message counts other image formats.
    """
    path, unread = Path(name), Counter[str]()
    if path.is_dir():
        for folder, subfolders, inside in os.walk(path):
            subfolders[:] = sorted(filter(is_visible, subfolders)) if recursive else []
            yield from (Path(folder) / file for file in sorted(inside) if is_media(file))
            unread.update(Path(file).suffix.lower() for file in inside if has_suffix(file, UNREAD_SUFFIXES))
        if unread:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
            on_message(f"{name}: skipped {kinds}, which cannot be read. Convert these images to JPEG or PNG.")
    elif path.exists():
        yield path
    elif glob.has_magic(name):
        yield from (Path(file) for file in sorted(glob.iglob(name, recursive=True)) if os.path.isfile(file))


def iter_frames(
    names: Sequence[str], recursive: bool, frame_stride: int, on_error: OnError, on_message: OnMessage
) -> Iterator[Frame]:
    """Yield every n-th frame of all inputs in order, and report unreadable files.

    Inputs are files, directories, glob patterns, addresses, camera numbers, and "-" for one path or
    address per line of stdin.
    """
    for name in names:
        if is_camera(name):
            yield from _reporting(f"camera-{name}", camera_frames(name, frame_stride), on_error)
            continue
        lines = (line.rstrip("\r\n") for line in sys.stdin) if name == STDIN else iter([name])
        for line in filter(None, lines):
            if is_address(line):
                yield from _reporting(line, _read_address(line, frame_stride, on_message), on_error)
                continue
            # a line of stdin is a path, never a pattern; reading a missing one reports it
            missing = name == STDIN and not Path(line).exists()
            for file in [Path(line)] if missing else files(line, recursive, on_message):
                yield from _reporting(str(file), _read(file, frame_stride), on_error)


def _reporting(name: str, frames: Iterator[Frame], on_error: OnError) -> Iterator[Frame]:
    try:
        yield from frames
    except DataError as error:
        on_error(name, str(error))


def _read(path: Path, frame_stride: int) -> Iterator[Frame]:
    """Read a file; one without a known suffix can be an image or a video."""
    suffix = path.suffix.lower()
    try:
        image = None if suffix in VIDEO_SUFFIXES else load_image(path)
    except DataError as error:
        if suffix in IMAGE_SUFFIXES or not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        image = None
    yield from video_frames(path, frame_stride) if image is None else [Frame(path, image)]


def _read_address(address: str, frame_stride: int, on_message: OnMessage) -> Iterator[Frame]:
    path = path_of(address)
    content = None if path.suffix.lower() in VIDEO_SUFFIXES else fetch(address)
    if content is None:
        yield from stream_frames(address, frame_stride, on_message)
    else:
        yield Frame(path, load_image(content, name=address), address=address)
