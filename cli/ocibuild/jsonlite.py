"""JSON without the ``json`` package, which imports ``re`` and ``enum``: half of a command's start.

The scanner and the string encoder are CPython's own, in C, that ``json`` itself stands on; where an
interpreter lacks them, ``json`` does the work.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"


def _constant(text: str) -> float:
    return float(text.replace("Infinity", "inf"))


class _Context:
    """What ``_json.make_scanner`` reads of a JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_constant)


try:
    from _json import encode_basestring_ascii as _quote
    from _json import make_scanner

    _scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_Context())  # type: ignore[arg-type]
except ImportError:
    from json import JSONDecoder
    from json.encoder import encode_basestring_ascii as _quote

    _scan = JSONDecoder().raw_decode


def loads(data: bytes | str) -> Any:
    """One JSON value.  Raises ValueError."""
    text = (data if isinstance(data, str) else data.decode()).strip(_SPACE)
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("no JSON value") from None
    except RecursionError:
        raise ValueError("JSON too deeply nested") from None
    if end != len(text):
        raise ValueError(f"extra data at character {end}")
    return value


def dumps(value: object) -> str:
    """A value of dicts, lists, strings, numbers, booleans and None as one line.  Raises TypeError."""
    if isinstance(value, str):
        quoted: str = _quote(value)
        return quoted
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quote(str(k))}:{dumps(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(dumps, value)) + "]"
    raise TypeError(f"can't be JSON: {type(value).__name__}")
