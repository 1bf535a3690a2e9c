"""Which files a COPY or ADD takes from a source, and a digest of exactly those.

BuildKit's rules: paths are clamped to the root of the source, symlinks on the way to what is named are followed within
it, symlinks below are taken as they are; ``*`` stays within a directory (Go's path.Match), ``**`` works with --parents;
.dockerignore hides files of local contexts; --exclude is relative to what is copied.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import BuildError, InvalidArgument, TooLarge
from ..model import patterns
from ..ports import CopySpec
from .owners import has_xattrs
from .paths import Root, is_whiteout, split
from .status import Status, narrow

if TYPE_CHECKING:
    from .scan import Scan

MAX_FILES: Final = 5_000_000
"""Files of one selection."""
ATTEMPTS: Final = 5
"""Tries to list a directory in which files come and go."""
BATCH: Final = 1000
"""Files of which something is made at a time: made of all at once it would take as much memory as the walk."""
MAX_OPEN: Final = 64
"""Directories above the one that is being listed that are kept open."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_KIND, _IS_DIRECTORY = 0o170000, stat.S_IFDIR


@dataclass(frozen=True, slots=True)
class Source:
    """Where files come from: the directory ``fd`` (a context, a checkout, a merged root), or ``inline`` files
    (name, data, mode).

    owned: owners on disk count (a stage or image); else everything is 0:0 (a context).
    remote: it came by HTTP or git.  ``paths`` as written, ``ignore`` as ``model.patterns.parse_ignore`` gives them."""

    fd: int | None = None
    inline: tuple[tuple[str, bytes, int], ...] = ()
    paths: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    remote: bool = False
    owned: bool = False
    scan: Scan | None = None
    """What an earlier ``Selector`` found in it, for the same instruction."""


class Found(NamedTuple):
    """A file of a selection: ``rel`` is its path below what was named (b"": that itself), ``place`` and ``name`` are
    its directory and name in the source's root."""

    rel: bytes
    place: bytes
    name: bytes
    status: Status


_found = tuple.__new__
"""Half the time of ``Found()``, which a walk calls once a file."""


@dataclass(slots=True)
class Match:
    """One thing that a path names.  ``base``: its name as written (b"" for the root of the source).

    ``lead``: with --parents, the directories between the pivot and it, each as (path below the destination, Found).
    ``files``: it and all below it that is visible."""

    base: bytes
    path: bytes
    status: Status
    lead: list[Found]
    files: list[Found]


