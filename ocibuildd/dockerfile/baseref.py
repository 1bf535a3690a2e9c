"""Image references as FROM has them, refused in the words of Docker's reference library."""

from __future__ import annotations

import re

from ..model.reference import Reference

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9][a-zA-Z0-9-]*+(?<!-)"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?:(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?/)?(?P<path>{_PART}(?:/{_PART})*)"
    rf"(?::\w[\w.-]{{0,127}})?(?:@(?P<digest>{_DIGEST}))?\Z",
    re.ASCII,
)
MAX_REFERENCE = 4096


def parse_named(text: str) -> Reference:
    """Normalise a name (``busybox`` → ``docker.io/library/busybox``).  Raises ValueError."""
    if len(text) > MAX_REFERENCE:
        raise ValueError("invalid reference format")
    if re.fullmatch(r"[a-f0-9]{64}", text):
        raise ValueError(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    first, slash, rest = text.partition("/")
    if not slash:
        remainder = "library/" + text
        domain = "docker.io"
    elif first in ("localhost", "index.docker.io") or "." in first or ":" in first or first != first.lower():
        domain, remainder = first, rest
        if domain == "index.docker.io":
            domain = "docker.io"
        if domain == "docker.io" and "/" not in remainder:
            remainder = "library/" + remainder
    else:
        domain, remainder = "docker.io", text
    name = remainder.partition(":")[0]
    if name != name.lower():
        raise ValueError(f"invalid reference format: repository name ({name}) must be lowercase")
    found = _REFERENCE.match(f"{domain}/{remainder}")
    if found is None:
        raise ValueError("invalid reference format")
    if len(found["path"]) > 255:
        raise ValueError("repository name must not be more than 255 characters")
    digest = found["digest"]
    if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", digest):
        algorithm = digest.partition(":")[0]
        kind = "checksum digest length" if algorithm in ("sha256", "sha512") else "digest algorithm"
        raise ValueError(f"{'invalid' if 'length' in kind else 'unsupported'} {kind}")
    return Reference.parse(f"{domain}/{remainder}")
