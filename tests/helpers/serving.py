"""`mambair serve` in a thread of this process, and pictures for it."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import requests
from PIL import Image

from mambair_cli.cli.forms import form_of
from mambair_cli.restoring.running import Running
from mambair_cli.serve import worker
from mambair_cli.serve.guard import Rules
from mambair_cli.serve.limits import Limits
from mambair_cli.serve.server import Server
from mambair_cli.tasks import TASKS

TOKEN = "a token for tests"


@dataclass
class Served:
    """A server that runs, and a client for it."""

    server: Server
    port: int
    http: requests.Session

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **more: Any) -> requests.Response:
        return self.http.get(self.url + path, timeout=60, **more)

    def post(self, path: str, body: bytes, **more: Any) -> requests.Response:
        return self.http.post(self.url + path, data=body, timeout=60, **more)

    def send(self, head: str, body: bytes = b"") -> socket.socket:
        """A connection of one's own, with these bytes on their way."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        return connection

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """What a stream of events tells, until it ends."""
        with self.get(path, stream=True) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])


@contextmanager
def serving(
    limits: Limits | None = None, rules: Rules | None = None, port: int = 0, devices: int = 1
) -> Iterator[Served]:
    """A server on a free port (or this one), gone at the end."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(256)
    forms = {task.name: form_of(task) for task in TASKS.values()}
    server = Server([Running("cpu")] * devices, forms, rules or Rules(), limits)
    thread = threading.Thread(target=server.run, args=(listening,))
    thread.start()
    http = requests.Session()
    http.trust_env = False
    http.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=32))
    try:
        until(lambda: server.started)
        yield Served(server, listening.getsockname()[1], http)
    finally:
        http.close()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        assert not server.spool.folder.exists()


def until(true: Any, seconds: float = 60.0) -> Any:
    """What a function gives, once that is something."""
    end = time.monotonic() + seconds
    while True:
        with suppress(IndexError, KeyError):
            if found := true():
                return found
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


class Gate:
    """Holds every picture in the middle of its work until it is opened; told of each that comes."""

    def __init__(self, monkeypatch: Any) -> None:
        self.open, self.came = threading.Event(), threading.Semaphore(0)
        self.order: list[str] = []
        really = worker.restore

        def held(source: Any, request: Any, load: Any, *, progress: Any, **more: Any) -> Any:
            self.came.release()
            progress(1, 4)
            while not self.open.wait(0.01):
                progress(1, 4)  # raises where it was cancelled
            return really(source, request, load, progress=progress, **more)

        monkeypatch.setattr(worker, "restore", held)


def png(width: int = 8, height: int = 6, seed: int = 0) -> bytes:
    """A small picture, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
