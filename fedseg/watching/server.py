"""A small web server beside a run: the page, the same as JSON, and the metrics. It reads, and nothing else.

It listens on this computer unless told otherwise, answers GET and HEAD of four paths, and asks for no password: what it
shows is for those who may read the run folder. A browser that was lured here under another name is turned away (DNS
rebinding). Must never: change the run, wait for a peer, or serve a file.
"""

import ipaddress
import json
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Thread
from types import TracebackType
from typing import Any, Self

from fedseg.errors import ConfigError
from fedseg.status import Status
from fedseg.watching.metrics import CONTENT_TYPE, exposition
from fedseg.watching.page import render

LOCAL = "127.0.0.1"
REFRESH = 5
"""Seconds after which the page asks again."""

_IDLE = 10.0
_AT_ONCE = 16


class Watch:
    """The server; use it as a context manager.

    Args:
        where: "HOST:PORT", or a port of this computer; port 0 takes a free one.
        status: gives the status of this moment.

    Raises:
        ConfigError: it is no such address, or nobody can listen there.
    """

    def __init__(self, where: str, status: Callable[[], Status]) -> None:
        host, _, port = where.rpartition(":")
        if not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"--watch {where}: give HOST:PORT, or a port of this computer")
        self.host = host.strip("[]") or LOCAL
        try:
            self._server = _Server((self.host, int(port)), partial(_Handler, status, self.host))
        except OSError as error:
            raise ConfigError(
                f"--watch {where}: nobody can listen there ({error.strerror}); use another port"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self.host}:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, name="watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """At most `_AT_ONCE` connections; whoever comes beside them is closed at once."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *given: Any) -> None:
        self._free = BoundedSemaphore(_AT_ONCE)
        super().__init__(*given)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread of its own, where one is left."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that hangs up is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "fedseg", ""
    timeout = _IDLE  # seconds that a connection may be silent

    def __init__(self, status: Callable[[], Status], host: str, *given: Any) -> None:
        self._status, self._host = status, host
        super().__init__(*given)

    def do_GET(self) -> None:
        """Answer one of the paths."""
        if not self._meant():
            self._answer(421, "text/plain", b"ask by the address of this computer\n")
            return
        match self.path.partition("?")[0]:
            case "/":
                self._answer(200, "text/html; charset=utf-8", render(self._status(), REFRESH).encode())
            case "/status.json":
                self._answer(200, "application/json", json.dumps(self._status().as_dict()).encode())
            case "/metrics":
                self._answer(200, CONTENT_TYPE, exposition(self._status()))
            case _:
                self._answer(404, "text/plain", b"there are /, /status.json and /metrics\n")

    do_HEAD = do_GET  # noqa: N815 - the same

    def log_message(self, format: str, *args: object) -> None:
        """Requests are in no log."""

    def _meant(self) -> bool:
        """Whether it was asked for by an address, by localhost or by the name that it was given."""
        name = self.headers.get("Host", "").rsplit(":", 1)[0].strip("[]")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in ("localhost", self._host)
        return True

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header(
            "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        )
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
