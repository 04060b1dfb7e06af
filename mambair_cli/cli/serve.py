"""serve: a page and an HTTP interface on this machine."""

from __future__ import annotations

import secrets
import socket
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated

import typer

from mambair_cli import console
from mambair_cli.cli.options import Precision, Quiet, Tile
from mambair_cli.errors import MambairError, UsageError
from mambair_cli.restoring.running import Running
from mambair_cli.tasks import TASKS

if TYPE_CHECKING:
    from mambair_cli.serve.guard import Rules

WHO = "Who may ask"
BOUNDS = "Bounds"
_SHORTEST_TOKEN = 12  # characters of one that was made up by people

Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0: wherever others can reach.")]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0: any that is free.")]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
Token = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        envvar="MAMBAIR_TOKEN",
        help="What clients have to know. Default: none on this machine alone, else one made up and printed.",
        rich_help_panel=WHO,
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A further name of this server, as of a proxy before it.", rich_help_panel=WHO),
]
Queue = Annotated[int, typer.Option(metavar="N", min=1, help="Pictures that may wait.", rich_help_panel=BOUNDS)]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Of a picture, and of a result. Default: 40 million and 400 million.",
        show_default=False,
        rich_help_panel=BOUNDS,
    ),
]
MaxMegabytes = Annotated[float, typer.Option(metavar="N", min=0.001, help="Of a file.", rich_help_panel=BOUNDS)]
ServeDevice = Annotated[
    str,
    typer.Option(
        metavar="auto|all|cpu|cuda:0,cuda:1|mps",
        envvar="MAMBAIR_DEVICE",
        help="Where to compute; several devices share the queue.",
        rich_help_panel="How it runs",
    ),
]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 7868,
    open: Open = False,
    token: Token = None,
    allow_host: AllowHost = None,
    queue: Queue = 64,
    max_pixels: MaxPixels = None,
    max_megabytes: MaxMegabytes = 100.0,
    device: ServeDevice = "auto",
    precision: Precision = "auto",
    tile: Tile = "auto",
    quiet: Quiet = False,
) -> None:
    """A page to drop pictures on, and an HTTP interface for scripts.

    [bold]Examples[/]

    \b
    mambair serve --open                        a page in your browser
    mambair serve --host 0.0.0.0                for the local network, with a token
    curl --data-binary @in.jpg -o out.png \\
      'http://127.0.0.1:7868/api/restore?task=upscale&scale=4'

    Works offline, and only for this machine unless told otherwise. Models
    are those that are here: `mambair models download` fetches others.
    It needs the extra: pip install 'mambair\\[web]'.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"serve needs an extra that is not installed: {error}.", "pip install 'mambair[web]'"
        ) from error
    from mambair_cli.serve.limits import MEGABYTE, Limits
    from mambair_cli.serve.server import Server
    from mambair_cli.workers.engines import devices

    voice = console.set_up(quiet)
    limits = Limits(queue=queue, upload=round(max_megabytes * MEGABYTE))
    if max_pixels:
        limits = replace(limits, pixels=max_pixels, result=max_pixels)
    rules = _rules(host, token, allow_host or [])
    runs = [Running(name, precision, tile) for name in dict.fromkeys(devices(device))]
    listening = _listen(host, port)
    with voice.status("loading"):
        from mambair_cli.cli.forms import form_of

        forms = {task.name: form_of(task) for task in TASKS.values()}
        server = Server(runs, forms, rules, limits)
    url = _url(host, listening.getsockname()[1], rules.token)
    typer.echo(url)
    reach = "for this machine only" if rules.loopback else "for all who can reach it and know the token"
    voice.say(f"open it in a browser: {reach}. Ctrl-C ends it.", None)
    if open:
        import webbrowser

        webbrowser.open(url)
    server.run(listening)


def _rules(host: str, token: str | None, names: list[str]) -> Rules:
    """Whom to answer. Who listens beyond this machine gets a token, one of their own or a new one."""
    from mambair_cli.serve.guard import Rules

    if token is not None and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UsageError(
            f"The token is too easy to guess, or no plain text: it needs {_SHORTEST_TOKEN} characters of ASCII.",
            "Leave --token out: one is made up and printed.",
        )
    known = {"localhost", *(name.lower() for name in names)}
    if _is_loopback(host):
        return Rules(frozenset(known), True, token)
    own = socket.gethostname().lower()
    return Rules(frozenset(known | {own, f"{own}.local"}), False, token or secrets.token_urlsafe(24))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises MambairError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(256)
    except OSError as error:
        listening.close()
        raise MambairError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}",
            "Another server may be there already; --port takes another number, 0 any that is free.",
        ) from error
    return listening


def _url(host: str, port: int, token: str | None) -> str:
    """Where the page is; the token stands behind #, which browsers keep to themselves."""
    name = _own_address() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"#token={token}" if token else "")


def _own_address() -> str:
    """The address at which others on the network see this machine; its name where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing: it only asks the system for the way
            return str(asking.getsockname()[0])
        except OSError:
            return socket.gethostname()
