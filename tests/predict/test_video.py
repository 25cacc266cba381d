"""Videos: their frames, times and display matrices; transport streams, live streams, cameras."""

import re
import socket
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps
from video_files import UNEVEN, shade, write_video
from web_server import serving

from groundtune.errors import DataError
from groundtune.predict import video
from groundtune.predict.sources import iter_frames
from groundtune.predict.video import stream_frames, video_frames


def read(*names, stride=1):
    """The frames, and the reasons of unreadable inputs."""
    failed = {}
    return list(iter_frames(names, False, stride, failed.__setitem__, print)), failed


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("stride", [1, 3])
def test_frames_of_a_video_have_their_index_and_time(tmp_path, ending, stride):
    path = write_video(tmp_path / f"a.{ending}", UNEVEN)
    frames = list(video_frames(path, stride))
    assert [frame.index for frame in frames] == list(range(0, len(UNEVEN), stride))
    times = [round(float(time), 3) for time in UNEVEN[::stride]]
    assert [round(float(frame.time), 3) for frame in frames] == times
    for frame in frames:
        assert frame.image.size == (64, 48) and frame.path == path
        assert abs(np.asarray(frame.image)[:, :, 0].mean() - shade(frame.index)) < 6
    assert len({id(frame.video) for frame in frames}) == 1 and not frames[0].video.sound


