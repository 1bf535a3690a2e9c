"""Command lines: options are declared by their help text, which is therefore never out of date.

    -t, --tag NAME...       Name the image
    -q, --quiet             Say only the id

A word in capitals after the name means that the option takes a value, ``...`` that it may be
repeated, ``[=VALUE]`` that the value may be left out.  Lines that don't begin with ``-`` continue the
description.
"""

from __future__ import annotations

from .errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Option:
    """One declared option; ``key`` is its long name with underscores."""

    __slots__ = ("key", "names", "optional", "repeated", "takes_value")

    def __init__(self, line: str):
        head = line.strip().partition("  ")[0]
        self.names: list[str] = []
        self.takes_value = self.repeated = self.optional = False
        for part in head.split(", "):
            name, space, value = part.partition(" ")
            if name.endswith("]"):
                name, _, value = name.partition("[=")
                self.takes_value = self.optional = True
            self.names.append(name)
            if space:
                self.takes_value = True
                self.repeated = value.endswith("...")
        self.key = self.names[-1].lstrip("-").replace("-", "_")


class Args:
    """What was given: option values by attribute (False, "" or [] where not given), and ``rest``."""

    def __init__(self, options: Sequence[Option]):
        self._values: dict[str, Any] = {}
        self.given: set[str] = set()
        self.rest: list[str] = []
        for option in options:
            default: Any = False
            if option.repeated:
                default = []
            elif option.takes_value:
                default = ""
            self._values[option.key] = default

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["_values"][key]
        except KeyError:
            raise AttributeError(key) from None

    def set_default(self, key: str, *, value: object) -> None:
        """A value that no option set."""
        self._values.setdefault(key, value)

    def set(self, option: Option, value: object) -> None:
        self.given.add(option.key)
        if option.repeated:
            self._values[option.key].append(value)
        else:
            self._values[option.key] = value


def declared(text: str) -> list[Option]:
    """The options that a help text declares."""
    return [Option(line) for line in text.splitlines() if line.lstrip().startswith("-")]


def parse(
    text: str, argv: Sequence[str], *, interspersed: bool = True, lowest: int = 0,
    most: int | None = None,
) -> Args:
    """Read a command line.  ``lowest`` and ``most`` bound the number of arguments that are no
    options; with ``interspersed`` False the first of them ends the options (``run``).

    Raises UsageError."""
    options = declared(text)
    by_name = {name: option for option in options for name in option.names}
    args = Args(options)
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            args.rest += words
            break
        if not word.startswith("-") or word == "-":
            args.rest.append(word)
            if not interspersed:
                args.rest += words
                break
            continue
        if word.startswith("--"):
            _long(word, words, by_name, args)
        else:
            _short(word, words, by_name, args)
    if len(args.rest) < lowest:
        wanted = "1 argument" if lowest == 1 else f"{lowest} arguments"
        raise UsageError(f"at least {wanted} needed" if most != lowest else f"{wanted} needed")
    if most is not None and len(args.rest) > most:
        raise UsageError(f"unexpected argument: {args.rest[most]!r}")
    return args


def _long(word: str, words: list[str], by_name: dict[str, Option], args: Args) -> None:
    name, equals, value = word.partition("=")
    option = by_name.get(name)
    if option is None:
        raise UsageError(f"unknown flag: {name}", suggestion(name, list(by_name)))
    if option.takes_value and not option.optional:
        if not equals:
            if not words:
                raise UsageError(f"flag needs an argument: {name}")
            value = words.pop(0)
        args.set(option, value)
    elif option.takes_value:
        args.set(option, value or "default")
    else:
        args.set(option, _boolean(name, value) if equals else True)


def _short(word: str, words: list[str], by_name: dict[str, Option], args: Args) -> None:
    """``-t x``, ``-tx``, ``-t=x``, ``-it``."""
    letters = word[1:]
    while letters:
        name, letters = "-" + letters[0], letters[1:]
        option = by_name.get(name)
        if option is None:
            if ("-" + word) in by_name:
                raise UsageError(f"unknown flag: {word}", f"did you mean -{word}?")
            raise UsageError(f"unknown shorthand flag: {name[1:]!r} in {word}")
        if not option.takes_value:
            if letters.startswith("="):
                args.set(option, _boolean(name, letters[1:]))
                return
            args.set(option, True)
            continue
        if not letters and not words:
            raise UsageError(f"flag needs an argument: {name}")
        args.set(option, letters.removeprefix("=") if letters else words.pop(0))
        return


def _boolean(name: str, text: str) -> bool:
    """Go's strconv.ParseBool, as docker reads ``--no-cache=false``."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise UsageError(f"invalid value {text!r} for {name}: expected true or false")


def suggestion(word: str, known: Sequence[str]) -> str:
    """``did you mean …?`` for the nearest known word; "" when none is near."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        close = [name for name in known if name.startswith(word) and len(word) > 3][:1]
    return f"did you mean {close[0]}?" if close else ""
