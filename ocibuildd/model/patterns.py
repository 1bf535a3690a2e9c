"""Go's path patterns: COPY wildcards and .dockerignore files, in linear time on any pattern.

``match`` is Go's ``path.Match`` (https://pkg.go.dev/path#Match): ``*`` and ``?`` never match "/",
``[a-z]`` and ``[^a-z]`` are classes, a backslash quotes.  ``Ignore`` is a .dockerignore file: the
same, and ``**`` for any number of directories, ``!`` to take back; the last pattern that matches wins,
and a pattern that matches a directory matches all below it.

Wildcards become atomic groups, so that nothing backtracks: in ``a*b*c`` the leftmost ``b`` will do.
Standard library only: the jobs of nsd use this module too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

MAX_PATTERN = 4096
"""Characters in one pattern."""
MAX_PATTERNS = 10_000
"""Patterns in one ignore file."""

_SPECIAL = re.compile(r"[*?\[\\]")
_AT_OR_ABOVE = r"(?:/|\Z)"
"""The end of a pattern that shall match a path, or a directory above it."""
_EXACT = r"\Z"
MAX_DIRECTORIES = 4096
"""Of these directories at most an ``Ignore`` remembers what matched them."""


class BadPattern(ValueError):
    """A pattern that Go's matcher refuses (``path.ErrBadPattern``)."""


def clean(path: str) -> str:
    """Go's ``path.Clean``: the shortest equal path, lexically; "" gives "."."""
    if not path:
        return "."
    if "//" not in path and "/." not in path and path[0] != "." and path[-1] != "/":
        return path  # nothing to do
    rooted = path[0] == "/"
    parts: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            parts.append(part)
        elif parts and parts[-1] != "..":
            parts.pop()
        elif not rooted:
            parts.append("..")
    text = "/".join(parts)
    return "/" + text if rooted else text or "."


def has_wildcard(pattern: str) -> bool:
    """Whether ``*``, ``?`` or ``[`` stands in it unquoted."""
    position = 0
    while (found := _SPECIAL.search(pattern, position)) is not None:
        if found[0] != "\\":
            return True
        position = found.end() + 1
    return False


# --- one element of a pattern -> a regular expression ------------------------------------------------


def _read_class(pattern: str, position: int) -> tuple[str, int]:
    """``[...]`` that opens at ``position`` → (regular expression, index after it)."""
    index = position + 1
    negated = index < len(pattern) and pattern[index] == "^"
    index += negated
    ranges: list[str] = []
    while True:
        if index >= len(pattern):
            raise BadPattern(f"{pattern[:100]!r}: a [ without its ]")
        if pattern[index] == "]" and ranges:
            break
        low, index = _class_char(pattern, index)
        high = low
        if index < len(pattern) and pattern[index] == "-":
            high, index = _class_char(pattern, index + 1)
        # Go takes a reversed range and matches nothing by it; re would refuse it.
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    body = "".join(ranges)
    if not body:
        return ("[^/]" if negated else r"(?!)"), index + 1
    return (f"[^/{body}]" if negated else f"(?!/)[{body}]"), index + 1


def _class_char(pattern: str, index: int) -> tuple[str, int]:
    if index >= len(pattern) or pattern[index] in "-]":
        raise BadPattern(f"{pattern[:100]!r}: a broken [class]")
    if pattern[index] == "\\":
        index += 1
        if index >= len(pattern):
            raise BadPattern(f"{pattern[:100]!r}: a backslash at the end")
    return pattern[index], index + 1


Token = tuple[str, str]
"""(kind, regular expression of one character): kind is "char", "star" or "tree" (``**``)."""


def _tokens(pattern: str, trees: bool) -> list[Token]:
    """Split a pattern; with ``trees`` two stars, and the slash after them, are one token."""
    out: list[Token] = []
    index = 0
    while index < len(pattern):
        char = pattern[index]
        index += 1
        if char == "*":
            if trees and pattern[index : index + 1] == "*":
                index += 1 + (pattern[index + 1 : index + 2] == "/")
                if not out or out[-1][0] != "tree":
                    out.append(("tree", ""))
            elif not out or out[-1][0] != "star":
                out.append(("star", ""))
        elif char == "?":
            out.append(("char", "[^/]"))
        elif char == "[":
            text, index = _read_class(pattern, index - 1)
            out.append(("char", text))
        elif char == "\\":
            if index >= len(pattern):
                raise BadPattern(f"{pattern[:100]!r}: a backslash at the end")
            out.append(("char", re.escape(pattern[index])))
            index += 1
        else:
            out.append(("char", re.escape(char)))
    return out


