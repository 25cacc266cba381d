"""A server on loopback that answers like the Hugging Face Hub, as far as `huggingface_hub` 2.4 asks
it to download.

`HubServer(FOLDER)` serves FOLDER/OWNER/MODEL/* as models at its `address`, in a thread of its own.
`huggingface_hub` asks for `/api/models/ID/revision/main` (the commit),
`/api/models/ID/tree/COMMIT?recursive=true` (the files), and `HEAD` and `GET
/ID/resolve/COMMIT/FILE` (`ETag`, `X-Repo-Commit`, `Content-Length`, `Range`).
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves the models in a folder.

    Attributes:
        requests: (method, path, Range header or None) of every request.
        cut: names of files whose next download is broken off half-way; each only once.
        status: answer everything with this error, where it is not 0.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: set[str] = set()
        self.status = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if self.server.status:
            self._send(self.server.status, b'{"error": "no"}')
        elif parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve" and (self.server.folder / "/".join(parts[:2])).is_dir():
            self._file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._send(404, b"{}")

    def _api(self, model: str, rest: list[str]) -> None:
        folder = self.server.folder / model
        if not folder.is_dir():
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["tree"]:
            files = [p for p in sorted(folder.iterdir()) if p.is_file()]
            tree = [
                {"type": "file", "oid": _etag(p), "size": p.stat().st_size, "path": p.name} for p in files
            ]
            self._send(200, json.dumps(tree).encode())
        else:
            self._send(200, json.dumps({"id": model, "sha": COMMIT, "siblings": []}).encode())

    def _file(self, model: str, name: str) -> None:
        path = self.server.folder / model / name
        if not path.is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content, start = path.read_bytes(), 0
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is not None:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        half = None
        if self.command == "GET" and name in self.server.cut:
            self.server.cut.discard(name)
            half = len(content) // 2
        self._send(206 if wanted else 200, content[start:], headers, half)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, stop: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True  # the client was promised more


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
