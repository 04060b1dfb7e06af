"""Failures as answers: JSON problem details (RFC 9457) with the messages of the command line."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mambair_cli.errors import MambairError, printable
from mambair_cli.serve.jobs import Busy

_STATUS = {1: 422, 2: 400, 3: 409}  # by the exit status of the command line: a bad picture, bad usage, no weights
GONE = 499  # as nginx calls it: nobody reads this


class Refused(Exception):
    """A request that is not even looked at. `hint` says what to do."""

    def __init__(self, status: int, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.status, self.detail, self.hint = status, detail, hint


def problem(status: int, detail: str, hint: str = "", **headers: str) -> Response:
    """What happened and why (`detail`), and what to do (`hint`)."""
    body: dict[str, object] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    body |= {"detail": printable(detail, lines=True)} | ({"hint": printable(hint, lines=True)} if hint else {})
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(body, status, names, "application/problem+json")


def of_error(error: Exception) -> Response:
    """A failure of the engine."""
    if isinstance(error, MambairError):
        return problem(_STATUS[error.exit_code], error.message, error.hint)
    return problem(500, f"{type(error).__name__}: {error}")


async def _failed(_: Request, error: Exception) -> Response:
    return of_error(error)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    more = {"Connection": "close"} if error.status == 408 else {}  # what still comes is of no use
    return problem(error.status, error.detail, error.hint, **more)


async def _busy(_: Request, error: Exception) -> Response:
    assert isinstance(error, Busy)
    return problem(503, "The queue is full.", f"Come again in {error}.", Retry_After=str(error.seconds))


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, **dict(error.headers or {}))


async def _gone(_: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


HANDLERS = {
    MambairError: _failed,
    Refused: _refused,
    Busy: _busy,
    HTTPException: _http,
    ClientDisconnect: _gone,
}
