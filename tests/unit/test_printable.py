"""Text from outside cannot control a terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest

from llmosd.printable import printable, printable_json, printable_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\x1b]0;title\x1b\\", "\\x1b]0;title\\x1b\\"),
        ("\x9b31m", "\\x9b31m"),
        ("over\rwritten", "over\\rwritten"),
        ("delete \x7f", "delete \\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("half \ud800", "half \\ud800"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("schön 日本語 👩‍🚀 שלום", "schön 日本語 👩‍🚀 שלום"),
    ],
)
def test_control_characters_are_escaped_and_text_is_not(text, shown):
    assert printable(text) == shown


def test_no_control_character_survives():
    every = "".join(map(chr, range(0x110000)))
    assert {unicodedata.category(char) for char in printable(every)} & {"Cc", "Cs", "Zl", "Zp"} == {"Cc"}
    assert {char for char in printable(every) if unicodedata.category(char) == "Cc"} == {"\n", "\t"}


def test_a_line_stays_a_line():
    assert printable_line("a\nb\tc\x1b") == "a\\nb\\tc\\x1b"


def test_json_of_ascii_characters_cannot_control_a_terminal_either():
    assert printable_json('"delete \x7f"') == '"delete \\u007f"'


def test_json_keeps_its_meaning():
    text = "\x9b31m \u202e 𝄞 é"
    for ascii_only in (False, True):
        shown = printable_json(json.dumps(text, ensure_ascii=False), ascii_only=ascii_only)
        assert json.loads(shown) == text
        assert printable(shown) == shown
        assert shown.isascii() == ascii_only
