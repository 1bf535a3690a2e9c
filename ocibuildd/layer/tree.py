"""Writes files into a directory tree that an archive describes, and nowhere else.

Every directory is opened by name from its parent's descriptor without following links, so no entry can lead out of
the tree.  Open directories are kept: an archive names one directory many times in a row.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping

from ..errors import InvalidArgument
from . import paths
from .owners import CAPABILITY, Owners, xattr_to_disk

MAX_OPEN = 256
"""Directories kept open."""
MAX_DEPTH = 1024
"""Directories below one another."""
MAX_LEVELS = 64
"""Directories that ``remove_below`` keeps open."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Imply = Callable[[bytes], bytes | None]
"""Where a directory that the archive lacks is a symlink below: its target, else None."""


class Tree:
    """A tree under ``root_fd`` (a readable directory descriptor, the caller's).

    ``owners`` None: files stay the process's own, xattrs and special mode bits are left out (plain files).
    ``imply`` is asked about a parent that isn't there.  The process's umask must be 0 (see ``apply``)."""

    def __init__(self, root_fd: int, owners: Owners | None, imply: Imply | None = None):
        self.root_fd = root_fd
        self.owners = owners
        self.implied: set[bytes] = set()
        """Directories that were made because something lies in them."""
        self._imply = imply
        self._open: dict[bytes, int] = {b"": root_fd}
        self._real: dict[bytes, bytes] = {}
        self._times: dict[bytes, int] = {}

    def close(self) -> None:
        for path, fd in self._open.items():
            if path:
                os.close(fd)
        self._open = {b"": self.root_fd}

    # --- directories

    def directory(self, path: bytes) -> int:
        """A descriptor of a directory (kept by the tree), made with its parents where it is missing.

        A symlink in its place is followed within the tree, as a container would.
        Raises InvalidArgument where something else is in the way."""
        fd = self._open.get(path)
        if fd is not None:
            return fd
        real = self._real.get(path)
        if real is not None:
            return self.directory(real)
        if path.count(b"/") >= MAX_DEPTH:
            raise InvalidArgument(
                f"{os.fsdecode(path[:100])}…: more than {MAX_DEPTH} directories deep"
            )
        parent, name = paths.split(path)
        parent_fd = self.directory(parent)
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
        except FileNotFoundError:
            return self._missing(path, parent_fd, name)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            return self._other(path, parent_fd, name)
        return self._keep(path, fd)

    def _keep(self, path: bytes, fd: int) -> int:
        if len(self._open) >= MAX_OPEN:
            self.close()
        self._open[path] = fd
        return fd

    def _missing(self, path: bytes, parent_fd: int, name: bytes) -> int:
        if self._imply is not None and self._imply(path) is not None:  # a symlink below this layer
            real = paths.resolve(self.readlink, path)
            if real != path:
                self._real[path] = real
                return self.directory(real)
        self.implied.add(path)
        os.mkdir(name, 0o755, dir_fd=parent_fd)
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
        if self.owners is not None:
            self.owners.chown(fd, 0, 0, path)
        return self._keep(path, fd)

    def _other(self, path: bytes, parent_fd: int, name: bytes) -> int:
        """What is there is no directory: follow it when it is a symlink."""
        if stat.S_ISLNK(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
            real = paths.resolve(self.readlink, path)
            if real != path:
                self._real[path] = real
                return self.directory(real)
        raise InvalidArgument(
            f"{os.fsdecode(path)}: not a directory, and the archive has files below it"
        )

    def readlink(self, path: bytes) -> bytes | None:
        """The target of a symlink in the tree, or in what lies below it; parents of ``path`` hold no symlink."""
        try:
            return os.readlink(path, dir_fd=self.root_fd)
        except OSError as error:
            if error.errno != errno.ENOENT or self._imply is None:
                return None
        return self._imply(path)

    # --- entries: ``path`` is clean and not the root

    def put_directory(self, path: bytes, mode: int, uid: int, gid: int, mtime_ns: int) -> int:
        """Make a directory, or take the one that is there; its time is set by ``finish``."""
        if path:
            parent, name = paths.split(path)
            parent_fd = self.directory(parent)
            if path not in self._open:
                self._make(path, parent_fd, name, lambda: os.mkdir(name, 0o700, dir_fd=parent_fd))
        fd = self.directory(path)
        if self.owners is not None:
            self.owners.chown(fd, uid, gid, path)
            os.fchmod(fd, mode)
        elif path:
            os.fchmod(fd, mode & 0o7777 | 0o700)
        self._times[path] = mtime_ns
        self.implied.discard(path)
        return fd

    def create(self, path: bytes, mode: int) -> int:
        """A new, empty file, open for writing; whatever had the name is gone.  ``finish_file`` closes it."""
        parent, name = paths.split(path)
        fd = self._open.get(parent)
        if fd is None:
            fd = self.directory(parent)
        try:
            return os.open(name, _CREATE, mode & 0o777, dir_fd=fd)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
        self.remove(path, fd, name)
        return os.open(name, _CREATE, mode & 0o777, dir_fd=fd)

    def finish_file(
        self,
        fd: int,
        path: bytes,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        xattrs: Mapping[bytes, bytes],
    ) -> None:
        """Owner, mode, xattrs and time of a file from ``create``; the caller closes it."""
        if self.owners is not None:
            self.owners.chown(fd, uid, gid, path)
            if mode & 0o7000:
                os.fchmod(fd, mode)  # after chown, which clears set-user-id
            if xattrs:
                self.set_xattrs(fd, xattrs)
        os.utime(fd, ns=(mtime_ns, mtime_ns))

    def set_xattrs(self, fd: int, xattrs: Mapping[bytes, bytes]) -> None:
        if self.owners is None:
            return
        for key, value in xattrs.items():
            name = xattr_to_disk(key)
            if name is None:
                continue
            if name == CAPABILITY.encode():
                value = self.owners.capability_to_disk(value)
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno not in (
                    errno.EPERM,
                    errno.EOPNOTSUPP,
                    errno.EINVAL,
                    errno.ENOSPC,
                    errno.E2BIG,
                ):
                    raise

    def symlink(self, path: bytes, target: bytes, uid: int, gid: int, mtime_ns: int) -> None:
        parent, name = paths.split(path)
        fd = self.directory(parent)
        if not target:
            raise InvalidArgument(f"{os.fsdecode(path)}: a symbolic link to nothing")
        self._make(path, fd, name, lambda: os.symlink(target, name, dir_fd=fd), directory=False)
        if self.owners is not None:
            self.owners.chown_at(name, fd, uid, gid)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=fd, follow_symlinks=False)

    def fifo(self, path: bytes, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
        parent, name = paths.split(path)
        fd = self.directory(parent)
        self._make(
            path, fd, name, lambda: os.mkfifo(name, mode & 0o777, dir_fd=fd), directory=False
        )
        if self.owners is not None:
            self.owners.chown_at(name, fd, uid, gid)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=fd, follow_symlinks=False)

    def link(self, path: bytes, target: bytes) -> None:
        """A hard link to a file that is in the tree.  Raises FileNotFoundError where it isn't, InvalidArgument where it
        is a directory."""
        if target == path:
            return
        target_parent, target_name = paths.split(target)
        source = self.open_directory(target_parent)
        if stat.S_ISDIR(os.stat(target_name, dir_fd=source, follow_symlinks=False).st_mode):
            raise InvalidArgument(
                f"{os.fsdecode(path)}: a hard link to a directory, {os.fsdecode(target)}"
            )
        parent, name = paths.split(path)
        fd = self.directory(parent)
        source = self.open_directory(target_parent)  # ``directory`` may have closed it
        fd = self.directory(parent)

        def make() -> None:
            os.link(target_name, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)

        self._make(path, fd, name, make, directory=False)

    def open_directory(self, path: bytes) -> int:
        """Like ``directory``, but nothing is made.  Raises FileNotFoundError."""
        real = paths.resolve(self.readlink, path)
        if real not in self._open:
            os.stat(real or b".", dir_fd=self.root_fd, follow_symlinks=False)
        return self.directory(real)

    def _make(
        self,
        path: bytes,
        parent_fd: int,
        name: bytes,
        make: Callable[[], None],
        *,
        directory: bool = True,
    ) -> None:
        try:
            make()
        except FileExistsError:
            if directory and stat.S_ISDIR(
                os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
            ):
                return
            self.remove(path, parent_fd, name)
            make()

    def remove(self, path: bytes, parent_fd: int, name: bytes) -> None:
        """Take away what has a name, a whole directory too."""
        try:
            os.unlink(name, dir_fd=parent_fd)
        except IsADirectoryError:
            self._forget(path)
            remove_below(parent_fd, name)
        self._real.clear()

    def _forget(self, path: bytes) -> None:
        """Close what is at and below a path that goes."""
        prefix = path + b"/"
        for known in [known for known in self._open if known == path or known.startswith(prefix)]:
            os.close(self._open.pop(known))
        for known in [known for known in self._times if known == path or known.startswith(prefix)]:
            del self._times[known]
        self.implied -= {
            known for known in self.implied if known == path or known.startswith(prefix)
        }

    def finish(self) -> None:
        """Set the times of all directories, now that nothing is written any more."""
        for path, mtime_ns in self._times.items():
            os.utime(self.directory(path), ns=(mtime_ns, mtime_ns))


