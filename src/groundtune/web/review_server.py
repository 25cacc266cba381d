"""The server of the review page: standard library, one page, three kinds of questions.

Whoever can ask can change the data set, so: the address has a random part that only who started the server knows; a browser is
answered only under an address made of numbers or the host that was named, so that no other page can pass itself off as ours
(DNS rebinding); an order must be JSON and come from our own page. Images are asked for by their ids, never by a path.

Addresses that a page listens at.
"""

import hmac
import ipaddress
import json
import re
import secrets
import socket
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from groundtune.errors import ConfigError, DataError
from groundtune.web.review_boxes import Boxes


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_FOLDER = Path(__file__).parent
_FILES = {"": "text/html", "review.css": "text/css", "review.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MOST_BYTES = 10_000  # of an order


def serve(data: Path, split: str, host: str, port: int) -> "ReviewServer":
    """Open the page of a data set; `serve_forever` answers.

    Args:
        data: a folder as `groundtune label` writes it, or a COCO .json file.
        split: of the folder.
        host: address to listen at.
        port: 0 takes a free one.

    Raises:
        ConfigError: the address cannot be listened at.
        DataError: there is no such data set, or it cannot be read.
    """
    path = data if data.is_file() else data / split / "_annotations.coco.json"
    if not path.is_file():
        told = "Expected a COCO data set, as groundtune label writes it; groundtune convert makes one of other formats."
        raise DataError(f"There is no {path}. {told}")
    boxes = Boxes(path)
    try:
        return ReviewServer(boxes, host, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"host, port: cannot listen at {host}:{port or 'a free port'}: {error}.") from error


class ReviewServer(ThreadingHTTPServer):
    """Answers for one file; `url` is the address to open, `is_loopback` whether nobody else reaches it."""

    daemon_threads = True

    def __init__(self, boxes: Boxes, host: str, port: int) -> None:
        self.address_family = socket.getaddrinfo(host, port)[0][0]
        super().__init__((host, port), _Handler)
        self.boxes, self.host, self.is_loopback = boxes, host.lower(), is_loopback(host)
        self.token = secrets.token_urlsafe(16)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_port}/{self.token}/"

    def knows(self, host: str) -> bool:
        """Whether a Host header is one that only this server can be called by: a name may be anybody's."""
        name = re.sub(r":\d+$", "", host.lower())
        try:
            return bool(ipaddress.ip_address(name.strip("[]")))
        except ValueError:
            return name in ("localhost", self.host)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    timeout = 60

    def do_GET(self) -> None:
        asked = self._asked()
        if asked is None:
            return
        if asked in _FILES:
            self._send(_FILES[asked], (_FOLDER / (asked or "page.html")).read_bytes())
        elif asked == "boxes":
            self._answer(self.server.boxes.shown())
        elif number := re.fullmatch(r"image/(-?\d{1,18})", asked):
            try:
                self._send("image/jpeg", self.server.boxes.image(int(number[1])))
            except DataError as error:
                self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    def do_POST(self) -> None:
        if self._asked() is None:
            return
        own = self.headers.get("Origin") in (None, f"http://{self.headers['Host']}")
        length = self.headers.get("Content-Length", "")
        if not own or self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.FORBIDDEN, "Only the page itself may decide.")
        elif not length.isdecimal() or int(length) > _MOST_BYTES:
            self._refuse(HTTPStatus.BAD_REQUEST, "The order is too long.")
        else:
            try:
                order = json.loads(self.rfile.read(int(length)))
                done = self.server.boxes.decide(order.get("do"), order.get("key"), order.get("name"))
            except DataError as error:
                self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
            except (ValueError, AttributeError, RecursionError):
                self._refuse(HTTPStatus.BAD_REQUEST, "The order is no JSON object.")
            else:
                self._answer(done)

    def _asked(self) -> str | None:
        """What is asked for behind the random part of the address; None where that is not ours, which has been answered."""
        token, _, asked = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not self.server.knows(self.headers.get("Host", "")):
            self._refuse(
                HTTPStatus.FORBIDDEN, "This server is not called that. Open the address that it printed."
            )
        elif not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(
                HTTPStatus.NOT_FOUND, "There is no such page. Open the address that the server printed."
            )
        else:
            return asked
        return None

    def _answer(self, content: Any) -> None:
        self._send("application/json", json.dumps(content).encode())

    def _refuse(self, status: HTTPStatus, told: str) -> None:
        self._send("text/plain", told.encode(errors="replace"), status)

    def _send(self, kind: str, content: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.close_connection = True  # what of an order was not read would be taken for the next one
        self.send_response(status)
        charset = "" if kind.startswith("image/") else "; charset=utf-8"
        headers = {"Content-Type": kind + charset, "Content-Length": str(len(content)), **_HEADERS}
        for name, value in headers.items():
            self.send_header(name, value)
        with suppress(ConnectionError):  # who asked has gone to another image
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing: stderr is for people."""
