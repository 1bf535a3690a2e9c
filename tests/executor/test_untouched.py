"""Which steps need no diff."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ocibuildd.executor.untouched import untouched


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for root in (lower, upper):
        (root / "etc").mkdir(parents=True)
        os.utime(root / "etc", (1, 1))
    return lower, upper


def test_directories_that_are_as_they_were_are_nothing(trees: tuple[Path, Path]) -> None:
    lower, upper = trees
    assert untouched(upper, [lower])


@pytest.mark.parametrize("change", [
    lambda upper: (upper / "file").write_text(""),
    lambda upper: (upper / "new").mkdir(),
    lambda upper: (upper / "etc").chmod(0o700),
    lambda upper: os.utime(upper / "etc", (2, 2)),
    lambda upper: (upper / "etc" / "link").symlink_to("x"),
    lambda upper: os.setxattr(upper / "etc", "user.overlay.opaque", b"y"),
    lambda upper: os.setxattr(upper / "etc", "user.mine", b"y"),
])
def test_anything_else_is_for_the_diff(trees: tuple[Path, Path], change: object) -> None:
    lower, upper = trees
    change(upper)  # type: ignore[operator]
    assert not untouched(upper, [lower])


def test_what_overlayfs_notes_for_itself_is_nothing(trees: tuple[Path, Path]) -> None:
    lower, upper = trees
    os.setxattr(upper / "etc", "user.overlay.origin", b"y")
    assert untouched(upper, [lower])


def test_the_topmost_directory_below_counts(trees: tuple[Path, Path], tmp_path: Path) -> None:
    lower, upper = trees
    middle = tmp_path / "middle"
    (middle / "etc").mkdir(parents=True)
    assert not untouched(upper, [lower, middle])


def test_what_cant_be_read_is_for_the_diff(tmp_path: Path) -> None:
    assert not untouched(tmp_path / "absent", [])
