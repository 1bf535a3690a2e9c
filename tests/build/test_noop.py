"""What a build costs that does nothing: one lookup a step, and of the context only fingerprints."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest

STEPS = 200
RECORDS = 5_000
MORE = 20
"""Queries of a build that are not a step's."""


def many_records(bench: Any) -> None:
    """Copies of the records that are there, under keys of their own."""
    connection = bench.store.db.connection
    columns = [row[1] for row in connection.execute("PRAGMA table_info(records)")]
    (held,) = connection.execute("SELECT count(*) FROM records").fetchone()
    names = ", ".join(name for name in columns if name not in ("key", "id"))
    connection.execute(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {RECORDS // held + 1})"
        f" INSERT INTO records (key, {names}) SELECT key || '-' || i, {names} FROM records, n"
    )


@pytest.fixture
def dockerfile() -> str:
    """A COPY, then RUNs and what changes the config only, in turns."""
    lines = [f"RUN true {n}" if n % 2 else f"ENV V{n}={n}" for n in range(STEPS - 1)]
    return "\n".join(["FROM busybox", "COPY d /d", *lines]) + "\n"


async def test_a_no_op_build_looks_up_one_record_a_step(
    bench: Any, context: Any, dockerfile: str
) -> None:
    path = context(dockerfile, {f"d/{n}": "x" * n for n in range(50)})
    (await bench.build(path)).ok()
    (await bench.build(path)).ok()
    many_records(bench)
    asked: list[str] = []
    bench.store.db.connection.set_trace_callback(asked.append)
    built = (await bench.build(path)).ok()
    bench.store.db.connection.set_trace_callback(None)
    assert built.ran == []
    lookups = [text for text in asked if re.search(r"SELECT.* FROM records\b", text, re.DOTALL)]
    assert len(lookups) <= STEPS // 2 + MORE, (len(lookups), lookups[:5])
    plans = {
        row[3] for text in set(lookups)
        for row in bench.store.db.connection.execute(f"EXPLAIN QUERY PLAN {text}")
    }  # fmt: skip
    assert not [plan for plan in plans if plan.startswith("SCAN")], plans


class Watched:
    """Which files of a directory are opened, by anybody (inotify(7))."""

    OPEN, IS_DIRECTORY = 0x20, 0x40000000

    def __init__(self, directory: Path):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0
        assert libc.inotify_add_watch(self.fd, os.fsencode(directory), self.OPEN) >= 0

    def opened(self) -> list[str]:
        names = []
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            data = b""
        while data:
            _, mask, _, size = struct.unpack_from("iIII", data)
            if not mask & self.IS_DIRECTORY:
                names.append(data[16 : 16 + size].rstrip(b"\0").decode())
            data = data[16 + size :]
        return names


async def test_a_no_op_build_reads_no_file_of_the_context(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nCOPY d /d\n", {f"d/{n}": "x" * 100 for n in range(50)})
    await asyncio.sleep(1.1)  # what was just written may have been written twice in one tick
    (await bench.build(path)).ok()
    watched = Watched(path / "d")
    (await bench.build(path)).ok()
    assert watched.opened() == []
    (path / "d" / "7").write_text("y" * 100)
    watched.opened()
    assert (await bench.build(path)).ok().ran != []
    assert "7" in watched.opened()
    os.close(watched.fd)