ROTATIONS = {
    0: None,
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
"""By counterclockwise degrees."""


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", ROTATIONS)
def test_display_matrices_rotate_and_mirror_as_players_do(tmp_path, degrees, mirrored):
    path = write_video(tmp_path / "a.mp4", UNEVEN[:2], corner=True)
    (raw, _) = (frame.image for frame in video_frames(path, 1))
    # PyAV mirrors after the rotation
    path = write_video(tmp_path / "b.mp4", UNEVEN[:2], corner=True, rotation=degrees, mirrored=mirrored)
    expected = raw if not degrees else raw.transpose(ROTATIONS[degrees])
    expected = ImageOps.mirror(expected) if mirrored else expected
    for frame in video_frames(path, 1):
        assert frame.image.size == expected.size
        if frame.index == 0:
            np.testing.assert_array_equal(frame.image, expected)


def test_a_front_camera_is_mirrored(tmp_path):
    """The matrix (-1, 0, 0, 1), written into the file by hand."""
    path = write_video(tmp_path / "a.mp4", UNEVEN, corner=True)
    raw = [frame.image for frame in video_frames(path, 1)]
    content, one = path.read_bytes(), (1 << 16).to_bytes(4, "big")
    identity = one + bytes(12) + one + bytes(12) + (1 << 30).to_bytes(4, "big")
    track = content.index(b"tkhd")
    at = content.index(identity, track)
    path.write_bytes(content[:at] + (-1 << 16).to_bytes(4, "big", signed=True) + content[at + 4 :])
    for frame, stored in zip(video_frames(path, 1), raw, strict=True):
        np.testing.assert_array_equal(frame.image, ImageOps.mirror(stored))


SECONDS = [Fraction(i, 10) for i in range(60)]


@pytest.mark.parametrize("share", [0, 0.2, 0.35, 0.5, 0.77])
def test_transport_streams_can_start_anywhere(tmp_path, share):
    """Recordings of broadcasts: the frames from the first key frame, of which one comes at least every 10 frames."""
    content = write_video(tmp_path / "a.ts", SECONDS, noise=True, key_frames=10).read_bytes()
    whole, _ = read(str(tmp_path / "a.ts"))
    assert [frame.index for frame in whole] == list(range(60))
    (tmp_path / "cut.mts").write_bytes(content[int(len(content) * share) :])
    frames, failed = read(str(tmp_path / "cut.mts"))
    assert not failed and 60 * (1 - share) - 12 <= len(frames) <= 60 * (1 - share) + 1
    for frame, expected in zip(frames, whole[-len(frames) :], strict=True):
        assert frame.image.tobytes() == expected.image.tobytes()
    assert [round(float(frame.time), 3) for frame in frames] == [i / 10 for i in range(len(frames))]


def test_a_blu_ray_stream_has_packets_of_192_bytes(tmp_path):
    content = write_video(tmp_path / "a.ts", SECONDS).read_bytes()
    packets = (content[at : at + 188] for at in range(0, len(content), 188))
    (tmp_path / "a.m2ts").write_bytes(b"".join(b"time" + packet for packet in packets))
    frames, failed = read(str(tmp_path / "a.m2ts"))
    assert not failed and len(frames) == 60


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [("a.nut", "ffv1", None), ("a.y4m", "wrapped_avframe", "yuv4mpegpipe"), ("a.ivf", "libvpx-vp9", None),
     ("a.h264", "libx264", None), ("a.m2v", "mpeg2video", None), ("a.vob", "mpeg2video", None), ("a.mjpeg", "mjpeg", None),
     ("no suffix", "libx264", "mp4"), ("a.unknown", "libx264", "matroska"), ("a.m2ts", "mpeg2video", "mpegts")],
)  # fmt: skip
def test_videos_are_recognized_by_content(tmp_path, name, codec, container):
    with av.open(str(tmp_path / name), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(6):
            pixels = np.full((48, 64, 3), (shade(number), 100, 50), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode())
    frames, failed = read(str(tmp_path / name))
    assert not failed and [frame.index for frame in frames] == list(range(6))
    assert [round(np.asarray(frame.image)[:, :, 0].mean() / 20) for frame in frames] == [
        round(shade(number) / 20) for number in range(6)
    ]


def test_a_text_file_is_neither_image_nor_video(tmp_path):
    (tmp_path / "notes").write_text("A text about pictures and videos, of some length.\n" * 99)
    frames, failed = read(str(tmp_path / "notes"))
    assert not frames and "Cannot read the video" in failed[str(tmp_path / "notes")]


def test_an_animation_is_an_image(tmp_path):
    shades = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    shades[0].save(tmp_path / "a.gif", save_all=True, append_images=shades[1:])
    (frame,) = read(str(tmp_path / "a.gif"))[0]
    assert frame.video is None and frame.image.getpixel((0, 0)) == (10, 0, 0)


def test_the_frames_before_the_damage_of_a_video_are_read(tmp_path):
    path = write_video(tmp_path / "a.mkv", [Fraction(i, 10) for i in range(50)], noise=True)
    content = path.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(content[: len(content) // 2])
    frames, failed = read(str(cut))
    assert 10 < len(frames) < 40
    assert re.search(r"cut.mkv is truncated: it ends after [12]\.\d of (4.9|5.0) s", failed[str(cut)])
    corrupted = tmp_path / "corrupted.mp4"
    content = bytearray(write_video(corrupted, [Fraction(i, 10) for i in range(50)], noise=True).read_bytes())
    for position in range(len(content) // 2, len(content) * 3 // 4, 40):
        content[position] ^= 0xFF
    corrupted.write_bytes(content)
    frames, failed = read(str(corrupted), str(path), stride=10)
    assert "Cannot read the video" in failed[str(corrupted)]
    assert [frame.index for frame in frames if frame.path == path] == [0, 10, 20, 30, 40]
    assert [frame.index for frame in frames if frame.path == corrupted] in ([0, 10], [0, 10, 20])


def test_a_complete_video_is_not_called_truncated(tmp_path):
    path = write_video(tmp_path / "a.mkv", [Fraction(i) for i in range(40)])
    assert len(list(video_frames(path, 30))) == 2
    assert len(list(video_frames(path, 100))) == 1
    slow = write_video(tmp_path / "slow.mkv", [Fraction(0), Fraction(1), Fraction(60)])
    assert len(list(video_frames(slow, 1))) == 3


def test_playlists_and_sound_are_not_videos(tmp_path):
    secret = write_video(tmp_path / "secret.mp4", UNEVEN)
    playlists = {"concat.mp4": f"ffconcat version 1.0\nfile {secret.name}\n"}
    playlists["hls.ts"] = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret.name}\n#EXT-X-ENDLIST\n"
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="Cannot read the video"):
            list(video_frames(tmp_path / name, 1))
    with av.open(str(tmp_path / "sound.mkv"), "w") as sound:
        stream = sound.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        sound.mux(stream.encode(frame))
    with pytest.raises(DataError, match="no images, only sound"):
        list(video_frames(tmp_path / "sound.mkv", 1))


def test_a_camera_gives_frames_until_the_caller_stops(tmp_path, monkeypatch):
    """A file stands in for the camera."""
    path, opened, real = write_video(tmp_path / "a.mkv", UNEVEN), [], av.open

    def open_device(name, format):
        opened.append((name, format))
        return real(str(path))

    monkeypatch.setattr(video.av, "open", open_device)
    monkeypatch.setattr(sys, "platform", "linux")
    frames = iter_frames(["2"], False, 2, lambda *_: None, print)
    first, second = next(frames), next(frames)
    assert first.path == second.path == Path("camera-2") and (first.index, second.index) == (0, 2)
    frames.close()
    assert opened == [("/dev/video2", "v4l2")]


def test_a_missing_camera_is_reported(monkeypatch):
    frames, failed = read("89")
    assert not frames
    if sys.platform == "linux":
        assert "Cannot read camera 89 (/dev/video89: No such file or directory)" in failed["camera-89"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "only supported on Linux" in read("89")[1]["camera-89"]


@pytest.fixture()
def film(tmp_path):
    return write_video(tmp_path / "film.ts", SECONDS[:20]).read_bytes()


def test_a_video_of_an_address_is_read_to_its_end(film, tmp_path):
    mp4 = write_video(tmp_path / "film.mp4", UNEVEN).read_bytes()
    with serving({"/a.ts": film, "/b.mp4": mp4}) as server:
        frames, failed = read(f"{server}/a.ts", f"{server}/b.mp4?token=1//2", stride=2)
    assert not failed and [frame.index for frame in frames] == [*range(0, 20, 2), *range(0, 8, 2)]
    assert [float(frame.time) for frame in frames[10:]] == pytest.approx(
        [float(time) for time in UNEVEN[::2]]
    )
    assert {frame.address for frame in frames} == {f"{server}/a.ts", f"{server}/b.mp4?token=1//2"}
    assert {frame.path.name for frame in frames} == {"a.ts", "b.mp4"}


def test_a_broken_download_is_continued_where_it_broke(film):
    """FFmpeg asks for the rest; no frame comes twice."""
    with serving({"/a.ts": film}, drop_after=len(film) // 3) as server:
        frames, failed = read(f"{server}/a.ts")
    assert not failed and [frame.index for frame in frames] == list(range(20))
    assert [float(frame.time) for frame in frames] == pytest.approx([i / 10 for i in range(20)])


def test_a_live_stream_is_connected_again_after_a_drop(film, monkeypatch, capsys):
    """The server has no length, drops the connection twice, and then is gone."""
    monkeypatch.setattr(video, "_WAITS", (0.01, 0.02, 0.04))
    with serving({"/live.ts": film}, lengths=False, times=3) as server:
        frames, failed = read(f"{server}/live.ts", stride=4)
    assert [frame.index for frame in frames] == list(range(0, 60, 4))
    times = [float(frame.time) for frame in frames]
    assert times == sorted(set(times)) and len({frame.video for frame in frames}) == 1
    messages = capsys.readouterr().out.splitlines()
    assert [re.search(r"live.ts: the stream ended after (\d+) frames", line)[1] for line in messages] == [
        "20",
        "40",
        "60",
    ]
    assert re.search(r"/live.ts after 60 frames: .*5XX", failed[f"{server}/live.ts"])


def test_an_address_without_a_stream_is_an_error_at_once(monkeypatch):
    monkeypatch.setattr(video, "_WAITS", None)  # no attempt is repeated
    with serving({"/a.mp4": b"no video" * 99}) as server:
        for name, reason in (("a.mp4", "Invalid data"), ("b.mp4", "404")):
            with pytest.raises(DataError, match=f"Cannot read {server}/{name} after 0 frames: .*{reason}"):
                list(stream_frames(f"{server}/{name}", 1, print))
    with pytest.raises(DataError, match=f"Cannot read {server}/a.mp4 .*refused"):
        list(stream_frames(f"{server}/a.mp4", 1, print))


def test_rtsp_is_read_by_ffmpeg_over_tcp(tmp_path, monkeypatch):
    """A file stands in for the camera."""
    path, opened, real = write_video(tmp_path / "a.mkv", UNEVEN), [], av.open

    def open_stream(name, options, timeout):
        opened.append((name, options["rtsp_transport"]))
        return real(str(path))

    monkeypatch.setattr(video.av, "open", open_stream)
    frames, failed = read("rtsp://user:secret@camera/1")
    assert len(frames) == len(UNEVEN) and not failed and opened == [("rtsp://user:secret@camera/1", "tcp")]


def test_a_stream_that_is_silent_is_an_error(monkeypatch):
    monkeypatch.setattr(video, "_SILENT_SECONDS", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(DataError, match="no data for 0.3 s"),
    ):
        list(stream_frames(f"http://127.0.0.1:{server.getsockname()[1]}/a.ts", 1, print))


def test_streams_open_no_files(tmp_path):
    """Neither by a redirect nor by a playlist."""
    secret = write_video(tmp_path / "secret.ts", UNEVEN)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    redirects = {"/b.ts": f"file://{secret}"}
    with serving({"/a.m3u8": playlist.encode()}, redirects=redirects) as server:
        for name in ("a.m3u8", "b.ts"):
            frames, failed = read(f"{server}/{name}")
            assert not frames and len(failed) == 1
