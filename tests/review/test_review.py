"""`groundtune review`: decisions change the file, others cannot; and the page, in a browser."""

import http.client
import json
import threading
from collections.abc import Iterator
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
    """Three boxes of a model and one of a person in a.jpg, one in each of four images that cannot be shown, 302 classes."""
    names = ["a.jpg", "text.jpg", "missing.jpg", "large.png", "../outside.jpg"]
    boxes = [(1, 1, [4, 4, 20, 20]), (1, 2, [50, 10, 20, 40]), (1, 1, [5, 60, 90, 30]), (1, 2, [0, 0, 9, 9])]
    boxes += [(number, 1, [1, 1, 5, 5]) for number in (2, 3, 4, 5)]
    categories = [(1, EVIL), (2, "Dog"), *((number, f"class {number}") for number in range(3, 303))]
    content = coco(names, boxes, categories, (100, 100))
    for place, row in enumerate(content["annotations"]):
        row |= {} if place == 3 else {"score": 0.9 - place / 10, "mine": place}
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


def asked(server: ReviewServer, path: str, order: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    headers = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    body = order if order is None or isinstance(order, bytes) else json.dumps(order)
    connection.request("GET" if order is None else "POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def own(server: ReviewServer, path: str = "") -> str:
    return f"/{server.token}/{path}"


def rows(file: Path) -> list[Any]:
    return json.loads(file.read_text())["annotations"]


def test_accepted_renamed_and_rejected_boxes_change_the_file_and_undo_brings_everything_back(
    file: Path,
) -> None:
    before = json.loads(file.read_text())
    boxes = Boxes(file)
    assert boxes.decide("accept", 0, None)["box"]["score"] is None
    expected = {name: value for name, value in before["annotations"][0].items() if name != "score"}
    assert rows(file)[0] == expected
    assert boxes.decide("reject", 1, None)["box"] is None
    assert [row["id"] for row in rows(file)[:3]] == [1, 3, 4] and rows(file)[-2:] == before["annotations"][
        -2:
    ]
    boxes.decide("rename", 2, "  New \n name ")
    assert json.loads(file.read_text())["categories"][-1] == {"id": 303, "name": "New name"}
    assert rows(file)[1]["category_id"] == 303 and "score" not in rows(file)[1]
    boxes.decide("rename", 0, "dog")  # is there, in other letters
    assert rows(file)[0]["category_id"] == 2
    assert [boxes.decide("undo", None, None)["key"] for _ in range(4)] == [0, 2, 1, 0]
    assert json.loads(file.read_text()) == before
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (("rename", 0, " ._ "), "A class needs a name"),
        (("rename", 0, None), "A class needs a name"),
        (("rename", 0, "\ud800"), "A class needs a name"),
        (("rename", 0, "x" * 201), "A class needs a name"),
        (("undo", None, None), "nothing to undo"),
        (("accept", 8, None), "That box is gone"),
        (("accept", True, None), "That box is gone"),
        (("accept", [0], None), "That box is gone"),
        (("delete", 0, None), "Expected accept"),
    ],
)
def test_a_decision_that_cannot_be_carried_out_changes_nothing(
    server: ReviewServer, file: Path, order, said
) -> None:
    before = file.read_bytes()
    status, answer = asked(
        server, own(server, "decide"), dict(zip(("do", "key", "name"), order, strict=True))
    )
    assert status == 422 and said in answer.decode() and file.read_bytes() == before
    assert asked(server, own(server, "decide"), {"do": "accept", "key": 0})[0] == 200


def test_a_file_that_another_program_changed_is_not_overwritten(server: ReviewServer, file: Path) -> None:
    file.write_text(file.read_text() + "\n")
    status, answer = asked(server, own(server, "decide"), {"do": "accept", "key": 0})
    assert status == 422 and b"changed by another program" in answer and file.read_text().endswith("\n")


