"""COPY, ADD and WORKDIR as layers: from the source straight into the tar, without a file system in between."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from typing import Final

from ..errors import InvalidArgument
from ..ports import CopySpec, Output, Packed
from . import tar
from .addtar import ArchiveAdder, is_archive
from .emit import Emitter
from .fingerprints import key
from .missing import refuse
from .modes import parents_mode, parse_mode, parse_owner
from .owners import Owners, read_xattrs
from .paths import Root, clean, split
from .plan import Node, Plan
from .scan import stamp
from .select import Found, Match, Selector, Source, unreadable
from .sink import LayerSink, Reuse
from .status import AnyStatus

MAX_OPEN: Final = 16
"""Directories of sources that are kept open."""
_GIGA = 1_000_000_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def pack(
    sources: Sequence[Source],
    spec: CopySpec,
    root: int | None,
    output_fd: int,
    output: Output,
    *,
    shift: int = 0,
    squash: bool = False,
    reuse: Reuse | None = None,
) -> Packed:
    """Write the layer that a COPY, ADD or WORKDIR makes over ``root`` (None: scratch).

    With ``spec["link"]`` only names of users are looked up in ``root``.  Entries are sorted, parents come first, the
    result depends on nothing but the inputs (and the clock where ``spec`` has no epoch, for directories that it makes).
    Raises NotFound (a literal source that isn't there), InvalidArgument, TooLarge, OSError."""
    owners = Owners(shift, squash)
    copier = _Copier(spec, Root(root), owners)
    if spec.get("mkdir"):
        copier.mkdir()
    try:
        for source in sources:
            copier.add(source)
    except OSError as error:
        raise unreadable(error) from error
    sink = LayerSink(output_fd, output, reuse=reuse)
    try:
        _write(copier, Emitter(sink, owners, output))
        packed = sink.close()
        packed["stamps"] = copier.stamps
        return packed
    except BaseException:
        sink.abort()
        raise


class _Copier:
    """Turns matches into a plan."""

    def __init__(self, spec: CopySpec, root: Root, owners: Owners):
        self.spec = spec
        self.owners = owners
        self.dest = os.fsencode(spec["dest"])
        self.chmod = parse_mode(spec["chmod"])
        self.chown = parse_owner(spec["chown"] or spec.get("user", ""), root)
        epoch = spec.get("epoch")
        # Whole seconds: a fraction would say nothing and cost a pax header.
        now_ns = (int(time.time()) if epoch is None else epoch) * _GIGA
        self.epoch_ns = None if epoch is None else now_ns
        self.plan = Plan(
            Root(None) if spec["link"] else root, owners, self.chown or (0, 0), now_ns, parents_mode(spec["chmod"])
        )
        self.archives: list[ArchiveAdder] = []
        self.stamps: list[str] = []
        self._group = 0

    def mkdir(self) -> None:
        self.plan.make(self.plan.resolve(self.dest))

    def add(self, source: Source) -> None:
        for name, data, mode in source.inline:
            base = split(clean(os.fsencode(name), clamp=True))[1]
            target = self._target(base)
            mode = self.chmod(mode, False) if self.chmod else mode
            uid, gid = self.chown or (0, 0)
            self.plan.put_file(
                target, Node(tar.REGULAR, mode, uid, gid, self.plan.now_ns, data=data)
            )
        if self.spec["parents"] and source.paths:  # BuildKit makes the destination before it looks for matches
            self.plan.make(self.plan.resolve(self.dest))
        selector = Selector(source, self.spec)
        matches = []
        for match in selector.run():
            matches.append(match)
            self._group += 1
            if self.spec["parents"]:
                self._with_parents(selector, match)
            elif stat.S_ISDIR(match.status.st_mode):
                self._contents(selector, match)
            elif not self._unpack(selector, match):
                self._put(self._target(match.base), selector, match.files[0])
            if selector.missing:
                break
        refuse(selector)
        self.stamps.append(stamp(matches))

    def _target(self, base: bytes) -> bytes:
        """Where one file goes."""
        plan = self.plan
        dest = plan.resolve(self.dest)
        if self.dest.endswith(b"/"):
            plan.make(dest)
        if plan.is_directory(dest):
            plan.make(dest)
            return dest + b"/" + base if dest else base
        plan.make(split(dest)[0])
        return dest

    def _contents(self, selector: Selector, match: Match) -> None:
        """A directory's contents into the destination, which takes its time."""
        plan = self.plan
        dest = plan.resolve(self.dest)
        top = plan.make(dest)
        if match.files:
            top.mtime_ns = self._time(match.status)
        prefix = dest + b"/" if dest else b""
        nodes = plan.nodes
        for found in match.files:
            if found[0]:
                path = prefix + found[0]
                if top.base or path in nodes or not _is_plain(found[3].st_mode):
                    self._put(path, selector, found)
                else:  # nothing can be in its way
                    nodes[path] = self._node(selector, found)

    def _with_parents(self, selector: Selector, match: Match) -> None:
        plan = self.plan
        dest = plan.resolve(self.dest)
        plan.make(dest)
        if not match.files:
            return
        prefix = dest + b"/" if dest else b""
        for found in match.lead:
            plan.put_directory(prefix + found.rel, self._node(selector, found), overwrite=False)
        if match.lead:
            prefix += match.lead[-1].rel + b"/"
        for found in match.files:
            name = (
                match.base + b"/" + found.rel
                if match.base and found.rel
                else match.base or found.rel
            )
            if name:
                self._put(prefix + name, selector, found)

    def _put(self, path: bytes, selector: Selector, found: Found) -> None:
        kind = found.status.st_mode
        if stat.S_ISDIR(kind):
            self.plan.put_directory(path, self._node(selector, found), overwrite=True)
        elif stat.S_ISREG(kind) or stat.S_ISLNK(kind) or stat.S_ISFIFO(kind):
            self.plan.put_file(path, self._node(selector, found))
        elif stat.S_ISSOCK(kind) and not selector.source.owned:
            # A client that sends its context makes empty files of sockets (BuildKit, testCopySocket).
            uid, gid = self.chown or (0, 0)
            mode = self.chmod(kind & 0o7777, False) if self.chmod else kind & 0o7777
            node = Node(tar.REGULAR, mode, uid, gid, self._time(found.status), group=self._group)
            self.plan.put_file(path, node)

    def _time(self, status: AnyStatus) -> int:
        """With SOURCE_DATE_EPOCH all that is copied has that time (BuildKit: CopyInfo.CreatedTime)."""
        return status.st_mtime_ns if self.epoch_ns is None else self.epoch_ns

    def _node(self, selector: Selector, found: Found) -> Node:
        status = found[3]
        kind = status.st_mode
        mode = kind & 0o7777
        if self.chown is not None:
            uid, gid = self.chown
        elif selector.source.owned:
            uid, gid = self.owners.of(status)
        else:
            uid = gid = 0
        word = _WORDS[kind & 0o170000]
        if word == tar.SYMLINK:
            mode = 0o777
        elif self.chmod is not None:
            mode = self.chmod(mode, word == tar.DIRECTORY)
        return Node(word, mode, uid, gid, self._time(status), selector, found, self._group)

    def _unpack(self, selector: Selector, match: Match) -> bool:
        """ADD's archives: a local file that is a tar (compressed or not) is unpacked, unless told otherwise."""
        wanted = self.spec["unpack"]
        if (
            not self.spec["is_add"]
            or wanted is False
            or (wanted is None and selector.source.remote)
        ):
            return False
        if not stat.S_ISREG(match.status.st_mode):
            return False
        found = match.files[0]
        fd = selector.root.open(
            found.place + b"/" + found.name if found.place else found.name,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK,
        )
        if not is_archive(fd):
            os.close(fd)
            return False
        dest = self.plan.resolve(self.dest)
        self.plan.make(dest, 0o755)  # whatever --chmod says, which is not for archives
        self.archives.append(ArchiveAdder(fd, dest, self.chown))
        return True


_WORDS = {
    stat.S_IFREG: tar.REGULAR, stat.S_IFDIR: tar.DIRECTORY, stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFIFO: tar.FIFO,
}  # fmt: skip


def _is_plain(mode: int) -> bool:
    """Whether it is of a type that is copied."""
    return mode & 0o170000 in _WORDS


class _Places:
    """Directories of the sources, the last few of them open."""

    def __init__(self) -> None:
        self._open: dict[tuple[Selector, bytes], int] = {}
        self._selector: Selector | None = None
        self._last: bytes | None = None
        self._fd = -1

    def get(self, selector: Selector, place: bytes) -> int:
        if place == self._last and selector is self._selector:
            return self._fd
        self._last, self._selector, self._fd = place, selector, self._find(selector, place)
        return self._fd

    def _find(self, selector: Selector, place: bytes) -> int:
        fd = self._open.pop((selector, place), None)
        if fd is None:
            while len(self._open) >= MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            above, name = split(place)
            parent = self._opened(selector, above) if above else -1
            try:
                if parent < 0:
                    fd = selector.root.open(place, _DIRECTORY)
                else:
                    fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            except OSError as error:
                raise InvalidArgument(
                    f"{os.fsdecode(place)}: changed while it was being read"
                ) from error
        self._open[selector, place] = fd
        return fd

    def _opened(self, selector: Selector, place: bytes) -> int:
        """The directory above others, opened if need be, and one of the last to be closed from now on."""
        fd = self._open.pop((selector, place), None)
        if fd is None:
            fd = selector.root.open(place, _DIRECTORY)
        self._open[selector, place] = fd
        return fd

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open = {}


def _write(copier: _Copier, emitter: Emitter) -> None:
    places = _Places()
    entries = copier.plan.entries()
    try:
        for path, node in entries:
            found, selector = node.found, node.selector
            if node.kind != tar.REGULAR or found is None or selector is None:
                _node(emitter, places, path, node, copier)
            elif found.status.st_nlink == 1 or not emitter.hard_link(
                path, found.status, node.uid, node.gid, node.mode, node.mtime_ns, node.group
            ):
                emitter.file(
                    path,
                    places.get(selector, found.place),
                    found.name,
                    node.mode,
                    node.uid,
                    node.gid,
                    node.mtime_ns,
                    found.status,
                    found.status.digest,
                    tree=selector.source.owned,
                )
        known = {path for path, node in entries if node.kind == tar.DIRECTORY}
        for archive in copier.archives:
            archive.write(emitter, copier.plan, known)
    except OSError as error:
        raise unreadable(error) from error
    finally:
        places.close()
        for archive in copier.archives:
            archive.close()


def _node(emitter: Emitter, places: _Places, path: bytes, node: Node, copier: _Copier) -> None:
    """Anything but a regular file from a source."""
    found, selector = node.found, node.selector
    if node.kind == tar.DIRECTORY:
        xattrs = _directory_xattrs(emitter, places, path, node, copier)
        emitter.entry(path, node.kind, node.mode, node.uid, node.gid, node.mtime_ns, xattrs=xattrs)
    elif found is None or selector is None:
        emitter.entry(path, node.kind, node.mode, node.uid, node.gid, node.mtime_ns, data=node.data)
    elif node.kind == tar.SYMLINK:
        place = places.get(selector, found.place)
        target = os.readlink(found.name, dir_fd=place)
        now = os.stat(found.name, dir_fd=place, follow_symlinks=False)
        if key(now) != key(found.status):
            raise InvalidArgument(
                f"/{os.fsdecode(path)}: its source changed while it was read",
                hint="something writes to the build context during the build",
            )
        emitter.symlink(path, target, node.uid, node.gid, node.mtime_ns)
    else:
        emitter.entry(path, node.kind, node.mode, node.uid, node.gid, node.mtime_ns)


def _directory_xattrs(
    emitter: Emitter, places: _Places, path: bytes, node: Node, copier: _Copier
) -> dict[bytes, bytes] | None:
    found, selector = node.found, node.selector
    if found is not None and selector is not None:
        source = found.place + b"/" + found.name if found.place else found.name
        if source not in selector.marked:
            return None
        fd = places.get(selector, source)
        return read_xattrs(fd, emitter.owners, tree=selector.source.owned)
    if not node.base or copier.plan.base.fd is None:
        return None
    fd = copier.plan.base.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return read_xattrs(fd, emitter.owners, tree=True)
    finally:
        os.close(fd)
