"""Images, names, indexes, cache mounts, leases, the lock."""

from __future__ import annotations

import asyncio
import os

import pytest
from filler import Filler

from ocibuildd.errors import Conflict, NotFound
from ocibuildd.model.digest import Digest
from ocibuildd.store import Store
from ocibuildd.store.images import Image, StoredIndex

APP = "docker.io/library/app:latest"


def test_an_image_comes_back_as_it_was_put(store: Store, fill: Filler) -> None:
    layer = fill.layer("l")
    config = fill.image("cfg", layer, created=5.0, size=9, labels={"a": "b"}, created_by="RUN x")
    image = store.images.get(config)
    assert image is not None
    assert (image.chain, image.created, image.size, image.labels) == ((layer,), 5.0, 9, {"a": "b"})
    assert image.manifest is not None
    assert store.images.by_manifest(image.manifest) == image


def test_a_name_moves_to_another_image(store: Store, fill: Filler) -> None:
    one, two = fill.image("1", name=APP), fill.image("2")
    store.images.tag(APP, two)
    name = store.images.resolve(APP)
    assert name is not None
    assert name.image == two
    assert store.images.names_of(one) == []


def test_a_name_can_stand_for_an_index(store: Store, fill: Filler) -> None:
    config = fill.image("1")
    index = StoredIndex(store.blobs.put(b"index"), "t", ((Digest.of(b"m"), "linux/amd64", config),))
    store.images.put_index(index)
    store.images.tag(APP, config, index.digest)
    name = store.images.resolve(APP)
    assert name is not None
    assert name.target == index.digest
    assert store.images.get_index(index.digest) == index


def test_only_an_image_that_is_here_is_tagged(store: Store) -> None:
    with pytest.raises(NotFound):
        store.images.tag(APP, Digest.of(b"nowhere"))


def test_untagging_tells_what_the_name_was(store: Store, fill: Filler) -> None:
    config = fill.image("1", name=APP)
    untagged = store.images.untag(APP)
    assert untagged is not None
    assert untagged.image == config
    assert store.images.untag(APP) is None


def test_names_are_listed_by_prefix(store: Store, fill: Filler) -> None:
    config = fill.image("1", name="docker.io/library/b:1")
    store.images.tag("docker.io/library/a:1", config)
    store.images.tag("localhost:5000/a:1", config)
    assert [name.name for name in store.images.names("docker.io/")] == [
        "docker.io/library/a:1", "docker.io/library/b:1",
    ]
    assert len(store.images.names()) == 3


def test_an_image_is_found_by_the_beginning_of_its_id(store: Store, fill: Filler) -> None:
    config = fill.image("1")
    assert [image.id for image in store.images.find(config.short)] == [config]
    assert [image.id for image in store.images.find(config[:20])] == [config]
    assert store.images.find("0" * 64) == []


def test_an_image_stays_one_when_it_comes_again_as_an_intermediate(store: Store, fill: Filler) -> None:
    config = fill.image("1")
    before = store.images.get(config)
    store.images.put(Image(config, None, "", (), kind="intermediate"))
    after = store.images.get(config)
    assert after is not None
    assert before is not None
    assert (after.kind, after.manifest) == ("image", before.manifest)


def test_an_intermediate_becomes_an_image(store: Store, fill: Filler) -> None:
    config = fill.image("1", kind="intermediate")
    fill.image("1")
    assert [image.id for image in store.images.all("image")] == [config]


def test_a_second_manifest_keeps_the_first(store: Store, fill: Filler) -> None:
    config = fill.image("1")
    first = store.images.get(config)
    store.images.put(Image(config, store.blobs.put(b"zstd manifest"), "m", ()))
    after = store.images.get(config)
    assert after is not None
    assert first is not None
    assert first.manifest in after.blobs


