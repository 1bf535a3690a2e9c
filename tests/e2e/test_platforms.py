"""Several platforms: with emulation where the host has it, with a clear error where it hasn't."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Context = Callable[..., Path]
HANDLERS = Path("/proc/sys/fs/binfmt_misc")
# mkdirat(AT_FDCWD, "/made", 0755); exit(0)
AARCH64 = struct.pack(
    "<8I", 0x92800C60, 0x100000E1, 0xD2803DA2, 0xD2800448, 0xD4000001, 0xD2800000, 0xD2800BA8, 0xD4000001
) + b"/made\0"  # fmt: skip


def elf(machine: int, code: bytes = b"", kind: int = 2) -> bytes:
    """A static program; kind 0 is none that any handler is registered for."""
    size = 120 + len(code)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 4096) + code


def emulated() -> bool:
    """Is there a handler for aarch64 that needs no interpreter in the sandbox (F)?"""
    return any(
        "enabled" in (text := path.read_text()) and "b7" in text and "flags: " in text and "F" in text
        for path in HANDLERS.glob("*") if path.name not in ("register", "status")
    )  # fmt: skip


def test_a_program_for_another_machine_names_what_is_missing(daemon: Any, context: Context) -> None:
    where = context(
        Dockerfile='FROM scratch\nCOPY --chmod=755 p /p\nRUN ["/p"]\n', p=elf(183, kind=0)
    )
    failed = daemon("build", "--platform=linux/arm64", where)
    assert failed.code == 126
    assert "exec /p: exec format error: a program for arm64" in failed.text
    assert "qemu-user-static binfmt-support" in failed.text


def test_a_script_without_interpreter_is_told_apart(daemon: Any, context: Context) -> None:
    where = context(
        Dockerfile='FROM scratch\nCOPY --chmod=755 p /p\nRUN ["/p"]\n', p="echo hello\n"
    )
    failed = daemon("build", where)
    assert failed.code == 126
    assert "neither a program nor a script that begins with #!" in failed.text


def test_platforms_without_run_need_no_emulation(
    daemon: Any, context: Context, registry: str
) -> None:
    name = f"{registry}/e2e/platforms:1"
    where = context(Dockerfile="FROM scratch\nARG TARGETARCH TARGETVARIANT\nCOPY f-$TARGETARCH$TARGETVARIANT /f\n",
                    **{"f-amd64": "1", "f-arm64": "2", "f-armv7": "3"})  # fmt: skip
    daemon.ok(
        "build", "--platform=linux/amd64,linux/arm64,linux/arm/v7", "--push", "-t", name, where
    )
    for platform, found in (
        ("linux/arm64", "arm64"),
        ("linux/arm/v7", "arm"),
        ("linux/amd64", "amd64"),
    ):
        daemon.ok("rmi", "-f", name)
        daemon.ok("pull", f"--platform={platform}", name)
        assert json.loads(daemon.ok("inspect", name).out)[0]["Architecture"] == found


@pytest.mark.skipif(not emulated(), reason="no binfmt_misc handler for aarch64 (qemu-user-static)")
def test_run_on_another_platform_is_emulated(daemon: Any, context: Context, tmp_path: Path) -> None:
    dockerfile = (
        'FROM scratch AS base-arm64\nCOPY --chmod=755 p /p\nRUN ["/p"]\n'
        "FROM busybox AS base-amd64\nRUN mkdir /made\nFROM base-$TARGETARCH\n"
    )
    where = context(Dockerfile=dockerfile, p=elf(183, AARCH64))
    daemon.ok(
        "build",
        "--platform=linux/amd64,linux/arm64",
        "-o",
        f"type=local,dest={tmp_path}/out",
        where,
    )
    assert (tmp_path / "out/linux_arm64/made").is_dir()
    assert (tmp_path / "out/linux_amd64/made").is_dir()
