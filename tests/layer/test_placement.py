"""Where a new tree begins."""

from __future__ import annotations

import os

from ocibuildd.layer.placement import make_apart


def test_a_directory_is_made_and_its_nursery_is_empty_again(tmp_path):
    (tmp_path / "nursery").mkdir()
    make_apart(os.fsencode(tmp_path / "tree"), os.fsencode(tmp_path / "nursery"))
    assert os.listdir(tmp_path / "tree") == os.listdir(tmp_path / "nursery") == []
    assert (tmp_path / "tree").stat().st_mode & 0o7777 == 0o700


def test_a_directory_that_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").touch()
    make_apart(os.fsencode(tmp_path / "tree"), os.fsencode(tmp_path / "nowhere"))
    assert os.listdir(tmp_path / "tree") == ["file"]
