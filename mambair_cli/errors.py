"""Every failure a user can meet, as what happened, why, and what to do; caught once, in `cli.app`."""

from __future__ import annotations

import re


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


class AlreadyThere(MambairError):
    """Something else has written a file meanwhile, and it is not to be replaced."""


_SHORT = {"\a": r"\a", "\b": r"\b", "\t": r"\t", "\n": r"\n", "\v": r"\v", "\f": r"\f", "\r": r"\r"}
# What a terminal obeys or is misled by: control characters (C0, DEL, C1), separators of lines, what turns the
# direction of writing, and bytes that are no UTF-8 (Python keeps them as surrogates).
_HOSTILE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, lines: bool = False) -> str:
    """Text that no terminal obeys: control characters in it are written as git writes them, `\\033` and `\\n`.

    `lines`: line breaks are the text's own and stay.
    """
    if lines:
        return "\n".join(printable(line) for line in text.split("\n"))
    return _HOSTILE.sub(lambda sign: _escaped(sign[0]), text)


def _escaped(sign: str) -> str:
    errors = "surrogateescape" if "\udc80" <= sign <= "\udcff" else "surrogatepass"
    return _SHORT.get(sign) or "".join(f"\\{byte:03o}" for byte in sign.encode("utf-8", errors))
