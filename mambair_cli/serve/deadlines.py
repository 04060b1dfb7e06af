"""HTTP/1.1 by uvicorn, with an end to every phase in which a client may keep a connection waiting."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = 10.0  # seconds for the head of a request, from the first byte or the opening of the connection on
LEFTOVER = 5.0  # seconds for what is left of an upload that was answered already


class PatientProtocol(H11Protocol):
    """Closes what does not become a request in time (slow-loris), and what goes on sending after its answer."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait(HEADERS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait(HEADERS)
        elif not self._is_left_over():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_left_over():
            self._wait(LEFTOVER)

    def _is_left_over(self) -> bool:
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def _matters(record: logging.LogRecord) -> bool:
    """Not the traceback of an answer to a client that has closed its half of the connection."""
    return not (record.exc_info and isinstance(record.exc_info[1], h11.LocalProtocolError))


def options(connections: int) -> dict[str, Any]:
    """What uvicorn is told beside. Of its log, failures of our own are left."""
    log = logging.getLogger("uvicorn.error")
    log.setLevel(logging.ERROR)
    log.addFilter(_matters)
    return {
        "http": PatientProtocol,
        "ws": "none",
        "limit_concurrency": connections,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": 5,
        "log_config": None,
        "access_log": False,
        "server_header": False,
    }
