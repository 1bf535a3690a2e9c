"""Deleting what hostile steps have left."""

from __future__ import annotations

import os

from ocibuildd.layer import tree
from ocibuildd.layer.remove import remove


def test_a_removal_that_was_cut_short_is_taken_up_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "MAX_LEVELS", 2)
    doomed = tmp_path / "doomed"
    (doomed / "a/b/c/d/e").mkdir(parents=True)
    for number in range(5):  # names that a process of this number would take first
        (doomed / f".deep-{os.getpid()}-{number}/full").mkdir(parents=True)
    assert remove([os.fsencode(doomed)])["files"] == 16
    assert list(tmp_path.iterdir()) == []
