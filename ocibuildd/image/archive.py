"""A tar with images in it, as files by name.  Read in place: an index of its members, no extraction."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass

from ..errors import InvalidArgument, NotFound
from ..layer import tar
from ..registry.layout import Stretch

MAX_MEMBERS = 100_000
MAX_LINKS = 10


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    size: int
    link: str = ""


class _Reader:
    """``layer.tar.Source`` over a file."""

    def __init__(self, fd: int) -> None:
        self.fd, self.at = fd, 0

    def read(self, size: int) -> bytes:
        data = os.pread(self.fd, size, self.at)
        self.at += len(data)
        return data


class Archive:
    """``registry.layout.Files`` over an uncompressed tar.  ``fd`` stays the caller's.

    Raises InvalidArgument for what isn't a tar, TooLarge.  Names are cleaned; nothing is ever made of them.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._members: dict[str, _Place] = {}
        reader = _Reader(fd)
        size = os.fstat(fd).st_size
        for entry in tar.entries(reader, max_entries=MAX_MEMBERS):
            name = _clean(os.fsdecode(entry.name))
            if entry.type in (tar.SYMLINK, tar.LINK):
                target = os.fsdecode(entry.link)
                if entry.type == tar.SYMLINK:
                    target = posixpath.join(posixpath.dirname(name), target)
                self._members[name] = _Place(0, 0, _clean(target))
            elif entry.type == tar.REGULAR and entry.sparse is None:
                self._members[name] = _Place(reader.at, entry.size)
            reader.at += entry.size + -entry.size % tar.BLOCK
            if reader.at > size + tar.BLOCK or (entry.size and reader.at - tar.BLOCK > size):
                raise InvalidArgument(f"archive: cut off in the middle of {name[:200]!r}")

    def __contains__(self, name: str) -> bool:
        try:
            self._find(name)
        except NotFound:
            return False
        return True

    def names(self) -> list[str]:
        return list(self._members)

    def open(self, name: str) -> Stretch:
        """Raises NotFound."""
        place = self._find(name)
        return Stretch(os.dup(self._fd), place.offset, place.size)

    def _find(self, name: str) -> _Place:
        name = _clean(name)
        for _ in range(MAX_LINKS):
            place = self._members.get(name)
            if place is None:
                break
            if not place.link:
                return place
            name = place.link  # docker save links layers that images share
        raise NotFound(f"archive: no file {name[:200]!r} in it")


def _clean(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")
