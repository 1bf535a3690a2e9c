"""Messages between main, nsd and job children: JSON in SEQPACKET datagrams, with descriptors.

A message that doesn't fit in a datagram travels in a sealed-off memory file that is passed as its last
descriptor.  Both ends are ours, but a job child has parsed hostile input: main checks sizes.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

INLINE_LIMIT = 64 * 1024
"""Longer messages go through a memory file (SO_SNDBUF is 208 KiB by default)."""

MESSAGE_LIMIT = 256 * 1024 * 1024
"""No message is longer."""

MAX_FDS = 250
"""SCM_MAX_FD is 253."""

_BIG = b"\x01"
_ROOM = socket.CMSG_LEN((MAX_FDS + 1) * 4)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected SEQPACKET sockets, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message.  Raises OSError (EPIPE: the other end is gone), ValueError (too many fds)."""
    send_raw(sock, json.dumps(message, separators=(",", ":")).encode(), fds)


def send_raw(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send encoded bytes as :func:`send` does."""
    if len(fds) > MAX_FDS:
        raise ValueError(f"{len(fds)} descriptors in a message, at most {MAX_FDS} fit")
    if len(data) <= INLINE_LIMIT:
        socket.send_fds(sock, [data], list(fds), socket.MSG_NOSIGNAL)
        return
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(data)
        socket.send_fds(sock, [_BIG], [*fds, memory], socket.MSG_NOSIGNAL)
    finally:
        os.close(memory)


def receive_raw(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """One message's bytes and descriptors; None when the other end has closed or shut down.

    Raises OSError, ValueError (longer than MESSAGE_LIMIT)."""
    # Not socket.recv_fds: in Python 3.11 it drops its flags, and the descriptors would be inherited.
    data, ancillary, _, _ = sock.recvmsg(INLINE_LIMIT + 1, _ROOM, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, body in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += memoryview(body[: len(body) // 4 * 4]).cast("i").tolist()
    if not data:
        return None
    if data != _BIG:
        return data, fds
    memory = fds.pop()
    try:
        size = os.fstat(memory).st_size
        if size > MESSAGE_LIMIT:
            raise ValueError(f"message of {size} bytes, at most {MESSAGE_LIMIT} are taken")
        return _read_all(memory, size), fds
    except BaseException:
        close_all(fds)
        raise
    finally:
        os.close(memory)


def _read_all(fd: int, size: int) -> bytes:
    chunks: list[bytes] = []
    offset = 0
    while offset < size:
        chunk = os.pread(fd, min(size - offset, 1 << 24), offset)
        if not chunk:
            break
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """:func:`receive_raw`, decoded."""
    got = receive_raw(sock)
    if got is None:
        return None
    message = json.loads(got[0])
    if not isinstance(message, dict):
        close_all(got[1])
        raise ValueError("a message that is no object")  # noqa: TRY004 - a bad value came in
    return message, got[1]


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors, whatever happens to each."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue
