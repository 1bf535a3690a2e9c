"""Files of a context as a step may mount them: a copy that belongs to the step's root user.

A bind of the client's own directory would not do: its owner has no id in a sandbox, so that files of mode 0600 (and
directories of 0700) could not be read, and what .dockerignore hides would be there.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat

from ..ports import CopySpec
from .missing import refuse
from .paths import Root, split
from .scan import stamp
from .select import Found, Match, Selector, Source, unreadable
from .status import Status

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 1 << 30
_SMALL = 1 << 18


def replicate(
    source: Source, spec: CopySpec, tree: int, *, shift: int = 0, squash: bool = False
) -> str:
    """Copy what ``source.paths`` (one, literal) names to the same path below the empty directory ``tree``.

    Modes and times stay, owners become root, sockets and devices are left out.  Gives the ``stamp`` of the files.
    Raises NotFound, InvalidArgument (unreadable), OSError."""
    selector = Selector(source, spec)
    matches = list(selector.run())
    refuse(selector)
    owner = -1 if squash else shift
    try:
        for match in matches:
            _Replica(selector.root, tree, owner).write(match)
    except OSError as error:
        raise unreadable(error) from error
    return stamp(matches)


class _Replica:
    """One match, written below a descriptor; names come from a listing, so that none leads anywhere else."""

    def __init__(self, root: Root, tree: int, owner: int):
        self._root = root
        self._tree = tree
        self._owner = owner
        self._place: bytes | None = None
        self._fd = -1

    def write(self, match: Match) -> None:
        path = b"/".join(part for part in match.path.split(b"/") if part)
        directories: list[tuple[bytes, Status]] = []
        self._parents(split(path)[0])
        try:
            for found in match.files:
                target = b"/".join(part for part in (path, found.rel) if part) or b"."
                if self._one(target, found):
                    directories.append((target, found.status))
        finally:
            if self._fd >= 0:
                os.close(self._fd)
        for target, status in reversed(directories):  # last, as files in them change their times
            self._attributes(target, status)

    def _parents(self, path: bytes) -> None:
        done = b""
        for part in path.split(b"/") if path else ():
            done = done + b"/" + part if done else part
            os.mkdir(done, 0o755, dir_fd=self._tree)
            os.chown(done, self._owner, self._owner, dir_fd=self._tree)

    def _one(self, target: bytes, found: Found) -> bool:
        """Is it a directory?"""
        kind = found.status.st_mode
        if stat.S_ISDIR(kind):
            if target != b".":
                os.mkdir(target, 0o700, dir_fd=self._tree)
            return True
        if stat.S_ISLNK(kind):
            os.symlink(os.readlink(found.name, dir_fd=self._at(found.place)), target, dir_fd=self._tree)
        elif stat.S_ISREG(kind):
            self._file(target, found)
        elif stat.S_ISFIFO(kind):
            os.mkfifo(target, 0o600, dir_fd=self._tree)
        else:
            return False
        self._attributes(target, found.status)
        return False

    def _at(self, place: bytes) -> int:
        """The directory of a source's file; neighbours come after one another."""
        if place != self._place:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
            self._fd = self._root.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._place = place
        return self._fd

    def _file(self, target: bytes, found: Found) -> None:
        reader = os.open(found.name, _READ, dir_fd=self._at(found.place))
        try:
            writer = os.open(target, _CREATE, 0o600, dir_fd=self._tree)
            try:
                _copy(reader, writer, found.status.st_size)
            finally:
                os.close(writer)
        finally:
            os.close(reader)

    def _attributes(self, target: bytes, status: Status) -> None:
        os.chown(target, self._owner, self._owner, dir_fd=self._tree, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(target, stat.S_IMODE(status.st_mode), dir_fd=self._tree)
        times = (status.st_mtime_ns, status.st_mtime_ns)
        os.utime(target, ns=times, dir_fd=self._tree, follow_symlinks=False)


def _copy(reader: int, writer: int, size: int) -> None:
    """Small files by hand (to share extents the kernel first writes them to the disk); large ones by the kernel,
    by hand between file systems."""
    if size < _SMALL:
        while data := os.read(reader, _SMALL):
            os.write(writer, data)
        return
    try:
        while os.copy_file_range(reader, writer, _CHUNK):
            pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        with open(os.dup(reader), "rb") as file, open(os.dup(writer), "wb") as into:
            shutil.copyfileobj(file, into, 1 << 20)
