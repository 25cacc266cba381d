"""`groundtune review`: decisions change the file, strangers cannot; and the page in a browser."""

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from browser import needs_chromium
from coco_files import coco, write
from page_driver import Page
from PIL import Image

from groundtune.cli import main
from groundtune.web.review_boxes import Boxes
from groundtune.web.review_server import ReviewServer, serve

EVIL = "<img src=x onerror='window.hacked=1'>"


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    """Three boxes of a model and one of a person in a.jpg, one in each of four images that cannot
    be shown, 302 classes.
    """
    names = ["a.jpg", "text.jpg", "missing.jpg", "large.png", "../outside.jpg"]
    boxes = [(1, 1, [4, 4, 20, 20]), (1, 2, [50, 10, 20, 40]), (1, 1, [5, 60, 90, 30]), (1, 2, [0, 0, 9, 9])]
    boxes += [(number, 1, [1, 1, 5, 5]) for number in (2, 3, 4, 5)]
    categories = [(1, EVIL), (2, "Dog"), *((number, f"class {number}") for number in range(3, 303))]
    content = coco(names, boxes, categories, (100, 100))
    for index, row in enumerate(content["annotations"]):
        row |= {} if index == 3 else {"score": 0.9 - index / 10, "other": index}
    content["images"][0] |= {"width": 3200, "height": 3200}
    content["annotations"] += ["broken", {"id": 99, "image_id": [1], "bbox": "no"}]
    folder = tmp_path / "data" / "train"
    path = write(folder / "_annotations.coco.json", content)
    Image.new("RGB", (3200, 3200), "grey").save(folder / "a.jpg")
    (folder / "text.jpg").write_text("no image")
    Image.new("1", (10_000, 10_000)).save(folder / "large.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "data" / "outside.jpg")
    return path


@pytest.fixture()
def server(file: Path) -> Iterator[ReviewServer]:
    with serve(file.parents[1], "train", "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def send(server: ReviewServer, path: str, content: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {"Content-Type": "application/json"} | headers
    body = content if content is None or isinstance(content, bytes) else json.dumps(content)
    connection.request("GET" if content is None else "POST", path, body, headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, answer


def own(server: ReviewServer, path: str = "") -> str:
    return f"/{server.token}/{path}"


def rows(file: Path) -> list[Any]:
    return json.loads(file.read_text())["annotations"]


def test_accepted_renamed_and_rejected_boxes_change_the_file_and_undo_restores_it(file: Path) -> None:
    before = json.loads(file.read_text())
    boxes = Boxes(file)
    assert boxes.decide("accept", 0, None)["box"]["score"] is None
    expected = {name: value for name, value in before["annotations"][0].items() if name != "score"}
    assert rows(file)[0] == expected
    assert boxes.decide("reject", 1, None)["box"] is None
    assert [row["id"] for row in rows(file)[:3]] == [1, 3, 4]
    assert rows(file)[-2:] == before["annotations"][-2:]
    boxes.decide("rename", 2, "  New \n name ")
    assert json.loads(file.read_text())["categories"][-1] == {"id": 303, "name": "New name"}
    assert rows(file)[1]["category_id"] == 303 and "score" not in rows(file)[1]
    boxes.decide("rename", 0, "dog")  # exists, in other case
    assert rows(file)[0]["category_id"] == 2
    assert [boxes.decide("undo", None, None)["key"] for _ in range(4)] == [0, 2, 1, 0]
    assert json.loads(file.read_text()) == before
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (("rename", 0, " ._ "), "A class needs a name"),
        (("rename", 0, None), "A class needs a name"),
        (("rename", 0, "\ud800"), "A class needs a name"),
        (("rename", 0, "x" * 201), "A class needs a name"),
        (("undo", None, None), "nothing to undo"),
        (("accept", 8, None), "was removed in another tab"),
        (("accept", True, None), "was removed in another tab"),
        (("accept", [0], None), "was removed in another tab"),
        (("delete", 0, None), "Expected accept"),
    ],
)
def test_an_invalid_decision_changes_nothing(server: ReviewServer, file: Path, decision, message) -> None:
    before = file.read_bytes()
    content = dict(zip(("do", "key", "name"), decision, strict=True))
    status, answer = send(server, own(server, "decide"), content)
    assert status == 422 and message in answer.decode() and file.read_bytes() == before
    assert send(server, own(server, "decide"), {"do": "accept", "key": 0})[0] == 200


def test_a_file_that_another_program_changed_is_not_overwritten(server: ReviewServer, file: Path) -> None:
    file.write_text(file.read_text() + "\n")
    status, answer = send(server, own(server, "decide"), {"do": "accept", "key": 0})
    assert status == 422 and b"Another program changed" in answer and file.read_text().endswith("\n")


def test_no_decision_of_many_tabs_is_lost(server: ReviewServer, file: Path) -> None:
    with ThreadPoolExecutor(7) as pool:
        for key in (0, 1, 2, 4, 5, 6, 7):
            pool.submit(send, server, own(server, "decide"), {"do": "accept", "key": key})
    assert not any("score" in row for row in rows(file)[:8])


def test_requests_need_the_token_a_known_host_and_the_page_as_origin(
    server: ReviewServer, file: Path
) -> None:
    before, host = file.read_bytes(), f"127.0.0.1:{server.server_port}"
    accept = {"do": "accept", "key": 0}
    for path, content in (("/", None), ("/guess/decide", accept), ("/guess/boxes", None)):
        assert send(server, path, content)[0] == 404
    for name in ("evil.example", f"evil.example:{server.server_port}", "", "[", "127.0.0.1.evil.example"):
        assert send(server, own(server, "boxes"), Host=name)[0] == 403
    for name in (host, "localhost:80", "[::1]:80"):
        assert send(server, own(server, "boxes"), Host=name)[0] == 200
    assert send(server, own(server, "decide"), accept, Origin="http://evil.example")[0] == 403
    assert send(server, own(server, "decide"), accept, Origin="null")[0] == 403
    assert send(server, own(server, "decide"), accept, Content_Type="text/plain")[0] == 403
    assert send(server, own(server, "decide"), b"x" * 10_001)[0] == 400
    assert [send(server, own(server, "decide"), content)[0] for content in (b"[1]", b"{")] == [400, 400]
    paths = ["../review_server.py", "..%2freview_server.py", "review_server.py", "_annotations.coco.json"]
    for path in (*paths, "image/../../x", "image/"):
        assert send(server, own(server, path))[0] == 404
    assert file.read_bytes() == before
    assert send(server, own(server, "decide"), accept, Origin=f"http://{host}")[0] == 200


def test_images_are_downsized_and_unreadable_ones_are_reported(server: ReviewServer, tmp_path: Path) -> None:
    status, content = send(server, own(server, "image/1"))
    (tmp_path / "shown.jpg").write_bytes(content)
    assert status == 200 and Image.open(tmp_path / "shown.jpg").size == (1600, 1600)
    messages = "Cannot read", "does not exist", "would have", "outside", "no such"
    for number, message in enumerate(messages, start=2):
        status, content = send(server, own(server, f"image/{number}"))
        assert status == 422 and message in content.decode() and str(tmp_path) not in content.decode()
    assert send(server, own(server, "image/1"))[0] == 200


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none"], 3, "none/train/_annotations.coco.json does not exist"),
        (["data", "--host", "300.0.0.1"], 2, "cannot listen on 300.0.0.1"),
        (["data", "--split", "valid"], 3, "data/valid/_annotations.coco.json does not exist"),
    ],
)
def test_mistakes_are_reported(file: Path, monkeypatch, capsys, arguments, code, message) -> None:
    monkeypatch.chdir(file.parents[2])
    assert main(["review", *arguments]) == code and message in capsys.readouterr().err


