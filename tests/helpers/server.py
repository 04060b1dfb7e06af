"""An HTTP server for tests that misbehaves on purpose: each request to a path takes the next step of its script."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Step = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers)))
            script = self.server.scripts[path]
            step = script.pop(0) if script else good
        if path in self.server.files:
            step(self, self.server.files[path])
        else:
            self.answer(404)

    def answer(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """`files` by path; `scripts` by path: steps for the first requests, after which it behaves; `requests` made."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.scripts: dict[str, list[Step]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.leaving = threading.Event()

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the game."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def put(self, path: str, body: bytes, *script: Step) -> str:
        self.files[path] = body
        self.scripts[path] = list(script)
        return self.url(path)


# ------------------------------------------------------------------------------------------------------- steps


def good(handler: Handler, body: bytes) -> None:
    """As it should be: ranges, If-Range, 416."""
    etag = f'"{hash(body)}"'
    wanted = handler.headers.get("Range")
    if not wanted or handler.headers.get("If-Range", etag) != etag:
        return handler.answer(200, body, ETag=etag)
    start = int(wanted.removeprefix("bytes=").rstrip("-"))
    if start >= len(body):
        return handler.answer(416, Content_Range=f"bytes */{len(body)}")
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    return handler.answer(206, body[start:], ETag=etag, Content_Range=span)


def cut(after: int, **headers: object) -> Step:
    """Announces the whole body and hangs up after some bytes of it."""

    def step(handler: Handler, body: bytes) -> None:
        handler.answer(200, body[:after], **({"Content_Length": len(body), "ETag": f'"{hash(body)}"'} | headers))

    return step


def status(code: int, body: bytes = b"", **headers: object) -> Step:
    return lambda handler, _: handler.answer(code, body, **headers)


def page(html: str) -> Step:
    """A web page with status 200, as portals, quotas and log-ins send."""
    return status(200, html.encode(), Content_Type="text/html; charset=utf-8")


def whole(handler: Handler, body: bytes) -> None:
    """Knows no ranges: always all of it, without a validator."""
    handler.answer(200, body)


def unsized(handler: Handler, body: bytes) -> None:
    """No Content-Length: only the end of the connection tells that the body is over."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(body)


def stall(after: int) -> Step:
    """Sends some bytes, then nothing, and keeps the connection."""

    def step(handler: Handler, body: bytes) -> None:
        handler.answer(200, body[:after], Content_Length=len(body), ETag=f'"{hash(body)}"')
        handler.server.leaving.wait(30)

    return step


def trickle(handler: Handler, body: bytes) -> None:
    """One byte at a time: never silent, never done."""
    handler.answer(200, b"", Content_Length=len(body), ETag=f'"{hash(body)}"')
    for byte in body:
        if handler.server.leaving.wait(0.05):
            return
        handler.wfile.write(bytes([byte]))


def slowly(start: bytes, over_again: bytes) -> Step:
    """Sends `start`, then the other bytes one by one for ever, so that no socket times out."""

    def step(handler: Handler, body: bytes) -> None:
        handler.wfile.write(start)
        for byte in itertools.cycle(over_again):
            if handler.server.leaving.wait(0.02):
                return
            handler.wfile.write(bytes([byte]))

    return step


def hang_up(handler: Handler, _: bytes) -> None:
    """Closes without a word."""
    handler.close_connection = True


def raw(answer: bytes) -> Step:
    """These bytes, and the end of the connection."""

    def step(handler: Handler, _: bytes) -> None:
        handler.wfile.write(answer)
        handler.close_connection = True

    return step


def redirect(to: str) -> Step:
    return status(302, Location=to)
