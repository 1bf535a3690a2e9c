"""--chmod and --chown as written, into what is to be done."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from typing import Final

from ..errors import InvalidArgument
from .paths import Root

MAX_ACCOUNTS: Final = 4 << 20
"""Bytes of /etc/passwd or /etc/group that are looked at."""
MAX_ID: Final = 2**32 - 2

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)\Z")
_ACTION = re.compile(r"([-+=])([rwxXst]*|[ugo])")
_SHIFTS = {"u": 6, "g": 3, "o": 0}


def parse_mode(text: str) -> Callable[[int, bool], int] | None:
    """A function (mode, is it a directory) → mode for ``--chmod``: octal up to 7777, or symbolic as in chmod(1) without
    an umask; None for "".  Raises InvalidArgument."""
    if not text:
        return None
    if re.fullmatch(r"[0-7]{1,5}", text) and int(text, 8) <= 0o7777:
        mode = int(text, 8)
        return lambda _old, _is_directory: mode
    clauses = [_CLAUSE.match(clause) for clause in text.split(",")]
    if not all(clauses):
        raise InvalidArgument(
            f"--chmod={text}: expected an octal mode (0 to 7777) or a symbolic one (u=rwX,go=rX)",
        )
    parsed = [(found[1] or "a", _ACTION.findall(found[2])) for found in clauses if found]

    def change(mode: int, is_directory: bool) -> int:
        for who, actions in parsed:
            for operator, permissions in actions:
                mode = _apply(
                    mode, "ugo" if "a" in who else who, operator, permissions, is_directory
                )
        return mode

    return change


def _apply(mode: int, who: str, operator: str, permissions: str, is_directory: bool) -> int:
    bits = clear = 0
    for one in who:
        shift = _SHIFTS[one]
        clear |= 7 << shift
        if permissions in ("u", "g", "o") and permissions:
            bits |= (mode >> _SHIFTS[permissions] & 7) << shift
            continue
        bits |= (
            4 * ("r" in permissions) | 2 * ("w" in permissions) | ("x" in permissions)
        ) << shift
        if "X" in permissions and (is_directory or mode & 0o111):
            bits |= 1 << shift
        if "s" in permissions and one != "o":
            bits |= stat.S_ISUID if one == "u" else stat.S_ISGID
        if one != "o":
            clear |= stat.S_ISUID if one == "u" else stat.S_ISGID
    if "t" in permissions:
        bits |= stat.S_ISVTX
    if operator == "+":
        return mode | bits
    if operator == "-":
        return mode & ~bits
    return mode & ~clear | bits


def parents_mode(text: str) -> int:
    """Of directories that a copy makes on the way: an octal --chmod's permissions, else 0755 (BuildKit since 0.21)."""
    return int(text, 8) & 0o777 if text and not text.strip("01234567") else 0o755


def parse_owner(text: str, root: Root) -> tuple[int, int] | None:
    """``user[:group]`` as (uid, gid); None for "".

    Names are looked up in the root's own /etc/passwd and /etc/group.  A number alone is the group's number too; a name
    alone brings its primary group.  A name that isn't there is root, as BuildKit has it for file operations (a RUN of
    such a user fails); so is a group of no name (``app:$GROUP``); ``root`` is 0 in any image.
    Raises InvalidArgument for a number that is none."""
    if not text:
        return None
    user, colon, group = text.partition(":")
    if user == "root":
        uid = gid = 0
    elif user.isdigit():
        uid = gid = _number(user, text)
    else:
        uid, gid = _account(root, b"etc/passwd", user) or (0, 0)
    if colon:
        if group in ("", "root"):
            gid = 0
        elif group.isdigit():
            gid = _number(group, text)
        else:
            gid = (_account(root, b"etc/group", group) or (gid, 0))[0]
    return uid, gid


def _number(digits: str, text: str) -> int:
    if len(digits) > 10 or int(digits) > MAX_ID:
        raise InvalidArgument(f"{text}: no such user or group number")
    return int(digits)


def _account(root: Root, path: bytes, name: str) -> tuple[int, int] | None:
    """(the entry's number, the number after it or 0); None where there is no such entry."""
    data = root.read(path, MAX_ACCOUNTS)
    wanted = os.fsencode(name)
    for line in (data or b"").split(b"\n"):
        fields = line.split(b":")
        if fields[0] == wanted and len(fields) > 2 and fields[2].isdigit():
            second = int(fields[3]) if len(fields) > 3 and fields[3].isdigit() else 0
            return int(fields[2]), second
    return None
