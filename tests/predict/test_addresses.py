"""Images from http(s) addresses: limits, redirects, opt-out, messages."""

import io
import socket
import threading
import urllib.request
from email.message import Message
from pathlib import Path
from urllib.response import addinfourl

import numpy as np
import pytest
from PIL import Image
from web_server import serving

from groundtune.data.formats.detect import load_splits
from groundtune.errors import ConfigError, DataError
from groundtune.predict import addresses
from groundtune.predict.addresses import fetch, is_address, path_of
from groundtune.predict.inputs import read_images
from groundtune.predict.sources import iter_frames

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def png():
    stream = io.BytesIO()
    NOISE.save(stream, "PNG")
    return stream.getvalue()


def test_an_address_is_read_like_its_file():
    with serving({"/photo": png(), "/a%20b.png": png(), "/%C3%BC.png": png()}) as server:
        for name in ("photo", "photo?size=1//2", "a%20b.png", "a b.png", "ü.png"):
            (image,) = read_images(f"{server}/{name}")
            assert image.tobytes() == NOISE.tobytes()
        upper = f"HTTP{server.removeprefix('http')}/photo"
        assert [image.size for image in read_images([upper, upper])] == [(30, 20)] * 2
        frames = list(iter_frames([f"{server}/photo", f"{server}/a%20b.png"], False, 1, print, print))
    assert [frame.address for frame in frames] == [f"{server}/photo", f"{server}/a%20b.png"]
    assert [frame.path.name for frame in frames] == ["photo", "a b.png"]


def test_names_of_addresses():
    assert [is_address(name) for name in ("https://a/b", "RTSP://a", "C:/a.png", "a.png", "a:b//c", "x://y")] == [
        True, True, False, False, False, False
    ]  # fmt: skip
    assert path_of("https://host:8080/a//b%20c.jpg?x=1#y") == Path("host:8080/a/b c.jpg")


def test_errors_keep_the_address_whole(monkeypatch):
    with serving({"/a//b.png": b"no image"}) as server:
        for name, reason in (
            ("a//b.png?x=//1", "cannot identify image file"),
            ("a//c.png", "HTTP Error 404"),
        ):
            with pytest.raises(DataError) as caught:
                list(read_images(f"{server}/{name}"))
            assert f"{server}/{name}" in str(caught.value) and reason in str(caught.value)
            failed = {}
            assert list(iter_frames([f"{server}/{name}"], False, 1, failed.__setitem__, print)) == []
            assert list(failed) == [f"{server}/{name}"]
    with pytest.raises(DataError, match=f"Cannot read {server}/a: .*refused"):
        list(read_images(f"{server}/a"))
    for broken in ("http://", "http://[::1/a.png", "http://a:b/c.png", "http://.../a.png"):
        failed = {}
        assert list(iter_frames([broken], False, 1, failed.__setitem__, print)) == []
        assert f"Cannot read {broken}: " in failed[broken]


def test_redirects_lead_to_http_only(tmp_path, monkeypatch):
    def ftp_open(handler, request):
        return addinfourl(io.BytesIO(png()), Message(), request.full_url)

    monkeypatch.setattr(urllib.request.FTPHandler, "ftp_open", ftp_open)
    (tmp_path / "a.png").write_bytes(png())
    with serving({"/a.png": png()}) as server:
        redirects = {
            "/file": f"file://{tmp_path}/a.png",
            "/ftp": "ftp://127.0.0.1:1/a.png",
            "/good": f"{server}/a.png",
        }
        with serving({}, redirects=redirects) as other:
            assert next(read_images(f"{other}/good")).size == (30, 20)
            for name in ("file", "ftp"):
                with pytest.raises(DataError, match=f"Cannot read {other}/{name}: "):
                    list(read_images(f"{other}/{name}"))


def test_downloads_have_limits(monkeypatch):
    with serving({"/a.png": png() + bytes(2**21)}) as server:
        assert len(fetch(f"{server}/a.png").getvalue()) > 2**21
        monkeypatch.setattr(addresses, "_MAX_MEGABYTES", 2)
        with pytest.raises(DataError, match="over 2 MB or 60 s"):
            fetch(f"{server}/a.png")
        monkeypatch.setattr(addresses, "_MAX_MEGABYTES", 9)
        monkeypatch.setattr(addresses, "_MAX_SECONDS", -1)
        with pytest.raises(DataError, match="over 9 MB or -1 s"):
            fetch(f"{server}/a.png")


def test_a_server_that_is_silent_is_left_soon(monkeypatch):
    monkeypatch.setattr(addresses, "_SILENT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(DataError, match="timed out"):
        fetch(f"http://127.0.0.1:{server.getsockname()[1]}/a.png")


def test_a_server_that_drips_is_left_at_the_time_limit(monkeypatch):
    monkeypatch.setattr(addresses, "_MAX_SECONDS", 0.5)
    done = threading.Event()

    def drip(server):
        connection = server.accept()[0]
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: image/png\r\n\r\n")
        while not done.wait(0.05):
            try:
                connection.sendall(b"x")
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=[server], daemon=True).start()
        with pytest.raises(DataError, match="over 200 MB or 0.5 s"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/a.png")
        done.set()


def test_a_truncated_download_is_an_error():
    with (
        serving({"/a.png": png()}, drop_after=900) as server,
        pytest.raises(DataError, match="/a.png: .*truncated"),
    ):
        list(read_images(f"{server}/a.png"))


def test_addresses_can_be_forbidden(monkeypatch):
    monkeypatch.setenv("GROUNDTUNE_OFFLINE", "1")
    for address in ("http://127.0.0.1:1/a.png", "rtsp://127.0.0.1:1/a", "https://host//a.mp4"):
        failed = {}
        assert list(iter_frames([address], False, 1, failed.__setitem__, print)) == []
        assert "GROUNDTUNE_OFFLINE is set" in failed[address] and address in failed[address]


def test_a_video_is_no_image():
    with (
        serving({"/a": b"x" * 99}, kind="video/mp4") as server,
        pytest.raises(DataError, match="video or a stream"),
    ):
        list(read_images(f"{server}/a"))


def test_data_sets_open_no_addresses(tmp_path):
    """The address would answer."""
    with serving({"/a.png": png()}) as server:
        rows = f"image,class,x0,y0,x1,y1\n{server}/a.png,cat,1,1,9,9\n"
        (tmp_path / "a.csv").write_text(rows)
        with pytest.raises((DataError, ConfigError)):
            load_splits(tmp_path / "a.csv")