def _segment(tokens: list[Token], end: str) -> str:
    """A sequence of characters and stars that must reach ``end`` (a zero-width or boundary match).

    Every star but the last commits to the leftmost match of what follows it."""
    chunks: list[str] = [""]
    for kind, text in tokens:
        if kind == "star":
            chunks.append("")
        else:
            chunks[-1] += text
    if len(chunks) == 1:
        return chunks[0] + end
    middle = "".join(f"(?>[^/]*?{chunk})" for chunk in chunks[1:-1])
    return f"{chunks[0]}{middle}(?>[^/]*?{chunks[-1]}{end})"


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    if len(pattern) > MAX_PATTERN:
        raise BadPattern(f"a pattern of {len(pattern):,} characters, at most {MAX_PATTERN:,} are taken")
    parts: list[list[Token]] = [[]]
    for token in _tokens(pattern, trees=False):
        if token == ("char", "/"):
            parts.append([])
        else:
            parts[-1].append(token)
    text = "".join(_segment(part, "/") for part in parts[:-1]) + _segment(parts[-1], r"\Z")
    return re.compile(text, re.DOTALL)


def match(pattern: str, name: str) -> bool:
    """Go's ``path.Match``: the whole of ``name``.  Raises BadPattern."""
    return _glob(pattern).match(name) is not None


def check(pattern: str) -> None:
    """Raise BadPattern for what ``match`` would refuse."""
    _glob(pattern)


# --- .dockerignore -----------------------------------------------------------------------------------


class _Machine:
    """The pattern as a bit-parallel automaton, for ``**`` in the midst of a name (``a**b``).

    Bit i of the state: the first i tokens are matched.  One step a character, so linear in the path."""

    def __init__(self, tokens: list[Token]) -> None:
        self.chars: list[tuple[int, re.Pattern[str]]] = []
        self.stars = self.entries = self.loops = self.all = 0
        position = 0
        for index, (kind, text) in enumerate(tokens):
            if kind == "char":
                self.chars.append((1 << position, re.compile(text, re.DOTALL)))
                position += 1
            elif kind == "star":
                self.stars |= 1 << position
            elif index == len(tokens) - 1:
                self.all |= 1 << position  # ".*" at the end
            else:
                self.entries |= 1 << position  # "(.*/)?": skip both, or loop in the second
                self.loops |= 1 << (position + 1)
                position += 2
        self.accept = 1 << position
        self._masks: dict[str, int] = {}

    def _mask(self, char: str) -> int:
        mask = self._masks.get(char)
        if mask is None:
            mask = sum(bit for bit, pattern in self.chars if pattern.match(char))
            mask |= self.loops if char == "/" else 0
            self._masks[char] = mask
        return mask

    def _close(self, state: int) -> int:
        here = state & self.entries
        return state | here << 1 | here << 2 if here else state

    def matches(self, path: str, *, above: bool) -> bool:
        state = self._close(1)
        for char in path:
            if above and char == "/" and state & self.accept:
                return True
            keep = state & (self.loops | self.all | (0 if char == "/" else self.stars))
            state = self._close((state & self._mask(char)) << 1 | keep)
            if not state:
                return False
        return bool(state & self.accept)


def _compile(pattern: str, *, above: bool) -> Callable[[str], object]:
    """A test for "the pattern matches the path"; ``above``: or a directory above it."""
    ending = _AT_OR_ABOVE if above else _EXACT
    if pattern == "**":
        return lambda _path: True
    head, tail = pattern[:-2], pattern[2:]
    if pattern.endswith("**") and not has_wildcard(head) and "\\" not in head:
        return lambda path: path.startswith(head)
    if pattern.startswith("**") and tail[0] != "/" and not has_wildcard(tail) and "\\" not in tail:
        return re.compile(re.escape(tail) + ending, re.DOTALL).search
    parts = pattern.split("/")
    if "[" in pattern or any("**" in part and part != "**" for part in parts):
        return partial(_Machine(_tokens(pattern, trees=True)).matches, above=above)
    text, index = "", 0
    while index < len(parts):
        if parts[index] != "**":
            text += _segment(_tokens(parts[index], trees=False), "/" if index + 1 < len(parts) else ending)
            index += 1
            continue
        while index < len(parts) and parts[index] == "**":
            index += 1
        if index == len(parts):
            text += ".*"
            break
        chunk = ""
        while index < len(parts) and parts[index] != "**":
            end = "/" if index + 1 < len(parts) else ending
            chunk += _segment(_tokens(parts[index], trees=False), end)
            index += 1
        text += f"(?>(?:[^/]*/)*?{chunk})"
    return re.compile(text, re.DOTALL).match


