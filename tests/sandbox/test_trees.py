"""Trees of hostile steps: thousands of directories below one another, links, names that move."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ocibuildd.sandbox import trees

DEPTH = 1500
"""More than Python's recursion takes, and with long names more than a path can name."""


@pytest.fixture
def deep(tmp_path) -> Path:
    """A directory with ``DEPTH`` below it and 1 MiB in the last."""
    root = tmp_path / "deep"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("x" * 60, dir_fd=fd)
        below = os.open("x" * 60, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with open(os.open("big", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
    os.close(fd)
    return root


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_size_of_a_tree_has_what_lies_deeper_than_a_path_can_name(deep):
    before = descriptors()
    assert trees.size(os.fsencode(deep), 1 << 40) > (1 << 20) + DEPTH * trees.ENTRY
    assert descriptors() == before
    trees.discard(os.fsencode(deep))


def test_a_tree_deeper_than_recursion_goes_is_removed_whole(deep):
    before = descriptors()
    (deep / "locked").mkdir(mode=0)
    (deep / "link").symlink_to(deep.parent)
    trees.discard(os.fsencode(deep))
    assert list(deep.parent.iterdir()) == []
    assert descriptors() == before


def test_counting_ends_soon_after_its_limit(tmp_path):
    for number in range(200):
        (tmp_path / str(number)).touch()
    assert trees.ENTRY * 10 < trees.size(os.fsencode(tmp_path), trees.ENTRY * 10) <= trees.ENTRY * 11


def test_a_walk_follows_no_link(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "tree/link").symlink_to(tmp_path / "outside")
    assert len(list(trees.walk(os.fsencode(tmp_path / "tree")))) == 1
    assert list(trees.walk(os.fsencode(tmp_path / "tree/link"))) == []


def names(root: Path, move) -> set[str]:
    """What a walk sees while directories are moved about, as soon as it stands in the one that is called "last"."""
    seen: set[str] = set()
    for _, entries in trees.walk(os.fsencode(root)):
        found = {entry.name for entry in entries}
        seen |= found
        if "last" in found:
            move()
    return seen


def test_directories_that_move_do_not_lead_a_walk_out_of_its_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "MAX_LEVELS", 2)
    low = tmp_path / "tree/a/b/c/d"
    low.mkdir(parents=True)
    (low / "last").touch()
    (tmp_path / "outside/secret").mkdir(parents=True)
    seen = names(tmp_path / "tree", lambda: (tmp_path / "tree/a/b").rename(tmp_path / "outside/b"))
    assert seen == {"a", "b", "c", "d", "last"}


def test_a_walk_goes_on_beside_what_is_deep(tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "MAX_LEVELS", 2)
    for path in ("1/2/3/4/5", "1/2/3/four/five", "1/two", "one/2/3/4"):
        (tmp_path / path).mkdir(parents=True)
    before = descriptors()
    seen = sorted(entry.name for _, entries in trees.walk(os.fsencode(tmp_path)) for entry in entries)
    assert seen == sorted("1 2 3 4 5 four five two one 2 3 4".split())
    assert descriptors() == before
