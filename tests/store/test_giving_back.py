"""How long whoever asks for space waits for the files of what went, and what is said of the rest."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from filler import Filler

from ocibuildd.store import Store
from ocibuildd.store.maintenance import Maintenance
from ocibuildd.store.policy import prune_policies
from ocibuildd.store.space import Disk
from ocibuildd.store.sweep import Outcome

EVERYTHING = prune_policies(all=True)


class Gate:
    """A remover of directories that waits to be let."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, paths: Sequence[Path]) -> None:
        await self.open.wait()
        for path in paths:
            shutil.rmtree(path)


async def pruned(store: Store, fill: Filler, gate: Gate) -> tuple[Maintenance, Outcome]:
    """A store with a tree of 50 bytes and its blob, pruned by somebody in a hurry."""
    fill.record("r", fill.layer("layer", tree=50))
    maintenance = Maintenance(store, gate)
    return maintenance, await maintenance.collect(EVERYTHING, wait=True, patience=0.0)


async def test_a_prune_in_a_hurry_says_what_is_still_being_deleted(store: Store, fill: Filler) -> None:
    maintenance, outcome = await pruned(store, fill, Gate())
    assert (outcome.freed, store.used) == (55, 0)
    assert outcome.pending >= 50
    await maintenance.close()


async def test_what_a_prune_did_not_wait_for_goes_all_the_same(store: Store, fill: Filler) -> None:
    gate = Gate()
    maintenance, outcome = await pruned(store, fill, gate)
    gate.open.set()
    await maintenance.collect((), wait=True)
    assert outcome.pending == 0
    assert os.listdir(store.path / "trash") == os.listdir(store.path / "blobs" / "sha256") == []


async def test_who_needs_the_space_waits_for_what_others_have_in_hand(store: Store, fill: Filler) -> None:
    gate = Gate()
    maintenance, outcome = await pruned(store, fill, gate)
    waiting = asyncio.create_task(maintenance.make_room(1))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    gate.open.set()
    await waiting
    assert outcome.pending == 0


async def test_a_prune_of_a_full_disk_waits_for_the_space(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(store.space, "disk", lambda: Disk(1 << 30, 20))
    waiting = asyncio.create_task(pruned(store, fill, gate))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    gate.open.set()
    assert (await waiting)[1].pending == 0


async def test_a_daemon_that_ends_leaves_no_file_without_a_row_but_in_the_trash(
    store: Store, fill: Filler
) -> None:
    maintenance, _ = await pruned(store, fill, Gate())
    await maintenance.close()
    assert os.listdir(store.path / "trees") == os.listdir(store.path / "blobs" / "sha256") == []
    assert len(os.listdir(store.path / "trash")) == 1


async def test_a_deletion_that_fails_when_nobody_waits_is_tried_again(store: Store, fill: Filler) -> None:
    async def broken(_: Sequence[Path]) -> None:
        await asyncio.sleep(0)
        raise OSError("nsd is gone")

    fill.record("r", fill.layer("layer", tree=50))
    maintenance = Maintenance(store, broken)
    with pytest.raises(OSError, match="nsd is gone"):
        await maintenance.collect(EVERYTHING, wait=True)
    assert maintenance._dirty  # the next turn of ``run`` empties the trash


async def test_many_directories_are_deleted_by_several_jobs(store: Store) -> None:
    jobs: list[int] = []

    async def remove(paths: Sequence[Path]) -> None:
        jobs.append(len(paths))
        for path in paths:
            path.rmdir()

    for number in range(100):
        (store.path / "trash" / f"tree-{number}").mkdir()
    await Maintenance(store, remove).empty_trash()
    assert sum(jobs) == 100
    assert len(jobs) > 1
    assert os.listdir(store.path / "trash") == []
