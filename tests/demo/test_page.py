"""The page of `groundtune demo`, as its visitors meet it; what is found is made up by a fake of `predict.Predictor`."""

import json
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
from groundtune.web import demo as module
from groundtune.web.demo import MOST_NAMES, Demo, need_gradio, serve
from groundtune.web.review_server import is_loopback

RED, GREEN = (250, 20, 20), (20, 250, 20)
FIELD, FIND = (
    "document.querySelector('input[aria-label=\"Look for\"]')",
    "document.querySelector('button.primary')",
)
READY = f"document.querySelector('#answer .empty') !== null && {FIELD} !== null"
LABELS = "[...document.querySelectorAll('g:not([hidden]) text')].map(text => text.textContent)"


@pytest.fixture()
def asked(monkeypatch) -> list:
    """Every question to a model. Base and child find the names at 0.9, 0.5, 0.1, … in the image's left half; base lower."""
    questions: list = []
    busy = threading.Lock()

    class Fake:
        def __init__(self, bundle, names, device, threshold, precision) -> None:
            if "???" in names:
                raise DataError("the name '???' cannot be used.")
            self.bundle, self.names = bundle, names
            assert threshold == 0.05

        def find(self, images) -> list[Detections]:
            assert busy.acquire(blocking=False), "two predictions at a time"
            questions.append(
                SimpleNamespace(
                    names=self.names, pixel=images[0].getpixel((0, 0)), thread=threading.get_ident()
                )
            )
            [image] = images
            scores = [0.9, 0.5, 0.1][: len(self.names)]
            busy.release()
            return [
                Detections(
                    xyxy=np.array([[0, 0, image.width / 2, image.height]] * len(scores)),
                    confidence=np.array(scores) - self.bundle.lower,
                    class_id=np.arange(len(scores)),
                    data={"class_name": np.array(self.names[: len(scores)], dtype=object)},
                )
            ]

    monkeypatch.setattr(module, "Predictor", Fake)
    return questions


def make_demo(base: bool = False, threshold: float = 0.3) -> Demo:
    models = {"base": SimpleNamespace(lower=0.3)} if base else {}
    return Demo(models | {"runs/cat": SimpleNamespace(lower=0.0)}, torch.device("cpu"), "fp32", threshold)


def image(folder: Path, color=RED, name="a.png", size=(80, 40)) -> Path:
    Image.new("RGB", size, color).save(folder / name)
    return folder / name


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *sorted(name for name, _ in attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_come_as_chips_or_as_a_list_and_are_looked_for_once(asked, tmp_path) -> None:
    page, names = make_demo().answer(str(image(tmp_path)), ["cat , Remote Control", " cat", "", ",sofa,"])
    assert names == ["cat", "Remote Control", "sofa"] == asked[0].names
    assert "Remote Control 0.50" in Tags(page).text


def test_what_cannot_be_done_is_said_without_the_servers_paths_and_the_next_one_gets_its_answer(
    asked, tmp_path
) -> None:
    good = str(image(tmp_path))
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    many = ",".join(f"thing {number}" for number in range(300))
    for path, chips, told in [
        (None, ["cat"], "no image yet"),
        (good, None, "nothing to look for yet"),
        (good, [" , "], "nothing to look for yet"),
        (good, [many], f"300 names are more than this page looks for at a time, which is {MOST_NAMES}"),
        (good, ["???"], "'???' cannot be used"),
        (str(tmp_path / "text.jpg"), ["cat"], "Cannot read the image text.jpg"),
        (str(tmp_path / "large.png"), ["cat"], "large.png would have 10000 × 10000 pixels"),
    ]:
        page = make_demo().answer(path, chips)[0]
        assert told in Tags(page).text and str(tmp_path) not in page and "<rect" not in page
        assert ("<image" in page) == (path == good)  # what could be read is shown
    assert asked == []
    assert "cat 0.90" in make_demo().answer(good, ["cat"])[0]


def test_everybody_gets_their_own_answer_and_one_thread_computes(asked, tmp_path) -> None:
    demo = make_demo(base=True)
    colors = {f"{number}.png": (number * 9, 0, 0) for number in range(20)}
    paths = [image(tmp_path, color, name) for name, color in colors.items()]
    with ThreadPoolExecutor(8) as visitors:
        pages = list(visitors.map(lambda path: demo.answer(str(path), [f"thing {path.stem}"])[0], paths))
    for page, path in zip(pages, paths, strict=True):
        assert f"thing {path.stem} 0.90" in page and page.count(f"thing {path.stem} 0.") == 2
    assert {(one.names[0], one.pixel) for one in asked} == {
        (f"thing {Path(n).stem}", c) for n, c in colors.items()
    }
    assert len({one.thread for one in asked}) == 1


def test_hostile_names_and_files_make_no_tag(asked, tmp_path) -> None:
    attacks = [
        "<script>hacked=1</script>",
        '"><img src=x onerror=hacked=1>',
        "' onmouseover='hacked=1' x='",
        "${hacked=1}{{value}}",
    ]
    hostile = image(tmp_path, name="'\"><img src=x onerror=hacked=1>.png")
    benign = Tags(make_demo(base=True).answer(str(image(tmp_path)), ["a", "b", "c", "d"])[0])
    found = Tags(make_demo(base=True).answer(str(hostile), attacks)[0])
    assert found.found == benign.found and len(benign.found) > 20
    assert all(attack in found.text for attack in attacks)


def test_only_this_machine_reaches_the_page_unless_another_address_is_named(monkeypatch, capsys) -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.0.1", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.0.2", "box.lan"]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "groundtune\[demo\]"'):
        need_gradio()
    assert main(["demo", "nano"]) == 2
    assert "gradio is not installed" in capsys.readouterr().err


