"""The page of `groundtune demo`, as visitors see it, with a fake of `Predictor`."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import needs_chromium
from page_driver import Page
from PIL import Image
from supervision import Detections

from groundtune.cli import main
from groundtune.errors import ConfigError, DataError
from groundtune.predict.postprocess import Selection
from groundtune.web import demo as module
from groundtune.web.demo import MAX_CLASSES, Demo, need_gradio, serve
from groundtune.web.review_server import is_loopback

RED, GREEN = (250, 20, 20), (20, 250, 20)
FIELD = "document.querySelector('input[aria-label=\"Classes\"]')"
BUTTON = "document.querySelector('button.primary')"
READY = f"document.querySelector('#results .empty') !== null && {FIELD} !== null"
LABELS = "[...document.querySelectorAll('g:not([hidden]) text')].map(text => text.textContent)"


@pytest.fixture()
def calls(monkeypatch) -> list:
    """All predictions: the classes at 0.9, 0.5 and 0.1 in the image's left half; lower for the base
    model.
    """
    calls: list = []
    busy = threading.Lock()

    class Fake:
        def __init__(self, bundle, names, device, threshold, selection, **_) -> None:
            assert selection == Selection(0.5, True, 7)
            if "???" in names:
                raise DataError("the name '???' cannot be used.")
            self.bundle, self.names = bundle, names
            assert threshold == 0.05

        def find(self, images) -> list[Detections]:
            assert busy.acquire(blocking=False), "two predictions at once"
            [image] = images
            pixel, thread = image.getpixel((0, 0)), threading.get_ident()
            calls.append(SimpleNamespace(names=self.names, pixel=pixel, thread=thread))
            scores = [0.9, 0.5, 0.1][: len(self.names)]
            busy.release()
            boxes = np.array([[0, 0, image.width / 2, image.height]] * len(scores))
            data = {"class_name": np.array(self.names[: len(scores)], dtype=object)}
            confidence, class_ids = np.array(scores) - self.bundle.lower, np.arange(len(scores))
            return [Detections(boxes, confidence=confidence, class_id=class_ids, data=data)]

    monkeypatch.setattr(module, "Predictor", Fake)
    return calls


def make_demo(base: bool = False, threshold: float = 0.3) -> Demo:
    models = {"base": SimpleNamespace(lower=0.3)} if base else {}
    models |= {"runs/cat": SimpleNamespace(lower=0.0)}
    return Demo(models, torch.device("cpu"), "fp32", threshold, Selection(0.5, True, 7))


def image(folder: Path, color=RED, name="a.png", size=(80, 40)) -> Path:
    Image.new("RGB", size, color).save(folder / name)
    return folder / name


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *sorted(name for name, _ in attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_entered_one_by_one_or_as_a_list_and_detected_once(calls, tmp_path) -> None:
    page, names = make_demo().detect(str(image(tmp_path)), ["cat , Remote Control", " cat", "", ",sofa,"])
    assert names == ["cat", "Remote Control", "sofa"] == calls[0].names
    assert "Remote Control 0.50" in Tags(page).text


def test_errors_are_shown_without_paths_of_the_server_and_the_next_request_works(calls, tmp_path) -> None:
    good = str(image(tmp_path))
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    many = ",".join(f"thing {number}" for number in range(300))
    for path, entries, message in [
        (None, ["cat"], "no image yet"),
        (good, None, "no classes yet"),
        (good, [" , "], "no classes yet"),
        (good, [many], f"expected at most {MAX_CLASSES}, got 300"),
        (good, ["???"], "'???' cannot be used"),
        (str(tmp_path / "text.jpg"), ["cat"], "Cannot read the image text.jpg"),
        (str(tmp_path / "large.png"), ["cat"], "large.png would have 10000 × 10000 pixels"),
    ]:
        page = make_demo().detect(path, entries)[0]
        assert message in Tags(page).text and str(tmp_path) not in page and "<rect" not in page
        assert ("<image" in page) == (path == good)  # a readable image is shown
    assert calls == []
    assert "cat 0.90" in make_demo().detect(good, ["cat"])[0]


def test_each_visitor_gets_their_own_results_and_one_thread_computes(calls, tmp_path) -> None:
    demo = make_demo(base=True)
    colors = {f"{number}.png": (number * 9, 0, 0) for number in range(20)}
    paths = [image(tmp_path, color, name) for name, color in colors.items()]
    with ThreadPoolExecutor(8) as visitors:
        pages = list(visitors.map(lambda path: demo.detect(str(path), [f"thing {path.stem}"])[0], paths))
    for page, path in zip(pages, paths, strict=True):
        assert f"thing {path.stem} 0.90" in page and page.count(f"thing {path.stem} 0.") == 2
    expected = {(f"thing {Path(name).stem}", color) for name, color in colors.items()}
    assert {(call.names[0], call.pixel) for call in calls} == expected
    assert len({call.thread for call in calls}) == 1


def test_hostile_names_and_files_make_no_tag(calls, tmp_path) -> None:
    attacks = [
        "<script>hacked=1</script>",
        '"><img src=x onerror=hacked=1>',
        "' onmouseover='hacked=1' x='",
        "${hacked=1}{{value}}",
    ]
    hostile = image(tmp_path, name="'\"><img src=x onerror=hacked=1>.png")
    benign = Tags(make_demo(base=True).detect(str(image(tmp_path)), ["a", "b", "c", "d"])[0])
    result = Tags(make_demo(base=True).detect(str(hostile), attacks)[0])
    assert result.tags == benign.tags and len(benign.tags) > 20
    assert all(attack in result.text for attack in attacks)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.0.1", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.0.2", "box.lan"]))


def test_a_missing_gradio_names_the_extra(monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "groundtune\[demo\]"'):
        need_gradio()
    assert main(["demo", "nano"]) == 2
    assert "gradio is not installed" in capsys.readouterr().err


@pytest.fixture()
def served(calls, tmp_path, monkeypatch):
    """Starts pages, behind a proxy that does not exist; the environment is restored."""
    pytest.importorskip("gradio", reason='needs the extra: pip install "groundtune[demo]"')
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "example.com")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there
    pages = []

    def start(names=(), **options) -> str:
        pages.append(serve(make_demo(**options), names, "127.0.0.1", None, str(tmp_path / "uploads")))
        assert "NO_PROXY" not in os.environ and os.environ["no_proxy"] == "example.com"
        return pages[-1].local_url

    yield start
    for page in pages:
        page.close(verbose=False)


def test_an_address_that_is_taken_or_unknown_is_reported(served) -> None:
    port = int(served().rstrip("/").rpartition(":")[2])
    for host, taken in [("127.0.0.1", port), ("203.0.113.1", port + 1)]:
        with pytest.raises(ConfigError, match=f"cannot listen on {host}:{taken}"):
            serve(make_demo(), [], host, taken, "unused")


@needs_chromium
def test_a_visitor_uploads_enters_classes_moves_sliders_and_downloads_json(served, calls, tmp_path) -> None:
    url = served(["cat"])
    with Page(url, tmp_path) as page:
        page.until(READY)
        page.click(FIELD)
        page.type("sofa, ${hacked=1}{{value}}<img src=x onerror=hacked=1>")
        page.enter()
        page.upload(image(tmp_path))
        # the best one is on top
        assert page.until(f"{LABELS}.length && {LABELS}") == ["sofa 0.50", "cat 0.90"]
        assert page.run("document.querySelectorAll('g rect').length") == 3  # the third is below 0.3
        parts = ("g:last-of-type rect", "svg")
        box, shown = (page.box(f"document.querySelector('.images {part}')") for part in parts)
        assert (box["x"], box["y"]) == pytest.approx((shown["x"], shown["y"]), abs=2)  # the line has a width
        assert (box["width"], box["height"]) == pytest.approx((shown["width"] / 2, shown["height"]), abs=4)
        colors = "[...document.querySelectorAll('g rect')].map(rect => getComputedStyle(rect).stroke)"
        assert len(set(page.run(colors))) == 3
        chips = page.run("[...document.querySelectorAll('.token')].map(chip => chip.textContent.trim())")
        assert chips[:2] == ["cat", "sofa"] and len(chips) == 3

        page.slide(".all input", 0.08)
        assert len(page.run(LABELS)) == 3
        page.slide(".name:first-child input", 0.95)
        assert page.run(LABELS)[-1] == "sofa 0.50" and len(page.run(LABELS)) == 2
        page.slide(".all input", 0.4)
        page.slide(".name:first-child input", 0.95)
        assert len(calls) == 1  # the network ran once

        page.click("document.querySelector('.all button')")
        while not (file := tmp_path / "predictions.json").exists() or not file.read_text():
            page.run("new Promise(done => setTimeout(done, 30))")
        [entry] = json.loads(file.read_text())["images"]
        sofa = {"class": "sofa", "score": 0.5, "box_xyxy": [0, 0, 40, 40]}
        assert entry == {"image": "a.png", "model": "runs/cat", "detections": [sofa]}
        assert page.run("window.hacked") is None
        assert [address for address in page.urls if not address.startswith((url, "data:", "blob:"))] == []


@needs_chromium
def test_before_and_after_are_shown_side_by_side(served, tmp_path) -> None:
    with Page(served(["cat", "sofa"], base=True), tmp_path) as page:
        page.until(READY)
        page.upload(image(tmp_path))
        page.until(f"{LABELS}.length")
        heads = page.run("[...document.querySelectorAll('figcaption')].map(head => head.textContent)")
        assert heads == ["before: base", "after: runs/cat"]
        assert page.run(LABELS) == ["cat 0.60", "sofa 0.50", "cat 0.90"]  # the base's sofa has 0.20
        assert page.run("document.querySelectorAll('.name output')[1].textContent") == "0.30  boxes: 0 → 1"


@needs_chromium
def test_errors_are_shown_and_two_visitors_have_their_own_images(served, calls, tmp_path) -> None:
    url = served()
    (tmp_path / "text.jpg").write_text("no image")
    with Page(url, tmp_path / "one") as one, Page(url, tmp_path / "two") as two:
        problem = "document.querySelector('.problem')?.textContent"
        for visitor in (one, two):
            visitor.until(READY)
        one.click(BUTTON)
        assert "no image yet" in one.until(problem)
        one.upload(tmp_path / "text.jpg")
        shown = one.until(f"({problem})?.includes('text.jpg') && {problem}")
        assert "Cannot read the image text.jpg" in shown
        for visitor, color, name in [(one, RED, "red"), (two, GREEN, "green")]:
            visitor.run("document.querySelector('button[aria-label=Clear]')?.click()")
            visitor.until("document.querySelector('input[type=file]') !== null")
            visitor.upload(image(tmp_path, color, f"{name}.png"))
            visitor.until(f"({problem})?.includes('no classes yet')")
            visitor.click(FIELD)
            visitor.type(name)  # without Enter: leaving the field is enough
        for visitor in (one, two):
            visitor.click(BUTTON)
        for visitor, name in [(one, "red"), (two, "green")]:
            assert visitor.until(f"{LABELS}.length && {LABELS}") == [f"{name} 0.90"]
            data = json.loads(visitor.run("document.querySelector('.results').dataset.results"))
            assert data["images"][0]["image"] == f"{name}.png"
    assert sorted((call.names, call.pixel) for call in calls) == [(["green"], GREEN), (["red"], RED)]
