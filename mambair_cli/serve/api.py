"""The HTTP interface: for scripts, and for the page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mambair_cli.errors import MambairError, UsageError
from mambair_cli.models import checkpoints, zoo
from mambair_cli.serve.form import Asked, Field, Form
from mambair_cli.serve.jobs import Job, Jobs, told
from mambair_cli.serve.names import disposition, harmless
from mambair_cli.serve.openapi import description
from mambair_cli.serve.problems import GONE, Refused, of_error
from mambair_cli.serve.uploads import received
from mambair_cli.serve.worker import placed, views

HEARTBEAT = 10.0  # seconds between signs of life in a stream of events
_LOOK = 0.5  # seconds after which a client that waits is looked for
OWN = ("task", "name", "session")  # parameters that are no options of a task


class Handed(FileResponse):
    """A file; `after` is called once it was sent, or the client has gone."""

    def __init__(self, *arguments: Any, after: Callable[[], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.after = after

    async def __call__(self, *arguments: Any) -> None:
        try:
            await super().__call__(*arguments)
        finally:
            self.after()


class Api:
    """The handlers, and what they share."""

    def __init__(self, jobs: Jobs, forms: Mapping[str, Form]) -> None:
        self.jobs, self.forms = jobs, forms
        self.routes = [
            Route("/api/restore", self.restore, methods=["POST"]),
            Route("/api/jobs", self.submit, methods=["POST"]),
            Route("/api/jobs/{id}", self.job, methods=["GET", "DELETE"]),
            Route("/api/jobs/{id}/result", self.result),
            Route("/api/jobs/{id}/events", self.job_events),
            Route("/api/jobs/{id}/before", partial(self.view, 0)),
            Route("/api/jobs/{id}/after", partial(self.view, 1)),
            Route("/api/sessions/{session}/events", self.session_events),
            Route("/api/tasks", self.tasks),
            Route("/api/models", self.models),
            Route("/api/openapi.json", self.openapi),
            Route("/healthz", self.health),
        ]

    # --- pictures in, pictures out ---

    async def restore(self, request: Request) -> Response:
        """The picture in the body, restored; a client that goes away cancels it."""
        job = await self._accepted(request, session="")
        try:
            while not job.finished.is_set():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(job.finished.wait(), _LOOK)
                if not job.finished.is_set() and await request.is_disconnected():
                    self.jobs.forget(job)
                    return Response(status_code=GONE)
        except asyncio.CancelledError:
            self.jobs.forget(job)
            raise
        if job.made is None:
            self.jobs.forget(job)
            return of_error(job.error or MambairError("It was cancelled: the server is closing."))
        record = json.dumps(job.made.told()["record"] | {"notes": job.made.notes})
        return self._file(job, after=lambda: self.jobs.forget(job), mambair_record=record)

    async def submit(self, request: Request) -> Response:
        """The same, without waiting."""
        session = request.query_params.get("session", "")
        if len(session) > 64:
            raise Refused(400, "The name of a session has up to 64 characters.")
        job = await self._accepted(request, session)
        return JSONResponse(told(self.jobs, job), 202, {"Location": f"/api/jobs/{job.id}"})

    async def job(self, request: Request) -> Response:
        job = self._job(request)
        if request.method == "DELETE":
            self.jobs.forget(job)
            return Response(status_code=204)
        return JSONResponse(told(self.jobs, job))

    async def result(self, request: Request) -> Response:
        job = self._job(request)
        if job.made is None:
            raise Refused(409, f"There is no result: the work is {job.state}.")
        return self._file(job, after=lambda: None)

    async def view(self, which: int, request: Request) -> Response:
        """The picture before (0) or after (1), as browsers show it, both in one size."""
        job = self._job(request)
        if job.made is None:
            raise Refused(409, f"There is nothing to compare: the work is {job.state}.")
        async with job.viewing:
            if not job.views:
                pair = await asyncio.to_thread(views, job.source, job.made.file, self.jobs.limits)
                job.views = tuple(self._viewed(data, kind) for data, kind in pair)
                if self.jobs.get(job.id) is None:  # forgotten meanwhile
                    self.jobs.forget(job)
                    raise Refused(404, "The work was removed.")
        file = job.views[which]
        return FileResponse(file, media_type="image/" + file.suffix[1:])

    # --- progress ---

    async def job_events(self, request: Request) -> Response:
        job = self._job(request)
        return self._events(job.id, lambda: bool(job.ended))

    async def session_events(self, request: Request) -> Response:
        return self._events(_client(request.path_params["session"]), lambda: False)

    def _events(self, key: str, over: Callable[[], bool]) -> Response:
        async def stream() -> AsyncIterator[str]:
            with self.jobs.watch(key) as watch:
                yield "retry: 1000\n\n"
                while not self.jobs.closing:
                    changed = await watch.changes(HEARTBEAT)
                    for job in changed:
                        yield f"event: job\ndata: {json.dumps(told(self.jobs, job))}\n\n"
                    if over():
                        return
                    if not changed:
                        yield ": still here\n\n"

        headers = {"X-Accel-Buffering": "no"}  # nginx would hold events back
        return StreamingResponse(stream(), headers=headers, media_type="text/event-stream")

    # --- what there is ---

    async def tasks(self, request: Request) -> Response:
        limits = self.jobs.limits
        bounds = {"bytes": limits.upload, "pixels": limits.pixels, "queue": limits.queue}
        return JSONResponse({"tasks": [_described(form) for form in self.forms.values()], "limits": bounds})

    async def models(self, request: Request) -> Response:
        known = ("name", "task", "scale", "level", "params", "channels", "licence", "good_for", "not_for", "aliases")
        models = [
            {key: getattr(spec, key) for key in known} | {"here": checkpoints.path(spec) is not None}
            for spec in zoo.zoo().values()
        ]
        return JSONResponse({"models": models})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(description(self.forms.values()))

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    # --- parts ---

    async def _accepted(self, request: Request, session: str) -> Job:
        """The picture of a request, in the line. Raises what the handlers of problems know."""
        asked, name = self._asked(request)
        self.jobs.check_room()  # before a byte of the body is read
        placed(asked, name)
        source = await received(request, self.jobs, name)
        client = _client(session) if session else (request.client.host if request.client else "")
        job = Job(client, asked, name, source, session=bool(session))
        try:
            self.jobs.add(job)
        except Exception:
            self.jobs.spool.remove(source)
            raise
        return job

    def _asked(self, request: Request) -> tuple[Asked, str]:
        """What the query asks for, and the harmless name of the picture. Raises UsageError."""
        given = request.query_params.multi_items()
        values = dict(given)
        if len(values) < len(given):
            raise UsageError("A parameter is given twice.")
        form = self.forms.get(values.get("task", ""))
        if form is None:
            raise UsageError(
                "Which task?", f"For example ?task={next(iter(self.forms))}. There are: " + ", ".join(self.forms)
            )
        asked = form.ask({name: value for name, value in values.items() if name not in OWN})
        return asked, harmless(values.get("name", ""))

    def _job(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            raise Refused(404, "There is no such job, or not any more.")
        return job

    def _file(self, job: Job, after: Callable[[], None], **headers: str) -> Response:
        made = job.made
        assert made is not None
        more = {"Content-Disposition": disposition(made.name)}
        more |= {name.replace("_", "-"): value for name, value in headers.items()}
        return Handed(made.file, media_type=made.media_type, headers=more, after=after)

    def _viewed(self, data: bytes, kind: str) -> Path:
        self.jobs.make_room(len(data))
        file = self.jobs.spool.new("." + kind.removeprefix("image/"))
        file.write_bytes(data)
        return file


def _client(session: str) -> str:
    """The key of a page among the clients; no address looks like it."""
    return f"page {session}"


def _described(form: Form) -> dict[str, Any]:
    """A form for the page, with the models that are on this machine."""
    here = [spec.name for spec in zoo.zoo().values() if spec.task == form.task and checkpoints.path(spec)]
    problem = ""
    try:
        form.ask({}).request.nominal()
    except MambairError as error:
        problem = str(error)
    fields = [
        replace(field, words=tuple(here), free=False) if field.name == "model" else field for field in form.fields
    ]
    needs_model = bool(problem and here)
    return {
        "task": form.task,
        "title": form.title,
        "sentence": form.sentence,
        "fields": [_shown(field) for field in fields],
        "needs_model": needs_model,
        "problem": "" if needs_model else problem,
    }


def _shown(field: Field) -> dict[str, Any]:
    return asdict(field) | {"label": field.label}
