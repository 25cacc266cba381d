"""What there is to look at: files, folders, patterns, stdin, videos with their times, cameras; and what cannot be read."""

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
from groundtune.predict import sources as media
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


def names(*arguments, **options):
    return [path.as_posix() for path in files(*arguments, **options)]


@pytest.mark.parametrize(
    ("name", "recursive", "found"),
    [
        (".", False, ["a.PNG", "b.jpg"]),
        (".", True, ["a.PNG", "b.jpg", "deep/c.jpg", "deep/deeper/a.webp"]),
        ("deep", False, ["deep/c.jpg"]),
        ("*.jpg", False, ["b.jpg"]),
        ("**/*.jpg", False, ["b.jpg", "deep/c.jpg"]),
        ("notes.txt", False, ["notes.txt"]),  # whoever names it means it
        ("?.gif", False, []),
        ("absent.jpg", False, []),
    ],
)
def test_a_name_stands_for_files(tree, name, recursive, found):
    assert names(name, recursive) == found


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree):
    Image.new("RGB", (8, 6)).save("[b].jpg")
    assert names("[b].jpg", False) == ["[b].jpg"]


def test_everything_that_is_missing_is_said_at_once(tree):
    check_inputs_exist(["a.PNG", "deep", "*.jpg", "-", "3"], False)
    said = (
        "x.jpg: there is no such image; empty: the folder has no images; "
        "hidden: the folder has no images itself, but in folders of it: --recursive; *.gif: there is no such image."
    )
    (Path("hidden") / "in").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save("hidden/in/a.jpg")
    with pytest.raises(DataError) as error:
        check_inputs_exist(["x.jpg", "empty", "a.PNG", "hidden", "*.gif"], False)
    assert str(error.value) == said
    check_inputs_exist(["hidden"], True)
    with pytest.raises(DataError, match="name at least one"):
        check_inputs_exist([], False)


def test_results_do_not_go_where_images_are_looked_for(tree):
    for folder, recursive in ((".", False), ("deep/..", False), ("deep/out", True)):
        with pytest.raises(ConfigError, match="where the images are looked for"):
            check_output_not_input(Path(folder), ["deep", "."], recursive)
    check_output_not_input(Path("deep/out"), ["."], False)
    check_output_not_input(Path("."), ["a.PNG", "deep"], True)


def look(*arguments, recursive=False, every=1):
    failed = {}
    return list(iter_frames(arguments, recursive, every, failed.__setitem__)), failed


def test_paths_come_from_stdin_as_they_are_needed(tree, monkeypatch):
    lines = io.StringIO("b.jpg\n\nno*.jpg\r\ndeep\na.PNG\n")
    monkeypatch.setattr(sys, "stdin", lines)
    given = iter_frames(["-", "b.jpg"], False, 1, lambda path, reason: None)
    assert next(given).path == Path("b.jpg") and lines.tell() < 10
    lines.seek(0)
    found, failed = look("-", "b.jpg")
    assert [shot.path.as_posix() for shot in found] == ["b.jpg", "deep/c.jpg", "a.PNG", "b.jpg"]
    assert list(failed) == ["no*.jpg"] and "does not exist" in failed["no*.jpg"]


def test_what_cannot_be_read_in_the_middle_is_told_and_left_out(tree):
    Path("aa.jpg").write_text("no image")
    Path("z.mp4").write_text("no video")
    if sys.platform != "win32":
        os.mkfifo("fifo.mp4")
    found, failed = look(".")
    assert [shot.path.name for shot in found] == ["a.PNG", "b.jpg"]
    assert set(failed) == {"aa.jpg", "z.mp4"} | ({"fifo.mp4"} if sys.platform != "win32" else set())
    assert "Cannot read the video z.mp4" in failed["z.mp4"]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("every", [1, 3])
def test_frames_of_a_video_have_their_number_and_time(tmp_path, ending, every):
    path = write_video(tmp_path / f"a.{ending}", UNEVEN)
    found = list(video_frames(path, every))
    assert [shot.frame for shot in found] == list(range(0, len(UNEVEN), every))
    assert [round(float(shot.time), 3) for shot in found] == [
        round(float(time), 3) for time in UNEVEN[::every]
    ]
    for shot in found:
        assert shot.image.size == (64, 48) and shot.path == path
        assert abs(np.asarray(shot.image)[:, :, 0].mean() - shade(shot.frame)) < 6
    assert len({id(shot.clip) for shot in found}) == 1 and not found[0].clip.sound


