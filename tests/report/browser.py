"""Pages in headless Chromium, for the tests of the report."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
_OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr", "--v=0"]
_SCRIPT = """
<script>{
window.addEventListener("error", event => document.body.dataset.error = event.message);
const result = {}, clicked = (table, head) => {
  document.querySelectorAll(table + " th")[head].click();
  return [...document.querySelectorAll(table + " tbody tr")].map(row => row.cells[0].textContent);
};
%s
result.hacked = window.hacked === 1; result.wide = document.documentElement.scrollWidth <= window.innerWidth;
result.requests = performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:"));
document.title = JSON.stringify(result);
}</script></body>
"""


def opened(page: str, script: str, folder: Path, width: int) -> dict[str, Any]:
    """What a script at the page's end found out and put into `result`; the page must be without
    errors, requests, overflow.

    The script has `clicked(table, head)`, which clicks a heading and gives the first column as it
    is sorted then.
    """
    nonce = re.findall(r'<script nonce="(\w+)">', page)[0]  # no other script may run
    own = (_SCRIPT % script).replace("<script>", f'<script nonce="{nonce}">')
    (folder / "page.html").write_text(page.replace("</body>", own), encoding="utf-8")
    size = [
        f"--window-size={width},900",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=3000",
    ]
    command = [str(CHROMIUM), *_OPTIONS, *size, (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title is not None, done.stderr[-2000:]
    assert "data-error" not in done.stdout and "CONSOLE" not in done.stderr, done.stderr[-2000:]
    result = json.loads(html.unescape(title.group(1)))
    assert not result.pop("hacked") and result.pop("wide") and result.pop("requests") == []
    return result
