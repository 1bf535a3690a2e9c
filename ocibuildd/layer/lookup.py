"""Small questions to a root file system."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Sequence
from typing import Any, Final

from .owners import Owners
from .paths import Root

MAX_READ: Final = 8 << 20
"""Bytes of one file."""
MAX_HEAD: Final = 4096
"""Bytes of a file of which only the beginning is wanted."""
MAX_QUESTIONS: Final = 10_000

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}


def lookup(
    root: int | None,
    stats: Sequence[str] = (),
    reads: Sequence[str] = (),
    heads: Sequence[str] = (),
    *,
    shift: int = 0,
    squash: bool = False,
) -> dict[str, Any]:
    """{"stat": {path: {type, mode, uid, gid, size, path, link} or None}, "read": {path: base64 or None},
    "head": the same of their first bytes}.

    Symlinks are followed within the root; ``path`` in an answer is where they led.  A file of more than ``MAX_READ``
    bytes is cut there; anything but a regular file reads as None."""
    view = Root(root)
    owners = Owners(shift, squash)
    answer: dict[str, Any] = {"stat": {}, "read": {}, "head": {}}
    for path in stats[:MAX_QUESTIONS]:
        answer["stat"][path] = _stat(view, owners, path)
    for what, paths, limit in (("read", reads, MAX_READ), ("head", heads, MAX_HEAD)):
        for path in paths[:MAX_QUESTIONS]:
            data = view.read(os.fsencode(path), limit)
            answer[what][path] = None if data is None else base64.b64encode(data).decode()
    return answer


def _stat(view: Root, owners: Owners, path: str) -> dict[str, Any] | None:
    real = view.resolve(os.fsencode(path))
    status = view.stat(real)
    if status is None:
        return None
    uid, gid = owners.of(status)
    return {
        "type": _TYPES.get(stat.S_IFMT(status.st_mode), "device"),
        "mode": status.st_mode & 0o7777,
        "uid": uid,
        "gid": gid,
        "size": status.st_size,
        "path": "/" + os.fsdecode(real),
    }
