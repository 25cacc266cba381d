"""Make the images of the documentation; README.md beside this file has the commands.

make.py terminal OUT.svg COLUMNS TITLE COMMAND...   the output of shell commands
make.py page OUT.png|jpg WIDTH HEIGHT URL           the top of a page
make.py review OUT.jpg WIDTH HEIGHT URL N           a page of groundtune review, box N + 1
make.py demo OUT.jpg WIDTH HEIGHT URL IMAGE         a page of groundtune demo, after an upload
"""

import base64
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(TESTS / "web"), str(TESTS / "report")]
from page_driver import Page  # noqa: E402


def save_terminal(target: Path, columns: int, title: str, *commands: str) -> None:
    """Save the output of the commands; with the title "groundtune" also the commands."""
    console = Console(record=True, width=columns, file=io.StringIO())
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(columns)}
    for index, command in enumerate(commands):
        done = subprocess.run(["bash", "-c", command], env=environment, stdout=subprocess.PIPE, text=True)
        if title == "groundtune":
            console.print(("\n" if index else "") + f"$ {command}", highlight=False, markup=False)
        console.print(Text.from_ansi(done.stdout.rstrip("\n")))
    start, end = CONSOLE_SVG_FORMAT.index("@font-face"), CONSOLE_SVG_FORMAT.index(".{unique_id}-matrix")
    form = CONSOLE_SVG_FORMAT[:start] + CONSOLE_SVG_FORMAT[end:].replace("Fira Code, monospace", "monospace")
    form = re.sub(r"\s*<!-- .*? -->", "", form)  # a link
    target.write_text(console.export_svg(title=title, code_format=form), encoding="utf-8")


def save_page(target: Path, page: Page, width: int, height: int) -> None:
    """Save the top of a page: JPEG of quality 80, or PNG with a palette."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    data = base64.b64decode(page.call("Page.captureScreenshot", clip=clip)["data"])
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if target.suffix == ".png":
        image.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)
    else:
        image.save(target, quality=80, optimize=True)


def main(kind: str, target: Path, *rest: str) -> None:
    if kind == "terminal":
        return save_terminal(target, int(rest[0]), *rest[1:])
    width, height, url = int(rest[0]), int(rest[1]), rest[2]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Page(url, Path(folder)) as page:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.call("Emulation.setScrollbarsHidden", hidden=True)
        page.call("Page.navigate", url=url)
        page.until("document.readyState === 'complete' && !!document.body.innerText")
        if kind == "review":
            page.until("document.querySelectorAll('#drawn rect').length")
            for _ in range(int(rest[3])):
                page.run("document.querySelector('#next').click()")
        elif kind == "demo":
            page.until("document.querySelectorAll('#results .empty, input[type=file]').length === 2")
            page.upload(Path(rest[3]).resolve())
            page.until("document.querySelectorAll('#results svg g').length")
        time.sleep(1)
        save_page(target, page, width, height)


main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
