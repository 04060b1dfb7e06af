"""What a report of a bug needs, as text that holds nothing private: no paths, no names, no addresses."""

from __future__ import annotations

import getpass
import os
import platform
import re
import sys
import tempfile
from importlib import metadata
from typing import Any

HEAD = """\
What mambair knows of the machine, for a report of a bug. Paths are cut down to their last part; the names of the
user and of the machine, addresses, and files that are no published model are left out. Read it before you send it."""
PATHS = ("MAMBAIR_CACHE", "MAMBAIR_DATA", "MAMBAIR_ZOO", "MAMBAIR_MODEL")  # settings that may hold a path
# An absolute path with at least one folder in it, or an address; what follows the last separator is kept of a path.
_PATH = re.compile(r"(?<![\w.~…/\\])(?:[A-Za-z]:[\\/]|\\\\|/)(?:[^\s\\/:;,'\"()]+[\\/])+")
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
SHORTEST_NAME = 3  # of users and machines that are looked for: shorter ones are parts of words


def text(report: dict[str, Any], shown: str) -> str:
    """The whole file: `doctor`'s report as it is shown, the packages, how torch was built, a check of the scan."""
    sections = {"Packages": _packages(), "torch": _torch(), "Check of the scan": _check(report["scan"])}
    parts = [HEAD, shown.strip(), *(f"{title}\n{_indented(body)}" for title, body in sections.items())]
    return without_private("\n\n".join(parts)) + "\n"


def public(report: dict[str, Any], published: set[str]) -> dict[str, Any]:
    """`doctor`'s report without what only its owner should know: foreign files in the cache, paths in settings."""
    cache, environment = report["cache"], report["environment"]
    known = [file for file in cache["files"] if file["name"] in published]
    own = len(cache["files"]) - len(known)
    others = [{"name": f"(others: {own})", "bytes": cache["bytes"] - sum(f["bytes"] for f in known)}] if own else []
    told = {name: "(set)" if name in PATHS else value for name, value in environment.items()}
    place = {"path": "(set by MAMBAIR_CACHE)" if "MAMBAIR_CACHE" in environment else "(the system's place)"}
    return {**report, "cache": {**cache, **place, "files": known + others}, "environment": told}


def without_private(text: str) -> str:
    """Text with its paths cut to their last part, and without addresses and the names of this user and machine."""
    text = _ADDRESS.sub("(address)", text)
    folders = {os.path.expanduser("~"), os.getcwd(), sys.prefix, sys.base_prefix, tempfile.gettempdir()}
    for folder in sorted(folders - {os.sep}, key=len, reverse=True):  # these may hold spaces
        text = text.replace(folder + os.sep, "/…/")
    text = _PATH.sub("…/", text).replace("/…/", "…/")
    for name, shown in ((_user(), "(user)"), (platform.node().partition(".")[0], "(machine)")):
        if len(name) >= SHORTEST_NAME:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", shown, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in containers
        return ""


def _packages() -> str:
    """What mambair can use, with its version here; `-` where it is not."""
    names = {re.split(r"[\s\[;<>=!~]", wanted, maxsplit=1)[0] for wanted in metadata.requires("mambair") or ()}
    return "\n".join(f"{name} {_version(name)}" for name in sorted(names - {"mambair"}, key=str.lower))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _torch() -> str:
    import torch

    built = [line for line in torch.__config__.show().splitlines() if "Build settings" not in line]
    return "\n".join([*built, torch.__config__.parallel_info().strip()])


def _check(scan: dict[str, Any]) -> str:
    """Whether the scan that is used on each device gives what plain PyTorch gives, on a small random map."""
    import torch

    from mambair_cli.scan import ordered_scan, orders

    random = torch.Generator().manual_seed(0)
    x, proj = torch.randn(1, 64, 20, generator=random), torch.randn(1, 64, 4, 2 + 2 * 8, generator=random)
    weight, bias = torch.randn(4, 20, 2, generator=random), torch.randn(4, 20, generator=random)
    A, D = -torch.rand(4, 20, 8, generator=random), torch.ones(4, 20)
    inputs = x, proj, weight, bias, A, D, orders.cross(8, 8, torch.device("cpu"))
    truth = ordered_scan(*inputs, backend="torch")
    lines = []
    for device in scan["chosen"]:
        try:
            x, proj, weight, bias, A, D, paths = (tensor.to(device) for tensor in inputs)
            result = ordered_scan(x, proj, weight, bias, A, D, paths).cpu()
            lines.append(f"{device}: differs by {float((result - truth).abs().max() / truth.abs().max()):.1e}")
        except Exception as error:  # whatever a broken kernel or driver does is what the report is for
            lines.append(f"{device}: {type(error).__name__}: {error}")
    return "\n".join(lines)


def _indented(body: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in body.splitlines())
