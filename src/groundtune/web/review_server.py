"""The server of the review page, with the standard library.

Whoever can send requests can change the data set. So the address has a random token; the Host
header must be an IP address or the named host, against DNS rebinding; decisions must be JSON from
the page itself. Images are requested by id, never by path.
"""

import hmac
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from groundtune.errors import ConfigError, DataError
from groundtune.web.review_boxes import Boxes

_FOLDER = Path(__file__).parent
_FILES = {"review.html": "text/html", "review.css": "text/css", "review.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src blob: data:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MAX_BYTES = 10_000  # of a request


def is_loopback(host: str) -> bool:
    """Return whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(data: Path, split: str, host: str, port: int) -> "ReviewServer":
    """Open a split of a directory, or a COCO .json file; call `serve_forever` on the result.

    Raises:
        ConfigError: it cannot listen on the address; port 0 means a free one.
        DataError: there is no such data set, or it cannot be read.
    """
    path = data if data.is_file() else data / split / "_annotations.coco.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist. Expected a COCO data set of groundtune label or convert.")
    boxes = Boxes(path)
    try:
        return ReviewServer(boxes, host, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"host, port: cannot listen on {host}:{port or 'a free port'}: {error}.") from error


class ReviewServer(ThreadingHTTPServer):
    """The server of one file: `url` is the page, `is_loopback` if only this machine reaches it."""

    daemon_threads = True

    def __init__(self, boxes: Boxes, host: str, port: int) -> None:
        self.address_family = socket.getaddrinfo(host, port)[0][0]
        super().__init__((host, port), _Handler)
        self.boxes, self.host, self.is_loopback = boxes, host.lower(), is_loopback(host)
        self.token = secrets.token_urlsafe(16)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/{self.token}/"

    def is_own_name(self, host_header: str) -> bool:
        """Return whether a Host header cannot be another site's name for this machine."""
        name = re.sub(r":\d+$", "", host_header.lower())
        try:
            return bool(ipaddress.ip_address(name.strip("[]")))
        except ValueError:
            return name in ("localhost", self.host)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    timeout = 60

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._decide)

    def _answer(self, respond: Callable[[str], None]) -> None:
        """Respond to the path after the token; to a wrong host or token with an error."""
        token, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not self.server.is_own_name(self.headers.get("Host", "")):
            message = "Unknown host name. Open the address printed in the terminal."
            self._send_error(HTTPStatus.FORBIDDEN, message)
        elif not hmac.compare_digest(token.encode(), self.server.token.encode()):
            message = "There is no such page. Open the address printed in the terminal."
            self._send_error(HTTPStatus.NOT_FOUND, message)
        else:
            try:
                respond(path)
            except DataError as error:
                self._send_error(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    def _get(self, path: str) -> None:
        file = path or "review.html"
        if file in _FILES:
            self._send(_FILES[file], (_FOLDER / file).read_bytes())
        elif path == "boxes":
            self._send_json(self.server.boxes.state())
        elif number := re.fullmatch(r"image/(-?\d{1,18})", path):
            self._send("image/jpeg", self.server.boxes.image(int(number[1])))
        else:
            self._send_error(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _decide(self, _: str) -> None:
        same_origin = self.headers.get("Origin") in (None, f"http://{self.headers['Host']}")
        length = self.headers.get("Content-Length", "")
        if not same_origin or self.headers.get_content_type() != "application/json":
            self._send_error(HTTPStatus.FORBIDDEN, "Forbidden: cross-origin request.")
        elif not length.isdecimal() or int(length) > _MAX_BYTES:
            self._send_error(HTTPStatus.BAD_REQUEST, "The request is too long.")
        else:
            try:
                request = json.loads(self.rfile.read(int(length)))
                action, key, name = (request.get(part) for part in ("do", "key", "name"))
            except (ValueError, AttributeError, RecursionError):
                self._send_error(HTTPStatus.BAD_REQUEST, "Expected a JSON object.")
            else:
                self._send_json(self.server.boxes.decide(action, key, name))

    def _send_json(self, content: Any) -> None:
        self._send("application/json", json.dumps(content).encode())

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        self._send("text/plain", message.encode(errors="replace"), status)

    def _send(self, kind: str, content: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.close_connection = True  # the unread rest of a request would be taken for the next one
        self.send_response(status)
        charset = "" if kind.startswith("image/") else "; charset=utf-8"
        headers = {"Content-Type": kind + charset, "Content-Length": str(len(content)), **_HEADERS}
        for name, value in headers.items():
            self.send_header(name, value)
        with suppress(ConnectionError):  # the visitor has moved on
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""
