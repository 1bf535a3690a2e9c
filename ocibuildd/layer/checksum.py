"""A digest of exactly the files that a COPY, an ADD or a bind mount uses.

Over path, type, mode, owner as it would be written, link target, xattrs and content of each file; never over times.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Final

from ..errors import InvalidArgument
from ..ports import Checksum, CopySpec
from . import tar
from .fingerprints import Fingerprints, key, now
from .owners import Owners, read_xattrs
from .select import Found, Match, Selector, Source
from .sink import identity

MAX_EXPLAINED: Final = 2000
"""Files whose own digests are reported, for explaining a cache miss."""
READ: Final = 1 << 20
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def checksum(
    source: Source,
    spec: CopySpec,
    *,
    shift: int = 0,
    squash: bool = False,
    fingerprints: Fingerprints | None = None,
) -> Checksum:
    """Digest what ``source.paths`` selects.  With ``fingerprints``, files that they know aren't opened.

    ``spec``'s ``exclude``, ``parents`` and ``chown`` are looked at.  Plain and synchronous, for any thread.
    Raises OSError, InvalidArgument (a file changes meanwhile), BadPattern."""
    return _Summer(source, spec, Owners(shift, squash), fingerprints).run()


class _Summer:
    def __init__(
        self, source: Source, spec: CopySpec, owners: Owners, fingerprints: Fingerprints | None
    ):
        self.selector = Selector(source, spec)
        self.source = source
        self.parents = spec["parents"]
        self.owners = owners
        self.keep_owners = source.owned and not spec["chown"]
        self.fingerprints = fingerprints
        self.total = hashlib.sha256()
        self.files: dict[str, str] = {}
        self.count = self.bytes = 0
        self._fd = -1
        self._place: bytes | None = None
        self._links: dict[tuple[int, int], bytes] = {}

    def run(self) -> Checksum:
        try:
            for name, data, mode in self.source.inline:
                kind = tar.REGULAR
                self._record(
                    name,
                    identity(os.fsencode(name), kind, mode, 0, 0, len(data), b"", None),
                    hashlib.sha256(data).digest(),
                )
            for match in self.selector.run():
                self._match(match)
        finally:
            if self._fd >= 0:
                os.close(self._fd)
        missing = self.selector.missing
        return Checksum(
            digest="sha256:" + self.total.hexdigest(),
            files=self.files,
            count=self.count,
            bytes=self.bytes,
            missing=missing,
            ignored=self.selector.ignored,
            near={name: self.selector.near(name) for name in missing},
        )

    def _match(self, match: Match) -> None:
        self.total.update(b"match\0%d " % len(match.files))
        prefix = b""
        if self.parents:
            for found in match.lead:
                self._found(found, found.rel)
            prefix = match.lead[-1].rel + b"/" if match.lead else b""
        is_directory = stat.S_ISDIR(match.status.st_mode)
        if self.parents or not is_directory:
            prefix += match.base
        shown = os.fsdecode(match.path)
        for found in match.files:
            if not found.rel and is_directory and not self.parents:
                continue  # its content is copied, itself isn't
            rel = prefix + b"/" + found.rel if prefix and found.rel else prefix or found.rel
            self._found(found, rel, shown)

    def _found(self, found: Found, rel: bytes, shown: str = "") -> None:
        status = found.status
        mode = status.st_mode
        uid, gid = self.owners.of(status) if self.keep_owners else (0, 0)
        link = digest = b""
        size = 0
        if stat.S_ISREG(mode):
            kind, size = tar.REGULAR, status.st_size
            digest = self._content(found)
            self.bytes += size
        elif stat.S_ISDIR(mode):
            kind = tar.DIRECTORY
            digest = self._directory_xattrs(found)
        elif stat.S_ISLNK(mode):
            kind, link = tar.SYMLINK, os.readlink(found.name, dir_fd=self._directory(found.place))
        elif stat.S_ISFIFO(mode):
            kind = tar.FIFO
        else:
            return  # sockets and devices aren't copied
        path = os.fsdecode(found.rel) if found.rel else ""
        text = shown + "/" + path if shown and path else shown or path or os.fsdecode(rel)
        self._record(text, identity(rel, kind, mode & 0o7777, uid, gid, size, link, None), digest)

    def _record(self, path: str, record: bytes, digest: bytes) -> None:
        record += b"%d " % len(digest) + digest
        self.total.update(record)
        self.count += 1
        if len(self.files) < MAX_EXPLAINED:
            self.files[path] = hashlib.sha256(record).hexdigest()[:12]

    def _directory(self, place: bytes) -> int:
        """A descriptor of a directory of the source; the last one is kept."""
        if place != self._place:
            fd = self.selector.root.open(place, os.O_RDONLY | os.O_DIRECTORY)
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._place = fd, place
        return self._fd

    def _directory_xattrs(self, found: Found) -> bytes:
        path = found.place + b"/" + found.name if found.name else b"."
        names = read_xattrs(
            b"/proc/self/fd/%d/%b" % (self.selector.root.fd or 0, path),
            self.owners,
            tree=self.source.owned,
        )
        return identity(b"", b"", 0, 0, 0, 0, b"", names) if names else b""

    def _content(self, found: Found) -> bytes:
        """A digest of a regular file's bytes and xattrs, remembered by its inode's times."""
        prints = self.fingerprints
        if prints is not None:
            known = prints.get(key(found.status))
            if known is not None:
                return known
        read_at = now()
        fd = os.open(found.name, _OPEN, dir_fd=self._directory(found.place))
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidArgument(f"{os.fsdecode(found.name)}: changed while it was being read")
            hasher = hashlib.sha256()
            size = 0
            while data := os.read(fd, min(READ, status.st_size + 1)):
                hasher.update(data)
                size += len(data)
            xattrs = read_xattrs(fd, self.owners, tree=self.source.owned)
            if xattrs:
                hasher.update(identity(b"", b"", 0, 0, 0, 0, b"", xattrs))
            if size != status.st_size or key(os.fstat(fd)) != key(found.status):
                raise InvalidArgument(
                    f"{os.fsdecode(found.place)}/{os.fsdecode(found.name)}: changed while it was being read",
                    hint="something writes to the build context during the build",
                )
        finally:
            os.close(fd)
        digest = hasher.digest()
        if prints is not None:
            prints.put(status, digest, read_at)
        return digest