def test_many_tabs_at_once_lose_no_decision(server: ReviewServer, file: Path) -> None:
    orders = [{"do": "accept", "key": key} for key in (0, 1, 2, 4, 5, 6, 7)]
    threads = [
        threading.Thread(target=asked, args=(server, own(server, "decide"), order)) for order in orders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any("score" in row for row in rows(file)[:8])


def test_only_who_knows_the_address_and_only_the_page_itself_may_ask(
    server: ReviewServer, file: Path
) -> None:
    before, host = file.read_bytes(), f"127.0.0.1:{server.server_port}"
    order = {"do": "accept", "key": 0}
    assert (
        asked(server, "/")[0]
        == asked(server, "/guess/decide", order)[0]
        == asked(server, "/guess/boxes")[0]
        == 404
    )
    for name in ("evil.example", f"evil.example:{server.server_port}", "", "[", "127.0.0.1.evil.example"):
        assert asked(server, own(server, "boxes"), Host=name)[0] == 403
    for name in (host, "localhost:80", "[::1]:80"):
        assert asked(server, own(server, "boxes"), Host=name)[0] == 200
    assert asked(server, own(server, "decide"), order, Origin="http://evil.example")[0] == 403
    assert asked(server, own(server, "decide"), order, Origin="null")[0] == 403
    assert asked(server, own(server, "decide"), order, Content_Type="text/plain")[0] == 403
    assert asked(server, own(server, "decide"), b"x" * 10_001)[0] == 400
    assert (
        asked(server, own(server, "decide"), b"[1]")[0]
        == asked(server, own(server, "decide"), b"{")[0]
        == 400
    )
    for path in (
        "../server.py",
        "..%2fserver.py",
        "image/../../x",
        "image/",
        "_annotations.coco.json",
        "server.py",
    ):
        assert asked(server, own(server, path))[0] == 404
    assert file.read_bytes() == before
    assert asked(server, own(server, "decide"), order, Origin=f"http://{host}")[0] == 200


def test_images_are_shrunk_and_those_that_cannot_be_shown_are_told(
    server: ReviewServer, tmp_path: Path
) -> None:
    large = Path(server.boxes.path.parent, "a.jpg")
    Image.new("RGB", (3200, 1600), "red").save(large)
    server.boxes._images[1] |= {"width": 3200, "height": 1600}
    status, content = asked(server, own(server, "image/1"))
    (tmp_path / "shown.jpg").write_bytes(content)
    assert status == 200 and Image.open(tmp_path / "shown.jpg").size == (1600, 800)
    for number, said in (
        (2, "Cannot read"),
        (3, "does not exist"),
        (4, "would have"),
        (5, "outside"),
        (6, "no such"),
    ):
        status, content = asked(server, own(server, f"image/{number}"))
        assert status == 422 and said in content.decode() and str(tmp_path) not in content.decode()
    assert asked(server, own(server, "image/1"))[0] == 200


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["none"], 3, "There is no none"),
        (["data", "--host", "300.0.0.1"], 2, "cannot listen at 300.0.0.1"),
        (["data", "--split", "valid"], 3, "There is no data/valid"),
    ],
)
def test_mistakes_are_told_in_words(file: Path, monkeypatch, capsys, arguments, code, said) -> None:
    monkeypatch.chdir(file.parents[2])
    assert main(["review", *arguments]) == code and said in capsys.readouterr().err


@pytest.mark.slow
@needs_chromium
def test_the_page_in_a_browser(server: ReviewServer, file: Path, tmp_path: Path) -> None:
    with Page(server.url, tmp_path) as page:

        def press(key: str) -> None:
            page.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
            page.call("Input.dispatchKeyEvent", type="keyUp", key=key)

        page.until("document.querySelectorAll('#drawn rect').length === 4")
        assert page.run("document.querySelector('#progress').textContent") == "0 of 7 decided"
        assert page.run("document.querySelector('#class').length") == 303 and not page.run("window.hacked")
        assert page.run("document.querySelector('#box').textContent") == f"{EVIL}  0.90"
        press("a")
        page.until("document.querySelector('#progress').textContent === '1 of 7 decided'")
        assert (
            "score" not in rows(file)[0]
            and page.run("document.querySelector('#box').textContent") == "Dog  0.80"
        )
        press("r")
        page.until("document.querySelectorAll('#drawn rect').length === 3")
        assert [row["id"] for row in rows(file)[:2]] == [1, 3]
        page.click("document.querySelector('#rename button')")  # without a name
        page.until("document.querySelector('#said').textContent.startsWith('A class needs a name')")
        page.click("document.querySelector('#name')")
        page.type("arrow")
        page.enter()
        page.until("document.querySelector('#progress').textContent === '3 of 7 decided'")
        assert json.loads(file.read_text())["categories"][-1]["name"] == "arrow"
        for said in ("Cannot read the image text.jpg", "does not exist", "would have 10000", "lies outside"):
            page.until(f"document.querySelector('#problem:not([hidden])')?.textContent.includes('{said}')")
            press("n")
        page.run("document.activeElement.blur()")
        press("u")
        page.until("document.querySelector('#box').textContent.endsWith('0.70')")
        press("u")
        page.until("document.querySelector('#progress').textContent === '1 of 7 decided'")
        assert [row["id"] for row in rows(file)[:3]] == [1, 2, 3]
        page.run(
            "{const s = document.querySelector('#class'); s.value = '2'; s.dispatchEvent(new Event('input'))}"
        )
        assert page.run("document.querySelector('#box').textContent") == "Dog  0.80"
        page.slide("#most", 0.5)
        page.until("document.querySelector('#box').textContent === 'Nothing is left to decide here.'")
        assert all(url.startswith((server.url, "blob:", "data:")) for url in page.urls) and not page.run(
            "window.hacked"
        )
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