@pytest.mark.slow
@needs_chromium
def test_the_page_in_a_browser(server: ReviewServer, file: Path, tmp_path: Path) -> None:
    with Page(server.url, tmp_path) as page:

        def press(key: str) -> None:
            page.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
            page.call("Input.dispatchKeyEvent", type="keyUp", key=key)

        page.until("document.querySelectorAll('#drawn rect').length === 4")
        assert page.run("document.querySelector('#progress').textContent") == "0 of 7 reviewed"
        assert page.run("document.querySelector('#class').length") == 303 and not page.run("window.hacked")
        assert page.run("document.querySelector('#box').textContent") == f"{EVIL}  0.90"
        press("a")
        page.until("document.querySelector('#progress').textContent === '1 of 7 reviewed'")
        assert "score" not in rows(file)[0]
        assert page.run("document.querySelector('#box').textContent") == "Dog  0.80"
        press("r")
        page.until("document.querySelectorAll('#drawn rect').length === 3")
        assert [row["id"] for row in rows(file)[:2]] == [1, 3]
        page.click("document.querySelector('#rename button')")  # without a name
        page.until("document.querySelector('#message').textContent.startsWith('A class needs a name')")
        page.click("document.querySelector('#name')")
        page.type("arrow")
        page.enter()
        page.until("document.querySelector('#progress').textContent === '3 of 7 reviewed'")
        assert json.loads(file.read_text())["categories"][-1]["name"] == "arrow"
        for message in ("Cannot read the image text.jpg", "does not exist", "would have 10000", "is outside"):
            page.until(f"document.querySelector('#problem:not([hidden])')?.textContent.includes('{message}')")
            press("n")
        page.run("document.activeElement.blur()")
        press("u")
        page.until("document.querySelector('#box').textContent.endsWith('0.70')")
        press("u")
        page.until("document.querySelector('#progress').textContent === '1 of 7 reviewed'")
        assert [row["id"] for row in rows(file)[:3]] == [1, 2, 3]
        page.run(
            "{const s = document.querySelector('#class'); s.value = '2'; s.dispatchEvent(new Event('input'))}"
        )
        assert page.run("document.querySelector('#box').textContent") == "Dog  0.80"
        page.slide("#max-score", 0.5)
        page.until("document.querySelector('#box').textContent === 'No boxes left to review.'")
        assert all(url.startswith((server.url, "blob:", "data:")) for url in page.urls) and not page.run(
            "window.hacked"
        )
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
