"""Inputs: files, directories, patterns, stdin, videos with their times, cameras; and unreadable
ones.
"""

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from groundtune.errors import ConfigError, DataError
from groundtune.predict.sources import (
    check_inputs_exist,
    check_output_not_input,
    files,
    is_camera,
    iter_frames,
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
    assert [path.as_posix() for path in files(name, recursive, print)] == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree):
    Image.new("RGB", (8, 6)).save("[b].jpg")
    assert list(files("[b].jpg", False, print)) == [Path("[b].jpg")]


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


def test_directories_give_all_that_can_be_read_and_nothing_hidden(tree, capsys):
    names = "a.avif a.jp2 a.ppm a.pgm a.tif a.gif a.jpe a.webp a.bmp a.jfif a.apng".split()
    Path("kinds/.trash").mkdir(parents=True)
    Path("kinds/__MACOSX").mkdir()
    for name in names:
        kind = {".jfif": "JPEG", ".pgm": "PPM"}.get(Path(name).suffix)
        Image.new("L" if name == "a.pgm" else "RGB", (8, 6)).save(f"kinds/{name}", kind)
    for hidden in ("._a.jpg", ".a.jpg", "__MACOSX/._a.jpg", "__MACOSX/b.jpg", ".trash/c.jpg", ".d.heic"):
        Path("kinds", hidden).write_bytes(b"\0\5\x16\7")
    for other in ("a.heic", "b.HEIC", "a.svg", "notes.txt", "a.json"):
        Path("kinds", other).touch()
    failed = {}
    frames = list(iter_frames(["kinds"], True, 1, failed.__setitem__, print))
    assert sorted(frame.path.name for frame in frames) == sorted(names) and not failed
    told = "kinds: skipped 2 .heic, 1 .svg, which cannot be read. Convert these images to JPEG or PNG."
    assert capsys.readouterr().out.splitlines() == [told]
    for name in names:
        Path("kinds", name).unlink()
    with pytest.raises(
        DataError, match=r"kinds: the directory has no images; kinds: skipped 2 \.heic, 1 \.svg"
    ):
        check_inputs_exist(["kinds"], True)


def test_results_are_not_written_among_the_inputs(tree):
    for folder, recursive in ((".", False), ("deep/..", False), ("deep/out", True)):
        with pytest.raises(ConfigError, match="choose a directory outside"):
            check_output_not_input(Path(folder), ["deep", "."], recursive)
    check_output_not_input(Path("deep/out"), ["."], False)
    check_output_not_input(Path("."), ["a.PNG", "deep"], True)


def read(*names, stride=1):
    """The frames, and the reasons of unreadable files."""
    failed = {}
    return list(iter_frames(names, False, stride, failed.__setitem__, print)), failed


def test_paths_are_read_from_stdin_one_by_one(tree, monkeypatch):
    lines = io.StringIO("b.jpg\n\nno*.jpg\r\ndeep\na.PNG\n")
    monkeypatch.setattr(sys, "stdin", lines)
    frames = iter_frames(["-", "b.jpg"], False, 1, lambda path, reason: None, print)
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


def test_a_number_is_a_camera_unless_there_is_such_a_file(tree, monkeypatch):
    assert [is_camera(name) for name in ("0", "12", "a", "-1", "²")] == [True, True, False, False, False]
    Image.new("RGB", (8, 6)).save("7.png")
    Path("7.png").rename("7")
    assert not is_camera("7")
    frames, failed = read("7")
    assert len(frames) == 1 and not failed
