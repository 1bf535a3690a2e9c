"""Policies: what may go, when, and how much, in BuildKit's terms; pure.

The same rules carry automatic collection (``[[gc.policy]]``) and ``prune`` (Docker's filters).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from ..errors import InvalidArgument
from ..ports import LayerId

What = Literal["record", "image", "mount"]
DAY = 86_400.0
GB = 1_000_000_000


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """Something that may go.

    kind: for filters (regular, source.local, exec.cachemount, image …).  own: bytes of its top layer and
    own blobs.  shared: its layer is part of an image that stays.  in_use: held by a lease.
    named: an image with names.
    """

    what: What
    id: str
    kind: str
    chain: tuple[LayerId, ...]
    blobs: tuple[str, ...]
    own: int
    cost: float
    created: float
    last_used: float
    uses: int
    description: str
    shared: bool = False
    in_use: bool = False
    named: bool = False
    labels: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Policy:
    """keep_duration: what was used more recently (seconds) stays.  max_used_space, min_free_space,
    reserved_space: bytes, 0 = none; all three 0 = everything that matches goes.  filters: as BuildKit
    writes them, any one of which must match.  all: also internal and shared records.

    what: kinds of things it applies to.  tagged: named images too.  until: only what was created (image)
    or used (else) before this time, 0 = any.  labels: ``key``, ``key=value``, with a leading ``!`` for
    the opposite: all must hold (images only).
    """

    name: str
    all: bool = False
    keep_duration: float = 0.0
    reserved_space: int = 0
    max_used_space: int = 0
    min_free_space: int = 0
    filters: tuple[str, ...] = ()
    what: frozenset[What] = frozenset({"record", "image", "mount"})
    tagged: bool = False
    until: float = 0.0
    labels: tuple[str, ...] = ()

    @property
    def unlimited(self) -> bool:
        """No space is set: all that matches goes."""
        return not (self.reserved_space or self.max_used_space or self.min_free_space)

    def keep_bytes(self, used: int, free: int) -> int:
        """How much may stay, as BuildKit reckons: at most max_used_space, less if the disk's free space
        is short of min_free_space, but never less than reserved_space (which alone, as --keep-storage,
        is what stays).  Bytes; ``used`` = all."""
        if self.unlimited:
            return 0
        keep = self.max_used_space or (used if self.min_free_space else 0)
        short = self.min_free_space - free
        if self.min_free_space and short > 0:
            keep = min(keep, max(used - short, 0))
        return max(keep, self.reserved_space)

    def matcher(self, now: float) -> Callable[[Candidate], bool]:
        """A test for candidates.  Raises InvalidArgument for a filter that can't be read."""
        tests = [_filter(text) for text in self.filters]

        def matches(candidate: Candidate) -> bool:
            if candidate.in_use or candidate.what not in self.what:
                return False
            if candidate.named and not self.tagged:
                return False
            if not self.all and candidate.what == "record" and (
                candidate.shared or candidate.kind in ("internal", "frontend")
            ):
                return False
            if self.keep_duration and now - candidate.last_used < self.keep_duration:
                return False
            moment = candidate.created if candidate.what == "image" else candidate.last_used
            if self.until and moment >= self.until:
                return False
            if self.labels and not all(_label(candidate, text) for text in self.labels):
                return False
            return not tests or any(test(candidate) for test in tests)

        return matches


def _label(candidate: Candidate, text: str) -> bool:
    if candidate.what != "image":
        return False
    key, equals, value = text.removeprefix("!").partition("=")
    found = candidate.labels.get(key)
    holds = found is not None and (not equals or found == value)
    return holds != text.startswith("!")


_TERM = re.compile(r"(id|type|description|inuse|shared|private)(?:(==|!=|~=)(.*))?\Z")


def _filter(text: str) -> Callable[[Candidate], bool]:
    """``type==exec.cachemount,description~=apt``: all terms must hold."""
    return _conjunction([_term(part, text) for part in text.split(",")])


def _conjunction(terms: Sequence[Callable[[Candidate], bool]]) -> Callable[[Candidate], bool]:
    return lambda candidate: all(term(candidate) for term in terms)


def _term(part: str, whole: str) -> Callable[[Candidate], bool]:
    match = _TERM.match(part.strip())
    if match is None:
        raise InvalidArgument(
            f"filter {whole!r}: can't read {part!r}",
            hint="fields: id, type, description, inuse, shared, private; operators: ==, !=, ~=",
        )
    name, operator, value = match.groups()
    get = _FIELDS[name]
    if operator is None:
        return lambda candidate: get(candidate) == "true"
    if operator == "~=":
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise InvalidArgument(f"filter {whole!r}: {error}") from None
        return lambda candidate: pattern.search(get(candidate)) is not None
    if operator == "!=":
        return lambda candidate: get(candidate) != value
    return lambda candidate: get(candidate) == value


_FIELDS: dict[str, Callable[[Candidate], str]] = {
    "id": lambda candidate: candidate.id,
    "type": lambda candidate: candidate.kind,
    "description": lambda candidate: candidate.description,
    "inuse": lambda candidate: "true" if candidate.in_use else "false",
    "shared": lambda candidate: "true" if candidate.shared else "false",
    "private": lambda candidate: "false" if candidate.shared else "true",
}


def default_policies(disk_total: int) -> tuple[Policy, ...]:
    """What BuildKit's defaults come to: cheap-to-make-again sources go after two days, unused records
    after sixty, and the store keeps to four fifths of the disk and leaves a tenth of it free."""
    most = disk_total * 4 // 5
    free = disk_total // 10
    return (
        Policy(
            "sources", keep_duration=2 * DAY, max_used_space=GB // 2,
            filters=("type==source.local", "type==exec.cachemount", "type==source.git.checkout"),
        ),
        Policy("stale", keep_duration=60 * DAY, reserved_space=10 * GB, max_used_space=most,
               min_free_space=free),
        Policy("size", reserved_space=10 * GB, max_used_space=most, min_free_space=free),
        Policy("size-all", all=True, reserved_space=10 * GB, max_used_space=most, min_free_space=free),
    )


def prune_policies(
    *, images: bool = True, cache: bool = True, mounts: bool = False, all: bool = False,  # noqa: A002
    until: float = 0.0, labels: Sequence[str] = (), filters: Sequence[str] = (), keep_storage: int = 0,
    max_used_space: int = 0, min_free_space: int = 0,
) -> tuple[Policy, ...]:
    """``prune`` in Docker's words, as policies.

    images: dangling ones, with ``all`` tagged ones too.  cache: records that no image shares, with ``all``
    every one; keep_storage (--keep-storage, --reserved-space) is what may stay.  mounts: cache mounts.
    until: a time (seconds since the epoch).  labels: as in Policy; a prune by label leaves the cache.
    """
    policies: list[Policy] = []
    if images:
        policies.append(
            Policy("prune", all=all, tagged=all, until=until, labels=tuple(labels),
                   what=frozenset({"image"}))
        )
    what: set[What] = set()
    if cache and not labels:
        what.add("record")
    if mounts and not labels:
        what.add("mount")
    if what:
        policies.append(
            Policy("prune", all=all, until=until, filters=tuple(filters), reserved_space=keep_storage,
                   max_used_space=max_used_space, min_free_space=min_free_space, what=frozenset(what))
        )
    return tuple(policies)
