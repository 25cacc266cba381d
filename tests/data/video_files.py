"""Small videos for the tests, written frame by frame with the times that they are given."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

UNEVEN = [Fraction(ms, 1000) for ms in (0, 33, 100, 250, 260, 900, 1000, 1500)]


def shade(number: int) -> int:
    """The red of a frame."""
    return 40 + 20 * (number % 8)


def write_video(
    path: Path,
    times: Sequence[Fraction],
    size: tuple[int, int] = (64, 48),
    *,
    corner: bool = False,
    noise: bool = False,
    rotation: int = 0,
    mirrored: bool = False,
    sound: bool = False,
    key_frames: int = 250,
) -> Path:
    """Frames in H.264, one for each time in seconds, with the red of `shade`; a white corner;
    noise, which makes them large; a key frame after every `key_frames` at the latest.
    """
    unit = Fraction(1, 1000)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"g": str(key_frames)})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = unit
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        if sound:
            track = file.add_stream("aac", rate=8000)
        random = np.random.default_rng(0)
        for number, time in enumerate(times):
            pixels = np.full((size[1], size[0], 3), (shade(number), 100, 50), np.uint8)
            if noise:
                pixels[:] = random.integers(0, 256, pixels.shape)
            if corner:
                pixels[:12, :12] = 255
            frame = av.VideoFrame.from_image(Image.fromarray(pixels))
            frame.pts, frame.time_base = round(time / unit), unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate = 8000
            file.mux(track.encode(silence))
            file.mux(track.encode())
    return path
