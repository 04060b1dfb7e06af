"""The application: its commands, and the one place where failures become messages and exit statuses."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, NoReturn

import typer

from mambair_cli import __version__, atomic, console
from mambair_cli.cli import bench, compare, doctor, export, models, restore, serve, speed, train
from mambair_cli.cli.help import Command, Group
from mambair_cli.cli.options import completion
from mambair_cli.errors import MambairError
from mambair_cli.tasks import TASKS

# The commands beside those of the tasks.
OTHERS: dict[str, Callable[..., None]] = {
    "compare": compare.compare,
    "serve": serve.serve,
    "bench": bench.bench,
    "speed": speed.speed,
    "train": train.train,
    "export": export.export,
    "doctor": doctor.doctor,
}


class Stopped(BaseException):
    """SIGINT or SIGTERM. Not an Exception: no file's failure handling may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mambair {__version__}")
        raise typer.Exit


def about(
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Restore pictures with state-space models: upscale, denoise, derain, decompress.

    [bold]Examples[/]

    \b
    mambair upscale photo.jpg                   photo_x4.jpg, next to it
    mambair upscale -s 2 -r album/ -o large/    a whole tree, mirrored
    mambair denoise --sigma auto scan.png       scan_denoised.png
    mambair decompress old.jpg -o - > new.png   through pipes
    mambair models list                         what there is

    Exit status: 0 all done, 1 a file failed, 2 wrong usage, 3 weights or
    data unavailable, 130 interrupted.
    """


def application() -> typer.Typer:
    """The commands: one for each task, and those about models."""
    app = typer.Typer(
        name="mambair",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=about,
        cls=Group,
    )
    for task in TASKS.values():
        app.command(task.name, cls=Command)(restore.command_of(task))
    for name, command in OTHERS.items():
        app.command(name, cls=Command)(command)
    app.add_typer(models.app, name="models")
    app.command("help", cls=Command)(show_help)
    return app


def show_help(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND]", autocompletion=completion(*TASKS, *OTHERS, "models"), show_default=False),
    ] = None,
) -> None:
    """Show the help of a command, as COMMAND --help does."""
    application()([*(command or ()), "--help"], prog_name="mambair")


def _escape(stream: object) -> None:
    """What a pipe or terminal cannot encode is written as an escape: a name, or the sigma of noise on Windows."""
    if isinstance(stream, TextIOWrapper) and (stream.errors, stream.encoding) != ("surrogateescape", "utf-8"):
        stream.reconfigure(errors="backslashreplace")


def _open_closed_streams() -> None:
    """Streams that were closed (`>&-`) fail when they are used, instead of not being there.

    They are opened for the wrong direction; and no picture can get the number of one of them, into which libraries
    may write.
    """
    for number, name, mode, direction in (
        (0, "stdin", "r", os.O_WRONLY),
        (1, "stdout", "w", os.O_RDONLY),
        (2, "stderr", "w", os.O_WRONLY),  # nowhere is left to tell of it
    ):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, direction)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 -- until the end of the process


def run(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    _open_closed_streams()
    warnings.filterwarnings("ignore", module="PIL")  # of oddities in files that it reads all the same
    console.set_up()
    for stream in (sys.stdout, sys.stderr):
        _escape(stream)
    try:
        try:
            application()(args, prog_name="mambair")
        finally:
            if sys.stdout:
                sys.stdout.flush()
        sys.exit(0)
    except MambairError as error:
        console.voice.error(error)
        sys.exit(error.exit_code)
    except OSError as error:  # pictures have their own handling: mostly this is stdout
        if not isinstance(error, BrokenPipeError):
            place = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
            reason = "stdout is closed" if error.errno == errno.EBADF else error.strerror or error
            console.voice.error(MambairError(f"cannot go on: {reason}{place}"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else what is left is tried again at the exit
        sys.exit(1)
    except Stopped as stopped:
        # Not sys.exit: it would wait for encoders in other threads.
        atomic.abandon()
        sys.stderr.flush()
        os._exit(stopped.status)


def _stop(number: int, frame: FrameType | None) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)
