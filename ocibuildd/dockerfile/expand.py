"""Expansion of variables in a word, as BuildKit does it for the builder's own instructions.

``$v  ${v}  ${v:-w}  ${v-w}  ${v:+w}  ${v+w}  ${v:?w}  ${v?w}  ${v#p}  ${v##p}  ${v%p}  ${v%%p}
${v/p/w}  ${v//p/w}``; ``w`` may nest.  Patterns know ``*`` and ``?`` only.  Single quotes keep, double
quotes expand, the escape token quotes one character; quotes go unless ``raw_quotes`` is set.

Linear in the text: runs of plain characters are taken at once, patterns run as bit-parallel automata,
and nesting and the size of results are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from .faults import Fault
from .globs import MAX_RESULT, Glob, trim_prefix, trim_suffix
from .gotext import SPACES, SURROGATES, quote

MAX_NESTING = 64
MAX_SHOWN = 500
"""Characters of a word in a message."""
MAX_WORK = 1 << 21
"""Characters that the patterns of one Dockerfile may look at, all together."""

_SPECIAL_NAMES = frozenset("@*#?-$!0")
_SPACE = re.compile(f"[{SPACES}]+")
_DIGITS = re.compile(r"\d+")
_NAME = re.compile(r"\w*")
_PLAIN_NAME = re.compile(r"\$([0-9]+|[@*#?$!-]|[A-Za-z_]\w*|)")


def _in_name(char: str) -> bool:
    """``unicode.IsLetter``, ``unicode.IsDigit`` or "_"."""
    return char.isalpha() or char.isdecimal() or char == "_"


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


@dataclass(slots=True)
class Expansion:
    """A word after expansion; ``words`` is it split at white space that wasn't quoted.

    matched, unmatched: names that were and weren't set, in the order of their use."""

    text: str
    words: list[str] = field(default_factory=list)
    matched: dict[str, None] = field(default_factory=dict)
    unmatched: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class Work:
    """What patterns may still look at."""

    left: int = MAX_WORK

    def spend(self, characters: int) -> None:
        self.left -= characters
        if self.left < 0:
            raise Fault("the patterns of the substitutions are too much work")


@dataclass(frozen=True, slots=True)
class Expander:
    """How words are read.  ``escape`` is the escape token; raw_quotes and raw_escapes leave quotes and
    escape tokens in the result; skip_quotes gives quotes no meaning; keep_unset leaves ``$unset`` alone."""

    escape: str = "\\"
    raw_quotes: bool = False
    raw_escapes: bool = False
    skip_quotes: bool = False
    keep_unset: bool = False
    work: Work = field(default_factory=Work)

    def expand(self, word: str, env: Mapping[str, str]) -> Expansion:
        """Expand a word, and split it.  Raises Fault."""
        if not self.special(word) and "<<" not in word:
            return Expansion(word, [part for part in _SPACE.split(word) if part])
        scanner = _Scanner(self, SURROGATES.sub("\ufffd", word), env, split=True)
        text = scanner.run(word)
        return Expansion(text, scanner.words, scanner.matched, scanner.unmatched)

    def word(self, word: str, env: Mapping[str, str]) -> Expansion:
        """Expand a word without splitting it (``words`` stays empty).  Raises Fault."""
        if not self.special(word):
            return Expansion(word)
        if self._only_names(word):
            return self._fill_in(word, env)
        scanner = _Scanner(self, SURROGATES.sub("\ufffd", word), env, split=False)
        text = scanner.run(word)
        return Expansion(text, [], scanner.matched, scanner.unmatched)

    def _only_names(self, word: str) -> bool:
        """Whether ``$name`` is all that there is to expand."""
        if "${" in word or self.escape in word or not word.isascii():
            return False
        return self.skip_quotes or ("'" not in word and '"' not in word)

    def _fill_in(self, word: str, env: Mapping[str, str]) -> Expansion:
        found = Expansion("")
        size = len(word)

        def value_of(match: re.Match[str]) -> str:
            nonlocal size
            name = match[1]
            if not name:
                return "$"
            value = env.get(name)
            if value is None:
                found.unmatched[name] = None
                return match[0] if self.keep_unset else ""
            found.matched[name] = None
            size += len(value)
            if size > MAX_RESULT:
                message = f"expansion gives more than {MAX_RESULT:,} characters"
                raise Fault(f"failed to process {quote(_shown(word))}: {message}")
            return value

        found.text = _PLAIN_NAME.sub(value_of, word)
        return found

    def special(self, word: str) -> bool:
        """Whether expansion could change the word."""
        return "$" in word or self.escape in word or "'" in word or '"' in word or not word.isascii()


@lru_cache(maxsize=64)
def _run_of(escape: str, quotes: str, stop: str) -> re.Pattern[str]:
    """Characters that mean nothing special before ``stop``."""
    return re.compile(f"[^${quotes}{re.escape(escape)}{re.escape(stop)}]+")


