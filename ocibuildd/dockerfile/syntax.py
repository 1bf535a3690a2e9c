"""The syntax tree of a Dockerfile: one node an instruction, words not yet understood."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.graph import Location
from .gotext import quote, quote_list


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document.  expand: its delimiter was not quoted; chomp: ``<<-`` (leading tabs go)."""

    name: str
    descriptor: int
    expand: bool
    chomp: bool
    content: str = ""


@dataclass(slots=True)
class Node:
    """An instruction as written.  ENV and LABEL give triples key, value, separator ("=" or "").

    original: the line with its continuations joined; comments: those right above; child: what ONBUILD runs."""

    value: str
    args: list[str]
    flags: list[str]
    original: str
    json: bool = False
    start: int = 0
    end: int = 0
    comments: tuple[str, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()
    child: Node | None = None

    @property
    def location(self) -> Location:
        return Location(self.start, self.end)

    def dump(self) -> str:
        """The node as BuildKit's parser prints it: ``copy ["--from=x"] "a" "b"``."""
        text = self.value.lower()
        if self.flags:
            text += " " + quote_list(self.flags)
        if self.child is not None:
            return f"{text} ({self.child.dump()})"
        return "".join([text, *(" " + quote(arg) for arg in self.args)]).strip()


@dataclass(frozen=True, slots=True)
class Directive:
    """``# name=value`` at the top."""

    name: str
    value: str
    line: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole Dockerfile.  empty_continuations: the last lines of instructions that have blank lines in
    their midst, with the instruction."""

    nodes: tuple[Node, ...]
    escape: str
    directives: tuple[Directive, ...]
    empty_continuations: tuple[tuple[int, str], ...] = ()

    def dump(self) -> str:
        """All nodes in parentheses, one a line."""
        return "\n".join(f"({node.dump()})" for node in self.nodes)
