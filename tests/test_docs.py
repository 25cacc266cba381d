"""Check README and docs: links, images, commands, options and Python code."""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import groundtune
from groundtune.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(DOCS.glob("*.md"))
GITHUB = "https://github.com/groundtune/groundtune/blob/main/"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def help_of(*command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*command, "--help"])
    return printed.getvalue()


def options_of(command: str) -> set[str]:
    """Return the options in the help text of a command."""
    lines = re.findall(r"^  (-.*)", help_of(command), flags=re.MULTILINE)
    return {option for line in lines for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", line)}


COMMANDS = re.findall(r"^    ([a-z]+) ", help_of(), flags=re.MULTILINE)
OPTIONS = {command: options_of(command) for command in COMMANDS}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_and_images_exist(page: Path) -> None:
    missing = []
    for link in LINK.findall(prose(page)):
        base = ROOT if link.startswith(GITHUB) else page.parent
        path, _, anchor = link.removeprefix(GITHUB).partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (base / path).resolve() if path else page
        exists = target.exists() and target.is_relative_to(ROOT)
        inside = DOCS if page.parent == DOCS and base != ROOT else ROOT  # the site has only the pages of docs
        if not exists or not target.is_relative_to(inside) or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_images_are_used_small_and_self_contained() -> None:
    used = {link for page in DOCS.glob("*.md") for link in LINK.findall(text_of(page))}
    for path in (path for path in (DOCS / "images").iterdir() if path.suffix not in (".md", ".py")):
        assert path.relative_to(DOCS).as_posix() in used
        assert path.stat().st_size <= 100_000, path
        if path.suffix == ".svg":
            assert "http" not in path.read_text().replace("http://www.w3.org", ""), path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_that_readme_index_and_site_link_to(command: str) -> None:
    page = {"env": "models.md"}.get(command, f"{command}.md")
    for index, target in ((ROOT / "README.md", f"docs/{page}"), (DOCS / "index.md", page)):
        assert re.search(rf"\[[^\n]*`(groundtune )?{command}\b[^\n]*\]\({target}\)", text_of(index)), index
    assert f"groundtune {command}" in text_of(DOCS / page)
    assert page in text_of(ROOT / "mkdocs.yml")


def command_lines(page: Path) -> list[tuple[str, str]]:
    """Return the commands in code blocks and sentences: the name, and the text up to the end of the
    line or code.
    """
    text = text_of(page).replace("\\\n", " ")
    commands = re.findall(r"groundtune(?:\.cli)? ([a-z]+)\b([^`\n#>]*)", text)
    return [(name, rest) for name, rest in commands if name in COMMANDS or rest.lstrip().startswith("-")]


@each_page
def test_options_of_commands_exist(page: Path) -> None:
    unknown = []
    for name, rest in command_lines(page):
        known = OPTIONS.get(name, set()) | {"--debug"}
        unknown += [
            f"{name} {option}" for option in re.findall(r"(?<!\S)--[a-z-]+", rest) if option not in known
        ]
    assert unknown == []


OTHER_PROGRAMS = {"--extra-index-url", "--file", "--kill-on-bad-exit"}


@each_page
def test_options_in_sentences_exist(page: Path) -> None:
    """Options in backticks; in the tables of a command's own page they are options of that command."""
    named = [
        option
        for code in re.findall(r"`([^`\n]+)`", prose(page))
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", code)
    ]
    assert set(named) <= set().union(OTHER_PROGRAMS, *OPTIONS.values())
    if page.stem in OPTIONS:
        cells = re.findall(r"^\| *((?:`--[^`]+`,? *)+)", text_of(page), flags=re.MULTILINE)
        assert {option for cell in cells for option in re.findall(r"--[a-z-]+", cell)} <= OPTIONS[page.stem]


@each_page
def test_python_code_compiles_and_uses_public_names(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for block in blocks:
        compile(block, page, "exec")
        assert set(re.findall(r"\bgt\.(\w+)", block)) <= set(groundtune.__all__)


def test_command_lines_are_recognized() -> None:
    assert ("train", " shapes --epochs 12 --retention-data common") in command_lines(DOCS / "train.md")
    assert len(command_lines(ROOT / "README.md")) > 15
    assert {"--epochs", "--lr", "--no-self-distillation", "--config"} <= OPTIONS["train"]


def test_the_api_page_has_every_public_name() -> None:
    page = text_of(DOCS / "api.md")
    members = re.findall(r"^        - (\w+)$", page, flags=re.MULTILINE)
    assert set(members) == set(groundtune.__all__)
    for path in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE):
        module, _, name = path.rpartition(".")
        if path.islower():
            importlib.import_module(path)
        else:
            assert hasattr(importlib.import_module(module), name), path


def tour() -> str:
    """Return the commands of the README and, after them, those of the start page of the site."""
    pages = (ROOT / "README.md", DOCS / "index.md")
    blocks = [
        re.findall(r"<!-- tour -->\n```bash\n(.*?)```", text_of(page), flags=re.DOTALL) for page in pages
    ]
    assert all(len(found) == 1 for found in blocks)
    return "".join(block for (block,) in blocks)


def test_the_tour_is_short() -> None:
    assert len(tour().splitlines()) <= 20


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path) -> None:
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime")):
        pytest.skip('the tour exports a file for ONNX Runtime: pip install "groundtune[onnx]"')
    command = tmp_path / "bin/groundtune"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m groundtune.cli "$@"\n')
    command.chmod(0o755)
    folder = tmp_path / "tour"
    folder.mkdir()
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src")}
    run = ["bash", "-eu", "-c", tour()]
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in (
        "run/report.html", "detections/predictions.json", "blended/blend.html", "model.onnx", "shapes-yolo/data.yaml",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    assert "zero-shot" in done.stdout and '"detections"' in (folder / "detections.json").read_text()


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(
            name, reason='the site needs the extra docs: pip install -c constraints.txt ".[docs]"'
        )
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="([^"]+)|<link[^>]*href="([^"]+)', text_of(page))
        assert not [link for pair in loaded for link in pair if link.startswith(("http", "//"))], page
    api = text_of(tmp_path / "api.html")
    assert all(f'id="groundtune.api.{name}"' in api for name in groundtune.__all__)