_ARROWS = re.compile(r"(<<[\t\r ]*|<)")
"""``<<`` keeps the white space behind it in its word: ``RUN << EOF`` is a here-document, ``<<< EOF`` is none."""


class _Words:
    """Collects the words of a text; raw text is never split."""

    __slots__ = ("inside", "parts", "words")

    def __init__(self) -> None:
        self.words: list[str] = []
        self.parts: list[str] = []
        self.inside = False

    def add_plain(self, text: str) -> None:
        """What was written as it is: not the value of a variable."""
        parts = _ARROWS.split(text) if "<<" in text else [text]
        for index, part in enumerate(parts):
            if part:
                (self.add_raw if index % 2 else self.add)(part)

    def add(self, text: str) -> None:
        start = 0
        for space in _SPACE.finditer(text):
            if space.start() > start:
                self.add_raw(text[start : space.start()])
            if self.inside:
                self.close()
            start = space.end()
        if start < len(text):
            self.add_raw(text[start:])

    def add_raw(self, text: str) -> None:
        self.parts.append(text)
        self.inside = True

    def forget(self) -> None:
        """Lose the word so far: in BuildKit a word in ``${x:-word}`` is collected in the same buffer, so that
        ``EXPOSE 80-${x:-90}`` is port 90."""
        self.parts.clear()

    def close(self) -> None:
        word = "".join(self.parts)
        if word:
            self.words.append(word)
            self.parts.clear()
            self.inside = False


