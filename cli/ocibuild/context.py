"""What a build's context is: a directory (by name, never uploaded), a URL, or standard input."""

from __future__ import annotations

import os

from .errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

MAX_DOCKERFILE = 16 << 20
_TAR_MAGICS = (
    b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd",
)
_URL_SCHEMES = ("http://", "https://", "git://", "ssh://", "git@")


def is_remote(text: str) -> bool:
    """A URL, as docker tells one from a path."""
    return text.startswith(_URL_SCHEMES) or text.startswith("github.com/")


def resolve(text: str) -> dict[str, str]:
    """The request's ``context`` for a directory or a URL.  Raises ClientError."""
    if is_remote(text):
        return {"kind": "remote", "url": text}
    path = os.path.realpath(text)
    if os.path.isdir(path):
        return {"kind": "local", "path": path}
    if os.path.exists(path):
        raise ClientError(
            f"context {text}: is no directory", f"to use it as a Dockerfile: -f {text} DIRECTORY"
        )
    raise ClientError(f"context {text}: no such directory")


def looks_like_tar(head: bytes) -> bool:
    """Is this the beginning of a tar (plain or compressed)?"""
    return head.startswith(_TAR_MAGICS) or head[257:262] == b"ustar"


def read_stdin(stdin: BinaryIO) -> tuple[bytes, bool]:
    """What stands on standard input: its first bytes, and whether that is a tar."""
    head = b""
    while len(head) < 512:
        data = stdin.read(65536)
        if not data:
            break
        head += data
    if not head:
        raise ClientError("standard input is empty", "expected a Dockerfile or a tar")
    return head, looks_like_tar(head)


def rest_of(head: bytes, stdin: BinaryIO) -> Iterator[bytes]:
    """The whole of a stream whose beginning was read already."""
    yield head
    while data := stdin.read(256 << 10):
        yield data


def read_dockerfile(head: bytes, stdin: BinaryIO) -> str:
    """A Dockerfile on standard input.  Raises ClientError."""
    data = head + stdin.read(MAX_DOCKERFILE + 1 - len(head))
    if len(data) > MAX_DOCKERFILE:
        raise ClientError(f"the Dockerfile on standard input has over {MAX_DOCKERFILE} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClientError(f"the Dockerfile on standard input is no UTF-8: {error}") from None


def dockerfile_for(name: str, context: dict[str, Any]) -> str:
    """``-f`` as the request has it: relative to the context, absolute where it is outside, or a URL.

    Docker takes a relative ``-f`` relative to the working directory of the command."""
    if not name or context["kind"] != "local" or name.startswith(("http://", "https://")):
        return name
    path = os.path.abspath(name)
    if not os.path.exists(path):
        inside = os.path.join(context["path"], name)
        if os.path.exists(inside):
            return name
        raise ClientError(f"Dockerfile {name}: no such file")
    root = context["path"]
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return os.path.relpath(real, root) if real.startswith(root.rstrip("/") + "/") else real
