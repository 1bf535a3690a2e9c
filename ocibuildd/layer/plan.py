"""What a COPY, ADD or WORKDIR puts where: decided on names alone, before anything is written.

The rules are those of BuildKit's copy: a directory's contents are merged into the destination; a file never replaces a
directory nor a directory a file; directories that have to be made on the way are 0755, or what an octal --chmod says;
symlinks in the destination are
followed within its root.
"""

from __future__ import annotations

import os
import stat

from ..errors import InvalidArgument
from . import paths, tar
from .owners import Owners
from .paths import Root
from .select import Found, Selector


class Node:
    """One entry to be.  ``selector``/``found``: where its bytes and xattrs come from; ``data``: an inline file's.

    ``base``: a directory that is there already; ``changed``: it differs from what is there.  ``group``: the match that
    it came with (hard links are kept within one)."""

    __slots__ = (
        "base",
        "changed",
        "data",
        "found",
        "gid",
        "group",
        "kind",
        "mode",
        "mtime_ns",
        "names",
        "selector",
        "uid",
    )

    def __init__(
        self,
        kind: bytes,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        selector: Selector | None = None,
        found: Found | None = None,
        group: int = 0,
        *,
        data: bytes = b"",
        base: bool = False,
        changed: bool = True,
    ):
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.selector = selector
        self.found = found
        self.data = data
        self.base = base
        self.changed = changed
        self.group = group
        self.names: frozenset[bytes] | None = None


