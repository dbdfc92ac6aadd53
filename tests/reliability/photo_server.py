"""A web server on loopback that answers as badly as servers can."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    photo = b""
    requests: list[str] = []

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.requests.append(self.path)
        try:
            getattr(self, "do_" + self.path.strip("/").partition(".")[0].replace("-", "_"), self.do_missing)()
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _head(self, status: int = 200, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_photo(self) -> None:
        self._head(Content_Length=len(self.photo))
        self.wfile.write(self.photo)

    def do_missing(self) -> None:
        self._head(404, Content_Length=0)

    def do_empty(self) -> None:
        self._head(Content_Length=0)

    def do_page(self) -> None:
        self._head()
        self.wfile.write(b"<html>Please log in</html>")

    def do_failing(self) -> None:
        self._head(500, Content_Length=0)

    def do_loop(self) -> None:
        self._head(302, Location="/loop")

    def do_moved(self) -> None:
        self._head(302, Location="/photo.jpg")

    def do_to_a_file(self) -> None:
        self._head(302, Location="file:///etc/passwd")

    def do_announced(self) -> None:
        self._head(Content_Length=3 << 30)
        self._without_end()

    def do_endless(self) -> None:
        self._head()
        self._without_end()

    def _without_end(self) -> None:
        block = self.photo[:1000] + bytes(1 << 20)
        while True:
            self.wfile.write(block)

    def do_cut(self) -> None:
        self._head(Content_Length=len(self.photo))
        self.wfile.write(self.photo[: len(self.photo) // 2])

    def do_compressed(self) -> None:
        content = gzip.compress(bytes(64 << 20))
        self._head(Content_Length=len(content), Content_Encoding="gzip")
        self.wfile.write(content)

    def do_silent(self) -> None:
        time.sleep(30)

    def do_dripping(self) -> None:
        self._head()
        for byte in self.photo[:300]:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)

    def do_dripping_head(self) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * 20:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)


@contextmanager
def bad_server(photo: bytes) -> Iterator[tuple[str, list[str]]]:
    """Address of the server, and the paths that it was asked for."""
    handler = type("Handler", (_Handler,), {"photo": photo, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.requests
    finally:
        server.shutdown()
        server.server_close()
