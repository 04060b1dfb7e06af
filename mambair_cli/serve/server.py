"""One server, from its devices to its end."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import uvicorn

from mambair_cli import scan
from mambair_cli.restoring.restorer import pick_device
from mambair_cli.restoring.running import Running
from mambair_cli.serve import deadlines
from mambair_cli.serve.app import application
from mambair_cli.serve.form import Form
from mambair_cli.serve.guard import Rules
from mambair_cli.serve.jobs import Jobs
from mambair_cli.serve.limits import Limits
from mambair_cli.serve.spool import Spool
from mambair_cli.serve.worker import Worker


class Server(uvicorn.Server):
    """Serves until it is told to stop (SIGINT, SIGTERM, `should_exit`); then work ends and files go.

    `runs`: how networks run, one record a device. Raises UsageError for devices that are not there.
    """

    def __init__(
        self, runs: Sequence[Running], forms: Mapping[str, Form], rules: Rules, limits: Limits | None = None
    ) -> None:
        for running in runs:
            scan.chosen_backend(pick_device(running.device))
        limits = limits or Limits()
        self.spool = Spool(limits.folder)
        self.jobs = Jobs([Worker(running) for running in runs], self.spool, limits)
        app = application(self.jobs, forms, rules)
        super().__init__(uvicorn.Config(app, lifespan="on", **deadlines.options(limits.connections)))

    def run(self, *listening: socket.socket) -> None:  # type: ignore[override]
        """Serve at these sockets."""
        try:
            super().run(list(listening))
        finally:
            self.spool.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.jobs.hang_up()  # streams of events would keep it waiting
        await super().shutdown(sockets)
