"""A layer's tar into a tree in overlayfs form (image-spec, layer.md, "Applying Changesets").

A removed name becomes a character device 0:0, a directory that hides what lies below it gets the xattr
``user.overlay.opaque`` (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").  Both are decided
when the whole layer is there, so the order of entries doesn't matter: a whiteout hides names of lower layers only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Final

from ..errors import Corrupt, InvalidArgument
from ..ports import Applied
from . import parents, paths, tar
from .owners import Owners, read_xattrs
from .source import LayerSource
from .tree import Tree

OPAQUE: Final = "user.overlay.opaque"
WHITEOUT: Final = "user.overlay.whiteout"
PREFIX: Final = b".wh."
OPAQUE_MARK: Final = b".wh..wh..opq"
_SYNTHETIC = b".wh..wh."


@contextlib.contextmanager
def plain_umask() -> Iterator[None]:
    """Modes as they are given (this process is the job's own, or a test's)."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def apply_layer(
    source_fd: int,
    tree_fd: int,
    *,
    root: int | None = None,
    expect_diff_id: str = "",
    shift: int = 0,
    squash: bool = False,
    limits: Mapping[str, int] | None = None,
    lenient: bool = False,
) -> Applied:
    """Unpack the layer that ``source_fd`` gives (any compression) into the empty directory ``tree_fd``.

    ``root`` shows what lies below this layer; a parent directory that the layer lacks takes its mode and owner from
    there (else 0755, 0:0).  ``lenient``: without it, hard links to files that may be below are left out and counted as
    ``implied``, so that the layer is applied again over its lowers.

    Raises InvalidArgument (no sound layer), TooLarge, Corrupt (another diff id), OSError;
    the tree is then worth nothing."""
    with plain_umask(), LayerSource(source_fd, limits) as source:
        applier = Applier(source, tree_fd, paths.Root(root), Owners(shift, squash), lenient=lenient)
        try:
            applier.run()
        finally:
            applier.tree.close()
        source.finish()
    if expect_diff_id and source.diff_id != expect_diff_id:
        raise Corrupt(
            f"layer {source.digest}: its diff id is {source.diff_id}, expected {expect_diff_id}"
        )
    return Applied(
        digest=source.digest,
        size=source.size,
        diff_id=source.diff_id,
        tar_size=source.tar_size,
        entries=applier.entries,
        bytes=applier.bytes,
        skipped=applier.skipped,
        implied=len(applier.tree.implied) + applier.unknown,
        parents=parents.told(applier.tree.implied),
    )


