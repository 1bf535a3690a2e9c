"""A context's files as a tree that steps mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ocibuildd.errors import NotFound
from ocibuildd.layer.replicate import replicate
from ocibuildd.layer.select import Source
from ocibuildd.ports import CopySpec

WHOLE: CopySpec = {
    "dest": "/",
    "chown": "",
    "chmod": "",
    "link": False,
    "parents": False,
    "exclude": [],
    "unpack": None,
    "is_add": False,
}


def copied(source: Path, target: Path, path: str, ignore: tuple[str, ...] = ()) -> str:
    flags = os.O_RDONLY | os.O_DIRECTORY
    fds = os.open(source, flags), os.open(target, flags)
    try:
        found = Source(fd=fds[0], paths=(path,), ignore=ignore)
        return replicate(found, WHOLE, fds[1], squash=True)
    finally:
        for fd in fds:
            os.close(fd)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a" / "b").mkdir(parents=True)
    target.mkdir()
    (source / "a" / "b" / "f").write_text("f")
    (source / "a" / "b" / "f").chmod(0o640)
    (source / "a" / "link").symlink_to("/etc/passwd")
    (source / "a" / "b").chmod(0o700)
    os.utime(source / "a" / "b", (5, 5))
    return source, target


def test_modes_times_and_links_stay(places: tuple[Path, Path]) -> None:
    source, target = places
    copied(source, target, "/")
    assert (target / "a/b/f").read_text() == "f"
    assert (target / "a/b/f").stat().st_mode & 0o7777 == 0o640
    assert (target / "a/b").stat().st_mode & 0o7777 == 0o700
    assert (target / "a/b").stat().st_mtime == 5
    assert os.readlink(target / "a/link") == "/etc/passwd"


def test_a_part_keeps_its_path(places: tuple[Path, Path]) -> None:
    source, target = places
    copied(source, target, "/a/b/f")
    assert [str(path.relative_to(target)) for path in target.rglob("*")] == ["a", "a/b", "a/b/f"]


def test_what_is_ignored_is_not_copied(places: tuple[Path, Path]) -> None:
    source, target = places
    copied(source, target, "/", ("a/b",))
    assert os.listdir(target / "a") == ["link"]


def test_what_is_not_there_is_named(places: tuple[Path, Path]) -> None:
    with pytest.raises(NotFound, match="/a/x"):
        copied(*places, "/a/x")


def test_the_stamp_changes_with_a_file(places: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = places
    first = copied(source, target, "/")
    (source / "a" / "b" / "f").write_text("g")
    (tmp_path / "again").mkdir()
    assert copied(source, tmp_path / "again", "/") != first