@pytest.fixture()
def served(asked, tmp_path, monkeypatch):
    """Starts pages; they are closed in the end, and the environment is as it was."""
    pytest.importorskip("gradio", reason='needs the extra: pip install "groundtune[demo]"')
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nothing listens
    pages = []

    def start(names=(), **how) -> str:
        pages.append(serve(make_demo(**how), names, "127.0.0.1", None, str(tmp_path / "uploads")))
        return pages[-1].local_url

    yield start
    for page in pages:
        page.close(verbose=False)


def test_an_address_that_is_taken_or_unknown_is_said(served) -> None:
    port = int(served().rstrip("/").rpartition(":")[2])
    for host, taken in [("127.0.0.1", port), ("203.0.113.1", port + 1)]:
        with pytest.raises(ConfigError, match=f"cannot listen at {host}:{taken}"):
            serve(make_demo(), [], host, taken, "unused")


@needs_chromium
def test_a_visitor_drops_an_image_names_things_moves_sliders_and_takes_the_json_home(
    served, asked, tmp_path
) -> None:
    url = served(["cat"])
    with Page(url, tmp_path) as page:
        page.until(READY)
        page.click(FIELD)
        page.type("sofa, ${hacked=1}{{value}}<img src=x onerror=hacked=1>")
        page.enter()
        page.upload(image(tmp_path))
        assert page.until(f"{LABELS}.length && {LABELS}") == [
            "sofa 0.50",
            "cat 0.90",
        ]  # the best one is drawn last
        assert page.run("document.querySelectorAll('g rect').length") == 3  # the third is below 0.3
        box, shown = (
            page.box(f"document.querySelector('.images {part}')") for part in ("g:last-of-type rect", "svg")
        )
        assert (box["x"], box["y"]) == pytest.approx((shown["x"], shown["y"]), abs=2)  # the line has a width
        assert (box["width"], box["height"]) == pytest.approx((shown["width"] / 2, shown["height"]), abs=4)
        colors = page.run(
            "[...document.querySelectorAll('g rect')].map(rect => getComputedStyle(rect).stroke)"
        )
        assert len(set(colors)) == 3
        chips = page.run("[...document.querySelectorAll('.token')].map(chip => chip.textContent.trim())")
        assert chips[:2] == ["cat", "sofa"] and len(chips) == 3

        page.slide(".all input", 0.08)
        assert len(page.run(LABELS)) == 3
        page.slide(".name:first-child input", 0.95)
        assert page.run(LABELS)[-1] == "sofa 0.50" and len(page.run(LABELS)) == 2
        page.slide(".all input", 0.4)
        page.slide(".name:first-child input", 0.95)
        assert len(asked) == 1  # the network ran once

        page.click("document.querySelector('.all button')")
        while not (file := tmp_path / "predictions.json").exists() or not file.read_text():
            page.run("new Promise(done => setTimeout(done, 30))")
        [entry] = json.loads(file.read_text())["images"]
        assert entry == {
            "image": "a.png",
            "model": "runs/cat",
            "detections": [{"class": "sofa", "score": 0.5, "box_xyxy": [0, 0, 40, 40]}],
        }
        assert page.run("window.hacked") is None
        assert [address for address in page.urls if not address.startswith((url, "data:", "blob:"))] == []


@needs_chromium
def test_before_and_after_stand_side_by_side(served, tmp_path) -> None:
    with Page(served(["cat", "sofa"], base=True), tmp_path) as page:
        page.until(READY)
        page.upload(image(tmp_path))
        page.until(f"{LABELS}.length")
        heads = page.run("[...document.querySelectorAll('figcaption')].map(head => head.textContent)")
        assert heads == ["before: base", "after: runs/cat"]
        assert page.run(LABELS) == ["cat 0.60", "sofa 0.50", "cat 0.90"]  # the base's sofa has 0.20
        assert page.run("document.querySelectorAll('.name output')[1].textContent") == "0.30  0 → 1 found"


@needs_chromium
def test_mistakes_are_said_on_the_page_and_two_visitors_have_their_own_images(
    served, asked, tmp_path
) -> None:
    url = served()
    (tmp_path / "text.jpg").write_text("no image")
    with Page(url, tmp_path / "one") as one, Page(url, tmp_path / "two") as two:
        told = "document.querySelector('.problem')?.textContent"
        for visitor in (one, two):
            visitor.until(READY)
        one.click(FIND)
        assert "no image yet" in one.until(told)
        one.upload(tmp_path / "text.jpg")
        assert "Cannot read the image text.jpg" in one.until(f"({told})?.includes('text.jpg') && {told}")
        for visitor, color, name in [(one, RED, "red"), (two, GREEN, "green")]:
            visitor.run("document.querySelector('button[aria-label=Clear]')?.click()")
            visitor.until("document.querySelector('input[type=file]') !== null")
            visitor.upload(image(tmp_path, color, f"{name}.png"))
            visitor.until(f"({told})?.includes('nothing to look for')")
            visitor.click(FIELD)
            visitor.type(name)  # and no Enter: leaving the field is enough
        for visitor in (one, two):
            visitor.click(FIND)
        for visitor, name in [(one, "red"), (two, "green")]:
            assert visitor.until(f"{LABELS}.length && {LABELS}") == [f"{name} 0.90"]
            data = json.loads(visitor.run("document.querySelector('.found').dataset.found"))
            assert data["images"][0]["image"] == f"{name}.png"
    assert sorted((one.names, one.pixel) for one in asked) == [(["green"], GREEN), (["red"], RED)]