class Applier:
    """Entries of a tar, one by one, into a tree."""

    def __init__(
        self,
        source: LayerSource,
        tree_fd: int,
        root: paths.Root,
        owners: Owners,
        *,
        lenient: bool = False,
    ):
        self.source = source
        self.lenient = lenient and root.fd is None
        self.root = root
        self.owners = owners
        self.tree = Tree(tree_fd, owners, root.readlink)
        self.entries = self.bytes = self.skipped = self.unknown = 0
        self._whiteouts: set[bytes] = set()
        self._opaque: set[bytes] = set()

    def run(self) -> None:
        self._prepare_root()
        limits = self.source
        for entry in tar.entries(
            self.source, max_entries=limits.max_entries, max_name=limits.max_name
        ):
            self.entries += 1
            try:
                self._entry(entry)
            except OSError as error:
                if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
                    raise InvalidArgument(f"tar: {entry.name[:300]!r}: {error.strerror}") from error
                raise
        self._finish_whiteouts()
        self.tree.finish()
        if self.root.fd is not None:
            parents.inherit(
                self.tree.root_fd, self.root.fd, self.tree.implied, squash=self.owners.squash
            )

    def _prepare_root(self) -> None:
        below = self.root.stat(b"")
        if below is None:
            # A layer that says nothing of the root makes it plain, whatever the layers below it say: so do Docker and
            # Podman (containerd keeps the owner), and the tree fits over any other.
            self.owners.chown(self.tree.root_fd, 0, 0, b"/")
            os.fchmod(self.tree.root_fd, 0o755)
            return
        if not self.owners.squash:
            os.fchown(self.tree.root_fd, below.st_uid, below.st_gid)
        os.fchmod(self.tree.root_fd, below.st_mode & 0o7777)

    def _entry(self, entry: tar.Entry) -> None:
        path = paths.clean(entry.name, clamp=False)
        name = path[path.rfind(b"/") + 1 :]
        if name.startswith(PREFIX):
            self._mark(path, name)
            self._skip(entry)
        elif entry.type == tar.REGULAR:
            if not path:
                raise InvalidArgument("tar: a file in place of the root directory")
            self._file(entry, path)
        elif entry.type == tar.DIRECTORY:
            fd = self.tree.put_directory(path, entry.mode, entry.uid, entry.gid, entry.mtime_ns)
            if entry.xattrs:
                self.tree.set_xattrs(fd, entry.xattrs)
        elif not path:
            raise InvalidArgument(
                f"tar: an entry of type {entry.type!r} in place of the root directory"
            )
        elif entry.type == tar.SYMLINK:
            self.tree.symlink(path, entry.link, entry.uid, entry.gid, entry.mtime_ns)
        elif entry.type == tar.LINK:
            self._link(entry, path)
        elif entry.type == tar.FIFO:
            self.tree.fifo(path, entry.mode, entry.uid, entry.gid, entry.mtime_ns)
        else:
            self.skipped += 1  # device nodes can't be made in a user namespace

    def _skip(self, entry: tar.Entry) -> None:
        self.source.skip(entry.size + -entry.size % tar.BLOCK)

    def _file(self, entry: tar.Entry, path: bytes) -> None:
        fd = self.tree.create(path, entry.mode)
        try:
            write_data(self.source, entry, fd)
            self.tree.finish_file(
                fd,
                path,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime_ns,
                entry.xattrs,
            )
        finally:
            os.close(fd)
        self.bytes += entry.real

    def _link(self, entry: tar.Entry, path: bytes) -> None:
        target = paths.clean(entry.link, clamp=False)
        try:
            self.tree.link(path, target)
        except FileNotFoundError:
            if self.lenient:
                self.unknown += 1
                return
            self._copy_up(self.root.resolve(target, last=False), path)
            self.tree.link(path, target)

    def _copy_up(self, target: bytes, path: bytes) -> None:
        """A hard link's target is a file of a lower layer: it comes into this one, as link(2) on overlayfs does."""
        status = self.root.stat(target)
        if status is None or not stat.S_ISREG(status.st_mode):
            raise InvalidArgument(
                f"tar: {os.fsdecode(path)}: a hard link to {os.fsdecode(target)}, which doesn't exist (yet)",
            )
        source = self.root.open(target, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fd = self.tree.create(target, status.st_mode)
            try:
                done = 0
                while count := os.sendfile(fd, source, done, 1 << 30):  # between file systems too
                    done += count
                uid, gid = self.owners.of(status)
                self.tree.finish_file(
                    fd,
                    target,
                    status.st_mode & 0o7777,
                    uid,
                    gid,
                    status.st_mtime_ns,
                    read_xattrs(source, self.owners, tree=True),
                )
            finally:
                os.close(fd)
        finally:
            os.close(source)

    # --- whiteouts

    def _mark(self, path: bytes, name: bytes) -> None:
        parent = path[: -len(name) - 1]
        if name == OPAQUE_MARK:
            self._opaque.add(parent)
        elif name.startswith(_SYNTHETIC):
            return  # aufs' own book-keeping: image-spec, layer.md, "Whiteouts"
        else:
            hidden = name[len(PREFIX) :]
            if hidden in (b"", b".", b".."):
                raise InvalidArgument(
                    f"tar: {os.fsdecode(path)}: a whiteout of nothing that could be there"
                )
            self._whiteouts.add(parent + b"/" + hidden if parent else hidden)

    def _finish_whiteouts(self) -> None:
        """Marks for what the layer hides, now that all of its own files are there."""
        opaque = self._opaque
        for path in sorted(opaque):
            if path and not self._below_opaque(path):
                self._set_opaque(path)
        if b"" in opaque:
            self._hide_all()
        for path in sorted(self._whiteouts):
            if self._below_opaque(path):
                continue  # nothing shows through there, and overlayfs would list the mark as a file
            parent, name = paths.split(path)
            fd = self.tree.directory(parent)
            try:
                own = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                make_whiteout(fd, name)
                continue
            if stat.S_ISDIR(own.st_mode):  # removed below, and made anew here
                self._set_opaque(path)
                opaque.add(path)

    def _below_opaque(self, path: bytes) -> bool:
        while path:
            path = paths.split(path)[0]
            if path in self._opaque:
                return True
        return False

    def _set_opaque(self, path: bytes) -> None:
        os.setxattr(self.tree.directory(path), OPAQUE, b"y")

    def _hide_all(self) -> None:
        """An opaque root: overlayfs always merges roots, so each name below gets its mark."""
        if self.root.fd is None:
            self.unknown += 1
            return
        directory = self.root.open(b"", os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = [os.fsencode(name) for name in os.listdir(directory)]
        finally:
            os.close(directory)
        self._opaque.discard(b"")
        self._whiteouts.update(names)


def make_whiteout(fd: int, name: bytes) -> None:
    """Hide ``name`` of lower layers: a device 0:0, or where that isn't allowed the xattr form (Linux 6.7)."""
    try:
        os.mknod(name, stat.S_IFCHR | 0o600, 0, dir_fd=fd)
    except PermissionError:
        mark = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            os.setxattr(mark, WHITEOUT, b"y")
        finally:
            os.close(mark)
        os.setxattr(fd, OPAQUE, b"x")


def write_data(source: LayerSource, entry: tar.Entry, fd: int) -> None:
    """The data of a regular file, holes where its sparse map has them."""
    size = entry.size
    if entry.sparse is None:
        whole = source.view(size) if size else None
        if whole is not None:
            _write(fd, whole)
        else:
            for piece in source.views(size):
                _write(fd, piece)
    else:
        for offset, length in entry.sparse:
            os.lseek(fd, offset, os.SEEK_SET)
            for piece in source.views(length):
                _write(fd, piece)
        os.ftruncate(fd, entry.real)
    pad = -size % tar.BLOCK
    if pad and source.view(pad) is None:
        source.read(pad)  # docker's CLI sends contexts whose last file lacks it, and the end blocks


def _write(fd: int, piece: memoryview) -> None:
    count = os.write(fd, piece)
    while count < len(piece):
        piece = piece[count:]
        count = os.write(fd, piece)
