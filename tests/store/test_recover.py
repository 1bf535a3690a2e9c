"""Starts after bad ends: what a crash left is taken away, what was committed is there."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from filler import Filler

from ocibuildd.errors import BuildError, Corrupt, NoSpace
from ocibuildd.model.digest import Digest
from ocibuildd.store import Store
from ocibuildd.store.check import checking
from ocibuildd.store.gc import finish
from ocibuildd.store.records import Eviction

LAYER = Digest.of(b"layer")
PREIMAGE = "what its key was made of " * 100


@pytest.fixture
def filled(state: Path) -> Path:
    """A state directory as a crash leaves it: everything committed, no orderly end."""
    with Store.open(state) as store:
        fill = Filler(store)
        layer = fill.layer("layer", tree=5)
        fill.record("r", layer, selector="s", preimage=PREIMAGE)
        fill.image("i", layer, name="app", labels={"a": "b"})
        grip = store.cache_mounts.try_acquire("apt")
        assert grip is not None
        grip.path.mkdir(parents=True)
        grip.release()
        store.builds.new("b1", "app", {})
        store.builds.finish("b1", "done")
    (state / "clean").unlink()
    return state


def whole(store: Store) -> None:
    """All that ``filled`` put is there."""
    record = store.records.get("r")
    assert record is not None
    assert store.records.preimage("r") == PREIMAGE
    assert store.layers.get(record.chain[0]).digest == LAYER
    assert store.blobs.read(LAYER) == b"layer"
    name = store.images.resolve("app")
    assert name is not None
    image = store.images.get(name.image)
    assert image is not None
    assert (image.chain, image.labels) == (record.chain, {"a": "b"})
    assert store.builds.get("b1") is not None
    assert finish(checking(store)).findings == []


def test_what_was_committed_is_there(filled: Path) -> None:
    with Store.open(filled) as store:
        assert not store.recovered.clean
        whole(store)
        assert store.trees.has(store.layers.chain((1,))[0].tree)
    with Store.open(filled) as store:
        assert store.recovered.clean


def test_ingests_are_dropped(filled: Path) -> None:
    (filled / "ingest" / "1-1").write_bytes(b"half")
    with Store.open(filled) as store:
        assert store.recovered.ingests == 1
    assert os.listdir(filled / "ingest") == []


def test_a_whole_blob_without_a_row_is_adopted(filled: Path) -> None:
    data = b"came in just before the crash"
    (filled / "blobs" / "sha256" / Digest.of(data).hex).write_bytes(data)
    with Store.open(filled) as store:
        assert store.recovered.adopted == [Digest.of(data)]
        assert store.blobs.read(Digest.of(data)) == data


def test_a_half_blob_without_a_row_is_dropped(filled: Path) -> None:
    (filled / "blobs" / "sha256" / Digest.of(b"whole").hex).write_bytes(b"who")
    (filled / "blobs" / "sha256" / "junk").write_bytes(b"junk")
    with Store.open(filled) as store:
        assert store.recovered.dropped_blobs == 1
        whole(store)


def test_a_row_without_its_file_becomes_a_miss(filled: Path) -> None:
    (filled / "blobs" / "sha256" / LAYER.hex).unlink()
    with Store.open(filled) as store:
        assert store.recovered.missing_blobs == [LAYER]
        assert not store.blobs.has(LAYER)


def test_a_blob_of_another_size_goes_to_quarantine(filled: Path) -> None:
    (filled / "blobs" / "sha256" / LAYER.hex).write_bytes(b"lay")
    with Store.open(filled) as store:
        assert not store.blobs.has(LAYER)
    assert len(os.listdir(filled / "quarantine")) == 1


def test_trees_without_rows_and_rows_without_trees_go(filled: Path) -> None:
    (filled / "trees" / "9z" / "fs").mkdir(parents=True)
    shutil.rmtree(filled / "trees" / "1")
    with Store.open(filled) as store:
        assert store.recovered.orphan_trees == 1
        assert store.recovered.missing_trees == ["1"]
        assert store.layers.get(1).tree == ""
        assert store.trees.allocate() != "9z"
        assert len(os.listdir(filled / "trash")) == 1


def damage_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)


def damage_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 200] = b"\xa5" * 200
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_header, damage_page, cut_short])
def test_a_damaged_database_is_built_again_from_the_journal(filled: Path, damage: object) -> None:
    damage(filled / "store.db")  # type: ignore[operator]
    with Store.open(filled) as store:
        assert store.recovered.damage
        assert store.recovered.rebuilt_rows >= 7
        whole(store)
        assert store.layers.new() > 1
    assert any(name.startswith("store.db") for name in os.listdir(filled / "quarantine"))
    with Store.open(filled) as store:
        whole(store)


def test_damage_that_is_met_at_work_is_mended_at_the_next_start(filled: Path) -> None:
    with Store.open(filled):
        pass
    database = sqlite3.connect(filled / "store.db")
    (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'records'").fetchone()
    database.close()
    with (filled / "store.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    with pytest.raises(Corrupt, match="malformed"), Store.open(filled) as store:
        store.records.page()
    with Store.open(filled) as store:
        assert store.recovered.damage
        whole(store)


def test_removed_rows_do_not_come_back(filled: Path) -> None:
    with Store.open(filled) as store:
        Filler(store).record("gone")
        store.records.remove("gone")
        store.images.tag("second", store.images.all()[0].id)
        store.images.untag("second")
    (filled / "clean").unlink()
    damage_header(filled / "store.db")
    with Store.open(filled) as store:
        assert store.records.get("gone") is None
        assert store.images.resolve("second") is None
        whole(store)


def test_a_torn_or_foreign_journal_line_is_skipped(filled: Path) -> None:
    with (filled / "journal.jsonl").open("ab") as file:
        file.write(b'["records",[1,2]]\n["nonsense",[1]]\n\xff\xfe\n{}\n["blobs",["sha256:12",1,1.0]]\n["blo')
    damage_header(filled / "store.db")
    with Store.open(filled) as store:
        whole(store)
        assert store.recovered.rebuilt_rows >= 7


def test_rows_whose_files_are_gone_are_not_built_again(filled: Path) -> None:
    damage_header(filled / "store.db")
    (filled / "blobs" / "sha256" / LAYER.hex).unlink()
    shutil.rmtree(filled / "trees" / "1")
    with Store.open(filled) as store:
        assert not store.blobs.has(LAYER)
        assert store.layers.get(1).tree == ""
        assert finish(checking(store)).findings == []


def test_without_a_journal_images_come_from_the_blobs(filled: Path) -> None:
    from ocibuildd.model.oci import (
        MEDIA_CONFIG,
        MEDIA_LAYER,
        Descriptor,
        ImageConfig,
        Manifest,
        RootFS,
        encode,
    )

    with Store.open(filled) as store:
        config = encode(ImageConfig(architecture="amd64", os="linux", rootfs=RootFS(diff_ids=(LAYER,))))
        manifest = Manifest(
            media_type="application/vnd.oci.image.manifest.v1+json",
            config=Descriptor(MEDIA_CONFIG, store.blobs.put(config), len(config)),
            layers=(Descriptor(MEDIA_LAYER, LAYER, 5),),
        )
        store.blobs.put(encode(manifest))
    (filled / "journal.jsonl").unlink()
    damage_header(filled / "store.db")
    (filled / "clean").unlink()
    with Store.open(filled) as store:
        (image,) = store.images.all()
        assert image.id == Digest.of(config)
        assert store.layers.chain(image.chain)[0].digest == LAYER
        assert store.blobs.read(LAYER) == b"layer"


def test_a_newer_schema_is_refused(state: Path) -> None:
    with Store.open(state) as store:
        store.db.run("PRAGMA user_version = 99")
    with pytest.raises(BuildError, match="schema 99"):
        Store.open(state)


def test_the_journal_is_rewritten_when_it_is_mostly_history(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocibuildd.store.journal.COMPACT_AT", 1_000)
    with Store.open(state) as store:
        fill = Filler(store)
        for _ in range(100):
            fill.record("same", value="x" * 100)
        before = (state / "journal.jsonl").stat().st_size
    with Store.open(state) as store:
        assert (state / "journal.jsonl").stat().st_size < before / 10
        store.records.remove("same")
    damage_header(state / "store.db")
    (state / "clean").unlink()
    with Store.open(state) as store:
        assert store.records.get("same") is None


def test_a_rewritten_journal_keeps_what_explains_and_is_left_alone(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocibuildd.store.journal.COMPACT_AT", 1_000)
    texts = {f"r{number}": f"{number} {os.urandom(2_000).hex()}" for number in range(20)}
    with Store.open(state) as store:
        for key, text in texts.items():
            Filler(store).record(key, preimage=text)
        Filler(store).record("short", preimage="plain")
    with Store.open(state):
        pass
    before = (state / "journal.jsonl").stat()
    with Store.open(state):
        pass
    assert (state / "journal.jsonl").stat().st_ino == before.st_ino
    damage_header(state / "store.db")
    with Store.open(state) as store:
        assert store.recovered.damage
        assert {key: store.records.preimage(key) for key in texts} == texts
        assert store.records.preimage("short") == "plain"


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_rebuilt_database_knows_why_a_record_went(
    state: Path, rewritten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(state) as store:
        Filler(store).record("k", selector="s")
        store.records.remove("k", rule="prune", why="it was asked for", now=7.0)
        Filler(store).record("stays", value="x" * 1_000)
        Filler(store).record("stays", value="y" * 1_000)
    if rewritten:
        monkeypatch.setattr("ocibuildd.store.journal.COMPACT_AT", 1)
        Store.open(state).close()
        assert b'"evictions"' in (state / "journal.jsonl").read_bytes()
    damage_header(state / "store.db")
    with Store.open(state) as store:
        assert store.recovered.damage
        assert store.records.evicted(selector="s") == Eviction("k", "s", 7.0, "prune", "it was asked for")


def test_a_line_of_the_journal_that_makes_no_sense_is_skipped(state: Path) -> None:
    with Store.open(state) as store:
        Filler(store).record("k")
    with (state / "journal.jsonl").open("ab") as file:
        file.write(b'["-records",[["k"]]]\n["-blobs",[{}]]\n["evictions",[1,[],3,4,5]]\n["evictions",[]]\n')
    damage_header(state / "store.db")
    with Store.open(state) as store:
        assert store.records.get("k") is not None


def test_a_state_directory_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((BuildError, OSError)):
        Store.open(tmp_path / "file")


def test_the_ballast_is_made_and_given_up(state: Path) -> None:
    with Store.open(state, ballast=1 << 20) as store:
        assert (state / "ballast").stat().st_size == 1 << 20
        assert store.space.drop_ballast()
        assert not store.space.drop_ballast()
        assert store.space.make_ballast()
    with Store.open(state, ballast=0):
        assert not (state / "ballast").exists()


def test_a_full_disk_at_start_is_said_so(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(NoSpace, match="state directory"):
        Store.open(state)
