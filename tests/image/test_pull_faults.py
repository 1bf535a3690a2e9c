"""Whole pulls from a registry that misbehaves: an image or an error, and nothing half-written."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from faulty_registry import Faults, FaultyRegistry, serving

from ocibuildd.errors import BuildError, Corrupt, NotFound, RegistryError
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import MEDIA_CONFIG, MEDIA_MANIFEST, Descriptor, Manifest, encode
from ocibuildd.registry.config import RegistryConfig, RegistrySettings


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyRegistry]:
    async with serving() as start:
        yield await start(FaultyRegistry())


@pytest.fixture
def publish(faulty: FaultyRegistry) -> Any:
    """Put an image of these layer tars there; gives its name."""

    def put(
        *tars: bytes, diff_ids: list[str] | None = None, packed: list[bytes] | None = None
    ) -> str:
        blobs = packed or [gzip.compress(tar, mtime=0) for tar in tars]
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {
                    "type": "layers",
                    "diff_ids": diff_ids
                    or ["sha256:" + hashlib.sha256(t).hexdigest() for t in tars],
                },
            }
        ).encode()
        faulty.blobs[Digest.of(config)] = config
        faulty.add_manifest(
            "app",
            "v1",
            encode(
                Manifest(
                    media_type=MEDIA_MANIFEST,
                    config=Descriptor(MEDIA_CONFIG, Digest.of(config), len(config)),
                    layers=tuple(faulty.add_blob(blob) for blob in blobs),
                )
            ),
        )
        return f"{faulty.host}/app:v1"

    return put


def nothing_left(rig: Any) -> bool:
    """No image, no ingest, no tree that isn't on its way out."""
    trees = [path.name for path in (rig.store.path / "trees").iterdir()]
    return (
        rig.images.list(all=True) == []
        and list((rig.store.path / "ingest").iterdir()) == []
        and all(rig.store.trees.has(tree) for tree in trees)
        and rig.store.images.names() == []
    )


@pytest.fixture
def big(tar: Any) -> bytes:
    import random

    return tar({"data": random.Random(1).randbytes(400_000), "etc/": b"", "etc/motd": b"hello\n"})


async def test_a_layer_that_breaks_off_is_resumed_while_it_is_unpacked(rig, faulty, publish, big):
    name = publish(big)
    faulty.break_("GET .*blobs", Faults.cut(100_000), times=3)
    await rig.images.pull(name)
    assert {"data", "etc/motd"} <= await rig.tree_names(name)


async def test_a_layer_that_is_spoilt_on_the_way_is_asked_for_again(rig, faulty, publish, big):
    name = publish(big)
    blob = gzip.compress(big, mtime=0)
    layer = str(Digest.of(blob))
    faulty.break_(f"GET .*{layer}", Faults.edit(body=blob[:50_000] + b"?" + blob[50_001:]))
    await rig.images.pull(name)
    assert "data" in await rig.tree_names(name)
    assert len([line for line in faulty.methods("blobs") if layer in line]) == 2


async def test_a_layer_that_is_always_spoilt_is_an_error_that_leaves_nothing(
    rig, faulty, publish, big
):
    name = publish(big)
    blob = gzip.compress(big, mtime=0)
    faulty.break_(f"GET .*{Digest.of(blob)}", Faults.edit(body=blob[:-9] + bytes(9)), times=9)
    with pytest.raises(Corrupt, match="digest"):
        await rig.images.pull(name)
    assert nothing_left(rig)


async def test_a_mirror_that_lies_is_set_right_by_the_registry(make_rig, faulty, publish, big):
    publish(big)
    blob = gzip.compress(big, mtime=0)
    async with serving() as start:
        mirror = await start(
            FaultyRegistry(
                blobs={**faulty.blobs, str(Digest.of(blob)): blob[:-1] + b"!"},
                manifests=dict(faulty.manifests),
            )
        )
        rig = await make_rig(
            RegistryConfig(
                {
                    "example.com": RegistrySettings(
                        mirrors=(mirror.host,), location=faulty.host, http=True
                    )
                }
            )
        )
        await rig.images.pull("example.com/app:v1")
        assert "data" in await rig.tree_names("example.com/app:v1")


async def test_a_layer_with_another_diff_id_than_its_config_says_is_refused(rig, publish, big):
    with pytest.raises(BuildError, match="diff id"):
        await rig.images.pull(publish(big, diff_ids=["sha256:" + "0" * 64]))
    assert nothing_left(rig)


async def test_more_diff_ids_than_layers_are_refused(rig, publish, big):
    with pytest.raises(RegistryError, match="diff ids"):
        await rig.images.pull(publish(big, diff_ids=["sha256:" + "0" * 64] * 3))
    assert nothing_left(rig)


async def test_a_layer_that_is_no_tar_is_refused(rig, publish):
    for packed in (
        b"no tar at all" * 100,
        gzip.compress(b"no tar at all" * 100),
        b"\x1f\x8b\x08\0",
    ):
        with pytest.raises(BuildError):
            await rig.images.pull(publish(b"", packed=[packed]))
        assert nothing_left(rig)


async def test_one_bad_layer_of_many_spoils_the_image_but_not_the_store(
    rig, faulty, publish, tar, big
):
    name = publish(*(tar({f"f{n}": b"x" * n}) for n in range(6)), big)
    blob = gzip.compress(big, mtime=0)
    faulty.break_(f"GET .*{Digest.of(blob)}", Faults.status(404), times=9)
    with pytest.raises(NotFound):
        await rig.images.pull(name)
    assert nothing_left(rig)
    faulty.rules.clear()
    await rig.images.pull(name)
    assert {"f0", "f5", "data"} <= await rig.tree_names(name)


async def test_a_pull_that_is_cancelled_leaves_nothing(rig, faulty, publish, big):
    name = publish(big)

    async def stuck(request: Any, handler: Any) -> Any:
        await asyncio.sleep(5)
        return await handler(request)

    faulty.break_(f"GET .*{Digest.of(gzip.compress(big, mtime=0))}", stuck)
    task = asyncio.create_task(rig.images.pull(name))
    while not faulty.methods(str(Digest.of(gzip.compress(big, mtime=0)))):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert nothing_left(rig)


async def test_two_pulls_of_one_image_download_it_once(rig, faulty, publish, big):
    name = publish(big)
    await asyncio.gather(rig.images.pull(name), rig.images.pull(name))
    layer = str(Digest.of(gzip.compress(big, mtime=0)))
    assert len([line for line in faulty.methods("blobs") if layer in line]) == 1


async def test_a_config_that_is_hostile_is_refused(rig, faulty, publish, big):
    name = publish(big)

    evil = b'{"rootfs":{"type":"layers","diff_ids":["../../etc/passwd"]}}'
    manifest = json.loads(faulty.manifests["app", "v1"][0])
    manifest["config"] |= {"digest": str(Digest.of(evil)), "size": len(evil)}
    faulty.blobs[Digest.of(evil)] = evil
    faulty.add_manifest("app", "v1", json.dumps(manifest).encode())
    with pytest.raises(RegistryError, match="config of image"):
        await rig.images.pull(name)
    assert nothing_left(rig)