class Plan:
    """Nodes by path, over a base root (``Root(None)``: nothing is below)."""

    def __init__(
        self, base: Root, owners: Owners, made: tuple[int, int], now_ns: int, mode: int = 0o755
    ):
        self.base = base
        self.owners = owners
        self.made = made
        self.now_ns = now_ns
        self.mode = mode
        self.nodes: dict[bytes, Node] = {}

    def resolve(self, path: bytes) -> bytes:
        """Follow symlinks, those of the plan and those below it."""
        if self.base.fd is None and not any(
            node.kind == tar.SYMLINK for node in self.nodes.values()
        ):
            return paths.clean(path, clamp=True)
        return paths.resolve(self.readlink, path)

    def readlink(self, path: bytes) -> bytes | None:
        node = self.nodes.get(path)
        if node is None:
            return self.base.readlink(path)
        if node.kind == tar.SYMLINK and node.selector is not None and node.found is not None:
            return node.selector.root.readlink(_join(node.found.place, node.found.name))
        return None

    def below(self, path: bytes) -> os.stat_result | None:
        """What the base has at a path; nothing is asked where its directory is known to be new or not to hold it."""
        parent, name = paths.split(path)
        node = self.nodes.get(parent)
        if node is not None and path:
            if not node.base:
                return None
            if node.names is None:
                node.names = self._list(parent)
            if name not in node.names:
                return None
        return self.base.stat(path)

    def _list(self, path: bytes) -> frozenset[bytes]:
        fd = self.base.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return frozenset(os.fsencode(name) for name in os.listdir(fd))
        finally:
            os.close(fd)

    def is_directory(self, path: bytes) -> bool | None:
        """None where nothing is."""
        node = self.nodes.get(path)
        if node is not None:
            return node.kind == tar.DIRECTORY
        if not path:
            return True
        status = self.below(path)
        return None if status is None else stat.S_ISDIR(status.st_mode)

    def make(self, path: bytes, mode: int | None = None) -> Node:
        """See that a directory is there, with its parents; new ones are ``made``'s and of this mode (default: the
        plan's)."""
        node = self.nodes.get(path)
        if node is None:
            if path:
                self.make(paths.split(path)[0], mode)
            status = self.below(path)
            uid, gid = self.made
            if status is None:
                new = path != b""
                node = Node(
                    tar.DIRECTORY,
                    self.mode if mode is None else mode,
                    uid,
                    gid,
                    self.now_ns,
                    base=not new and self.base.fd is not None,
                    changed=new,
                )
            elif stat.S_ISDIR(status.st_mode):
                uid, gid = self.owners.of(status)
                node = Node(
                    tar.DIRECTORY,
                    status.st_mode & 0o7777,
                    uid,
                    gid,
                    status.st_mtime_ns,
                    base=True,
                    changed=False,
                )
            else:
                raise InvalidArgument(f"cannot copy to non-directory: /{os.fsdecode(path)}")
            self.nodes[path] = node
        elif node.kind != tar.DIRECTORY:
            raise InvalidArgument(f"cannot copy to non-directory: /{os.fsdecode(path)}")
        return node

    def put_directory(self, path: bytes, node: Node, *, overwrite: bool) -> None:
        """A directory with the metadata of its source.  ``overwrite``: also where there is one already."""
        known = self.nodes.get(path)
        status = self.below(path) if known is None else None
        if (known is not None and known.kind != tar.DIRECTORY) or (
            status is not None and not stat.S_ISDIR(status.st_mode)
        ):
            raise InvalidArgument(f"cannot copy to non-directory: /{os.fsdecode(path)}")
        if known is not None and overwrite:
            known.mode, known.uid, known.gid, known.mtime_ns = (
                node.mode,
                node.uid,
                node.gid,
                node.mtime_ns,
            )
            known.selector, known.found, known.changed = node.selector, node.found, True
        elif known is None and status is not None and not overwrite:
            self.make(path)
        elif known is None:
            if status is not None:
                node.base = True
                node.changed = (status.st_mode & 0o7777, *self.owners.of(status)) != (
                    node.mode,
                    node.uid,
                    node.gid,
                )
            self.nodes[path] = node

    def put_file(self, path: bytes, node: Node) -> None:
        """Anything but a directory; a directory is never replaced."""
        known = self.nodes.get(path)
        status = self.below(path) if known is None else None
        if (
            not path
            or (known is not None and known.kind == tar.DIRECTORY)
            or (status is not None and stat.S_ISDIR(status.st_mode))
        ):
            raise InvalidArgument(f"cannot replace to directory /{os.fsdecode(path)} with file")
        if status is not None and self._unchanged(path, node, status):
            node.changed = False
        self.nodes[path] = node

    def _unchanged(self, path: bytes, node: Node, status: os.stat_result) -> bool:
        """Whether the base has this very file: type, mode, owner, size, time and bytes."""
        found = node.found
        if (
            found is None
            or node.selector is None
            or not stat.S_ISREG(status.st_mode)
            or node.kind != tar.REGULAR
        ):
            return False
        if (status.st_mode & 0o7777, *self.owners.of(status)) != (node.mode, node.uid, node.gid):
            return False
        if status.st_size != found.status.st_size or status.st_mtime_ns != node.mtime_ns:
            return False
        return self._same_bytes(path, node.selector.root, _join(found.place, found.name))

    def _same_bytes(self, path: bytes, root: Root, source: bytes) -> bool:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        first = self.base.open(path, flags)
        try:
            second = root.open(source, flags)
            try:
                while (data := os.read(first, 1 << 20)) == os.read(second, 1 << 20):
                    if not data:
                        return os.listxattr(first) == os.listxattr(second)
                return False
            finally:
                os.close(second)
        finally:
            os.close(first)

    def entries(self) -> list[tuple[bytes, Node]]:
        """What goes into the layer, in walking order: what changed, and the directories above it."""
        above: set[bytes] = set()
        for parent in {path[: max(path.rfind(b"/"), 0)] for path, node in self.nodes.items() if node.changed}:
            while parent and parent not in above:
                above.add(parent)
                parent = paths.split(parent)[0]
        chosen = [  # sorted, nearly
            item for item in self.nodes.items() if item[0] and (item[1].changed or item[0] in above)
        ]
        chosen.sort(key=lambda item: item[0].replace(b"/", b"\0"))
        return chosen


def _join(place: bytes, name: bytes) -> bytes:
    return place + b"/" + name if place else name
