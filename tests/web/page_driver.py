"""A page in headless Chromium, driven over two pipes by the DevTools protocol; no driver program,
no port.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from browser import CHROMIUM

_OPTIONS = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --window-size=1280,900".split()
# Chromium reads commands from descriptor 3 and responds on 4
_START = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
_TIMEOUT = 60  # seconds; only failing tests wait so long


class Page:
    """A visitor with their own browser; downloads go into `folder`."""

    def __init__(self, url: str, folder: Path) -> None:
        (read_orders, orders), (answers, write_answers) = os.pipe(), os.pipe()
        descriptors = (read_orders, write_answers)
        command = [sys.executable, "-c", _START, *map(str, descriptors), str(CHROMIUM), *_OPTIONS]
        profile = f"--user-data-dir={folder / 'profile'}"
        self._browser = subprocess.Popen([*command, profile], pass_fds=descriptors, stderr=subprocess.DEVNULL)
        for descriptor in descriptors:
            os.close(descriptor)
        self._orders, self._answers = (
            os.fdopen(orders, "wb", buffering=0),
            os.fdopen(answers, "rb", buffering=0),
        )
        self._number, self._rest, self._session = 0, b"", ""
        self.urls: list[str] = []  # of all requests
        self.folder = folder
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Network.enable")
        self.call("Page.navigate", url=url)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.kill()
        self._browser.wait()
        self._orders.close()
        self._answers.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        order = {"id": self._number, "method": method, "params": parameters}
        self._orders.write(
            json.dumps(order | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            while b"\0" not in self._rest:
                self._rest += self._answers.read(1 << 20) or b'{"id": -1}\0'
            message, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(message)
            assert answer.get("id") != -1, "Chromium has ended"
            if answer.get("method") == "Network.requestWillBeSent":
                self.urls.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        """Return the value of an expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + _TIMEOUT
        frame = "new Promise(done => setTimeout(() => done(%s), 30))"
        while not (value := self.run(frame % script)):
            assert time.monotonic() < end, (script, self.run("document.body.innerText"))
        return value

    def click(self, element: str) -> None:
        """Click with the mouse, which moves the focus."""
        self.run(f"({element}).scrollIntoView()")
        box = self.box(element)
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        at |= {"button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def box(self, element: str) -> dict[str, float]:
        """Return x, y, width and height of an element in pixels of the window."""
        return self.run(f"({element}).getBoundingClientRect().toJSON()")

    def slide(self, selector: str, value: float) -> None:
        moved = f"slider.value = {value}; slider.dispatchEvent(new Event('input', {{bubbles: true}}))"
        self.run(f"{{ const slider = document.querySelector('{selector}'); {moved} }}")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self.call("Input.dispatchKeyEvent", type=kind, **key)

    def upload(self, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        field = self.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=field)
