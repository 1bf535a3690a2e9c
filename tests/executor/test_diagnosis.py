"""What a program that "was not found" lacks."""

from __future__ import annotations

import struct

import pytest

from ocibuildd.executor.diagnosis import explain, named, needs


@pytest.mark.parametrize(("line", "name"), [
    ("/bin/sh: apt-get: not found", "apt-get"),
    ("/bin/sh: 1: ./run.sh: not found", "./run.sh"),
    ("/bin/bash: line 1: foo: command not found", "foo"),
    ("/bin/bash: line 1: /x: cannot execute: required file not found", "/x"),
    ("env: can't execute 'python3': No such file or directory", "python3"),
    ("env: ‘ruby’: No such file or directory", "ruby"),
    ("all is well", ""),
])  # fmt: skip
def test_a_shell_names_what_it_did_not_find(line: str, name: str) -> None:
    assert named(["before", line, "after"]) == name


def program(loader: bytes) -> bytes:
    """The head of a program of 64 bits with two program headers, the second one PT_INTERP."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + bytes(16) + struct.pack("<Q", 64) + bytes(14)
    header += struct.pack("<HH", 56, 2) + bytes(6)
    first = struct.pack("<IIQQQQQQ", 6, 4, 64, 0, 0, 112, 112, 8)
    second = struct.pack("<IIQQQQQQ", 3, 4, 176, 0, 0, len(loader), len(loader), 1)
    return header + first + second + loader


@pytest.mark.parametrize(("head", "wanted"), [
    (b"#!/bin/bash\necho", "/bin/bash"), (b"#! /usr/bin/env -S python3\n", "/usr/bin/env"),
    (b"#!/bin/sh\r\necho", "/bin/sh\r"), (b"#!", ""), (b"echo", ""), (b"\x7fELF\x02\x01", ""),
    (program(b"/lib64/ld-linux-x86-64.so.2\0"), "/lib64/ld-linux-x86-64.so.2"),
    (program(b"x")[:100], ""),
])  # fmt: skip
def test_the_interpreter_is_read_from_the_head(head: bytes, wanted: str) -> None:
    assert needs(head) == wanted


def test_words_tell_line_ends_scripts_and_programs_apart() -> None:
    assert "CRLF" in explain("/x", "/bin/sh\r", script=True)
    assert "interpreter /bin/bash is not" in explain("/x", "/bin/bash", script=True)
    assert "C library" in explain("/x", "/lib/ld.so", script=False)