class _Scanner:
    """One pass over one word."""

    __slots__ = (
        "collected", "depth", "end", "env", "how", "inner", "matched", "pos", "raw_escapes", "size", "split",
        "text", "unmatched", "words",
    )

    def __init__(self, how: Expander, text: str, env: Mapping[str, str], *, split: bool) -> None:
        self.how = how
        self.text = text
        self.end = len(text)
        self.pos = 1 if text.startswith("\ufeff") else 0
        self.env = env
        self.split = split
        self.raw_escapes = how.raw_escapes
        self.words: list[str] = []
        self.matched: dict[str, None] = {}
        self.unmatched: dict[str, None] = {}
        self.collected: _Words | None = None
        self.depth = 0
        self.size = 0
        self.inner = _run_of(how.escape, '"', "")

    def run(self, source: str) -> str:
        try:
            return self.until("")
        except Fault as fault:
            outer = Fault(f"failed to process {quote(_shown(source))}: {fault.message}", mark=fault.mark)
            outer.unmatched = tuple(self.unmatched)
            raise outer from None

    def until(self, stop: str) -> str:
        """Read to the ``stop`` character (consumed), or to the end for ""."""
        out: list[str] = []
        words = _Words() if self.split and not stop else None
        self.collected = words or self.collected
        chunk = _run_of(self.how.escape, "" if self.how.skip_quotes else "'\"", stop)
        text, quotes = self.text, not self.how.skip_quotes
        while self.pos < self.end:
            found = chunk.match(text, self.pos)
            if found is not None:
                self.pos = found.end()
                self._emit(found[0], out)
                if words is not None:
                    words.add_plain(found[0])
                continue
            char = text[self.pos]
            if char == stop:
                self.pos += 1
                return "".join(out)
            if char == "$":
                value = self.dollar()
                self._emit(value, out)
                if words is not None:
                    words.add(value)
            elif quotes and char == "'":
                self._emit_raw(self.single_quoted(), out, words)
            elif quotes and char == '"':
                self._emit_raw(self.double_quoted(), out, words)
            else:
                self._escaped(out, words)
        if stop:
            raise Fault(f"unexpected end of statement while looking for matching {stop}")
        if words is not None:
            words.close()
            self.words = words.words
        return "".join(out)

    def _emit(self, text: str, out: list[str]) -> None:
        self.size += len(text)
        if self.size > MAX_RESULT:
            raise Fault(f"expansion gives more than {MAX_RESULT:,} characters")
        out.append(text)

    def _emit_raw(self, text: str, out: list[str], words: _Words | None) -> None:
        self._emit(text, out)
        if words is not None:
            words.add_raw(text)

    def _escaped(self, out: list[str], words: _Words | None) -> None:
        if self.raw_escapes:
            self._emit_raw(self.how.escape, out, words)
        self.pos += 1
        if self.pos < self.end:  # a token at the end goes
            self._emit_raw(self.text[self.pos], out, words)
            self.pos += 1

    def single_quoted(self) -> str:
        close = self.text.find("'", self.pos + 1)
        if close < 0:
            self.pos = self.end
            raise Fault("unexpected end of statement while looking for matching single-quote", mark="'")
        start, self.pos = self.pos, close + 1
        return self.text[start : close + 1] if self.how.raw_quotes else self.text[start + 1 : close]

    def double_quoted(self) -> str:
        out = ['"'] if self.how.raw_quotes else []
        escape, text = self.how.escape, self.text
        self.pos += 1
        while self.pos < self.end:
            found = self.inner.match(text, self.pos)
            if found is not None:
                self.pos = found.end()
                out.append(found[0])
                continue
            char = text[self.pos]
            if char == "$":
                out.append(self.dollar())
                continue
            self.pos += 1
            if char == '"':
                if self.how.raw_quotes:
                    out.append(char)
                return "".join(out)
            if self.raw_escapes:
                out.append(escape)
            if self.pos < self.end:
                if text[self.pos] in ('"', "$", escape):
                    char = text[self.pos]
                    self.pos += 1
                out.append(char)
        raise Fault("unexpected end of statement while looking for matching double-quote", mark='"')

    def name(self) -> str:
        """A variable's name at the current place; "" for none."""
        if self.pos >= self.end:
            return ""
        char = self.text[self.pos]
        digits = _DIGITS.match(self.text, self.pos)
        if digits is not None:
            self.pos = digits.end()
            return digits[0]
        if char in _SPECIAL_NAMES:
            self.pos += 1
            return char
        found = _NAME.match(self.text, self.pos)
        name = found[0] if found else ""
        if not name.isascii():  # \w is more than letters and decimal digits
            size = next((at for at, one in enumerate(name) if not _in_name(one)), len(name))
            name = name[:size]
        self.pos += len(name)
        return name

    def lookup(self, name: str) -> str | None:
        value = self.env.get(name)
        (self.unmatched if value is None else self.matched)[name] = None
        return value

    def peek(self) -> str:
        return self.text[self.pos] if self.pos < self.end else ""

    def take(self) -> str:
        char = self.peek()
        self.pos += bool(char)
        return char

    def dollar(self) -> str:
        self.pos += 1
        if self.peek() != "{":
            name = self.name()
            if not name:
                return "$"
            value = self.lookup(name)
            if value is None and self.how.keep_unset:
                return "$" + name
            return value or ""
        self.pos += 1
        first = self.peek()
        if not first:
            raise Fault("syntax error: missing '}'", mark="${")
        if first in "{}:":
            raise Fault("syntax error: bad substitution", mark="${")
        name = self.name()
        operator = self.take()
        if operator == "}":
            value = self.lookup(name)
            if value is None and self.how.keep_unset:
                return "${" + name + "}"
            return value or ""
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise Fault(f"variables are nested more than {MAX_NESTING} deep")
        result = self.substitute(name) if operator == "/" else self.modify(name, operator)
        self.depth -= 1
        return result

    def nested(self, stop: str, raw_escapes: bool, missing: str) -> str:
        before, self.raw_escapes = self.raw_escapes, raw_escapes
        size = self.size
        if self.collected is not None:
            self.collected.forget()
        try:
            return self.until(stop)
        except Fault:
            if self.pos >= self.end:
                raise Fault(f"syntax error: missing {missing}", mark="${") from None
            raise
        finally:
            self.raw_escapes = before
            self.size = size

    def modify(self, name: str, operator: str) -> str:
        written, null_is_unset = operator, operator == ":"
        if null_is_unset:
            operator = self.take()
            written += operator
        elif operator not in ("+", "-", "?", "#", "%"):
            raise Fault(f"unsupported modifier ({operator or '�'}) in substitution", mark="${" + name)
        if null_is_unset and operator in ("#", "%"):
            raise Fault(f"unsupported modifier ({written}) in substitution", mark="${" + name)
        # The flag of an outer pattern isn't inherited: each word says how it reads escapes.
        word = self.nested("}", operator in ("#", "%"), "'}'")
        value = self.lookup(name)
        if value is None and self.how.keep_unset:
            return "${" + name + written + word + "}"
        empty = value is None or (null_is_unset and value == "")
        if operator == "-":
            return word if empty else value or ""
        if operator == "+":
            return "" if empty else word
        if operator == "?":
            if empty:
                reason = "unset" if value is None else "empty"
                raise Fault(f"{name}: {word or f'is not allowed to be {reason}'}", mark="${" + name)
            return value or ""
        if operator and operator in "#%":
            greedy = word[:1] == operator
            cut = trim_suffix if operator == "%" else trim_prefix
            self.how.work.spend(len(word) + len(value or ""))
            return cut(word[greedy:], value or "", greedy=greedy)
        raise Fault(f"unsupported modifier ({written}) in substitution", mark="${" + name)

    def substitute(self, name: str) -> str:
        everywhere = self.peek() == "/"
        self.pos += everywhere
        pattern = self.nested("/", True, "'/' in ${}")
        replacement = self.nested("}", True, "'}'")
        value = self.lookup(name)
        if value is None and self.how.keep_unset:
            return "${" + f"{name}/{pattern}/{replacement}" + "}"
        value = value or ""
        self.how.work.spend(len(pattern) + 4 * len(value))
        result = Glob(pattern).replace(value, replacement, everywhere=everywhere)
        if len(result) > MAX_RESULT:
            raise Fault(f"expansion gives more than {MAX_RESULT:,} characters")
        return result