class Selector:
    """Finds files in one source."""

    def __init__(self, source: Source, spec: CopySpec, *, shallow: bool = False):
        """shallow: matches have no ``files`` where they are directories."""
        self.source = source
        self.shallow = shallow
        self.root = Root(source.fd)
        self.parents = spec["parents"]
        self.ignore = patterns.Ignore(source.ignore) if source.ignore else None
        self.exclude = patterns.Ignore(spec["exclude"]) if spec["exclude"] else None
        self.missing: list[str] = []
        self.ignored: dict[str, str] = {}
        self.marked: set[bytes] = set()
        """Directories (paths in the source) that have xattrs."""
        self.listed: list[tuple[bytes, list[Found]]] = []
        """Directories that were listed, and what they hold."""
        self.hidden: dict[int, set[bytes]] = {}
        """Names in the directory of this number in ``listed`` that don't count, whatever they are."""
        self._count = 0
        self._same: dict[int, int] = {}

    def run(self) -> Iterator[Match]:
        """The matches of all paths, in the order of the paths, those of a wildcard sorted.

        Literal paths without a match land in ``missing`` (and ``ignored``)."""
        if self.source.scan is not None:
            self.marked = self.source.scan.marked
            yield from self.source.scan.matches
            return
        for written in self.source.paths:
            yield from self._path(written)

    def _path(self, written: str) -> Iterator[Match]:
        pivot, text = "", written
        if self.parents:
            before, slash, after = written.partition("/./")
            if slash:
                pivot, text = before, after
                if not after.strip("/"):
                    self.missing.append(written)
                    return
        top, path = patterns.clean("/" + pivot)[1:], patterns.clean("/" + text)[1:]
        if patterns.has_wildcard(top):
            for prefix in self._named(b"", top):
                yield from self._matches(prefix, path)
            return
        matches = self._matches(_literal(top), path)
        first = next(matches, None)
        if first is not None:
            yield first
            yield from matches
        elif not patterns.has_wildcard(path):
            self.missing.append(written)

    def _matches(self, prefix: bytes, path: str) -> Iterator[Match]:
        """What a path, perhaps with wildcards, names below ``prefix``."""
        wildcard = patterns.has_wildcard(path)
        for name in self._named(prefix, path) if wildcard else [_literal(path)]:
            match = self._match(prefix, name, wildcard=wildcard)
            if match is not None:
                yield match
            elif wildcard and not self.parents and self._leads_nowhere(prefix, name):
                self.missing.append(os.fsdecode(name))  # BuildKit follows what a wildcard names, and fails

    def _leads_nowhere(self, prefix: bytes, path: bytes) -> bool:
        """Is it a symlink to what isn't there, or hidden?"""
        full = prefix + b"/" + path if prefix else path
        link = self.root.stat(self.root.resolve(full, last=False))
        return link is not None and stat.S_ISLNK(link.st_mode) and not self._excludes(split(path)[1])

    def _named(self, prefix: bytes, path: str) -> list[bytes]:
        try:
            return list(self._expand(prefix, path))
        except patterns.BadPattern as error:
            raise InvalidArgument(f"source {error}") from None

    # --- one match

    def _match(self, prefix: bytes, path: bytes, *, wildcard: bool = False) -> Match | None:
        full = prefix + b"/" + path if prefix and path else prefix or path
        real = self.root.resolve(full)
        status = self._stat(real)
        if status is None:
            return None
        if (
            self.ignore is not None
            and real
            and (reason := self.ignore.why(os.fsdecode(real))) is not None
        ):
            below = stat.S_ISDIR(status.st_mode) and self.ignore.may_contain(os.fsdecode(real))
            if not below or not any(self._walk(real, status)):
                self.ignored[os.fsdecode(full)] = reason
                return None
        directory = stat.S_ISDIR(status.st_mode)
        if wildcard and not self.parents and not directory and self._excludes(split(path)[1]):
            return None  # as the reference has it (hom*, without *.txt); of a directory its contents are meant
        place, name = split(real)
        match = Match(split(path)[1], real, status, [], [])
        if self.parents:
            match.lead = self._lead(prefix, path)
        if directory and self.shallow:
            return match
        if directory:
            plain = self.ignore is None and self.exclude is None
            lead = path if self.parents else b""
            match.files = self._all(real, status) if plain else list(self._walk(real, status, lead))
        elif not self.parents or not self._excludes(path):
            match.files = [Found(b"", place, name, status)]
        self._count += len(match.files)
        return match

    def _stat(self, path: bytes) -> Status | None:
        status = self.root.stat(path)
        return None if status is None else narrow(status, self._same)

    def _excludes(self, path: bytes) -> bool:
        return self.exclude is not None and path != b"" and self.exclude.matches(os.fsdecode(path))

    def _lead(self, prefix: bytes, path: bytes) -> list[Found]:
        """The directories above a match, from the pivot on."""
        lead = []
        parts = path.split(b"/")[:-1]
        for depth in range(len(parts)):
            rel = b"/".join(parts[: depth + 1])
            real = self.root.resolve(prefix + b"/" + rel if prefix else rel)
            status = self._stat(real)
            if status is not None:
                place, name = split(real)
                if self._has_xattrs(real):
                    self.marked.add(real)
                lead.append(Found(rel, place, name, status))
        return lead

    def _has_xattrs(self, directory: bytes) -> bool:
        fd = self.root.open(directory, _DIRECTORY)
        try:
            return has_xattrs(fd)
        finally:
            os.close(fd)

    # --- wildcards

    def _expand(self, prefix: bytes, pattern: str) -> list[bytes]:
        """Paths (below ``prefix``, as named) that a wildcard matches, sorted; directories end the descent."""
        parts = pattern.split("/")
        first = next(index for index, part in enumerate(parts) if patterns.has_wildcard(part))
        lead = os.fsencode("/".join(parts[:first]))
        rest = parts[first:]
        start = prefix + b"/" + lead if prefix and lead else prefix or lead
        if self.parents and any("**" in part for part in rest):
            found = self._expand_deep(self.root.resolve(start), rest)
        else:
            found = [b""]
            for index, part in enumerate(rest):
                found = self._level(
                    self.root.resolve(start), found, part, last=index == len(rest) - 1
                )
        return sorted(
            (lead + b"/" + path if lead else path for path in found),
            key=lambda path: path.split(b"/"),
        )

    def _level(self, start: bytes, tops: list[bytes], part: str, *, last: bool) -> list[bytes]:
        out = []
        for top in tops:
            directory = start + b"/" + top if start and top else start or top
            for name, status in self.names(directory):
                if (last or stat.S_ISDIR(status.st_mode)) and patterns.match(
                    part, os.fsdecode(name)
                ):
                    out.append(top + b"/" + name if top else name)
        return out

    def _expand_deep(self, start: bytes, parts: list[str]) -> list[bytes]:
        """``**``: any number of directories.  What matches isn't looked into any more."""
        test = patterns.Ignore(["/".join(parts)])
        out: list[bytes] = []
        todo = [b""]
        while todo:
            top = todo.pop()
            directory = start + b"/" + top if start and top else start or top
            for name, status in self.names(directory):
                path = top + b"/" + name if top else name
                if test.matches(os.fsdecode(path)):
                    out.append(path)
                elif stat.S_ISDIR(status.st_mode):
                    todo.append(path)
        return out

    def names(self, directory: bytes) -> list[tuple[bytes, os.stat_result]]:
        """Visible names of a directory; one that isn't there has none."""
        try:
            fd = self.root.open(directory, _DIRECTORY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return []
            raise
        try:
            with os.scandir(fd) as scan:
                found = [
                    (os.fsencode(item.name), item.stat(follow_symlinks=False)) for item in scan
                ]
        finally:
            os.close(fd)
        return [
            (name, status)
            for name, status in found
            if not is_whiteout(status) and self._may_show(directory, name, status)
        ]

    def _may_show(self, directory: bytes, name: bytes, status: os.stat_result) -> bool:
        if self.ignore is None:
            return True
        path = os.fsdecode(directory + b"/" + name if directory else name)
        return (
            self.ignore.may_contain(path)
            if stat.S_ISDIR(status.st_mode)
            else not self.ignore.matches(path)
        )

    # --- walking

    def _all(self, top: bytes, status: Status) -> list[Found]:
        """``_walk`` where no pattern hides anything.  Directories are opened below the open one that they are in."""
        place, name = split(top)
        out = [Found(b"", place, name, status)]
        stack: list[tuple[int, list[Found]]] = []
        try:
            out += self._enter(stack, self._open(top), b"", top)
            while stack:
                above, todo = stack[-1]
                if not todo:
                    os.close(stack.pop()[0])
                    continue
                rel, place, name, _ = todo.pop()
                directory = place + b"/" + name if place else name
                if len(stack) > MAX_OPEN:
                    out += self._below(rel, directory)
                    continue
                try:
                    fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
                except FileNotFoundError:
                    continue  # removed since it was listed
                out += self._enter(stack, fd, rel, directory)
        finally:
            for fd, _ in stack:
                os.close(fd)
        return out

    def _open(self, directory: bytes) -> int:
        try:
            return self.root.open(directory, _DIRECTORY)
        except FileNotFoundError:
            return -1

    def _enter(
        self, stack: list[tuple[int, list[Found]]], fd: int, rel: bytes, directory: bytes
    ) -> list[Found]:
        """What the open directory holds; it stays open while there are directories in it to be entered."""
        if fd < 0:
            return []
        below: list[Found] = []
        try:
            found = self._entries(rel, directory, fd)
            below = [entry for entry in reversed(found) if entry[3].st_mode & _KIND == _IS_DIRECTORY]
        finally:
            if not below:
                os.close(fd)
        if below:
            stack.append((fd, below))
        return found

    def _below(self, top: bytes, directory: bytes) -> list[Found]:
        """What lies below a directory that is too deep for keeping those above it open."""
        out: list[Found] = []
        todo = [(top, directory)]
        while todo:
            rel, directory = todo.pop()
            found = self._entries(rel, directory)
            out += found
            prefix = directory + b"/" if directory else b""
            todo += [
                (entry[0], prefix + entry[2])
                for entry in reversed(found)
                if entry[3].st_mode & _KIND == _IS_DIRECTORY
            ]
        return out

    def _walk(self, top: bytes, status: Status, lead: bytes = b"") -> Iterator[Found]:
        """A directory and what is visible below it: each directory before its files, names sorted.

        A directory that is hidden shows where something below it does.  lead: with --parents, its path from the pivot,
        to which --exclude is relative."""
        place, name = split(top)
        first = Found(b"", place, name, status)
        hidden = self.ignore is not None and top != b"" and self.ignore.matches(os.fsdecode(top))
        hidden = hidden or self._excludes(lead)
        if not hidden:
            yield first
        todo: list[tuple[bytes, bytes, tuple[Found, ...]]] = [
            (b"", top, (first,) if hidden else ())
        ]
        shown: set[bytes] = set()
        while todo:
            rel, directory, pending = todo.pop()
            below: list[tuple[bytes, bytes, tuple[Found, ...]]] = []
            for found in self._entries(rel, directory):
                is_directory = stat.S_ISDIR(found.status.st_mode)
                visible, enter = self._visible(found, is_directory, lead)
                if not enter and not (is_directory or self._visible(found, True, lead)[1]):
                    self.hidden.setdefault(len(self.listed) - 1, set()).add(found.name)
                if visible:
                    for parent in pending:
                        if parent.rel not in shown:
                            shown.add(parent.rel)
                            yield parent
                    pending = ()
                    yield found
                if is_directory and enter:
                    path = directory + b"/" + found.name if directory else found.name
                    below.append((found.rel, path, () if visible else (*pending, found)))
            todo.extend(reversed(below))

    def _visible(self, found: Found, is_directory: bool, lead: bytes) -> tuple[bool, bool]:
        """(is it taken, is there a reason to look below it)."""
        visible = enter = True
        if self.ignore is not None:
            path = os.fsdecode(found.place + b"/" + found.name if found.place else found.name)
            visible = not self.ignore.matches(path)
            enter = visible or (is_directory and self.ignore.may_contain(path))
        if self.exclude is not None and enter:
            rel = os.fsdecode(lead + b"/" + found.rel if lead else found.rel)
            if self.exclude.matches(rel):
                visible = False
                enter = is_directory and self.exclude.may_contain(rel)
        return visible, enter

    def _entries(self, rel: bytes, directory: bytes, fd: int = -1) -> list[Found]:
        """What a directory holds, sorted.  ``fd``: it, open."""
        for _ in range(ATTEMPTS):
            try:
                out = self._scan(rel, directory, fd)
                break
            except FileNotFoundError:
                continue  # a file went between being listed and being looked at
        else:
            raise InvalidArgument(f"/{os.fsdecode(directory)}: changed while it was being read")
        self._count += len(out)
        if self._count > MAX_FILES:
            raise TooLarge(f"more than {MAX_FILES} files in one selection")
        out.sort()
        self.listed.append((directory, out))
        if self.source.owned:
            return [found for found in out if not is_whiteout(found.status)]
        return out

    def _scan(self, rel: bytes, directory: bytes, given: int) -> list[Found]:
        fd = self._open(directory) if given < 0 else given
        if fd < 0:
            return []  # removed since it was listed
        prefix, same = rel + b"/" if rel else b"", self._same
        try:
            if has_xattrs(fd):
                self.marked.add(directory)
            with os.scandir(fd) as scan:
                return [
                    _found(Found, (
                        prefix + (name := item.name.encode("utf-8", "surrogateescape")), directory, name,
                        narrow(item.stat(follow_symlinks=False), same),
                    ))
                    for item in scan
                ]  # fmt: skip
        finally:
            if given < 0:
                os.close(fd)


def _literal(path: str) -> bytes:
    """A path without wildcards as it is on the disk."""
    return os.fsencode(path.replace("\\", "") if "\\" in path else path)


def unreadable(error: OSError) -> BuildError | OSError:
    """What an error in reading a source means to people; other errors (a full disk, say) as they are."""
    name = error.filename
    where = os.fsdecode(name) if isinstance(name, (str, bytes)) else "a file"
    if error.errno in (errno.EACCES, errno.EPERM):
        return InvalidArgument(
            f"{where}: permission denied in the source of a copy",
            hint="make it readable for the daemon's user, or name it in .dockerignore",
        )
    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
        return InvalidArgument(
            f"{where}: changed while it was being read",
            hint="something writes to the build context during the build",
        )
    return error
