"""One instruction's line → a node: the name, the flags, and the words by the rules of that instruction."""

from __future__ import annotations

import json
import re

from .faults import Fault
from .gotext import SPACES, SURROGATES, quote, trim
from .syntax import Node

MAX_ONBUILD = 8
"""ONBUILD within ONBUILD is no instruction; this deep it isn't even read."""

_BLANK = re.compile(r"[\t\v\f\r ]+")
_SPACE_SET = frozenset(SPACES)
_WORD_END = re.compile(f"[{SPACES}]")


def read(line: str, escape: str, depth: int = 0) -> Node:
    """Read a joined line.  Raises Fault."""
    parts = _BLANK.split(trim(line), maxsplit=1)
    name, rest = parts[0], ""
    flags: list[str] = []
    if len(parts) == 2:
        rest = parts[1]
        if rest.startswith("--") or rest[:1] in _SPACE_SET:
            flags, rest = split_flags(rest)
        rest = trim(rest)
    node = Node(name, [], flags, line)
    kind = _KINDS.get(name.lower())
    if kind == "sub":
        if rest:
            if depth >= MAX_ONBUILD:
                raise Fault("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
            node.child = read(rest, escape, depth + 1)
            node.args = [""]
    elif kind == "pairs":
        node.args = _pairs(rest, name.upper(), escape)
    elif kind == "names":
        node.args = split_words(rest, escape)
    elif kind == "health":
        _read_health(node, rest)
    elif kind == "string":
        node.args = [rest] if rest else []
    elif kind == "list":
        node.args = _BLANK.split(rest) if rest else []
    elif kind in ("json", "jsonlist"):
        _read_json(node, rest, as_list=kind == "jsonlist")
    else:
        node.args = [""]  # an unknown instruction: its name is the error, later
    return node


_KINDS = {
    "add": "jsonlist", "arg": "names", "cmd": "json", "copy": "jsonlist", "entrypoint": "json",
    "env": "pairs", "expose": "list", "from": "list", "healthcheck": "health", "label": "pairs",
    "maintainer": "string", "onbuild": "sub", "run": "json", "shell": "json", "stopsignal": "string",
    "user": "string", "volume": "jsonlist", "workdir": "string",
}  # fmt: skip


def _read_json(node: Node, rest: str, *, as_list: bool) -> None:
    """The exec form where it is one; anything else silently is text, or words."""
    items = json_array(rest) if rest else None
    if items is not None:
        node.args, node.json = items, True
    elif rest:
        node.args = _BLANK.split(rest) if as_list else [rest]


def _read_health(node: Node, rest: str) -> None:
    """The type ends at a byte that is white space by itself, be it in the midst of a character."""
    raw = rest.encode("utf-8", "surrogateescape").decode("latin-1")
    found = _WORD_END.search(raw)
    kind = raw[: found.start()] if found else raw
    if not kind:
        return
    kind, command = (
        part.encode("latin-1").decode("utf-8", "surrogateescape") for part in (kind, raw[len(kind) :].lstrip(SPACES))
    )
    _read_json(node, command, as_list=False)
    node.args = [kind, *node.args]


def _constant(_text: str) -> object:
    raise ValueError("not JSON")


def _number(text: str) -> float:
    if text[1:400].isdigit() and len(text) > 300:
        raise ValueError("out of range")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("out of range")
    return value


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_int=_number, parse_float=_number)


def json_array(text: str) -> list[str] | None:
    """The strings of a JSON array, or None for what is no JSON array.

    Raises Fault for an array that holds something else."""
    text = text.lstrip(SPACES)
    if not text.startswith("["):
        return None
    try:
        value = _DECODER.decode(text)
    except ValueError:
        return None
    except RecursionError:
        if text.count("[") != text.count("]"):
            return None
        value = [None]
    if not all(isinstance(item, str) for item in value):
        raise Fault("when using JSON array syntax, arrays must be comprised of strings only", mark="[")
    return [SURROGATES.sub("\ufffd", item) for item in value]


