"""The README and the pages of docs: nothing that they link to, show, type or promise is missing."""

import html
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import groundtune
from groundtune.cli import build_parsers

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
_, PARSERS = build_parsers()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What can stand behind the # of a link, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_image_is_there(page: Path) -> None:
    missing = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"[a-z]+:", link) is None and not (
            target.exists()
            and (not anchor or anchor in anchors(target))
            and target.resolve().is_relative_to(ROOT)
        ):
            missing.append(link)
    assert missing == []


def test_images_are_small_and_each_is_shown() -> None:
    shown = {link for page in DOCS.glob("*.md") for link in LINK.findall(page.read_text(encoding="utf-8"))}
    files = [path for path in (DOCS / "images").iterdir() if path.is_file()]
    assert {path.relative_to(DOCS).as_posix() for path in files} <= shown
    assert {path.name: path.stat().st_size for path in files if path.stat().st_size > 100_000} == {}
    assert not any(
        "http" in path.read_text().replace("http://www.w3.org", "") for path in files if path.suffix == ".svg"
    )


@pytest.mark.parametrize("verb", PARSERS)
def test_every_command_has_a_page_in_the_readme_and_in_the_index(verb: str) -> None:
    page = {"env": "models.md"}.get(verb, f"{verb}.md")
    for index, place in ((ROOT / "README.md", f"docs/{page}"), (DOCS / "README.md", page)):
        assert re.search(
            rf"\[[^\n]*`(groundtune )?{verb}\b[^\n]*\]\({place}\)", index.read_text(encoding="utf-8")
        ), index
    assert f"groundtune {verb}" in (DOCS / page).read_text(encoding="utf-8")


def typed(page: Path) -> list[tuple[str, str]]:
    """The commands of a page, in blocks and in sentences: each verb, and what follows it up to the end of the line or code."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"groundtune(?:\.cli)? ([a-z]+)\b([^`\n#>]*)", text)
    return [(verb, rest) for verb, rest in commands if verb in PARSERS or rest.lstrip().startswith("-")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_of_a_command_exists(page: Path) -> None:
    unknown = []
    for verb, rest in typed(page):
        known = PARSERS[verb]._option_string_actions if verb in PARSERS else {}
        unknown += [
            f"{verb} {option}" for option in re.findall(r"(?<!\S)--[a-z-]+", rest) if option not in known
        ]
    if page.stem in PARSERS:  # the tables of a command's own page
        own = PARSERS[page.stem]._option_string_actions
        told = re.findall(r"^\| *((?:`--[^`]+`,? *)+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        unknown += [option for cell in told for option in re.findall(r"--[a-z-]+", cell) if option not in own]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_compiles_and_uses_public_names(page: Path) -> None:
    for block in re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    ):
        compile(block, page, "exec")
        assert set(re.findall(r"\bgt\.(\w+)", block)) <= set(groundtune.__all__)


def test_a_page_of_commands_has_commands() -> None:
    assert ("train", " shapes --epochs 12 --retention-data common") in typed(DOCS / "train.md")
    assert len(typed(ROOT / "README.md")) > 15


def tour() -> str:
    (block,) = re.findall(
        r"<!-- tour -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL
    )
    return block


def test_the_tour_is_short() -> None:
    assert len(tour().splitlines()) <= 20


@pytest.mark.slow
def test_the_tour_runs_from_its_first_line_to_its_last(tmp_path: Path) -> None:
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime")):
        pytest.skip('the tour ends with a file for ONNX Runtime: pip install "groundtune[onnx]"')
    command = tmp_path / "bin/groundtune"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m groundtune.cli "$@"\n')
    command.chmod(0o755)
    place = tmp_path / "tour"
    place.mkdir()
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        ["bash", "-eu", "-c", tour()], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = (
        "run/report.html",
        "found/predictions.json",
        "blended/blend.html",
        "model.onnx",
        "shapes-yolo/data.yaml",
    )
    assert [name for name in wanted if not (place / name).is_file()] == []
    assert "zero-shot" in done.stdout and '"detections"' in (place / "found.json").read_text()


@pytest.mark.slow
def test_the_api_reference_has_every_public_docstring(tmp_path: Path) -> None:
    pytest.importorskip(
        "pdoc", reason="the API reference is built by pdoc: pip install -c constraints.txt pdoc"
    )
    build = [sys.executable, DOCS / "build_api.py", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(build, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "pdoc" not in done.stderr, done.stderr[-2000:]
    page = (tmp_path / "groundtune.html").read_text(encoding="utf-8")
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    for name in groundtune.__all__:
        first = (getattr(groundtune, name).__doc__ or "?").split("\n\n")[0]
        assert f'id="{name}"' in page and " ".join(first.replace("`", "").split()) in text, name
