"""Who a USER is, from the image's own passwd and group files.  Pure; moby's rules (docker run --user).

A number is never looked up as a name (CVE-2026-46680), and ids end at 65535: no more are mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InvalidArgument

MAX_FILE = 10 << 20
"""No passwd or group file is read further (CVE-2026-47262)."""

MAX_ID = 65535
MAX_GROUPS = 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """The ids that a process is to have, and its home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def identify(user: str, passwd: bytes, group: bytes, *, max_id: int = MAX_ID) -> Identity:
    """Resolve "", "name", "uid", "name:group", "uid:gid" and mixtures.

    A uid without an entry has gid 0, no groups and the home "/"; a name must be there.
    Raises InvalidArgument."""
    name, colon, group_name = user.partition(":")
    if colon and (not name or not group_name or ":" in group_name):
        raise InvalidArgument(f"user {user[:100]!r}: user, uid, user:group or uid:gid wanted")
    name = name or "0"
    number = _id(name, max_id)
    entry = next((e for e in _passwd(passwd) if _matches(e, name, number)), None)
    if number is None and entry is None:
        raise InvalidArgument(
            f"user {name[:100]!r}: not in the image's /etc/passwd", hint="use a number, or useradd it first"
        )
    login, uid, gid, home = entry or ("", number or 0, 0, "/")
    groups: tuple[int, ...] = ()
    if colon:
        gid = _group_id(group_name, group, max_id)
    elif login:
        groups = _memberships(login, group, max_id)
    if not 0 <= uid <= max_id or not 0 <= gid <= max_id:
        raise InvalidArgument(f"user {user[:100]!r} is {uid}:{gid}: ids end at {max_id} here")
    return Identity(uid, gid, tuple(dict.fromkeys((gid, *groups)))[:MAX_GROUPS], home or "/")


def _matches(entry: tuple[str, int, int, str], name: str, number: int | None) -> bool:
    return entry[1] == number if number is not None else entry[0] == name


def _id(text: str, max_id: int) -> int | None:
    """The number that a text is, None when it is a name."""
    if not (text.isascii() and text.lstrip("+-").isdecimal()):
        return None
    if not text.isdecimal() or len(text) > 10 or int(text) > max_id:
        raise InvalidArgument(f"id {text[:100]!r}: a number from 0 to {max_id} wanted")
    return int(text)


def _group_id(name: str, group: bytes, max_id: int) -> int:
    number = _id(name, max_id)
    if number is not None:
        return number
    for fields in _fields(group):
        if len(fields) >= 3 and fields[0] == name and fields[2].isdecimal():
            return int(fields[2])
    raise InvalidArgument(f"group {name[:100]!r}: not in the image's /etc/group")


def _memberships(login: str, group: bytes, max_id: int) -> tuple[int, ...]:
    found = (
        int(fields[2])
        for fields in _fields(group)
        if len(fields) >= 4 and fields[2].isdecimal() and login in fields[3].split(",")
    )
    return tuple(gid for gid in found if gid <= max_id)


def _passwd(data: bytes) -> Iterator[tuple[str, int, int, str]]:
    for fields in _fields(data):
        if len(fields) >= 4 and fields[2].isdecimal() and fields[3].isdecimal():
            home = fields[5] if len(fields) > 5 else ""
            yield fields[0], int(fields[2]), int(fields[3]), home


def _fields(data: bytes) -> Iterator[list[str]]:
    for line in data[:MAX_FILE].splitlines():
        if line and not line.startswith((b"#", b"+", b"-")):
            yield line.decode("utf-8", "surrogateescape").split(":")
