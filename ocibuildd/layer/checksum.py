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
from .missing import dangling, near
from .owners import Owners, has_xattrs, read_xattrs
from .scan import Scan
from .select import BATCH, Found, Match, Selector, Source, unreadable
from .sink import data_digest, identity

MAX_EXPLAINED: Final = 2000
MAX_TARGET: Final = 200
_LINK: Final = b"%o" % stat.S_IFLNK
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
    scan: Scan | None = None,
) -> Checksum:
    """Digest what ``source.paths`` selects.  With ``fingerprints``, files that they know aren't opened.

    ``scan``: an empty one, which is given the selection.

    ``spec``'s ``exclude``, ``parents`` and ``chown`` are looked at.  Plain and synchronous, for any thread.
    Raises OSError, InvalidArgument (a file changes meanwhile), BadPattern."""
    return _Summer(source, spec, Owners(shift, squash), fingerprints, scan).run()


class _Summer:
    def __init__(
        self,
        source: Source,
        spec: CopySpec,
        owners: Owners,
        fingerprints: Fingerprints | None,
        scan: Scan | None = None,
    ):
        self.scan = scan
        self.selector = Selector(source, spec)
        self.source = source
        self.parents = spec["parents"]
        self.owners = owners
        self.keep_owners = source.owned and not spec["chown"]
        self.fingerprints = Fingerprints() if fingerprints is None else fingerprints
        self.total = hashlib.sha256()
        self._matches = 0
        self.files: dict[str, str] = {}
        self.count = self.bytes = 0
        self._stamp = hashlib.sha256()
        self._keys: list[bytes] = []
        """What ``scan.stamp`` has of each file but directories."""
        self._fd = -1
        self._place: bytes | None = None

    def run(self) -> Checksum:
        inline = []
        for name, data, mode in self.source.inline:
            encoded = os.fsencode(name)
            record = identity(encoded, tar.REGULAR, mode, 0, 0, len(data), b"", None)
            inline.append((encoded, record + data_digest(hashlib.sha256(data))))
        self._records(inline, "")
        try:
            for match in self.selector.run():
                self._match(match)
                if self.scan is not None:
                    self.scan.matches.append(match)
        except OSError as error:
            raise unreadable(error) from error
        finally:
            if self._fd >= 0:
                os.close(self._fd)
        if self.scan is not None:
            self.scan.marked = self.selector.marked
            self.scan.listed, self.scan.hidden = self.selector.listed, self.selector.hidden
            self.scan.digest = self.fingerprints.plain
        missing = self.selector.missing
        return Checksum(
            digest="sha256:" + self.total.hexdigest(),
            files=self.files,
            count=self.count,
            bytes=self.bytes,
            missing=missing,
            ignored=self.selector.ignored,
            near={name: near(self.selector, name) for name in missing},
            links={name: link for name in missing if (link := dangling(self.selector, name))},
            stamp=self._stamp.hexdigest(),
            matches=self._matches,
        )

    def _match(self, match: Match) -> None:
        self._matches += 1
        self.total.update(b"match\0%d " % len(match.files))
        prefix = b""
        files = match.files
        is_directory = stat.S_ISDIR(match.status.st_mode)
        if self.parents:
            self._take(match.lead, b"", "")
            prefix = match.lead[-1].rel + b"/" if match.lead else b""
        elif is_directory and files and not files[0].rel:
            files = files[1:]  # its content is copied, itself isn't
        shown = os.fsdecode(match.path)
        if is_directory and not self.parents:
            self._take(files, b"", shown)
        else:
            self._take(files, prefix + match.base, shown.rpartition("/")[0])

    def _take(self, files: list[Found], prefix: bytes, shown: str) -> None:
        """Digest files, so many at a time."""
        lead = prefix + b"/" if prefix else b""
        for at in range(0, len(files), BATCH):
            self._records(
                [
                    self._record(found, lead + found.rel if found.rel else prefix)
                    for found in files[at : at + BATCH]
                ],
                shown,
            )
            self._stamp.update(b"".join(self._keys))
            self._keys.clear()

    def _records(self, records: list[tuple[bytes, bytes]], shown: str) -> None:
        """Take records (path, what the digest has of it) into the digest."""
        self.total.update(b"".join([record for _, record in records]))
        self.count += len(records)
        for path, record in records[: max(MAX_EXPLAINED - len(self.files), 0)]:
            name = os.fsdecode(path)
            text = shown + "/" + name if shown and name else shown or name
            self.files[text] = _short(record)

    def _record(self, found: Found, path: bytes) -> tuple[bytes, bytes]:
        rel, place, name, status = found
        mode = status.st_mode
        uid, gid = self.owners.of(status) if self.keep_owners else (0, 0)
        kind = mode & 0o170000
        if kind == stat.S_IFREG:
            size = status.st_size
            self.bytes += size
            record = identity(path, tar.REGULAR, mode & 0o7777, uid, gid, size, b"", None)
            fingerprint = key(status)
            self._keys.append(fingerprint + rel)
            known = self.fingerprints.get(fingerprint)
            return path, record + (self._content(found) if known is None else known)
        if kind == stat.S_IFDIR:
            xattrs = None
            if self.selector.marked:
                xattrs = self._directory_xattrs(place + b"/" + name if place else name)
            return path, identity(path, tar.DIRECTORY, mode & 0o7777, uid, gid, 0, b"", xattrs)
        self._keys.append(key(status) + rel)
        link = b""
        if kind == stat.S_IFLNK:
            link = os.readlink(name, dir_fd=self._directory(place))
        # sockets and devices count, though they aren't copied
        return path, identity(path, b"%o" % kind, mode & 0o7777, uid, gid, 0, link, None)

    def _directory(self, place: bytes) -> int:
        """A descriptor of a directory of the source; the last one is kept."""
        if place != self._place:
            fd = self.selector.root.open(place, os.O_RDONLY | os.O_DIRECTORY)
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._place = fd, place
        return self._fd

    def _directory_xattrs(self, path: bytes) -> dict[bytes, bytes] | None:
        if path not in self.selector.marked:
            return None
        return read_xattrs(self._directory(path), self.owners, tree=self.source.owned)

    def _content(self, found: Found) -> bytes:
        """A digest of a regular file's bytes and xattrs, remembered by its inode's times."""
        read_at = now()
        fd = os.open(found.name, _OPEN, dir_fd=self._directory(found.place))
        try:
            hasher = hashlib.sha256()
            left = found.status.st_size
            while left >= 0 and (data := os.read(fd, min(READ, left + 1))):
                hasher.update(data)
                left -= len(data)
            marked = read_xattrs(fd, self.owners, tree=self.source.owned) if has_xattrs(fd) else {}
            if marked:
                hasher.update(identity(b"", b"", 0, 0, 0, 0, b"", marked))
            status = os.fstat(fd)
            if left or key(status) != key(found.status):
                raise InvalidArgument(
                    f"{os.fsdecode(found.place)}/{os.fsdecode(found.name)}: changed while it was read",
                    hint="something writes to the build context during the build",
                )
        finally:
            os.close(fd)
        digest = data_digest(hasher)
        if marked:
            digest = digest[:-1] + bytes([digest[-1] | 1])
        self.fingerprints.put(status, digest, read_at)
        return digest


def _short(record: bytes) -> str:
    """For explaining a difference: "MODE[ UID:GID]:digest", so that mode and owner can be told from content; in place
    of the digest "->TARGET" for a symbolic link; a "+" after it where there are extended attributes."""
    about, _, rest = record.partition(b"\0")[2].partition(b"\0")
    kind_and_mode, uid, gid, size, link, more = about.split(b" ")
    owner = b"" if uid == gid == b"0" else b" %b:%b" % (uid, gid)
    if kind_and_mode.startswith(_LINK):
        target = rest[: min(int(link), MAX_TARGET)].decode(errors="replace")
        return f"777{owner.decode()}:->{target}"
    regular = kind_and_mode[:1] == tar.REGULAR
    digest = hashlib.sha256(b"%b %b %b" % (kind_and_mode[:1], size, rest)).hexdigest()[:12]
    marked = int(more) or (regular and rest[-1] & 1)
    return f"{(kind_and_mode[1:] + owner).decode()}:{digest}{'+' if marked else ''}"
