"""HTTP server of a folder on the loopback interface: byte ranges, latency, and faults on demand.

`python -m tests.helpers.range_server FOLDER 0.02` serves a folder with 20 ms before each answer, for measurements.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

Fault = Callable[[str, int], str | None]
"""(path, number of the request) -> "500", "404", "429", "truncated", "cut", "hang", "redirect", "page" or None."""


class RangeServer(http.server.ThreadingHTTPServer):
    """Server with the requests that it has answered, and what it does to them."""

    daemon_threads = True
    request_queue_size = 256  # connections that wait to be accepted; above it, the system delays them by a second

    def __init__(self, folder: Path, latency: float, fault: Fault | None) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.latency, self.fault, self.ranges = latency, fault, True
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def log_message(self, format: str, *values: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        with self.server.lock:
            self.server.requests.append((self.command, self.path, self.headers.get("Range")))
            fault = self.server.fault(self.path, len(self.server.requests)) if self.server.fault else None
        time.sleep(self.server.latency)
        if fault is not None and fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault in ("redirect", "page"):
            body = b'<a href="b/">b</a>' if fault == "page" and self.command == "GET" else b""
            self.send_response(302 if fault == "redirect" else 200)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if fault == "hang":
            time.sleep(3)
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            super().do_GET() if self.command == "GET" else super().do_HEAD()
        elif not path.is_file():
            self.send_error(404)
        else:
            self._send(path, fault)

    def _send(self, path: Path, fault: str | None) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "") if self.server.ranges else None
        size = path.stat().st_size
        with open(path, "rb") as file:
            first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, size - 1)
            file.seek(first)
            body = b"" if self.command == "HEAD" else file.read(last + 1 - first)
        if fault == "cut":  # a shorter answer that looks complete
            body = body[: len(body) // 2]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(size if self.command == "HEAD" else len(body)))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{size}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if fault == "truncated" else body)
        if fault == "truncated":
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)  # forked processes may hold copies of it, which stay open


@contextlib.contextmanager
def serving(folder: Path, latency: float = 0.0, fault: Fault | None = None) -> Iterator[RangeServer]:
    """Serve a folder while the block runs."""
    server = RangeServer(folder, latency, fault)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with serving(Path(sys.argv[1]), float(sys.argv[2])) as started:
        print(started.url, flush=True)
        threading.Event().wait()
