"""Whole pulls of images that were made to do harm: a clear error, and nothing is left of them."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from faulty_registry import FaultyRegistry, serving

from ocibuildd.errors import BuildError, Corrupt, NotFound, RegistryError, TooLarge
from ocibuildd.model.oci import (
    MEDIA_CONFIG,
    MEDIA_INDEX,
    MEDIA_LAYER,
    MEDIA_LAYER_GZIP,
    MEDIA_LAYER_ZSTD,
    MEDIA_MANIFEST,
)

Json = dict[str, Any]


class Shelf:
    """A registry whose documents are written by hand."""

    def __init__(self, registry: FaultyRegistry) -> None:
        self.registry = registry
        self.name = f"{registry.host}/app:v1"

    def blob(self, data: bytes, kind: str, algorithm: str = "sha256", **fields: Any) -> Json:
        digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
        self.registry.blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)} | fields

    def config(self, *tars: bytes, **fields: Any) -> bytes:
        diff_ids = ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in tars]
        body = {"architecture": "amd64", "os": "linux", "config": {}}
        return json.dumps(
            body | {"rootfs": {"type": "layers", "diff_ids": diff_ids}} | fields
        ).encode()

    def put(self, body: Json, kind: str, ref: str = "v1", **fields: Any) -> Json:
        data = json.dumps({"schemaVersion": 2, "mediaType": kind} | body).encode()
        digest = self.registry.add_manifest("app", ref, data, kind)
        return {"mediaType": kind, "digest": str(digest), "size": len(data)} | fields

    def image(self, layers: list[Json], config: Json, ref: str = "v1", **fields: Any) -> Json:
        return self.put({"config": config, "layers": layers}, MEDIA_MANIFEST, ref, **fields)

    def simple(self, tar: bytes, **of_layer: Any) -> Json:
        layer = self.blob(gzip.compress(tar, mtime=0), MEDIA_LAYER_GZIP) | of_layer
        return self.image([layer], self.blob(self.config(tar), MEDIA_CONFIG))


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    async with serving() as start:
        yield Shelf(await start(FaultyRegistry()))


@pytest.fixture
def small(tar: Callable[..., bytes]) -> bytes:
    return tar({"etc/": b"", "etc/motd": b"hello\n"})


@pytest.fixture
def expect_refusal(rig: Any, shelf: Shelf) -> Callable[..., Any]:
    """Pull it: that fails with this error, and nothing of it is left."""

    async def pull(error: type[BuildError], match: str) -> None:
        with pytest.raises(error, match=match):
            await rig.images.pull(shelf.name)
        assert rig.images.list(all=True) == []
        assert list((rig.store.path / "ingest").iterdir()) == []
        assert all(rig.store.trees.has(path.name) for path in (rig.store.path / "trees").iterdir())

    return pull


async def test_blobs_may_be_named_by_sha512(rig, shelf, small):
    layer = shelf.blob(gzip.compress(small, mtime=0), MEDIA_LAYER_GZIP, "sha512")
    shelf.image([layer], shelf.blob(shelf.config(small), MEDIA_CONFIG, "sha512"))
    await rig.images.pull(shelf.name)
    assert "etc/motd" in await rig.tree_names(shelf.name)


async def test_a_blob_that_its_sha512_does_not_fit_is_refused(shelf, small, expect_refusal):
    layer = shelf.blob(gzip.compress(small, mtime=0), MEDIA_LAYER_GZIP, "sha512")
    shelf.registry.blobs[layer["digest"]] = gzip.compress(small, mtime=1)
    shelf.image([layer], shelf.blob(shelf.config(small), MEDIA_CONFIG))
    await expect_refusal(Corrupt, "digest")


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "blake3", "sha256+b64"])
async def test_a_digest_of_another_kind_is_refused(shelf, small, expect_refusal, algorithm):
    shelf.simple(small, digest=f"{algorithm}:" + "0" * 64)
    await expect_refusal(RegistryError, "expected sha256")


async def test_a_layer_that_unpacks_to_ever_more_is_refused(rig, shelf, tar, expect_refusal):
    rig.puller.unpacker._limits = {"bytes": 4 << 20}
    shelf.simple(tar({"zeros": bytes(20 << 20)}))
    await expect_refusal(TooLarge, "more than")


async def test_a_layer_of_endless_entries_is_refused(rig, shelf, tar, expect_refusal):
    rig.puller.unpacker._limits = {"entries": 50}
    shelf.simple(tar({f"f{number}": b"" for number in range(200)}))
    await expect_refusal(TooLarge, "entries")


async def test_a_layer_that_wants_a_huge_window_is_refused(shelf, small, expect_refusal):
    head = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0xA8])  # a frame with a window of 2 GiB
    layer = shelf.blob(head + bytes(200), MEDIA_LAYER_ZSTD)
    shelf.image([layer], shelf.blob(shelf.config(small), MEDIA_CONFIG))
    await expect_refusal(BuildError, "window|zstd")


async def test_a_config_that_is_too_large_is_not_even_asked_for(shelf, small, expect_refusal):
    config = shelf.blob(shelf.config(small), MEDIA_CONFIG) | {"size": 9 << 20}
    shelf.image([shelf.blob(small, MEDIA_LAYER)], config)
    await expect_refusal(BuildError, "the limit is")
    assert not shelf.registry.methods(config["digest"])


@pytest.mark.parametrize("difference", [-1, 1, 1000])
async def test_a_config_of_another_size_is_refused(shelf, small, expect_refusal, difference):
    config = shelf.blob(shelf.config(small), MEDIA_CONFIG)
    shelf.image([shelf.blob(small, MEDIA_LAYER)], config | {"size": config["size"] + difference})
    await expect_refusal(Corrupt, "expected")


@pytest.mark.parametrize("difference", [-1, 1, 1000])
async def test_a_layer_of_another_size_is_refused(shelf, small, expect_refusal, difference):
    shelf.simple(small, size=len(gzip.compress(small, mtime=0)) + difference)
    await expect_refusal(Corrupt, "expected")


@pytest.mark.parametrize(
    "config",
    [
        b"[]",
        b"{}",
        b'{"rootfs":{"type":"layers","diff_ids":[]},"rootfs":{"diff_ids":["x"]}}',
        b'{"config":' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        b'{"rootfs":{"type":"layers","diff_ids":"sha256:0"}}',
        b"\xff\xfe",
    ],
)
async def test_a_config_that_is_none_is_refused(shelf, small, expect_refusal, config):
    shelf.image([shelf.blob(small, MEDIA_LAYER)], shelf.blob(config, MEDIA_CONFIG))
    await expect_refusal(RegistryError, "config of image")


async def test_an_index_of_indexes_is_refused(shelf, expect_refusal):
    inner = shelf.put({"manifests": []}, MEDIA_INDEX, "inner")
    platform = {"architecture": "amd64", "os": "linux"}
    shelf.put({"manifests": [inner | {"platform": platform}]}, MEDIA_INDEX)
    await expect_refusal(RegistryError, "an index inside an index")


async def test_an_index_entry_of_another_size_is_refused(shelf, small, expect_refusal):
    entry = shelf.simple(small) | {"platform": {"architecture": "amd64", "os": "linux"}}
    shelf.put({"manifests": [entry | {"size": entry["size"] + 1}]}, MEDIA_INDEX)
    await expect_refusal(Corrupt, "expected")


async def test_an_index_whose_entry_is_for_another_platform_than_it_says(shelf, small, expect_refusal):
    config = shelf.blob(shelf.config(small, architecture="s390x"), MEDIA_CONFIG)
    layer = shelf.blob(gzip.compress(small, mtime=0), MEDIA_LAYER_GZIP)
    shelf.image([layer], config)
    await expect_refusal(NotFound, "is for linux/s390x")


async def test_an_index_without_a_fitting_platform_names_what_it_has(shelf, small, expect_refusal):
    entry = shelf.simple(small)
    platforms = [{"architecture": arch, "os": "linux"} for arch in ("arm64", "riscv64")]
    shelf.put({"manifests": [entry | {"platform": each} for each in platforms]}, MEDIA_INDEX)
    await expect_refusal(NotFound, "linux/arm64, linux/riscv64")


async def test_an_index_of_thousands_is_refused(shelf, small, expect_refusal):
    entry = shelf.simple(small) | {"platform": {"architecture": "amd64", "os": "linux"}}
    shelf.put({"manifests": [entry] * 5000}, MEDIA_INDEX)
    await expect_refusal(TooLarge, "limit")


async def test_a_foreign_layer_is_not_fetched_from_where_it_says(shelf, small, expect_refusal):
    async with serving() as start:
        elsewhere = await start(FaultyRegistry())
        layer = shelf.blob(gzip.compress(small, mtime=0), MEDIA_LAYER_GZIP)
        del shelf.registry.blobs[layer["digest"]]
        layer |= {
            "urls": [f"http://{elsewhere.host}/x"],
            "mediaType": MEDIA_LAYER + ".nondistributable",
        }
        shelf.image([layer], shelf.blob(shelf.config(small), MEDIA_CONFIG))
        await expect_refusal(NotFound, "blob")
        assert not elsewhere.seen


@pytest.mark.parametrize("kind", [MEDIA_LAYER, MEDIA_LAYER_ZSTD, "application/x-anything"])
async def test_a_layer_is_what_its_bytes_are(rig, shelf, small, kind):
    """The media type is a hint that tools get wrong; the digests decide."""
    shelf.simple(small, mediaType=kind)
    await rig.images.pull(shelf.name)
    assert "etc/motd" in await rig.tree_names(shelf.name)


async def test_the_same_layer_many_times_is_downloaded_once(rig, shelf, small):
    layer = shelf.blob(gzip.compress(small, mtime=0), MEDIA_LAYER_GZIP)
    shelf.image([layer] * 60, shelf.blob(shelf.config(*[small] * 60), MEDIA_CONFIG))
    await rig.images.pull(shelf.name)
    assert len(shelf.registry.methods(layer["digest"])) == 1


@pytest.mark.parametrize("name", ["../../outside", "/etc/../../outside", "a/../../../outside"])
async def test_a_layer_cannot_write_outside(rig, shelf, tar, tmp_path, name):
    shelf.simple(tar({name: b"x", "inside": b"y"}))
    try:
        await rig.images.pull(shelf.name)
    except BuildError:
        assert rig.images.list(all=True) == []
    assert not list(tmp_path.rglob("outside")) or all(
        "/fs/" in str(path) for path in tmp_path.rglob("outside")
    )


async def test_an_artifact_that_is_no_image_is_told(shelf, small, expect_refusal):
    config = shelf.blob(b"{}", "application/vnd.cncf.helm.config.v1+json")
    shelf.image(
        [shelf.blob(b"chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")], config
    )
    await expect_refusal(RegistryError, "it is application/vnd.cncf.helm.config")
