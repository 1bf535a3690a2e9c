"""Text → nodes: directives, comments, continuations and here-documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from ..model.graph import Location
from .expand import Expander
from .faults import Fault
from .gotext import SPACES, trim
from .syntax import Directive, Heredoc, Node, Tree
from .words import read

MAX_BYTES = 4 << 20
"""Of a Dockerfile."""
MAX_LINE = 65_536
"""Bytes of a physical line with its end (Go's bufio.MaxScanTokenSize)."""
MAX_INSTRUCTIONS = 10_000
MAX_DESCRIPTOR = 2**64 - 1
"""What a here-document's larger descriptor counts as."""
DIRECTIVES = ("syntax", "escape", "check")

_DIRECTIVE = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)[ \t\n\f\r]*=[ \t\n\f\r]*(.+?)[ \t\n\f\r]*\Z")
_HEREDOC = re.compile(r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)\Z")
_LEADING_TABS = re.compile(r"(?m)^\t+")
_WITH_HEREDOCS = frozenset({"add", "copy", "run"})


class DirectiveReader:
    """Reads parser directives from the first lines; the first line that is none ends them."""

    def __init__(self, comment: str = "#") -> None:
        self.comment = comment
        self.line = 0
        self.done = False
        self.found: list[Directive] = []

    def take(self, line: str) -> Directive | None:
        """The directive that a line is, if any.  Raises Fault for a second one of its name."""
        self.line += 1
        if self.done:
            return None
        found = None
        if line.startswith(self.comment):
            found = _DIRECTIVE.match(line[len(self.comment) :].lstrip(SPACES))
        if found is None or found[1].lower() not in DIRECTIVES:
            self.done = True
            return None
        name = found[1].lower()
        if any(known.name == name for known in self.found):
            raise Fault(f"only one {name} parser directive can be used", mark=found[1])
        directive = Directive(name, found[2], self.line)
        self.found.append(directive)
        return directive


class _Lines:
    """Physical lines with their ends, numbered; a line that is too long ends the file, with an error."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.last = len(self.lines) - 1
        self.index = 0
        self.overflow = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        index = self.index
        if index > self.last or self.overflow:
            raise StopIteration
        line = self.lines[index]
        if index < self.last:
            line += "\n"
        elif not line:
            raise StopIteration
        if len(line) > MAX_LINE // 4:
            size = len(line.encode("utf-8", "surrogateescape"))
            if size > MAX_LINE - (not line.endswith("\n")):
                self.overflow = True
                raise StopIteration
        self.index = index + 1
        return line


class _Lexer:
    def __init__(self, text: str) -> None:
        self.lines = _Lines(text)
        self.directives = DirectiveReader()
        self.set_escape("\\")
        self.nodes: list[Node] = []
        self.comments: list[str] = []
        self.empty_continuations: list[tuple[int, str]] = []

    def set_escape(self, token: str) -> None:
        self.escape = token
        one = re.escape(token)
        # Not preceded by another one; BuildKit has no more look-behind than that.
        self.continuation = re.compile(rf"(?:(?<=[^{one}])|(?<![\s\S])){one}[ \t]*\Z")

    def run(self) -> Tree:
        for line in self.lines:
            number = self.lines.index
            if number == 1:
                line = line.removeprefix("\ufeff")
            text = self.first_line(line, number)
            if text:
                self.instruction(text, number)
        if not self.nodes:
            raise Fault("file with no instructions", Location(self.lines.index, self.lines.index))
        if self.lines.overflow:
            number = self.lines.index + 1
            raise Fault(f"dockerfile line greater than max allowed size of {MAX_LINE - 1}", Location(number, number))
        return Tree(
            tuple(self.nodes), self.escape, tuple(self.directives.found), tuple(self.empty_continuations)
        )

    def first_line(self, line: str, number: int) -> str:
        """The line as an instruction's beginning; "" for blank lines, comments and directives."""
        text = line.rstrip("\r\n").lstrip(SPACES)
        is_comment = text.startswith("#")
        if is_comment:
            comment = trim(line[1:])
            if comment:
                self.comments.append(comment)
            else:
                self.comments.clear()
        if not self.directives.done:
            try:
                directive = self.directives.take(text)
                if directive is not None:
                    self.comments.pop()
                    if directive.name == "escape":
                        if directive.value not in ("\\", "`"):
                            raise Fault(
                                f"invalid escape token '{directive.value}' does not match ` or \\",
                                mark=directive.value,
                            )
                        self.set_escape(directive.value)
            except Fault as fault:
                fault.location = Location(number, number)
                raise
        return "" if is_comment else text

    def instruction(self, text: str, start: int) -> None:
        parts, blank = [], False
        ended = self.continuation.search(text) if self.escape in text else None
        parts.append(text[: ended.start()] if ended else text)
        while ended:
            line = next(self.lines, None)
            if line is None:
                break
            stripped = line.lstrip(SPACES)
            if stripped.startswith("#"):
                continue
            if not stripped:
                blank = True
                continue
            line = line.rstrip("\r\n")
            ended = self.continuation.search(line) if self.escape in line else None
            parts.append(line[: ended.start()] if ended else line)
        joined = "".join(parts)
        if blank:
            self.empty_continuations.append((self.lines.index, joined))
        if len(self.nodes) >= MAX_INSTRUCTIONS:
            raise Fault(f"more than {MAX_INSTRUCTIONS:,} instructions", Location(start, start))
        try:
            node = read(joined, self.escape)
            if "<<" in joined and can_hold_heredocs(node):
                node.heredocs = tuple(self.heredocs(joined))
        except Fault as fault:
            fault.location = Location(start, self.lines.index)
            raise
        node.start, node.end = start, self.lines.index
        node.comments = tuple(self.comments)
        self.comments.clear()
        self.nodes.append(node)

    def heredocs(self, line: str) -> Iterator[Heredoc]:
        for heredoc in heredocs_of(line):
            body: list[str] = []
            for text in self.lines:
                candidate = text.rstrip("\r\n")
                if heredoc.chomp:
                    candidate = candidate.lstrip("\t")
                if candidate == heredoc.name:
                    break
                body.append(text)
            else:
                raise Fault("unterminated heredoc", mark="<<")
            yield Heredoc(heredoc.name, heredoc.descriptor, heredoc.expand, heredoc.chomp, "".join(body))


