"""Inputs: files, directories, patterns, stdin, videos with their times, cameras; and unreadable
ones.
"""

import io
import os
import re
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_files import UNEVEN, shade, write_video

from groundtune.errors import ConfigError, DataError
from groundtune.predict import sources
from groundtune.predict.sources import (
    check_inputs_exist,
    check_output_not_input,
    files,
    is_camera,
    iter_frames,
    video_frames,
)


@pytest.fixture()
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.PNG", "deep/c.jpg", "deep/deeper/a.webp"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(name)
    Path("notes.txt").touch()
    Path("empty").mkdir()


@pytest.mark.parametrize(
    ("name", "recursive", "expected"),
    [
        (".", False, ["a.PNG", "b.jpg"]),
        (".", True, ["a.PNG", "b.jpg", "deep/c.jpg", "deep/deeper/a.webp"]),
        ("deep", False, ["deep/c.jpg"]),
        ("*.jpg", False, ["b.jpg"]),
        ("**/*.jpg", False, ["b.jpg", "deep/c.jpg"]),
        ("notes.txt", False, ["notes.txt"]),  # a named file is read whatever its suffix
        ("?.gif", False, []),
        ("absent.jpg", False, []),
    ],
)
def test_files_of_a_name(tree, name, recursive, expected):
    assert [path.as_posix() for path in files(name, recursive)] == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree):
    Image.new("RGB", (8, 6)).save("[b].jpg")
    assert list(files("[b].jpg", False)) == [Path("[b].jpg")]


def test_all_missing_inputs_are_reported_at_once(tree):
    check_inputs_exist(["a.PNG", "deep", "*.jpg", "-", "3"], False)
    (Path("hidden") / "in").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save("hidden/in/a.jpg")
    missing = (
        r"x.jpg: .*; empty: the directory has no images; hidden: .*--recursive; \*.gif: no such image\.$"
    )
    with pytest.raises(DataError, match=missing):
        check_inputs_exist(["x.jpg", "empty", "a.PNG", "hidden", "*.gif"], False)
    check_inputs_exist(["hidden"], True)
    with pytest.raises(DataError, match="at least one image"):
        check_inputs_exist([], False)


def test_results_are_not_written_among_the_inputs(tree):
    for folder, recursive in ((".", False), ("deep/..", False), ("deep/out", True)):
        with pytest.raises(ConfigError, match="choose a directory outside"):
            check_output_not_input(Path(folder), ["deep", "."], recursive)
    check_output_not_input(Path("deep/out"), ["."], False)
    check_output_not_input(Path("."), ["a.PNG", "deep"], True)


def read(*names, stride=1):
    """The frames, and the reasons of unreadable files."""
    failed = {}
    return list(iter_frames(names, False, stride, failed.__setitem__)), failed


def test_paths_are_read_from_stdin_one_by_one(tree, monkeypatch):
    lines = io.StringIO("b.jpg\n\nno*.jpg\r\ndeep\na.PNG\n")
    monkeypatch.setattr(sys, "stdin", lines)
    frames = iter_frames(["-", "b.jpg"], False, 1, lambda path, reason: None)
    assert next(frames).path == Path("b.jpg") and lines.tell() < 10
    lines.seek(0)
    frames, failed = read("-", "b.jpg")
    assert [frame.path.as_posix() for frame in frames] == ["b.jpg", "deep/c.jpg", "a.PNG", "b.jpg"]
    assert list(failed) == ["no*.jpg"] and "does not exist" in failed["no*.jpg"]


def test_unreadable_files_are_reported_and_skipped(tree):
    Path("aa.jpg").write_text("no image")
    Path("z.mp4").write_text("no video")
    if sys.platform != "win32":
        os.mkfifo("fifo.mp4")
    frames, failed = read(".")
    assert [frame.path.name for frame in frames] == ["a.PNG", "b.jpg"]
    assert set(failed) == {"aa.jpg", "z.mp4"} | ({"fifo.mp4"} if sys.platform != "win32" else set())
    assert "Cannot read the video z.mp4" in failed["z.mp4"]


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


@pytest.mark.parametrize(
    ("degrees", "corner"), [(90, "bottom left"), (180, "bottom right"), (-90, "top right")]
)
def test_videos_are_turned_as_players_show_them(tmp_path, degrees, corner):
    """A white corner at the top left of the stored frames; degrees are counterclockwise."""
    path = write_video(tmp_path / "a.mp4", UNEVEN[:2], corner=True, rotation=degrees)
    frame = next(iter(video_frames(path, 1)))
    assert frame.image.size == ((64, 48) if degrees == 180 else (48, 64))
    pixels = np.asarray(frame.image).mean(2)
    bright = {
        f"{row} {column}": pixels[-6:, slices].mean() if row == "bottom" else pixels[:6, slices].mean()
        for row in ("top", "bottom")
        for column, slices in (("left", slice(None, 6)), ("right", slice(-6, None)))
    }
    assert max(bright, key=bright.get) == corner and bright[corner] > 200


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


def test_a_number_is_a_camera_unless_there_is_such_a_file(tree, monkeypatch):
    assert [is_camera(name) for name in ("0", "12", "a", "-1", "²")] == [True, True, False, False, False]
    Image.new("RGB", (8, 6)).save("7.png")
    Path("7.png").rename("7")
    assert not is_camera("7")
    frames, failed = read("7")
    assert len(frames) == 1 and not failed


def test_a_camera_gives_frames_until_the_caller_stops(tmp_path, monkeypatch):
    """A file stands in for the camera."""
    path, opened, real = write_video(tmp_path / "a.mkv", UNEVEN), [], av.open

    def open_device(name, format):
        opened.append((name, format))
        return real(str(path))

    monkeypatch.setattr(sources.av, "open", open_device)
    monkeypatch.setattr(sys, "platform", "linux")
    frames = iter_frames(["2"], False, 2, lambda *_: None)
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
