"""Who may ask: the names that this server answers to, the pages that may post, the token, and the headers that keep
browsers from doing more with an answer than they should."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mambair_cli.serve.problems import problem

# Scripts and styles are files of ours; pictures may also be blobs that the page has made. No string becomes code.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
OPEN = "/api/"  # what a token is asked for; the page itself, its script and /healthz hold nothing of anybody


@dataclass(frozen=True)
class Rules:
    """Whom a server answers. `names`: of hosts, beside addresses; `token`: what clients have to know."""

    names: Collection[str] = ("localhost",)
    loopback: bool = True  # only addresses of this machine
    token: str | None = None

    def host_is_ours(self, header: str) -> bool:
        """Whether a Host header names this server. A page whose own name leads here (DNS rebinding) sends its name:
        addresses are safe."""
        name = header.lower()
        if name.startswith("["):
            name, _, port = name[1:].partition("]")
            port = port.removeprefix(":")
        else:
            name, _, port = name.partition(":")
        if port and not port.isdigit():
            return False
        if name.rstrip(".") in self.names:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback

    def knows(self, header: str) -> bool:
        """Whether an Authorization header carries the token."""
        if self.token is None:
            return True
        kind, _, word = header.partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(word.strip().encode(), self.token.encode())


class Guard:
    """Checks every request before anything else sees it, and signs every answer."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        app = self._refusal(scope) or self.app
        return await app(scope, receive, signed)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.rules.host_is_ours(host):
            return problem(
                421,
                f"This server does not answer to the name {host!r}.",
                "If it is one of its names, start it with --allow-host NAME.",
            )
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
        foreign |= headers.get("sec-fetch-site") in ("cross-site", "same-site")
        acts = scope["path"].startswith(OPEN) or scope["method"] not in ("GET", "HEAD")  # more than opening the page
        if foreign and acts:
            return problem(403, "A page of another site asked for this.", "Open the page of this server itself.")
        if scope["path"].startswith(OPEN) and not self.rules.knows(headers.get("authorization", "")):
            return problem(
                401,
                "The token is missing or wrong.",
                "Send it as: Authorization: Bearer TOKEN. Who runs the server knows it.",
                WWW_Authenticate='Bearer realm="mambair"',
            )
        return None
