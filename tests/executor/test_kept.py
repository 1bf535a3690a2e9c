"""Which segments are kept, over restarts, and what a damaged file is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ocibuildd.executor import kept
from ocibuildd.executor.kept import Kept, KeptSegments
from ocibuildd.model.digest import Digest

DIGEST = Digest.of(b"layer")


def test_another_life_of_the_daemon_finds_what_was_kept(tmp_path: Path) -> None:
    KeptSegments(tmp_path / "segments").put("a" * 64, DIGEST, "c2VnbWVudHM=")
    assert KeptSegments(tmp_path / "segments").get("a" * 64) == Kept(DIGEST, "c2VnbWVudHM=")


@pytest.mark.parametrize("damage", [
    lambda data: data[:-3], lambda data: b"", lambda data: bytes(len(data)), lambda data: data.replace(b"sha256", b"sha255"),
    lambda data: data + b"A", lambda data: b"\xff" + data,
])  # fmt: skip
def test_a_damaged_file_is_none(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    here = KeptSegments(tmp_path)
    here.put("a" * 64, DIGEST, "c2VnbWVudHM=")
    (tmp_path / ("a" * 64)).write_bytes(damage((tmp_path / ("a" * 64)).read_bytes()))
    assert here.get("a" * 64) is None


def test_the_least_recently_used_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_LAYERS", 3)
    here = KeptSegments(tmp_path)
    for age, name in enumerate("abc"):
        here.put(name * 64, DIGEST, name)
        os.utime(tmp_path / (name * 64), (age, age))
    assert here.get("a" * 64)
    here.put("d" * 64, DIGEST, "d")
    assert [bool(here.get(name * 64)) for name in "abcd"] == [True, False, True, True]


def test_a_place_that_can_not_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    here = KeptSegments(tmp_path / "file" / "segments")
    here.put("a" * 64, DIGEST, "x")
    assert here.get("a" * 64) is None
