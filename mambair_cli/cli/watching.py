"""`--watch`: what the commands of the tasks do with a folder that is watched."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mambair_cli import __version__, console
from mambair_cli.cli.options import RestoreOptions
from mambair_cli.errors import UsageError

if TYPE_CHECKING:
    from mambair_cli.cli.progress import Reporter
    from mambair_cli.files import Job, Naming
    from mambair_cli.restoring.picture import Load
    from mambair_cli.restoring.request import Request
    from mambair_cli.restoring.steps import Settings


def checked(options: RestoreOptions) -> RestoreOptions:
    """The options, with the folder that is watched, if any, as their input. Raises UsageError."""
    if options.watch is None:
        return options
    from mambair_cli import files, places
    from mambair_cli.restoring import watch

    if options.inputs or options.files_from:
        raise UsageError("--watch takes the pictures of its folder and no others", "Leave the other names out.")
    if options.output is not None and places.is_elsewhere(options.output):
        raise UsageError("results of a watched folder stay on this machine", "Use -o FOLDER/.")
    if options.output is not None and files.folder_of(options.output) is None:
        raise UsageError("what comes of a watched folder does not fit into one file", "Use -o FOLDER/.")
    watch.check(options.watch)
    return replace(options, inputs=[str(options.watch)])


def watch(
    request: Request, naming: Naming, load: Load, settings: Settings, options: RestoreOptions, reporter: Reporter
) -> None:
    """Restore what is in the folder and what arrives, until a signal ends it."""
    from mambair_cli import files, shards
    from mambair_cli.restoring import watch

    folder = Path(str(options.watch))
    shard = shards.parse(options.shard, os.environ) if options.shard else shards.WHOLE

    def look() -> list[Job]:
        jobs = files.plan(files.find([str(folder)], options.recursive), naming, options.force, strict=False)
        return [job for job in jobs if shard.holds(job.name)]

    command = repr((__version__, request, settings.max_pixels))
    journal = watch.Journal(files.folder_of(naming.output) or folder, folder, command, fresh=options.force)
    console.voice.say(f"watching {folder} for pictures, until Ctrl-C", None)
    watch.watch(folder, look, journal, request, load, settings, reporter)