@pytest.mark.parametrize(
    ("degrees", "corner"), [(90, "bottom left"), (180, "bottom right"), (-90, "top right")]
)
def test_videos_are_turned_as_players_show_them(tmp_path, degrees, corner):
    """A white corner at the top left of the stored frames; degrees count against the clock."""
    path = write_video(tmp_path / "a.mp4", UNEVEN[:2], corner=True, rotation=degrees)
    shot = next(iter(video_frames(path, 1)))
    assert shot.image.size == ((64, 48) if degrees == 180 else (48, 64))
    pixels = np.asarray(shot.image).mean(2)
    bright = {
        f"{row} {column}": pixels[-6:, slices].mean() if row == "bottom" else pixels[:6, slices].mean()
        for row in ("top", "bottom")
        for column, slices in (("left", slice(None, 6)), ("right", slice(-6, None)))
    }
    assert max(bright, key=bright.get) == corner and bright[corner] > 200


def test_a_damaged_video_gives_what_is_before_the_damage(tmp_path):
    path = write_video(tmp_path / "a.mkv", [Fraction(i, 10) for i in range(50)], noise=True)
    content = path.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(content[: len(content) // 2])
    found, failed = look(str(cut))
    assert 10 < len(found) < 40
    assert re.search(r"cut.mkv was cut off: it ends after [12]\.\d of (4.9|5.0) s", failed[str(cut)])
    corrupted = tmp_path / "corrupted.mp4"
    content = bytearray(write_video(corrupted, [Fraction(i, 10) for i in range(50)], noise=True).read_bytes())
    for place in range(len(content) // 2, len(content) * 3 // 4, 40):
        content[place] ^= 0xFF
    corrupted.write_bytes(content)
    found, failed = look(str(corrupted), str(path), every=10)
    assert "Cannot read the video" in failed[str(corrupted)]
    assert [shot.frame for shot in found if shot.path == path] == [0, 10, 20, 30, 40]
    assert [shot.frame for shot in found if shot.path == corrupted] in ([0, 10], [0, 10, 20])


def test_a_whole_video_is_not_called_cut(tmp_path):
    path = write_video(tmp_path / "a.mkv", [Fraction(i) for i in range(40)])
    assert len(list(video_frames(path, 30))) == 2
    assert len(list(video_frames(path, 100))) == 1
    slow = write_video(tmp_path / "slow.mkv", [Fraction(0), Fraction(1), Fraction(60)])
    assert len(list(video_frames(slow, 1))) == 3


def test_playlists_and_sound_are_no_videos(tmp_path):
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
    assert (
        is_camera("0")
        and is_camera("12")
        and not is_camera("a")
        and not is_camera("-1")
        and not is_camera("²")
    )
    Image.new("RGB", (8, 6)).save("7.png")
    Path("7.png").rename("7")
    assert not is_camera("7")
    found, failed = look("7")
    assert len(found) == 1 and not failed


def test_a_camera_gives_frames_until_the_caller_stops(tmp_path, monkeypatch):
    """The camera is a file here."""
    path, opened, real = write_video(tmp_path / "a.mkv", UNEVEN), [], av.open

    def open_device(name, format):
        opened.append((name, format))
        return real(str(path))

    monkeypatch.setattr(media.av, "open", open_device)
    monkeypatch.setattr(sys, "platform", "linux")
    given = iter_frames(["2"], False, 2, lambda *_: None)
    assert [(shot.path.name, shot.frame) for shot in (next(given), next(given))] == [
        ("camera-2", 0),
        ("camera-2", 2),
    ]
    given.close()
    assert opened == [("/dev/video2", "v4l2")]


def test_a_camera_that_is_not_there_is_said(monkeypatch):
    found, failed = look("89")
    assert not found
    if sys.platform == "linux":
        assert "Camera 89 cannot be read (/dev/video89: No such file or directory)" in failed["camera-89"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "on Linux only" in look("89")[1]["camera-89"]