def can_hold_heredocs(node: Node) -> bool:
    """RUN, COPY and ADD in text form, also below ONBUILD."""
    inner = node.child if node.value.lower() == "onbuild" and node.child is not None else node
    return inner.value.lower() in _WITH_HEREDOCS and not inner.json


# In a here-document's delimiter the escape is always the backslash, whatever the directive says.
_DELIMITER = Expander("\\", keep_unset=True)
_DELIMITER_RAW = Expander("\\", keep_unset=True, raw_quotes=True)
_LINE = Expander("\\", keep_unset=True, raw_quotes=True, raw_escapes=True)


def heredocs_of(line: str) -> list[Heredoc]:
    """The here-documents that a line announces.  Raises Fault."""
    try:
        parts = _LINE.expand(line, {}).words
    except Fault:
        return []
    return [heredoc for word in parts if "<<" in word if (heredoc := parse_heredoc(word)) is not None]


def parse_heredoc(word: str) -> Heredoc | None:
    """``3<<-"EOF"`` or ``<< EOF`` → its parts; None for another word.  Raises Fault."""
    found = _HEREDOC.match(word)
    if found is None or not found[3]:
        return None
    names = _DELIMITER.expand(found[3], {}).words
    if len(names) != 1:
        return None
    raw = _DELIMITER_RAW.expand(found[3], {}).words
    if len(raw) != 1:
        raise Fault(f"internal lexing of heredoc produced inconsistent results: {found[3]}")
    quotes, raw_quotes = (text.count("'") + text.count('"') for text in (names[0], raw[0]))
    digits = found[1].lstrip("0")
    descriptor = min(int(digits[:21] or "0"), MAX_DESCRIPTOR)
    return Heredoc(names[0], descriptor, quotes == raw_quotes, found[2] == "-")


def maybe_heredoc(word: str) -> Heredoc | None:
    """``parse_heredoc`` that takes a broken one for no heredoc."""
    if "<<" not in word:
        return None
    try:
        return parse_heredoc(word)
    except Fault:
        return None


def chomp(content: str) -> str:
    """Leading tabs go from every line (``<<-``)."""
    return _LEADING_TABS.sub("", content)


def lex(text: str) -> Tree:
    """Read a Dockerfile.  Raises Fault."""
    if len(text) > MAX_BYTES:
        raise Fault(f"a Dockerfile of {len(text):,} bytes, at most {MAX_BYTES:,} are taken")
    return _Lexer(text).run()


def _directive_at_top(key: str, text: str, comment: str) -> Directive | None:
    reader = DirectiveReader(comment)
    text = text.removeprefix("\ufeff")
    if text.startswith("#!"):
        text = text.partition("\n")[2]
        reader.line = 1
    for line in text.split("\n", len(DIRECTIVES) + 1)[: len(DIRECTIVES) + 1]:
        try:
            directive = reader.take(line.removesuffix("\r"))
        except Fault:
            return None
        if reader.done:
            return None
        if directive is not None and directive.name == key:
            return directive
    return None


def detect_check(text: str) -> tuple[str, int]:
    """(the value of ``# check=``, "" for none; its line).

    It is not what the lexer takes for a directive: it begins in the first column, and a ``#!`` line may stand
    before it."""
    found = _directive_at_top("check", text, "#")
    return ("", 1) if found is None else (found.value.partition(" ")[0], found.line)


def detect_syntax(text: str) -> tuple[str, str] | None:
    """The front end that a file asks for, (image, whole value): ``# syntax=``, ``// syntax=`` or JSON."""
    for comment in ("#", "//"):
        found = _directive_at_top("syntax", text, comment)
        if found is not None:
            return found.value.partition(" ")[0], found.value
    text = text.removeprefix("\ufeff")
    if text.startswith("#!"):
        text = text.partition("\n")[2]
    if text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        syntax = value.get("syntax") if isinstance(value, dict) else None
        if isinstance(syntax, str):
            return syntax, syntax
    return None
