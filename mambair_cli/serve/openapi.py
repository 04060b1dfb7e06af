"""The description of the HTTP interface (OpenAPI 3.1), made from the forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mambair_cli import __version__
from mambair_cli.serve.form import Field, Form

_PROBLEM = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what happened and why, as the command line says it"},
        "hint": {"type": "string", "description": "what to do about it"},
    },
}
_JOB = {
    "type": "object",
    "required": ["id", "state", "command"],
    "properties": {
        "id": {"type": "string"},
        "name": {"type": "string"},
        "task": {"type": "string"},
        "state": {"enum": ["waiting", "running", "done", "failed", "cancelled"]},
        "ahead": {"type": "integer", "description": "pictures that come before it"},
        "tiles": {"type": "array", "items": {"type": "integer"}, "description": "done, in all"},
        "seconds": {"type": "number"},
        "command": {"type": "string", "description": "the command line that makes the same bytes"},
        "error": {"type": "string"},
        "hint": {"type": "string"},
        "result": {"type": "object", "description": "name, media type, bytes, notes, and the record of --json"},
    },
}
_REFUSALS = {
    "400": "makes no sense",
    "408": "the upload was too slow",
    "409": "the weights are not on this machine",
    "413": "more bytes than are taken",
    "415": "a form instead of a picture",
    "422": "not a picture that can be restored",
    "503": "the queue is full; Retry-After says when to come again",
}


def description(forms: Iterable[Form]) -> dict[str, Any]:
    """The whole document. One parameter for each option of any task, said to which it belongs."""
    forms = list(forms)
    job = {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}}
    picture = {"image/*": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}}
    key = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    session = {"name": "session", "in": "path", "required": True, "schema": {"type": "string"}}
    page = {"name": "session", "in": "query", "schema": {"type": "string", "maxLength": 64}}
    page["description"] = "work that ends when nobody listens to the events of this session any more"
    upload = {"requestBody": {"required": True, "content": picture}, "parameters": _parameters(forms)}
    events = _answer("server-sent events named job: each holds a Job as JSON", {"text/event-stream": {}})
    view = _answer("a picture for browsers, before and after in one size", picture)
    return {
        "openapi": "3.1.0",
        "info": {"title": "mambair", "version": __version__, "description": "Pictures in, restored pictures out."},
        "security": [{}, {"token": []}],
        "paths": {
            "/api/restore": {
                "post": _operation("Restore a picture and wait for it", _answer("the result", picture), **upload)
            },
            "/api/jobs": {
                "post": _operation(
                    "Restore a picture without waiting",
                    _answer("taken in", job, "202"),
                    requestBody=upload["requestBody"],
                    parameters=[*_parameters(forms), page],
                )
            },
            "/api/jobs/{id}": {
                "parameters": [key],
                "get": _operation("How it stands", _answer("the job", job)),
                "delete": _operation("Cancel it and remove its files", _answer("removed", {}, "204")),
            },
            "/api/jobs/{id}/result": {"parameters": [key], "get": _operation("The result", _answer("it", picture))},
            "/api/jobs/{id}/events": {"parameters": [key], "get": _operation("Its progress", events)},
            "/api/jobs/{id}/before": {"parameters": [key], "get": _operation("To compare: before", view)},
            "/api/jobs/{id}/after": {"parameters": [key], "get": _operation("To compare: after", view)},
            "/api/sessions/{session}/events": {
                "parameters": [session],
                "get": _operation("The progress of all jobs of a session", events),
            },
            "/api/tasks": {"get": _operation("The tasks, their options and the bounds", _json("tasks"))},
            "/api/models": {"get": _operation("The models, and which are on this machine", _json("models"))},
            "/api/openapi.json": {"get": _operation("This description", _json("OpenAPI"))},
            "/healthz": {"get": _operation("Whether the server is up; needs no token", _json("its state"))},
        },
        "components": {
            "schemas": {"Job": _JOB, "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(summary: str, answer: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    refusals = {status: why for status, why in _REFUSALS.items() if "requestBody" in more}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    failed = {status: {"description": why, "content": problem} for status, why in refusals.items()}
    default = {"description": "any other failure", "content": problem}
    return {"summary": summary, **more, "responses": {**answer, **failed, "default": default}}


def _answer(text: str, content: Mapping[str, Any], status: str = "200") -> dict[str, Any]:
    return {status: {"description": text, "content": content}}


def _json(text: str) -> dict[str, Any]:
    return _answer(text, {"application/json": {"schema": {"type": "object"}}})


def _parameters(forms: list[Form]) -> list[dict[str, Any]]:
    name = {"name": "name", "in": "query", "schema": {"type": "string"}}
    name["description"] = "of the picture's file: the result is called after it, in its format"
    task = {"name": "task", "in": "query", "required": True, "schema": {"enum": [form.task for form in forms]}}
    options: dict[str, tuple[Field, list[str]]] = {}
    for form in forms:
        for field in form.fields:
            options.setdefault(field.name, (field, []))[1].append(form.task)
    return [task, name, *(_parameter(field, tasks, len(forms)) for field, tasks in options.values())]


def _parameter(field: Field, tasks: list[str], most: int) -> dict[str, Any]:
    only = "" if len(tasks) == most else f" ({', '.join(tasks)})"
    return {"name": field.name, "in": "query", "description": field.help + only, "schema": _schema(field)}


def _schema(field: Field) -> dict[str, Any]:
    if field.switch:
        return {"type": "boolean"}
    bounds = {"minimum": field.low, "maximum": field.high}
    number = {"type": "integer" if field.whole else "number"} | {k: v for k, v in bounds.items() if v is not None}
    names = [word for word in field.words if not (field.number and word[0].isdigit())]
    if not field.number:
        return {"enum": names} if names and not field.free else {"type": "string"}
    return {"anyOf": [{"enum": names}, number]} if names else number
