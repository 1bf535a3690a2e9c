"""Layers in their place, trees as a cache of blobs."""

from __future__ import annotations

import os

import pytest

from ocibuildd.errors import Conflict, NotFound
from ocibuildd.model.digest import Digest
from ocibuildd.store import Store

DIFF = Digest.of(b"diff")
BLOB = Digest.of(b"blob")


def add(store: Store, parent: int = 0, **more: object) -> int:
    return store.layers.add(
        parent, diff_id=DIFF, digest=BLOB, size=4, media_type="m", **more  # type: ignore[arg-type]
    ).id


def make_tree(store: Store, size: int = 10) -> str:
    tree = store.trees.allocate()
    (store.trees.path(tree) / "fs").mkdir(parents=True)
    store.trees.commit(tree, size)
    return tree


def test_a_pending_layer_is_known_before_its_digests(store: Store) -> None:
    layer = store.layers.new(tree="t")
    assert store.layers.pending(layer)
    assert store.layers.get(layer).tree == "t"
    assert store.layers.get(layer).digest is None
    assert store.db.all("SELECT * FROM layers") == []


def test_a_finished_layer_is_a_row(store: Store) -> None:
    layer = store.layers.new(7)
    store.layers.finish(layer, diff_id=DIFF, digest=BLOB, size=4, tar_size=9, media_type="m", content="c")
    found = store.layers.get(layer)
    assert (found.diff_id, found.digest, found.size, found.tar_size, found.content) == (DIFF, BLOB, 4, 9, "c")
    assert store.layers.parent(layer) == 7
    assert not store.layers.pending(layer)


def test_a_finish_that_is_rolled_back_leaves_the_layer_pending(store: Store) -> None:
    layer = store.layers.new()
    with pytest.raises(RuntimeError), store.transaction():
        store.layers.finish(layer, diff_id=DIFF, digest=BLOB, size=4, tar_size=9, media_type="m")
        raise RuntimeError
    assert store.layers.pending(layer)


def test_a_dropped_layer_is_gone(store: Store) -> None:
    layer = store.layers.new()
    store.layers.drop(layer)
    with pytest.raises(NotFound):
        store.layers.get(layer)


def test_ids_are_never_used_again(store: Store) -> None:
    first = add(store)
    store.layers.remove(first)
    assert add(store) > first
    path = store.path
    store.close()
    with Store.open(path) as again:
        assert again.layers.new() > first + 1


def test_a_chain_comes_in_its_order(store: Store) -> None:
    low, high = add(store), store.layers.new()
    assert [layer.id for layer in store.layers.chain((high, low))] == [high, low]
    with pytest.raises(NotFound, match="layer 99"):
        store.layers.chain((low, 99))


@pytest.mark.parametrize(
    ("parent", "standalone", "asked", "found"),
    [(0, False, 0, True), (1, False, 0, False), (0, False, 5, False), (1, True, 5, True)],
)
def test_a_layer_is_found_where_it_may_stand(
    store: Store, parent: int, standalone: bool, asked: int, found: bool
) -> None:
    add(store, parent, standalone=standalone)
    assert (store.layers.find(DIFF, asked) is not None) is found


def test_ensuring_twice_gives_the_same_layer(store: Store) -> None:
    one = store.layers.ensure(0, diff_id=DIFF, digest=BLOB, size=4, media_type="m")
    assert store.layers.ensure(0, diff_id=DIFF, digest=BLOB, size=4, media_type="m") == one


def test_an_unpacked_layer_is_preferred(store: Store) -> None:
    add(store)
    unpacked = add(store, tree=make_tree(store))
    found = store.layers.find(DIFF, 0)
    assert found is not None
    assert found.id == unpacked


def test_content_finds_the_oldest_layer_over_the_same_parent(store: Store) -> None:
    first = add(store, 3, content="c")
    add(store, 3, content="c")
    found = store.layers.find_content("c", 3)
    assert found is not None
    assert found.id == first
    assert store.layers.find_content("c", 4) is None
    assert store.layers.find_content("", 3) is None


def test_a_layer_with_its_blob_is_found_by_diff_id(store: Store) -> None:
    add(store)
    assert store.layers.with_blob(DIFF) is None
    store.blobs.put(b"blob")
    assert store.layers.with_blob(DIFF) is not None


def test_a_tree_is_unpacked_and_forgotten(store: Store) -> None:
    layer, tree = add(store), make_tree(store)
    store.layers.set_tree(layer, tree, tar_size=99)
    assert store.layers.get(layer).tree == tree
    assert store.layers.get(layer).tar_size == 99
    assert store.trees.forget(tree) == 10
    assert store.layers.get(layer).tree == ""
    assert store.trees.bytes == 0


def test_a_tree_is_its_makers_alone_until_committed(store: Store) -> None:
    tree = store.trees.allocate()
    assert store.trees.busy(tree)
    assert store.trees.allocate() != tree
    store.trees.commit(tree, 1)
    assert not store.trees.busy(tree)
    with pytest.raises(Conflict):
        store.trees.commit(tree, 1)


def test_a_discarded_tree_is_in_the_trash(store: Store) -> None:
    tree = store.trees.allocate()
    (store.trees.path(tree) / "fs").mkdir(parents=True)
    path = store.trees.discard(tree)
    assert path is not None
    assert path.is_dir()
    assert os.listdir(store.path / "trees") == []


def test_discarding_what_was_never_made_is_no_error(store: Store) -> None:
    assert store.trees.discard(store.trees.allocate()) is None


def test_trees_are_synced_after_the_fact(store: Store) -> None:
    tree = make_tree(store)
    assert store.trees.unsynced() == [tree]
    store.trees.syncfs()
    store.trees.mark_synced([tree])
    assert store.trees.unsynced() == []


def test_after_a_reboot_unsynced_trees_are_unpacked_again(store: Store) -> None:
    old, new = make_tree(store), make_tree(store)
    store.trees.mark_synced([old])
    layer = add(store, tree=new)
    path = store.path
    store.close()
    with Store.open(path, boot_id="another") as again:
        assert again.recovered.untrusted_trees == [new]
        assert again.layers.get(layer).tree == ""
        assert again.trees.has(old)


def test_on_the_same_boot_trees_stay(store: Store) -> None:
    tree = make_tree(store)
    path = store.path
    store.close()
    with Store.open(path) as again:
        assert again.trees.has(tree)
        assert again.trees.allocate() != tree


def test_an_id_that_a_stray_directory_has_is_not_given(store: Store) -> None:
    path = store.path
    (path / "trees" / "zz" / "fs").mkdir(parents=True)
    store.close()
    with Store.open(path) as again:
        assert int(again.trees.allocate(), 36) > int("zz", 36)
