"""Collections carried out on a real store: races, the disk, maintenance, df, check."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filler import Filler
from patience import eventually

from ocibuildd.errors import NoSpace
from ocibuildd.model.digest import Digest
from ocibuildd.store import Store, space
from ocibuildd.store.check import checking, repair
from ocibuildd.store.gc import finish
from ocibuildd.store.maintenance import Maintenance
from ocibuildd.store.policy import Policy, prune_policies
from ocibuildd.store.survey import surveying
from ocibuildd.store.sweep import Outcome, collecting, empty_trash
from ocibuildd.store.usage import reckoning

EVERYTHING = [Policy("everything", all=True)]


def sound(store: Store) -> bool:
    return finish(checking(store)).sound


async def rmtree(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path)


def test_a_collection_takes_rows_then_files(store: Store, fill: Filler) -> None:
    fill.record("r", fill.layer("layer", tree=50))
    outcome = store.collect(EVERYTHING)
    assert (outcome.freed, outcome.layers, outcome.blobs) == (55, 1, 1)
    assert store.used == 0
    assert os.listdir(store.path / "blobs" / "sha256") == []
    assert [path.exists() for path in outcome.trees] == [True]
    assert empty_trash(store.path) == outcome.trees
    assert sound(store)


def test_a_dry_run_takes_nothing(store: Store, fill: Filler) -> None:
    fill.record("r", fill.layer("layer"))
    outcome = finish(collecting(store, EVERYTHING, dry_run=True))
    assert [removal.id for removal in outcome.removals] == ["r"]
    assert outcome.freed == 5
    assert store.records.get("r") is not None


def test_evictions_say_rule_and_reason(store: Store, fill: Filler) -> None:
    fill.record("r", fill.layer("layer"), selector="s")
    store.collect([Policy("size", max_used_space=1)])
    eviction = store.records.evicted(key="r")
    assert eviction is not None
    assert eviction.rule == "size"
    assert "over max_used_space 1" in eviction.why


def between(store: Store, action: object, policies: Sequence[Policy] = EVERYTHING) -> Outcome:
    """Do something while a collection is under way: after it has read everything."""
    steps = collecting(store, policies)
    done = False
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        if not done and steps.gi_yieldfrom.gi_code.co_name == "planning":
            done = True
            action()  # type: ignore[operator]


def test_what_is_looked_up_meanwhile_stays(store: Store, fill: Filler) -> None:
    layer = fill.layer("layer")
    fill.record("r", layer)
    outcome = between(store, lambda: store.records.get("r"))
    assert outcome.kept == 1
    assert store.records.get("r") is not None
    assert store.layers.get(layer).digest is not None
    assert sound(store)


@pytest.mark.parametrize("moment", range(1, 30))
def test_whatever_the_moment_what_was_found_stays(store: Store, fill: Filler, moment: int) -> None:
    layer = fill.layer("layer", tree=3)
    fill.record("r", layer)
    config = fill.image("i", layer)
    found: object = None
    for number, _ in enumerate(collecting(store, EVERYTHING), 1):
        if number == moment:
            found = store.records.get("r"), store.images.get(config), store.blobs.has(config)
    if found and found[0]:  # type: ignore[index]
        assert store.records.get("r") == found[0]  # type: ignore[index]
        assert store.trees.has(store.layers.get(layer).tree)
    if found and found[1]:  # type: ignore[index]
        assert store.blobs.has(config)
    assert sound(store)


def test_what_is_leased_meanwhile_stays(store: Store, fill: Filler) -> None:
    layer = fill.layer("layer")
    fill.record("r", layer)
    lease = store.leases.new()
    between(store, lambda: lease.add(layers=[layer]))
    assert store.blobs.has(Digest.of(b"layer"))
    lease.release()
    store.collect()
    assert not store.blobs.has(Digest.of(b"layer"))


def test_an_image_that_is_named_meanwhile_stays(store: Store, fill: Filler) -> None:
    config = fill.image("i", fill.layer("layer"))
    between(store, lambda: store.images.tag("app", config))
    assert store.images.get(config) is not None
    assert store.blobs.has(Digest.of(b"layer"))
    assert sound(store)


def test_an_image_that_is_leased_meanwhile_stays(store: Store, fill: Filler) -> None:
    config = fill.image("i", fill.layer("layer"))
    lease = store.leases.new()
    between(store, lambda: lease.add(blobs=[config]))
    assert store.images.get(config) is not None
    assert sound(store)


def test_a_blob_that_is_put_meanwhile_stays(store: Store, fill: Filler) -> None:
    store.blobs.put(b"garbage")
    between(store, lambda: store.blobs.put(b"garbage"))
    assert store.blobs.read(Digest.of(b"garbage")) == b"garbage"


def test_a_cache_mount_that_is_taken_meanwhile_stays(store: Store) -> None:
    grip = store.cache_mounts.try_acquire("apt")
    assert grip is not None
    grip.release()
    again = []
    between(store, lambda: again.append(store.cache_mounts.try_acquire("apt")))
    assert store.cache_mounts.get(grip.hash) is not None


def test_blobs_that_a_records_value_names_stay(store: Store, fill: Filler) -> None:
    blob = store.blobs.put(b"download")
    fill.record("r", value=f'{{"blob":"{blob}"}}')
    store.collect()
    assert store.blobs.has(blob)
    store.collect(EVERYTHING)
    assert not store.blobs.has(blob)


def test_a_name_for_an_index_pins_the_images_of_all_platforms(store: Store, fill: Filler) -> None:
    from ocibuildd.store.images import StoredIndex

    amd, arm = fill.image("amd", fill.layer("a")), fill.image("arm", fill.layer("b"))
    manifests = tuple(
        (image.manifest, "p", image.id)
        for image in (store.images.get(amd), store.images.get(arm)) if image and image.manifest
    )
    index = StoredIndex(store.blobs.put(b"index"), "t", manifests)
    store.images.put_index(index)
    store.images.tag("app", amd, index.digest)
    store.collect(EVERYTHING)
    assert store.images.get(arm) is not None
    store.images.untag("app")
    store.collect(EVERYTHING)
    assert store.used == 0
    assert store.images.get_index(index.digest) is None


def test_a_full_database_gives_up_the_ballast(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.space.make_ballast(1 << 20)
    fill.record("r", fill.layer("layer"))
    run = store.db.run

    def full(sql: str, parameters: Sequence[object] = ()) -> int:
        if sql.startswith("DELETE") and (store.path / "ballast").exists():
            raise NoSpace("the disk is full")
        return run(sql, parameters)

    monkeypatch.setattr(store.db, "run", full)
    assert store.collect(EVERYTHING).freed == 5
    assert store.records.get("r") is None


async def test_maintenance_syncs_empties_and_shrinks(store: Store, fill: Filler) -> None:
    maintenance = Maintenance(store, rmtree)
    for number in range(200):
        fill.record(f"r{number}", preimage="x" * 300)
    fill.record("r", fill.layer("layer", tree=5))
    assert await maintenance.sync() == 1
    before = (store.path / "store.db").stat().st_size
    await maintenance.collect(prune_policies(all=True), wait=True)
    assert os.listdir(store.path / "trash") == []
    assert (store.path / "store.db").stat().st_size < max(before, 200_000)
    assert (store.path / "store.db-wal").stat().st_size == 0


async def test_maintenance_runs_by_itself_after_a_commit(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocibuildd.store.maintenance.SYNC_DELAY", 0.0)
    task = asyncio.create_task(Maintenance(store, rmtree).run())
    await asyncio.sleep(0.05)
    fill.layer("layer", tree=5)
    await eventually("it is synced", lambda: not store.trees.unsynced())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store.trees.unsynced() == []


async def test_what_is_thrown_away_while_maintenance_works_is_deleted_too(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocibuildd.store.maintenance.SYNC_DELAY", 0.0)
    trees = [store.layers.get(fill.layer(text, tree=5)).tree for text in ("one", "two")]

    async def remove(paths: Sequence[Path]) -> None:
        if trees:
            store.trees.forget(trees[0])
            store.trees.trash(trees.pop())
        await rmtree(paths)

    store.trees.forget(trees[0])
    store.trees.trash(trees.pop())
    task = asyncio.create_task(Maintenance(store, remove).run())
    await eventually("it is deleted", lambda: not trees and not os.listdir(store.path / "trash"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (trees, os.listdir(store.path / "trash")) == ([], [])


async def test_admission_collects_and_then_lets_in(store: Store, fill: Filler) -> None:
    maintenance = Maintenance(store, rmtree)
    store.space.configure(ceiling=100)
    fill.record("r", fill.layer("x" * 90))
    with await maintenance.admit(50) as reservation:
        assert reservation.size == 50
        assert store.used == 0
        assert store.space.reserved == 50
    assert store.space.reserved == 0


def test_what_nothing_held_is_told_apart(store: Store, fill: Filler) -> None:
    fill.layer("garbage")
    fill.record("r", fill.layer("layer"))
    done = finish(collecting(store, EVERYTHING, dry_run=True))
    assert (done.freed, done.garbage) == (12, 7)


async def test_nothing_goes_for_what_fits_nowhere(store: Store, fill: Filler) -> None:
    maintenance = Maintenance(store, rmtree)
    store.space.configure(ceiling=100)
    fill.record("r", fill.layer("x" * 90))
    with pytest.raises(NoSpace, match="no room for 101 bytes"):
        await maintenance.admit(101)
    assert store.records.get("r") is not None


async def sizes(paths: Sequence[Path]) -> Sequence[int]:
    return [sum(file.stat().st_size for file in path.iterdir()) for path in paths]


def use_mount(store: Store, name: str, size: int) -> None:
    grip = store.cache_mounts.try_acquire(name)
    assert grip is not None
    grip.path.mkdir()
    (grip.path / "file").write_bytes(bytes(size))
    grip.release()


async def test_what_a_step_left_in_a_cache_mount_counts_when_the_next_is_admitted(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.space, "disk", lambda: space.Disk(1000, 900))
    maintenance = Maintenance(store, rmtree, measure=sizes)
    store.space.configure(ceiling=100)
    fill.image("i", fill.layer("x" * 10), name="app")
    use_mount(store, "apt", 95)
    monkeypatch.setattr(store.space, "disk", lambda: space.Disk(1000, 805))
    with await maintenance.admit(10):
        assert store.cache_mounts.all() == []
    assert store.used < 100


async def test_a_cache_mount_is_measured_once_after_each_use(store: Store) -> None:
    asked: list[Path] = []

    async def counted(paths: Sequence[Path]) -> Sequence[int]:
        asked.extend(paths)
        return await sizes(paths)

    maintenance = Maintenance(store, rmtree, measure=counted)
    use_mount(store, "apt", 80)
    use_mount(store, "go", 7)
    await maintenance.measure()
    await maintenance.measure()
    assert (len(asked), store.used) == (2, 87)
    await maintenance.measure(everything=True)
    assert len(asked) == 4


async def test_admission_fails_clearly_when_nothing_may_go(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocibuildd.store.maintenance.ADMIT_PAUSE", 0.0)
    store.space.configure(ceiling=100)
    fill.image("i", fill.layer("x" * 90), name="app")
    with pytest.raises(NoSpace, match="no room for 50 bytes"):
        await Maintenance(store, rmtree).admit(50)


async def test_admission_waits_for_what_another_builds_lease_holds(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocibuildd.store.maintenance.ADMIT_PAUSE", 0.01)
    store.space.configure(ceiling=100)
    layer = fill.layer("x" * 90)
    maintenance = Maintenance(store, rmtree)
    with store.leases.new("this build"), store.leases.new("the other") as other:
        other.add(layers=[layer])
        waiting = asyncio.ensure_future(maintenance.admit(50))
        await asyncio.sleep(0.2)  # longer than the tries of one that is alone
        assert not waiting.done()
        other.release()
        assert (await waiting).size == 50


async def test_of_builds_that_wait_for_each_other_one_fails(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocibuildd.store.maintenance.ADMIT_PAUSE", 0.01)
    monkeypatch.setattr("ocibuildd.store.maintenance.ADMIT_PATIENCE", 0.2)
    store.space.configure(ceiling=100)
    maintenance = Maintenance(store, rmtree)

    async def build(layer: int) -> int:
        with store.leases.new("one of two") as lease:
            lease.add(layers=[layer])
            return (await maintenance.admit(40)).size

    layers = [fill.layer("x" * 40), fill.layer("y" * 41)]
    ends = await asyncio.gather(*(build(layer) for layer in layers), return_exceptions=True)
    assert sorted(str(end).split(":")[0] for end in ends) == ["40", f"store {store.path}"]


async def test_a_kept_step_is_not_waited_for(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocibuildd.store.maintenance.ADMIT_PAUSE", 0.0)
    store.space.configure(ceiling=100)
    with store.leases.new("build"), store.leases.new("failed step", passing=False) as kept:
        kept.add(layers=[fill.layer("x" * 90)])
        with pytest.raises(NoSpace):
            await asyncio.wait_for(Maintenance(store, rmtree).admit(50), 10)
    assert store.held.passing == 0


async def test_a_prune_gives_the_journals_space_back_too(store: Store, fill: Filler) -> None:
    for number in range(100):
        fill.record(f"r{number}", description="x" * 900)
    before = (store.path / "journal.jsonl").stat().st_size
    await Maintenance(store, rmtree).collect(prune_policies(all=True), wait=True)
    assert before > 64 << 10
    assert (store.path / "journal.jsonl").stat().st_size < before / 10


def test_a_collection_that_is_cancelled_leaves_no_file_without_a_row(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[bool] = []
    monkeypatch.setattr(store.db, "barrier", lambda: reached.append(True))
    fill.record("r", fill.layer("layer", tree=5))
    steps = collecting(store, EVERYTHING)
    while not reached:
        next(steps)
    steps.close()
    assert os.listdir(store.path / "blobs" / "sha256") == []
    assert os.listdir(store.path / "trees") == []


async def test_builds_never_miss_what_they_hold_and_the_ceiling_holds(store: Store, fill: Filler) -> None:
    maintenance = Maintenance(store, rmtree)
    store.space.configure(ceiling=20_000)
    highest = 0

    async def build(name: str) -> None:
        nonlocal highest
        for number in range(12):
            with store.leases.new(name) as lease:
                chain: list[int] = []
                for step in range(3):
                    with await maintenance.admit(1_000):
                        layer = fill.layer(f"{name} {number} {step} ".ljust(1_000, "x"), tree=0)
                        lease.add(layers=[layer])
                        chain.append(layer)
                        fill.record(f"{name} {number} {step}", *chain)
                    highest = max(highest, store.used)
                    await asyncio.sleep(0)
                    for held in store.layers.chain(chain):
                        assert held.digest is not None
                        assert store.blobs.read(held.digest)
                        assert store.trees.has(held.tree)

    async def collect() -> None:
        while True:
            await maintenance.collect([Policy("all", all=True)])
            await asyncio.sleep(0.002)

    collector = asyncio.create_task(collect())
    await asyncio.gather(*(build(f"build {number}") for number in range(4)))
    collector.cancel()
    await asyncio.gather(collector, return_exceptions=True)
    assert 0 < highest <= 20_000 + 1_000
    assert sound(store)


@pytest.mark.parametrize(
    ("ceiling", "floor", "reserved", "size", "fits"),
    [
        (0, 0, 0, 10, True), (100, 0, 0, 95, True), (100, 0, 0, 96, False), (100, 0, 50, 50, False),
        (0, 400, 0, 600, True), (0, 400, 0, 601, False), (0, 400, 300, 300, True), (5, 0, 0, 0, False),
    ],
)
def test_the_ceiling_and_the_floor_hold_before_anything_is_allocated(
    store: Store, monkeypatch: pytest.MonkeyPatch, ceiling: int, floor: int, reserved: int, size: int,
    fits: bool,
) -> None:
    store.blobs.put(b"12345")
    monkeypatch.setattr(store.space, "disk", lambda: space.Disk(2000, 1000))
    store.space.configure(ceiling=ceiling, floor=floor)
    store.space.reserved = reserved
    if fits:
        store.space.reserve(size).release()
    else:
        with pytest.raises(NoSpace):
            store.space.reserve(size)
    assert store.space.reserved == reserved


def test_layers_that_images_share_are_counted_once(store: Store, fill: Filler) -> None:
    base, top = fill.layer("base-layer"), fill.layer("top")
    fill.image("1", base, top, name="one")
    fill.image("2", base, name="two")
    graph = finish(surveying(store))
    usage = finish(reckoning(graph))
    by_name = {one.image.names: one for one in usage.images}
    assert by_name[("one",)].shared == 10
    assert by_name[("one",)].unique == 3 + len("1") + len("manifest of 1")
    assert by_name[("one",)].size == by_name[("one",)].shared + by_name[("one",)].unique
    assert usage.layers_size == 13
    assert usage.total == store.used


def test_df_tells_the_caches_own_bytes_from_the_images(store: Store, fill: Filler) -> None:
    base, step = fill.layer("base-layer"), fill.layer("step")
    fill.image("1", base, name="one")
    fill.record("a", base)
    fill.record("b", base, step)
    usage = finish(reckoning(finish(surveying(store))))
    assert usage.cache_size == 4
    rows = {row.record.key: row for row in usage.records}
    assert rows["a"].shared
    assert (rows["b"].size, rows["b"].parent, rows["b"].shared) == (4, "a", False)


# --- check and repair --------------------------------------------------------------------------------


def break_blob(store: Store, layer: int, tree: str) -> None:
    store.blobs.file(Digest.of(b"layer")).write_bytes(b"LAYER")


def lose_blob(store: Store, layer: int, tree: str) -> None:
    store.blobs.file(Digest.of(b"layer")).unlink()


def lose_tree(store: Store, layer: int, tree: str) -> None:
    shutil.rmtree(store.trees.path(tree))


def lose_layer(store: Store, layer: int, tree: str) -> None:
    store.layers.remove(layer)


def lose_image(store: Store, layer: int, tree: str) -> None:
    store.db.run("DELETE FROM images")


def lose_config(store: Store, layer: int, tree: str) -> None:
    store.blobs.forget(Digest.of(b"i"))


def stray_file(store: Store, layer: int, tree: str) -> None:
    store.blobs.file(Digest.of(b"stray")).write_bytes(b"stray")


def stray_tree(store: Store, layer: int, tree: str) -> None:
    (store.path / "trees" / "zzz").mkdir()


@pytest.mark.parametrize(
    ("harm", "kinds"),
    [
        (break_blob, {"blob"}), (lose_blob, {"blob"}), (lose_tree, {"tree"}),
        (lose_layer, {"record", "image"}), (lose_image, {"name"}), (lose_config, {"image", "stray-file"}),
        (stray_file, {"stray-file"}), (stray_tree, {"stray-tree"}),
    ],
)
def test_check_finds_and_repairs(store: Store, fill: Filler, harm: object, kinds: set[str]) -> None:
    layer = fill.layer("layer", tree=5)
    fill.record("r", layer)
    fill.image("i", layer, name="app")
    assert sound(store)
    harm(store, layer, store.layers.get(layer).tree)  # type: ignore[operator]
    report = finish(checking(store))
    assert {finding.kind for finding in report.findings} == kinds
    assert repair(store, report) == len(report.findings)
    store.collect()
    assert sound(store)


def comes(store: Store, fill: Filler, layer: int) -> None:
    fresh = fill.layer("fresh", tree=1)
    fill.record("fresh", fresh)
    fill.image("fresh config", fresh, name="fresh")


def goes(store: Store, fill: Filler, layer: int) -> None:
    store.images.remove(store.images.names()[0].image)
    store.collect(EVERYTHING)
    empty_trash(store.path)


def is_placed(store: Store, fill: Filler, layer: int) -> None:
    writer = store.blobs.writer()
    writer.write(b"placed")
    writer.seal(Digest.of(b"placed"), 6)


def is_unpacked_again(store: Store, fill: Filler, layer: int) -> None:
    store.trees.trash(store.layers.get(layer).tree)
    store.trees.forget(store.layers.get(layer).tree)
    tree = store.trees.allocate()
    (store.trees.path(tree) / "fs").mkdir(parents=True)
    store.trees.commit(tree, 5)
    store.layers.set_tree(layer, tree)


@pytest.mark.parametrize("change", [comes, goes, is_placed, is_unpacked_again])
@pytest.mark.parametrize("moment", range(12))
def test_what_changes_while_a_check_goes_on_is_no_finding(
    store: Store, fill: Filler, change: Callable[[Store, Filler, int], None], moment: int
) -> None:
    layer = fill.layer("layer", tree=5)
    fill.record("r", layer)
    fill.image("i", layer, name="app")
    steps = checking(store)
    for _ in range(moment):
        next(steps)
    change(store, fill, layer)
    assert finish(steps).findings == []


def test_a_check_during_a_collection_takes_nothing_from_what_it_watches(
    store: Store, fill: Filler
) -> None:
    layer = fill.layer("layer", tree=5)
    collection = collecting(store, EVERYTHING)
    next(collection)
    assert store.layers.find(Digest.of(b"layer"), 0) is not None  # somebody wants it from now on
    assert sound(store)
    finish(collection)
    assert store.layers.get(layer).digest == Digest.of(b"layer")
