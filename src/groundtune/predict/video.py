"""Decode videos, cameras and streams to upright RGB frames with their times."""

import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.sidedata.sidedata import SideData
from PIL import Image

from groundtune.data.images import UPRIGHT, check_pixel_count
from groundtune.errors import DataError
from groundtune.predict.addresses import check_address, is_address, path_of

VIDEO_SUFFIXES = frozenset(
    ".mp4 .mov .m4v .mkv .webm .avi .mpg .mpeg .ts .wmv .flv .3gp .m2ts .mts .m2t .m2v .vob .ogv .3g2 .f4v "
    ".asf .divx .mxf .dv .rm .rmvb .wtv .ivf .y4m .mjpeg .mjpg .h264 .h265 .hevc .obu .nut .dav".split()
)
# FFmpeg recognizes files by content and also reads playlists, which open other files and addresses.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,live_flv,ogg,mxf,gxf,dv,rm,wtv,nut,ivf,obu,av1,"
    "h261,h263,h264,hevc,vvc,m4v,vc1,mjpeg,mpjpeg,yuv4mpegpipe,cavsvideo,dirac,dnxhd,dhav,nsv,pva,swf,flic"
)
_FILE = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_STREAM = {"protocol_whitelist": "http,https,httpproxy,tcp,tls,crypto,udp,rtp,rtsp,rtmp,rtmps"}
_STREAM |= {"reconnect": "1", "rtsp_transport": "tcp"}  # reconnect: for the rest of a file of known size
_SILENT_SECONDS, _WAITS = 20, (1, 2, 4, 8, 16)  # seconds; before each attempt to connect again
_CAMERA_RATE = Fraction(30)
_ORIENTATIONS = {  # as in EXIF, by the signs of a, b, c, d of a display matrix: x' = ax + cy, y' = bx + dy
    (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class VideoStream:
    """Properties of a video: average frames per second, unit of its times in seconds, sound."""

    rate: Fraction
    time_base: Fraction
    sound: bool


@dataclass(frozen=True)
class Frame:
    """An upright RGB image, or a frame of a video."""

    path: Path  # "camera-0" for a camera; host and path of an address
    image: Image.Image
    video: VideoStream | None = None
    index: int = 0  # in the video
    time: Fraction = Fraction(0)  # seconds since the first frame
    address: str = ""  # where the image or the video was read from, if not a file


def video_frames(path: Path, frame_stride: int) -> Iterator[Frame]:
    """Decode a video; raise a `DataError` if it is damaged, after the frames before the damage."""
    if not path.is_file():
        raise DataError(f"The video {path} {'is not a regular file' if path.exists() else 'does not exist'}.")
    try:
        with av.open(str(path.absolute()), options=_FILE) as container:
            yield from _frames(path, container, frame_stride)
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
            yield from _frames(Path(f"camera-{number}"), container, frame_stride)
    except (av.FFmpegError, OSError) as error:
        raise DataError(
            f"Cannot read camera {number} ({device}: {error.strerror}). Connect it, or name a file."
        ) from error


def stream_frames(address: str, frame_stride: int, on_message: Callable[[str], None]) -> Iterator[Frame]:
    """Read a video or a live stream; connect again where a live stream breaks off.

    Indices continue after a gap, and times include it.

    Raises:
        DataError: the address cannot be read, or the stream does not come back.
    """
    check_address(address)
    path, video, index, attempt, lost = path_of(address), None, 0, 0, 0.0
    seconds = begin = Fraction(0)
    while True:
        problem, live = "the stream ended", True
        try:
            with av.open(address, options=_STREAM, timeout=_SILENT_SECONDS) as container:
                live = container.duration is None and container.size <= 0
                for frame, properties, since in _decode(address, container):
                    if attempt:
                        begin, attempt = seconds + Fraction(time.monotonic() - lost), 0
                    video, seconds = video or properties, begin + since
                    if index % frame_stride == 0:
                        yield Frame(path, _upright(frame), video, index, seconds, address)
                    index += 1
                if index and not live:
                    return
        except av.FFmpegError as error:
            silent = isinstance(error, av.ExitError)
            problem = f"no data for {_SILENT_SECONDS} s" if silent else error.strerror or str(error)
        if not index or not live or attempt == len(_WAITS):
            raise DataError(f"Cannot read {address} after {index} frames: {problem}.")
        if not attempt:
            lost = time.monotonic()
            on_message(f"{address}: {problem} after {index} frames. Connecting again.")
        time.sleep(_WAITS[attempt])
        attempt += 1


def _frames(path: Path, container: av.container.InputContainer, frame_stride: int) -> Iterator[Frame]:
    for index, (frame, video, seconds) in enumerate(_decode(str(path), container)):
        if index % frame_stride == 0:
            yield Frame(path, _upright(frame), video, index, seconds)


def _decode(
    name: str, container: av.container.InputContainer
) -> Iterator[tuple[av.VideoFrame, VideoStream, Fraction]]:
    """Yield frames with their times in seconds."""
    if not container.streams.video:
        raise DataError(f"{name} has no images, only sound.")
    stream = container.streams.video[0]
    check_pixel_count(name, (stream.codec_context.width, stream.codec_context.height))
    stream.thread_type = "AUTO"
    rate = stream.average_rate or _CAMERA_RATE
    unit = stream.time_base or 1 / rate
    video = VideoStream(rate, unit, bool(container.streams.audio))
    start: Fraction | None = None
    last = longest_gap = skipped = Fraction(0)
    for index, frame in enumerate(_until_lost(container, stream)):
        seconds = Fraction(index) / rate if frame.pts is None else frame.pts * (frame.time_base or unit)
        if start is None:
            start, first = seconds, stream.start_time  # a broadcast can start amid frames that are incomplete
            skipped = max(skipped, seconds - first * unit) if first is not None else skipped
        longest_gap, last = max(longest_gap, seconds - start - last), seconds - start
        yield frame, video, last
    expected = _stated_seconds(container)
    # formats without an index end without an error where they are cut
    if skipped + last + longest_gap < 0.9 * expected:
        raise DataError(
            f"The video {name} is truncated: it ends after {float(last):.1f} of {expected:.1f} s."
        )


def _until_lost(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decode to the end, or to the loss of a connection without a length, which can be the end."""
    try:
        yield from container.decode(stream)
    except av.FFmpegError:
        if not is_address(container.name) or container.size > 0:
            raise
        yield from stream.decode(None)


def _upright(frame: av.VideoFrame) -> Image.Image:
    """Return a frame as its display matrix shows it: rotated by quarters, mirrored or both."""
    image = frame.to_image()
    side_data: Mapping[str, object] = frame.side_data
    matrix = side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return image
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    swapped = abs(a) + abs(d) < abs(b) + abs(c)
    signs = [(entry > 0) - (entry < 0) for entry in ((0, b, c, 0) if swapped else (a, 0, 0, d))]
    turn = UPRIGHT.get(_ORIENTATIONS.get((signs[0], signs[1], signs[2], signs[3]), 1))
    return image if turn is None else image.transpose(turn)


def _stated_seconds(container: av.container.InputContainer) -> float:
    """Return the duration in the header, 0 if it has none."""
    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0