def parse_ignore(text: str) -> tuple[str, ...]:
    """The patterns of a .dockerignore file, cleaned, in order.

    ``#`` is a comment in the first column only; a leading "/" goes; a byte order mark too.
    Raises BadPattern when there are more than MAX_PATTERNS."""
    patterns: list[str] = []
    for line in text.removeprefix("\ufeff").split("\n"):
        if line.startswith("#"):
            continue
        pattern = line.strip()
        if not pattern:
            continue
        negated = pattern.startswith("!")
        if negated:
            pattern = pattern[1:].strip()
        if pattern:
            pattern = clean(pattern)
            if len(pattern) > 1 and pattern[0] == "/":
                pattern = pattern[1:]
        patterns.append("!" + pattern if negated else pattern)
        if len(patterns) > MAX_PATTERNS:
            raise BadPattern(f"more than {MAX_PATTERNS:,} ignore patterns")
    return tuple(patterns)


class Ignore:
    """The patterns of an ignore file; paths are relative, slash-separated and clean.

    Exceptions count as they do in BuildKit's walk from the top (patternmatcher's
    ``MatchesUsingParentResults``): a pattern that wasn't asked about a directory, since it could change
    nothing there, doesn't reach what is below: after ``a/b`` a ``!a`` shows nothing of ``a/b``.

    Raises BadPattern for a pattern that can't be read."""

    __slots__ = ("_known", "_rules", "has_exceptions", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._rules: list[tuple[bool, str, Callable[[str], object]]] = []
        self._known: dict[str, tuple[bool, ...]] = {}
        cleaned = [clean(written.strip()) for written in self.patterns if written.strip()]
        self.has_exceptions = any(pattern[0] == "!" for pattern in cleaned)
        for pattern in cleaned:
            negated = pattern[0] == "!"
            if negated:
                pattern = pattern[1:]
                if not pattern:
                    raise BadPattern('illegal exclusion pattern: "!"')
            check(pattern)
            self._rules.append((negated, pattern, _compile(pattern, above=not self.has_exceptions)))

    def __bool__(self) -> bool:
        return bool(self._rules)

    def why(self, path: str) -> str | None:
        """The pattern that hides ``path`` (as it decides, the last one), or None when none does."""
        if self.has_exceptions:
            return self._decide(path, self._above(path))[0]
        reason: str | None = None
        for _, pattern, test in self._rules:
            if reason is None and test(path):
                reason = pattern
        return reason

    def _above(self, path: str) -> tuple[bool, ...]:
        """Which patterns match the directory that ``path`` is in, found from the top down."""
        matched: tuple[bool, ...] = (False,) * len(self._rules)
        slash = path.find("/")
        while slash >= 0:
            directory = path[:slash]
            known = self._known.get(directory)
            if known is None:
                known = self._decide(directory, matched)[1]
                if len(self._known) >= MAX_DIRECTORIES:
                    self._known.clear()
                self._known[directory] = known
            matched = known
            slash = path.find("/", slash + 1)
        return matched

    def _decide(self, path: str, above: tuple[bool, ...]) -> tuple[str | None, tuple[bool, ...]]:
        """(the pattern that hides the path, which patterns match it)."""
        reason: str | None = None
        matched: list[bool] = []
        for (negated, pattern, test), before in zip(self._rules, above, strict=True):
            # Only a "!" can change a hidden path, only a plain pattern a visible one.
            match = before or (negated is (reason is not None) and bool(test(path)))
            matched.append(match)
            if match:
                reason = None if negated else pattern
        return reason, tuple(matched)

    def matches(self, path: str) -> bool:
        """Whether ``path`` is ignored."""
        return self.why(path) is not None

    def may_contain(self, directory: str) -> bool:
        """Whether a walker has to look into ``directory``: it is visible, or a "!" may show what is below."""
        if not self.matches(directory):
            return True
        if not self.has_exceptions:
            return False
        parts = directory.split("/")
        return any(negated and _reaches_below(pattern, parts) for negated, pattern, _ in self._rules)

    def hides_root(self) -> bool:
        """Whether a pattern hides every entry of the root (``*``, ``**``, ``**/*``)."""
        return any(not negated and pattern in ("*", "**", "**/*") for negated, pattern, _ in self._rules)


def _reaches_below(pattern: str, directory: list[str]) -> bool:
    """Whether ``pattern`` could match something below ``directory``; True when in doubt."""
    for wanted, part in zip(pattern.split("/"), directory, strict=False):
        if "**" in wanted:
            return True
        try:
            if not match(wanted, part):
                return False
        except BadPattern:
            return True  # a class that holds a slash
    return True
