"""JSON of parameters, refused in the words of Go's ``encoding/json``: clients show and match them."""

from __future__ import annotations

import json
import re
from typing import Any

_WORDS = (
    ("Expecting property name", "looking for beginning of object key string"),
    ("Illegal trailing comma", "looking for beginning of value"),
    ("Expecting value", "looking for beginning of value"),
    ("Expecting ':'", "after object key"),
    ("Extra data", "after top-level value"),
    ("Invalid \\", "in string escape code"),
    ("Invalid control character", "in string literal"),
)
"""What Python's decoder says, what Go's scanner says."""
_ESCAPES = {"\n": "n", "\r": "r", "\t": "t"} | {chr(n): f"x{n:02x}" for n in range(32) if n not in (9, 10, 13)}
"""How Go quotes a control character."""
_KINDS = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}


def _no_constant(name: str) -> Any:
    raise ValueError(f"invalid character {name[:1]!r} looking for beginning of value")


def decode(text: str) -> Any:
    """The value.  Raises ValueError with Go's words."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(_syntax(text, error)) from None
    except RecursionError:
        raise ValueError("exceeded max depth") from None


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    at = error.pos
    if error.msg.startswith("Expecting property name") and text[at : at + 1] == ",":
        at += 1
    if at >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        return "unexpected end of JSON input"
    words = next((said for start, said in _WORDS if error.msg.startswith(start)), "")
    if not words:
        words = "after array element" if _in_array(text[:at]) else "after object key:value pair"
    character = text[at]
    escaped = character in "'\\" or character < " "
    shown = f"'\\{_ESCAPES.get(character, character)}'" if escaped else f"'{character}'"
    return f"invalid character {shown} {words}"


def _in_array(text: str) -> bool:
    """Is the innermost bracket that is open at the end of the text a square one?"""
    depth: list[str] = []
    for match in re.finditer(r'"(?:\\.|[^"\\])*"|[][{}]', text):
        if match[0] in "[{":
            depth.append(match[0])
        elif match[0] in "]}" and depth:
            depth.pop()
    return depth[-1:] == ["["]


def mismatch(value: Any, wanted: str) -> str:
    """What Go says of a value that is no ``wanted`` (a Go type)."""
    return f"json: cannot unmarshal {_KINDS.get(type(value), 'null')} into Go value of type {wanted}"
