"""Escaping of names (of files, classes, studies) where some characters have a special meaning.

A terminal takes ANSI escapes, a spreadsheet formulas, Markdown its markup, and UTF-8 no half of a character; a name may
hold any of these. What is stored stays as it is: names change where they are shown alone.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Beyond ASCII's control characters: line separators, halves of characters, and what turns the direction of writing.
_INVISIBLE = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_HIDDEN = re.compile(rf"[\x00-\x1f{_INVISIBLE}]")
_NOT_IN_JSON = re.compile(f"[{_INVISIBLE}]")  # which escapes the others itself
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

_FORMULA = re.compile(r"'*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
_GUARDED = re.compile(rf"'{_FORMULA.pattern}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

_MARKUP = re.compile(r"[\\`*\[\]<>|#~&!$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word marks nothing


def printable(text: object, keep: str = "") -> str:
    r"""Text that is safe to print on a terminal and valid UTF-8: other characters become ``\x1b``, ``\n``, …

    A byte of a file name that is not UTF-8, which Python reads as half a character, becomes ``\xff``.

    Args:
        text: anything; its ``str``.
        keep: characters that stay, such as the line ends of a text of several lines.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), str(text))


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # surrogateescape
        number -= 0xDC00
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


def guarded(text: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula: one that begins like it gets an apostrophe first.

    Numbers stay numbers. See :func:`unguarded` for the way back.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def unguarded(text: str) -> str:
    """What :func:`guarded` was given; cells of a file that was written without it stay as they are."""
    return text[1:] if _GUARDED.match(text) else text


def cell(text: object) -> str:
    """A cell of a CSV file for people: :func:`printable` and :func:`guarded`."""
    return guarded(printable(text))


def counted(number: int, what: str) -> str:
    """``1 point``, ``2 points``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def markdown(text: object) -> str:
    """Text in one line of Markdown, also of a table, of which nothing is markup."""
    return _MARKUP.sub(lambda found: "&#124;" if found[0] == "|" else f"\\{found[0]}", printable(text))


def json_line(content: Any) -> str:
    """JSON in one line, readable, with every name exactly as it is: what UTF-8 or a terminal cannot take is escaped."""
    text = json.dumps(content, ensure_ascii=False)
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
