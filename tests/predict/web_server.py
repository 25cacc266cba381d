"""A local server of images and videos."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def serving(
    files: Mapping[str, bytes],
    *,
    redirects: Mapping[str, str] | None = None,
    kind: str = "",
    lengths: bool = True,
    times: int = 10**9,
    drop_after: int = 10**9,
) -> Iterator[str]:
    """Serve `files`, each at most `times` times, and yield the server's address.

    Args:
        kind: content type.
        lengths: whether lengths are stated.
        drop_after: bytes after which a connection is closed.
    """
    requests = Counter()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if redirects and path in redirects:
                self.send_response(302)
                self.send_header("Location", redirects[path])
                return self.end_headers()
            if path not in files:
                return self.send_error(404)
            requests[path] += 1
            if requests[path] > times:
                return self.send_error(503)
            content, given = files[path], self.headers.get("Range") if lengths else None
            first = int(given.removeprefix("bytes=").partition("-")[0]) if given else 0
            self.send_response(206 if given else 200)
            if kind:
                self.send_header("Content-Type", kind)
            if given:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            if lengths:
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first : first + drop_after])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
