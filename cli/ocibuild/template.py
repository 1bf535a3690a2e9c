"""``--format``: the part of Go's templates that people use with docker.

``{{.Name}}``, ``{{.A.B}}``, ``{{json .}}``, ``{{json .A}}``, ``{{index .A 0}}``, ``{{join .A ","}}``,
``{{len .A}}``, ``{{upper .A}}``, ``{{lower .A}}``, ``{{println .A}}``, ``{{range .A}}…{{end}}``,
``{{if .A}}…{{else}}…{{end}}``, a leading ``table ``, and the word ``json``.
"""

from __future__ import annotations

import json
import re

from .errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|\S+')
Node = "str | tuple[str, list[str], list[Node], list[Node]]"


class Template:
    """A parsed template.  Raises UsageError for what isn't one."""

    def __init__(self, text: str):
        self.is_table = text.startswith("table ")
        text = text.removeprefix("table ").replace("\\t", "\t").replace("\\n", "\n")
        if text.strip() == "json":
            text = "{{json .}}"
        self._tokens = self._split(text)
        self._at = 0
        self._nodes = self._block(())

    @staticmethod
    def _split(text: str) -> list[tuple[str, str]]:
        tokens: list[tuple[str, str]] = []
        at = 0
        for match in _ACTION.finditer(text):
            plain = text[at : match.start()]
            if match[1]:
                plain = plain.rstrip()
            if tokens and tokens[-1][0] == "trim":
                tokens.pop()
                plain = plain.lstrip()
            tokens += [("text", plain), ("action", match[2])]
            if match[3]:
                tokens.append(("trim", ""))
            at = match.end()
        if "{{" in text[at:]:
            raise UsageError(f"template: unclosed action in {text!r}")
        tail = text[at:].lstrip() if tokens and tokens[-1][0] == "trim" else text[at:]
        return [*(token for token in tokens if token[0] != "trim"), ("text", tail)]

    def _block(self, ends: Sequence[str]) -> list[Any]:
        nodes: list[Any] = []
        while self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            self._at += 1
            if kind == "text":
                nodes.append(text)
                continue
            words = _WORD.findall(text)
            if not words:
                raise UsageError("template: missing value for command")
            if words[0] in ("end", "else"):
                if words[0] not in ends:
                    raise UsageError(f"template: unexpected {{{{{words[0]}}}}}")
                self._at -= 1
                return nodes
            if words[0] in ("range", "if"):
                nodes.append(self._control(words))
            else:
                nodes.append(("value", words, [], []))
        if ends:
            raise UsageError("template: unexpected end, {{end}} is missing")
        return nodes

    def _control(self, words: list[str]) -> tuple[str, list[str], list[Any], list[Any]]:
        body = self._block(("end", "else"))
        otherwise: list[Any] = []
        if self._tokens[self._at][1] == "else":
            self._at += 1
            otherwise = self._block(("end",))
        self._at += 1
        return words[0], words[1:], body, otherwise

    def header(self, titles: Mapping[str, str]) -> str:
        """The header line of a table: each field's title."""
        upper = _Titles(titles)
        return self.render(upper)

    def render(self, value: object) -> str:
        return self._render(self._nodes, value)

    def _render(self, nodes: list[Any], value: object) -> str:
        out = []
        for node in nodes:
            if isinstance(node, str):
                out.append(node)
                continue
            kind, words, body, otherwise = node
            found = evaluate(words, value)
            if kind == "value":
                out.append(show(found))
            elif kind == "if":
                out.append(self._render(body if found else otherwise, value))
            elif not found:
                out.append(self._render(otherwise, value))
            else:
                items = found.values() if isinstance(found, dict) else found
                out += [self._render(body, item) for item in items]
        return "".join(out)


class _Titles(dict[str, str]):
    """A row whose fields are their own titles."""

    def __missing__(self, key: str) -> str:
        return key.upper()

    def get(self, key: str, default: object = None) -> str:  # noqa: ARG002
        return self[key]


def show(value: object) -> str:
    """A value as Go's ``{{.}}`` prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + " ".join(show(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
    return str(value)


def evaluate(words: list[str], value: object) -> Any:
    """One action: pipelines of functions over fields and literals."""
    if "|" in words:
        cut = len(words) - 1 - words[::-1].index("|")
        return _call(words[cut + 1 :], value, [evaluate(words[:cut], value)])
    return _call(words, value, [])


def _call(words: list[str], value: object, piped: list[Any]) -> Any:
    name, arguments = words[0], [_operand(word, value) for word in words[1:]] + piped
    if name.startswith((".", '"', "`")) or name.isdecimal():
        return _operand(name, value)
    try:
        return _function(name, arguments)
    except (TypeError, IndexError, KeyError, ValueError) as error:
        raise UsageError(f"template: {' '.join(words)}: {error}") from None


def _function(name: str, arguments: list[Any]) -> Any:
    if name == "json":
        return json.dumps(arguments[0], separators=(",", ":"), ensure_ascii=False)
    if name == "index":
        found = arguments[0]
        for key in arguments[1:]:
            found = found.get(key) if isinstance(found, dict) else found[int(key)]
        return found
    if name == "join":
        return arguments[1].join(show(item) for item in arguments[0] or [])
    if name == "split":
        return arguments[0].split(arguments[1])
    if name == "len":
        return len(arguments[0] or [])
    if name in ("upper", "lower", "title"):
        return getattr(show(arguments[0]), name)()
    if name == "println":
        return " ".join(map(show, arguments)) + "\n"
    if name == "print":
        return " ".join(map(show, arguments))
    if name == "not":
        return not arguments[0]
    if name in ("eq", "ne"):
        return (arguments[0] == arguments[1]) is (name == "eq")
    if name in ("and", "or"):
        return (all if name == "and" else any)(arguments)
    raise UsageError(f"template: function {name!r} not defined")


def _operand(word: str, value: object) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.startswith("`"):
        return word[1:-1]
    if word.lstrip("-").isdecimal():
        return int(word)
    if word in ("true", "false"):
        return word == "true"
    if not word.startswith("."):
        raise UsageError(f"template: function {word!r} not defined")
    for name in filter(None, word.split(".")):
        if isinstance(value, dict):
            if name not in value and isinstance(value, Row):
                from .args import suggestion

                raise UsageError(
                    f"template: no field {name!r}; there are: {', '.join(sorted(value))}",
                    suggestion(name, list(value)),
                )
            value = value.get(name)
        else:
            raise UsageError(f"template: can't evaluate field {name} in {show(value)[:40]!r}")
    return value


class Row(dict[str, "Any"]):
    """A row of a list: an unknown field is an error and no ``<no value>``."""
