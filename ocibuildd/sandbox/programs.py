"""Why the kernel doesn't execute a file, in words.  Standard library only."""

from __future__ import annotations

import os

_MACHINES = {
    3: "386", 8: "mips", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64",
    258: "loong64",
}
"""ELF's names of machines (elf.h) in Go's words."""


def not_executable(path: bytes) -> str:
    """What the kernel can't execute: a program for another machine (e_machine of its ELF header), or none."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        head = b""
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return "exec format error: neither a program nor a script that begins with #!"
    machine = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return f"exec format error: a program for {_MACHINES.get(machine, f'machine {machine}')}"


def missing(path: bytes) -> str:
    shown = os.fsdecode(path)
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError:
        return f"exec {shown}: no such file or directory"
    if head.startswith(b"#!"):
        line = head[2:].split(b"\n")[0]
        interpreter = os.fsdecode((line.split() or [b""])[0])
        if line.endswith(b"\r"):
            return f"exec {shown}: its lines end in CRLF, so that its interpreter reads as {interpreter + chr(13)!r}"
        return f"exec {shown}: its interpreter {interpreter} does not exist in the image"
    return f"exec {shown}: no such file or directory (its dynamic loader is missing in the image)"