def test_children_and_images_of_a_build_are_found(store: Store, fill: Filler) -> None:
    base = fill.image("base")
    child = fill.image("child", parent=base, build="b7")
    assert [image.id for image in store.images.children(base)] == [child]
    assert [image.id for image in store.images.of_build("b7")] == [child]


def test_removing_an_image_takes_its_names(store: Store, fill: Filler) -> None:
    config = fill.image("1", name=APP)
    assert store.images.remove(config)
    assert store.images.resolve(APP) is None
    assert not store.images.remove(config)


# --- cache mounts ------------------------------------------------------------------------------------


def test_a_shared_mount_has_many_users(store: Store) -> None:
    with store.cache_mounts.try_acquire("apt") as one, store.cache_mounts.try_acquire("apt") as two:  # type: ignore[union-attr]
        assert one.path == two.path
        assert one.path.parent.is_dir()


def test_a_private_mount_gets_a_directory_of_its_own(store: Store) -> None:
    one, two = (store.cache_mounts.try_acquire("go", "private") for _ in range(2))
    assert one is not None
    assert two is not None
    assert one.path != two.path
    one.release()
    again = store.cache_mounts.try_acquire("go", "private")
    assert again is not None
    assert again.path == one.path
    assert len(store.cache_mounts.find("go")) == 2


async def test_a_locked_mount_is_waited_for(store: Store) -> None:
    first = await store.cache_mounts.acquire("db", "locked")
    waiting = asyncio.create_task(store.cache_mounts.acquire("db", "locked"))
    await asyncio.sleep(0)
    assert not waiting.done()
    first.release()
    first.release()
    (await waiting).release()
    assert not store.cache_mounts.in_use(first.hash)


async def test_a_waiter_that_is_cancelled_is_forgotten(store: Store) -> None:
    first = await store.cache_mounts.acquire("db", "locked")
    waiting = asyncio.create_task(store.cache_mounts.acquire("db", "shared"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first.release()
    assert store.cache_mounts.try_acquire("db", "locked") is not None


@pytest.mark.parametrize("cache_id", ["../../etc", "a/b", "\0", "x" * 5000, "\udcff"])
def test_an_id_is_never_a_path(store: Store, cache_id: str) -> None:
    grip = store.cache_mounts.try_acquire(cache_id)
    assert grip is not None
    assert grip.path.parent.parent == store.path / "cache"
    assert store.cache_mounts.get(grip.hash) is not None


def test_a_mount_in_use_is_not_removed(store: Store) -> None:
    grip = store.cache_mounts.try_acquire("apt")
    assert grip is not None
    with pytest.raises(Conflict):
        store.cache_mounts.forget(grip.hash)
    grip.release()
    store.cache_mounts.set_size(grip.hash, 100)
    assert store.cache_mounts.bytes == 100
    assert store.cache_mounts.forget(grip.hash) == 100
    assert store.cache_mounts.trash(grip.hash) is not None
    assert os.listdir(store.path / "cache") == []


# --- leases and the lock -----------------------------------------------------------------------------


def test_a_lease_counts_and_lets_go_once(store: Store, fill: Filler) -> None:
    layer = fill.layer("l")
    with store.leases.new("b1") as one:
        one.add(layers=[layer, layer])
        two = store.leases.new("b2")
        two.add(layers=[layer])
    assert store.held.has_layer(layer)
    two.release()
    two.release()
    assert not store.held.has_layer(layer)


def test_a_collected_layer_can_not_be_leased(store: Store, fill: Filler) -> None:
    layer = fill.layer("l")
    store.collect()
    with pytest.raises(NotFound, match="collected"):
        store.leases.new().add(layers=[layer])


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(store: Store) -> None:
    with pytest.raises(Conflict, match=f"pid {os.getpid()}"):
        Store.open(store.path)


def test_a_closed_store_can_be_opened_again(store: Store) -> None:
    path = store.path
    store.close()
    store.close()
    with Store.open(path) as again:
        assert again.recovered.clean
