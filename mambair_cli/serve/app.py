"""The application: its routes, the files of its page, and the one order in which requests are looked at."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files as resources

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mambair_cli import compare
from mambair_cli.serve.api import Api
from mambair_cli.serve.form import Form
from mambair_cli.serve.guard import Guard, Rules
from mambair_cli.serve.jobs import Jobs
from mambair_cli.serve.problems import HANDLERS, problem

SHARED = {"colours.css": "text/css", "slider.css": "text/css", "slider.js": "text/javascript"}  # with `compare`
OWN = {"app.css": "text/css", "app.js": "text/javascript", "zip.js": "text/javascript", "icon.svg": "image/svg+xml"}


def application(jobs: Jobs, forms: Mapping[str, Form], rules: Rules) -> ASGIApp:
    """Everything that a server answers. The jobs run while it runs."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        jobs.start()
        yield
        await jobs.close()

    app = Starlette(
        routes=[*Api(jobs, forms).routes, *_pages()],
        exception_handlers={**HANDLERS, Exception: _broken},
        lifespan=lifespan,
    )
    return Guard(app, rules)


def _pages() -> list[Route]:
    """The page and what belongs to it: read once, each at a fixed address."""
    slider = compare.part("slider.html").format(width=1, height=1, left="", right="", before="", after="")
    index = _own("index.html").replace("<!-- slider -->", slider)
    routes = [_fixed("/", index, "text/html")]
    routes += [_fixed(f"/static/{name}", compare.part(name), kind) for name, kind in SHARED.items()]
    return routes + [_fixed(f"/static/{name}", _own(name), kind) for name, kind in OWN.items()]


def _own(name: str) -> str:
    return resources(__package__).joinpath("page", name).read_text("utf-8")


def _fixed(path: str, text: str, kind: str) -> Route:
    etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:16]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(text, media_type=kind, headers=headers)

    return Route(path, answer)


async def _broken(_: Request, error: Exception) -> Response:
    """What nobody thought of; the log has it."""
    return problem(500, "Something broke in the server.", "Its log says what.")
