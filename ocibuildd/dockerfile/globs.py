"""Patterns in substitutions: ``${v#p}``, ``${v%p}``, ``${v/p/w}``.  ``*`` and ``?``, and a backslash before them.

What BuildKit hands to RE2 runs here as a bit-parallel automaton: linear in the value, on any pattern.
"""

from __future__ import annotations

import re

from .faults import Fault

MAX_RESULT = 4 << 20
"""Characters that one word may expand to."""

_TEMPLATE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")


class Glob:
    """A shell pattern of ``*``, ``?`` and literals, run bit by bit; neither wildcard matches a newline.

    Bit i: the first i characters of the pattern are matched.  Python's integers make it linear enough."""

    def __init__(self, pattern: str, *, backwards: bool = False) -> None:
        self.any = self.stars = 0
        self.literals: dict[str, int] = {}
        self.pattern = pattern
        tokens = _glob_tokens(pattern)
        if backwards:
            tokens.reverse()
        position = 0
        for kind, char in tokens:
            if kind == "*":
                self.stars |= 1 << position
                continue
            if kind == "?":
                self.any |= 1 << position
            else:
                self.literals[char] = self.literals.get(char, 0) | 1 << position
            position += 1
        self.accept = 1 << position

    def step(self, state: int, char: str) -> int:
        mask = self.literals.get(char, 0)
        if char == "\n":
            return (state & mask) << 1
        return (state & (mask | self.any)) << 1 | (state & self.stars)

    def prefix(self, value: str, start: int, *, greedy: bool) -> int:
        """End of the shortest or longest match that begins at ``start``; -1 for none."""
        state, end = 1, -1
        if state & self.accept:
            if not greedy:
                return start
            end = start
        for index in range(start, len(value)):
            state = self.step(state, value[index])
            if not state:
                break
            if state & self.accept:
                end = index + 1
                if not greedy:
                    break
        return end

    def starts(self, value: str) -> list[bool]:
        """For every place whether a match begins there: the pattern, backwards, from every end."""
        backwards = Glob(self.pattern, backwards=True)
        out = [False] * (len(value) + 1)
        state = 1
        out[len(value)] = bool(state & backwards.accept)
        for index in range(len(value) - 1, -1, -1):
            state = backwards.step(state, value[index]) | 1
            out[index] = bool(state & backwards.accept)
        return out

    def replace(self, value: str, replacement: str, *, everywhere: bool) -> str:
        """Go's ``ReplaceAllString`` (with its ``$`` templates), or of the first match only."""
        starts = self.starts(value)
        out: list[str] = []
        position, copied, size = 0, 0, 0
        while position <= len(value):
            try:
                begin = starts.index(True, position)
            except ValueError:
                break
            end = self.prefix(value, begin, greedy=True)
            if not everywhere:
                return value[:begin] + replacement + value[end:]
            out.append(value[copied:begin])
            if end > copied or begin == 0:
                out.append(_template(replacement, value[begin:end]))
                size += len(out[-1])
                if size > MAX_RESULT:
                    raise Fault(f"expansion gives more than {MAX_RESULT:,} characters")
            copied = end
            position = max(position + 1, end)
        out.append(value[copied:])
        return "".join(out)


def _glob_tokens(pattern: str) -> list[tuple[str, str]]:
    """``[(kind, character)]``: kind "*", "?" or "=" (the character itself)."""
    out: list[tuple[str, str]] = []
    index = 0
    while index < len(pattern):
        char = pattern[index]
        index += 1
        if char == "*":
            if not out or out[-1][0] != "*":
                out.append(("*", "*"))
            continue
        if char == "?":
            out.append(("?", "?"))
            continue
        if char == "\\":
            if pattern[index : index + 1] in ("}", "/"):
                continue  # the escape only hid it from ${}
            escaped = pattern[index : index + 1]
            if not escaped or escaped not in "*?\\":
                raise Fault(
                    f"invalid pattern ({pattern}) in substitution: invalid escape '\\{escaped or '�'}'"
                )
            char = escaped
            index += 1
        out.append(("=", char))
    return out


def _template(replacement: str, whole: str) -> str:
    """``regexp.Expand``: there are no groups, so ``$0`` is the match and other names are empty."""
    if "$" not in replacement:
        return replacement
    return _TEMPLATE.sub(
        lambda found: "$" if found[0] == "$$" else whole if (found[1] or found[2]) == "0" else "",
        replacement,
    )


def trim_prefix(pattern: str, value: str, *, greedy: bool) -> str:
    """``${v#p}`` and ``${v##p}``."""
    end = Glob(pattern).prefix(value, 0, greedy=greedy)
    return value[end:] if end >= 0 else value


def trim_suffix(pattern: str, value: str, *, greedy: bool) -> str:
    """``${v%p}`` and ``${v%%p}``: the same on both reversed."""
    end = Glob(pattern, backwards=True).prefix(value[::-1], 0, greedy=greedy)
    return value[: len(value) - end] if end >= 0 else value
