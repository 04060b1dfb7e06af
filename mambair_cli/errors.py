"""Every failure a user can meet, as what happened, why, and what to do; caught once, in `cli.app`."""

from __future__ import annotations


class MambairError(Exception):
    """Something the user must know. `message` says what and why, `hint` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(MambairError):
    """The command line or an API argument makes no sense."""

    exit_code = 2


class Unavailable(MambairError):
    """Weights or data cannot be had: offline, gone, refused, or not what they should be."""

    exit_code = 3


class BadCheckpoint(Unavailable):
    """A file is not a checkpoint, or not one of the expected architecture."""


class BadImage(MambairError):
    """A picture cannot be read, or cannot be handled without losing something."""
