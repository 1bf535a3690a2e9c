"""What is wrong with a Dockerfile, and where: faults inside the package, DockerfileError at its door."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import DockerfileError
from ..model.graph import Location
from .gotext import to_utf8

MAX_SHOWN_LINES = 20
MAX_SHOWN_LINE = 500
MAX_DISTANCE = 3
MAX_SUGGESTED_NAME = 100
MAX_CANDIDATES = 1000


class Fault(Exception):
    """A message in BuildKit's words.  ``mark`` is what the caret shall point at; unmatched: the names without
    a value that an expansion met before it failed."""

    unmatched: tuple[str, ...] = ()

    def __init__(self, message: str, location: Location | None = None, *, mark: str = "", hint: str = ""):
        super().__init__(message)
        self.message = message
        self.location = location
        self.mark = mark
        self.hint = hint


@contextmanager
def at(location: Location | None) -> Iterator[None]:
    """Give faults that have no location this one."""
    try:
        yield
    except Fault as fault:
        fault.location = fault.location or location
        raise


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a Dockerfile, for showing its lines."""

    filename: str
    text: str

    def lines(self, location: Location) -> list[list[object]]:
        """``[[number, text], …]`` of a location: bounded in number and length."""
        out: list[list[object]] = []
        all_lines = self.text.split("\n")
        for number in range(max(location.start, 1), min(location.end, len(all_lines)) + 1):
            if len(out) == MAX_SHOWN_LINES:
                break
            out.append([number, to_utf8(all_lines[number - 1].rstrip("\r"))[:MAX_SHOWN_LINE]])
        return out

    def error(self, fault: Fault) -> DockerfileError:
        """The fault as clients get it."""
        details: dict[str, object] = {"file": self.filename}
        if fault.location is not None:
            lines = self.lines(fault.location)
            details["line"] = fault.location.start
            details["end_line"] = fault.location.end
            details["source"] = lines
            for number, text in lines if fault.mark else ():
                column = str(text).find(fault.mark)
                if column >= 0:
                    details["column"] = column + 1
                    details["caret_line"] = number
                    break
        return DockerfileError(to_utf8(fault.message), hint=fault.hint, details=details)


def distance(one: str, other: str, limit: int = MAX_DISTANCE) -> int:
    """Levenshtein's, or ``limit`` where it is that or more."""
    if abs(len(one) - len(other)) >= limit:
        return limit
    row = list(range(len(other) + 1))
    for i, char in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, wanted in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (char != wanted))
        if min(row) >= limit:
            return limit
    return min(row[-1], limit)


def nearest(name: str, options: Iterable[str], *, fold: bool = False) -> str:
    """The option that was probably meant, or "": BuildKit's rule (distance under 3, no exact match)."""
    if len(name) > MAX_SUGGESTED_NAME:
        return ""
    wanted = name.lower() if fold else name
    best, best_distance = "", MAX_DISTANCE
    for index, option in enumerate(options):
        if index >= MAX_CANDIDATES:
            break
        candidate = option.lower() if fold else option
        if candidate == wanted:
            return ""
        found = distance(wanted, candidate)
        swapped = found == best_distance < MAX_DISTANCE and sorted(candidate) == sorted(wanted)
        if found < best_distance or swapped:  # of two as near, the one with the same letters
            best, best_distance = candidate, found
    if best and fold and name == name.upper():
        return best.upper()
    return best


def did_you_mean(message: str, name: str, options: Iterable[str], *, fold: bool = False) -> str:
    """The message, with " (did you mean X?)" where there is a near name."""
    match = nearest(name, options, fold=fold)
    return f"{message} (did you mean {match}?)" if match else message