def remove_below(parent_fd: int, name: bytes) -> tuple[int, int]:
    """Delete a directory and all in it; (files, bytes on disk) of what went.

    Modes don't matter to the files' owner.  Never more than ``MAX_LEVELS`` directories are open: what lies deeper is
    moved up first."""
    stack = [(_enter(parent_fd, name), name)]
    todo: list[list[bytes]] = []
    fresh = b".deep-%s-" % os.urandom(8).hex().encode()  # no name that a step, or a removal cut short, has taken
    files = size = moved = 0
    try:
        while stack:
            fd, own_name = stack[-1]
            if len(todo) < len(stack):
                subdirectories, count, total = _unlink_files(fd)
                files += count
                size += total
                todo.append(subdirectories)
            if not todo[-1]:
                os.close(fd)
                stack.pop()
                todo.pop()
                os.rmdir(own_name, dir_fd=stack[-1][0] if stack else parent_fd)
                files += 1
                continue
            child = todo[-1].pop()
            if len(stack) >= MAX_LEVELS:
                moved += 1
                os.rename(child, fresh + b"%d" % moved, src_dir_fd=fd, dst_dir_fd=stack[0][0])
                todo[0].append(fresh + b"%d" % moved)
            else:
                stack.append((_enter(fd, child), child))
    finally:
        for fd, _ in stack:
            os.close(fd)
    return files, size


def _enter(parent_fd: int, name: bytes) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent_fd)
        return os.open(name, _DIRECTORY, dir_fd=parent_fd)


def _unlink_files(fd: int) -> tuple[list[bytes], int, int]:
    """Unlink all but directories: (names of directories, files, bytes on disk)."""
    directories: list[bytes] = []
    files = size = 0
    with os.scandir(fd) as scan:
        found = list(scan)
    for entry in found:
        name = os.fsencode(entry.name)
        if entry.is_dir(follow_symlinks=False):
            directories.append(name)
            continue
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        try:
            os.unlink(name, dir_fd=fd)
        except PermissionError:
            os.fchmod(fd, 0o700)
            os.unlink(name, dir_fd=fd)
        files += 1
        if status.st_nlink == 1:
            size += status.st_blocks * 512
    return directories, files, size
