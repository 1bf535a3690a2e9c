"""Owners and file capabilities, between a tar and a disk on which all ids are shifted.

File capabilities (capabilities(7), "File capability extended attribute versioning"): a layer has revision 2; on a disk
shared with a user namespace the kernel wants revision 3, which names the namespace's root.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import Final

from ..errors import InvalidArgument
from .status import AnyStatus

CAPABILITY: Final = "security.capability"
_REVISION_2, _REVISION_3, _REVISION_MASK = 0x02000000, 0x03000000, 0xFF000000
_OVERLAY: Final = b"user.overlay."


@dataclass(frozen=True, slots=True)
class Owners:
    """``shift``: id on disk minus id in the container.  ``squash``: there is one id only: nothing is chowned, every
    file counts as root's."""

    shift: int = 0
    squash: bool = False

    def chown(self, fd: int, uid: int, gid: int, name: bytes) -> None:
        """Give the open file to container ids.  Raises InvalidArgument for an id that isn't mapped."""
        if not self.squash:
            try:
                os.fchown(fd, uid + self.shift, gid + self.shift)
            except OSError as error:
                raise self._unmapped(error, uid, gid, name) from error

    def chown_at(self, name: bytes, dir_fd: int, uid: int, gid: int) -> None:
        """The same by name; a symlink itself."""
        if not self.squash:
            try:
                os.chown(
                    name,
                    uid + self.shift,
                    gid + self.shift,
                    dir_fd=dir_fd,
                    follow_symlinks=False,
                )
            except OSError as error:
                raise self._unmapped(error, uid, gid, name) from error

    def of(self, status: AnyStatus) -> tuple[int, int]:
        """The container's (uid, gid) of a file on disk; what lies below the shift is root's."""
        if self.squash:
            return 0, 0
        return max(status.st_uid - self.shift, 0), max(status.st_gid - self.shift, 0)

    def _unmapped(self, error: OSError, uid: int, gid: int, name: bytes) -> Exception:
        if error.errno not in (errno.EINVAL, errno.EOVERFLOW):
            return error
        return InvalidArgument(
            f"{os.fsdecode(name)}: owner {uid}:{gid} is outside the ids that are mapped here",
            hint="give this user more subordinate ids in /etc/subuid and /etc/subgid",
        )

    def capability_to_disk(self, value: bytes) -> bytes:
        """A layer's security.capability as this process has to set it: revision 3, rooted at the container's root."""
        if self.shift and len(value) == 20:
            magic = int.from_bytes(value[:4], "little")
            if magic & _REVISION_MASK == _REVISION_2:
                magic = magic & ~_REVISION_MASK | _REVISION_3
                return struct.pack("<I", magic) + value[4:] + struct.pack("<I", self.shift)
        return value

    def capability_to_layer(self, value: bytes) -> bytes:
        """The inverse; the root of another namespace keeps its revision 3."""
        if len(value) == 24 and int.from_bytes(value[:4], "little") & _REVISION_MASK == _REVISION_3:
            root = int.from_bytes(value[20:], "little")
            if root != self.shift:
                return value[:20] + struct.pack("<I", max(root - self.shift, 0))
            magic = int.from_bytes(value[:4], "little") & ~_REVISION_MASK | _REVISION_2
            return struct.pack("<I", magic) + value[4:20]
        return value


def xattr_to_disk(key: bytes) -> bytes | None:
    """The name under which a layer's xattr is kept in an overlay tree; None: it is dropped.

    File capabilities and user.* are kept.  user.overlay.* is escaped, so that an image can't forge overlayfs'
    own marks (Linux 6.7, Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts")."""
    if key.startswith(_OVERLAY):
        return _OVERLAY + key[len(b"user.") :]
    if key.startswith(b"user.") or key == CAPABILITY.encode():
        return key
    return None


def has_xattrs(fd: int) -> bool:
    """Whether an open file has any extended attribute; False where there is no support."""
    try:
        return bool(os.listxattr(fd))
    except OSError:
        return False


def read_xattrs(target: int | str | bytes, owners: Owners, *, tree: bool) -> dict[bytes, bytes]:
    """The xattrs of a file (symlinks aren't followed) that belong into a layer; none where there is no support.

    ``tree``: it lies in an overlay tree, so overlay's own marks go, and escaped names are themselves again."""
    follow = not isinstance(target, (str, bytes))
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError:
        return {}
    found: dict[bytes, bytes] = {}
    for name in names:
        key = os.fsencode(name)
        if key.startswith(b"user.overlay.") and tree:
            if not key.startswith(b"user.overlay.overlay."):
                continue
            key = b"user." + key[len(b"user.overlay.") :]
        elif not key.startswith(b"user.") and name != CAPABILITY:
            continue
        try:
            value = os.getxattr(target, name, follow_symlinks=follow)
        except OSError:
            continue
        found[key] = owners.capability_to_layer(value) if name == CAPABILITY else value
    return found
