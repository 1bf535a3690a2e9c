"""Why a program was "not found" though it is there: what it needs to run is not in the image."""

from __future__ import annotations

import base64
import posixpath
import re
from collections.abc import Sequence
from typing import Final

from ..errors import BuildError
from ..model.graph import Run
from ..ports import Nsd

HEAD: Final = 4096
"""Bytes of a program that are looked at: its first line, or the headers of an ELF file."""
_SAID = (
    re.compile(r"(?:^|[\s:])([^\s:]+): (?:(?:command )?not found|cannot execute: required file not found)"),
    re.compile(r"env: (?:can't execute )?['‘]?([^\s'’:]+)['’]?: No such file"),
)
_PT_INTERP, _ELF_64_LITTLE = 3, b"\x7fELF\x02\x01"


def named(tail: Sequence[str]) -> str:
    """What a shell, or env, says that it didn't find; "" for nothing."""
    for line in reversed(tail):
        for pattern in _SAID:
            match = pattern.search(line)
            if match:
                return match.group(1)
    return ""


def needs(head: bytes) -> str:
    """The interpreter of a script (with what stands behind it on its line that isn't a blank), or the dynamic loader of
    a program for 64 bits; "" for none."""
    if head.startswith(b"#!"):
        line = head[2:].partition(b"\n")[0].strip(b" \t")
        return re.split(rb"[ \t]", line)[0].decode("utf-8", "replace")
    if not head.startswith(_ELF_64_LITTLE) or len(head) < 64:
        return ""
    at, size, count = (
        int.from_bytes(head[start:end], "little") for start, end in ((32, 40), (54, 56), (56, 58))
    )
    for start in range(at, at + size * count, size or 1):
        part = head[start : start + 40]
        if len(part) == 40 and int.from_bytes(part[:4], "little") == _PT_INTERP:
            offset, length = (int.from_bytes(part[i : i + 8], "little") for i in (8, 32))
            return head[offset : offset + length].rstrip(b"\0").decode("utf-8", "replace")
    return ""


def explain(path: str, wanted: str, *, script: bool) -> str:
    """What is missing, in words.  ``wanted``: as ``needs`` gave it."""
    if wanted.endswith("\r"):
        return (
            f"the lines of {path} end in CRLF, so that its interpreter reads as {wanted!r}: save it with LF (for"
            " files from git: `*.sh text eol=lf` in .gitattributes)"
        )
    if script:
        return f"{path} is there, but its interpreter {wanted} is not in the image"
    return (
        f"{path} is there, but the loader that it is linked for, {wanted}, is not in the image (a program for another"
        " C library: glibc, musl)"
    )


async def why_not_found(nsd: Nsd, trees: Sequence[str], op: Run, tail: Sequence[str]) -> str:
    """A hint for a step that ended with 127; "" where nothing more can be said.  trees: its root file system."""
    name = named(tail)
    if not name:
        return ""
    absent = f"{name} is not in the image (or not in PATH)"
    if "/" not in name:
        return absent
    path = posixpath.normpath(posixpath.join(op.cwd or "/", name))
    try:
        asked = {"lowers": list(trees), "heads": [path]}
        found = (await nsd.call("lookup", asked))["head"][path]
        head = base64.b64decode(found) if found else b""
        wanted = needs(head)
        if not wanted:
            return absent if found is None else ""
        asked = {"lowers": list(trees), "stat": [wanted]}
        there = (await nsd.call("lookup", asked))["stat"][wanted] is not None
    except (BuildError, OSError):
        return ""
    return "" if there else explain(name, wanted, script=head.startswith(b"#!"))
