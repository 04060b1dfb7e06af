"""What is said to a terminal is not obeyed by it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambair_cli.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2J\x1b]0;title\x07.png", r"a\033[2J\033]0;title\a.png"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x9b31m", r"\302\23331m"),  # C1's own CSI
        ("photo\u202egnp.exe", r"photo\342\200\256gnp.exe"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\351.png"),
        ("\ud800", r"\355\240\200"),
        ("Ğüneş 日本 👩\u200d👩 σ.png", "Ğüneş 日本 👩\u200d👩 σ.png"),
        (r"C:\new\table.png", r"C:\new\table.png"),
    ],
)
def test_control_characters_are_written_as_git_does(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_nothing_that_a_terminal_obeys_gets_through(text: str) -> None:
    shown = printable(text)
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in shown)
    assert printable(shown) == shown
    shown.encode("utf-8")
    assert printable(text, lines=True).split("\n") == [printable(line) for line in text.split("\n")]
