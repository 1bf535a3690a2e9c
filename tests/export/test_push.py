"""Pushes that begin before the image is whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ocibuildd.errors import RegistryError
from ocibuildd.export.image import EMPTY_GZIP, EMPTY_LAYER
from ocibuildd.export.push import Pusher
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import MEDIA_CONFIG, MEDIA_LAYER_GZIP, MEDIA_MANIFEST, Descriptor
from ocibuildd.model.reference import Reference


class Blobs:
    """``ports.BlobStore``, as far as a push needs it."""

    def __init__(self) -> None:
        self.put_in: list[bytes] = []

    def put(self, data: bytes) -> Digest:
        self.put_in.append(data)
        return Digest.of(data)


class Registry:
    """Keeps an account of what is asked; ``gate`` holds uploads back, ``bad`` fails."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.manifests: list[Reference] = []
        self.gate = asyncio.Event()
        self.bad = ""

    async def push_blob(self, reference: Any, descriptor: Any, source: Any, **_: Any) -> str:
        self.begun.append(descriptor.digest)
        try:
            if descriptor.digest == self.bad:
                raise RegistryError("no")
            await self.gate.wait()
        finally:
            self.ended.append(descriptor.digest)
        return "pushed"

    async def push_manifest(self, reference: Any, data: bytes, media_type: str, **_: Any) -> Digest:
        self.manifests.append(reference)
        return Digest.of(data)


def descriptor(text: str, kind: str = MEDIA_LAYER_GZIP) -> Descriptor:
    return Descriptor(kind, Digest.of(text.encode()), len(text))


CONFIG = descriptor("config", MEDIA_CONFIG)
REF = Reference.parse("host:5000/app:v1")


@pytest.fixture
def parts() -> tuple[Registry, Blobs, Pusher]:
    registry, blobs = Registry(), Blobs()
    return registry, blobs, Pusher(blobs, registry, REF)  # type: ignore[arg-type]


async def test_layers_go_before_the_image_is_whole_and_only_once(parts):
    registry, _, pusher = parts
    pusher.layer(descriptor("a"))
    pusher.layer(descriptor("a"))
    await asyncio.sleep(0)
    assert registry.begun == [descriptor("a").digest]
    registry.gate.set()
    await pusher.image(
        b"{}", MEDIA_MANIFEST, config=CONFIG, layers=[descriptor("a"), descriptor("b")]
    )
    assert sorted(registry.begun) == sorted(
        d.digest for d in (descriptor("a"), descriptor("b"), CONFIG)
    )
    assert registry.manifests == [REF]


async def test_the_manifest_waits_for_every_blob(parts):
    registry, _, pusher = parts
    task = asyncio.create_task(
        pusher.image(b"{}", MEDIA_MANIFEST, config=CONFIG, layers=[descriptor("a")])
    )
    await asyncio.sleep(0.01)
    assert registry.manifests == []
    registry.gate.set()
    await task


async def test_a_failure_ends_the_other_uploads_and_puts_no_manifest(parts):
    registry, _, pusher = parts
    registry.bad = descriptor("bad").digest
    with pytest.raises(RegistryError):
        await pusher.image(
            b"{}", MEDIA_MANIFEST, config=CONFIG, layers=[descriptor("a"), descriptor("bad")]
        )
    assert sorted(registry.ended) == sorted(registry.begun)
    assert registry.manifests == []


async def test_a_build_that_fails_ends_its_uploads(parts):
    registry, _, pusher = parts
    pusher.layer(descriptor("a"))
    await asyncio.sleep(0)
    await pusher.close()
    await pusher.close()
    assert registry.ended == registry.begun


async def test_a_failed_upload_that_nobody_waits_for_is_quiet(parts):
    registry, _, pusher = parts
    registry.bad = descriptor("bad").digest
    pusher.layer(descriptor("bad"))
    await asyncio.sleep(0.01)
    await pusher.close()
    assert registry.ended == registry.begun == [descriptor("bad").digest]


async def test_by_digest_leaves_the_tag_alone(parts):
    registry, _, pusher = parts
    registry.gate.set()
    await pusher.image(b"{}", MEDIA_MANIFEST, config=CONFIG, layers=[], by_digest=True)
    assert registry.manifests == [Reference("host:5000", "app", None, Digest.of(b"{}"))]


async def test_the_empty_layer_is_made_when_it_is_needed(parts):
    registry, blobs, pusher = parts
    registry.gate.set()
    empty = Descriptor(MEDIA_LAYER_GZIP, EMPTY_LAYER.digest, EMPTY_LAYER.size)
    await pusher.image(b"{}", MEDIA_MANIFEST, config=CONFIG, layers=[empty])
    assert blobs.put_in == [EMPTY_GZIP]