def split_flags(line: str) -> tuple[list[str], str]:
    """``--a=b --c rest`` → (["--a=b", "--c"], "rest").  Quotes go; a bare ``--`` ends the flags.

    BuildKit reads flags byte by byte, so that other than ASCII comes out as Latin-1; so it is here."""
    if line.isascii():
        return _split_flags(line)
    raw = line.encode("utf-8", "surrogateescape").decode("latin-1")
    flags, rest = _split_flags(raw)
    return flags, rest.encode("latin-1").decode("utf-8", "surrogateescape")


def _split_flags(line: str) -> tuple[list[str], str]:
    flags: list[str] = []
    pos, end = 0, len(line)
    while True:
        while pos < end and line[pos] in _SPACE_SET:
            pos += 1
        if not line.startswith("--", pos):
            return flags, line[pos:]
        word, pos, had_quotes = _flag_word(line, pos)
        if word == "--":
            return flags, line[pos:]
        if word or had_quotes:
            flags.append(word)


def _flag_word(line: str, pos: int) -> tuple[str, int, bool]:
    """(word, where it ends, whether it had quotes)."""
    out: list[str] = []
    quote_char, had_quotes = "", False
    end = len(line)
    while pos < end:
        char = line[pos]
        if not quote_char and char in _SPACE_SET:
            break
        pos += 1
        if char == quote_char:
            quote_char = ""
            continue
        if not quote_char and char in "'\"":
            quote_char, had_quotes = char, True
            continue
        if char == "\\":
            if pos == end:
                break
            char = line[pos]
            pos += 1
        out.append(char)
    return "".join(out), pos, had_quotes


def split_words(rest: str, escape: str) -> list[str]:
    """Words at white space; quotes and escape tokens stay, and keep white space together."""
    if "'" not in rest and '"' not in rest and escape not in rest:
        return [word for word in re.split(_WORD_END, rest) if word]
    pattern = _word_pattern(escape)
    out: list[str] = []
    pos = 0
    while pos < len(rest):
        if rest[pos] in _SPACE_SET:
            pos += 1
            continue
        found = pattern.match(rest, pos)
        if found is None:
            break
        word, pos = found[0], found.end()
        if pos == len(rest) and _dangling(word, escape):
            word = word[:-1]  # an escape token at the very end goes
            if not word:
                break
        out.append(word)
    return out


def _word_pattern(escape: str) -> re.Pattern[str]:
    pattern = _WORD_PATTERNS.get(escape)
    if pattern is None:
        token = re.escape(escape)
        pattern = re.compile(
            rf"""(?:[^{SPACES}'"{token}]+|'[^']*(?:'|\Z)|"(?:[^"{token}]+|{token}.)*+(?:"|{token}?\Z)|{token}(?:.|\Z))++""",
            re.DOTALL,
        )
        _WORD_PATTERNS[escape] = pattern
    return pattern


_WORD_PATTERNS: dict[str, re.Pattern[str]] = {}


def _dangling(word: str, escape: str) -> bool:
    """Whether the word ends in an escape token that quotes nothing (and isn't in single quotes)."""
    if not word.endswith(escape):
        return False
    index, quote_char = 0, ""
    while index < len(word):
        char = word[index]
        if char == escape and quote_char != "'":
            if index + 1 == len(word):
                return True
            index += 1
        elif char == quote_char:
            quote_char = ""
        elif not quote_char and char in "'\"":
            quote_char = char
        index += 1
    return False


def _pairs(rest: str, instruction: str, escape: str) -> list[str]:
    """``k=v …`` or the old ``k v`` → triples."""
    parts = split_words(rest, escape)
    if not parts:
        return []
    if "=" not in parts[0]:
        old = _BLANK.split(rest, maxsplit=1)
        if len(old) < 2:
            raise Fault(f"{instruction} must have two arguments", mark=rest)
        return [old[0], old[1], ""]
    out: list[str] = []
    for word in parts:
        key, equals, value = word.partition("=")
        if not equals:
            raise Fault(
                f"Syntax error - can't find = in {quote(word)}. Must be of the form: name=value", mark=word
            )
        out += (key, value, "=")
    return out
