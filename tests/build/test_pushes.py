"""``--push``: layers on their way while later steps run, names last, and nothing named that failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ocibuildd.errors import NotFound, Unauthorized
from ocibuildd.model.digest import Digest
from ocibuildd.model.reference import Reference
from ocibuildd.model.request import OutputSpec

from .conftest import running

UNTIL_GO = "RUN --mount=target=/c for i in $(seq 400); do test -e /c/go && exit 0; sleep 0.05; done; exit 1\n"
"""A step that ends well only if somebody makes the file ``go`` in the context while it runs."""


class Registry:
    """Keeps an account of what is asked.  ``on_blob`` is called as an upload begins; ``bad``: how many fail."""

    def __init__(self) -> None:
        self.blobs: list[Digest] = []
        self.manifests: list[Reference] = []
        self.ended: list[str] = []
        self.on_blob: Any = lambda: None
        self.gate: asyncio.Event | None = None
        self.bad = 0
        self.lax: list[str] = []

    def lenient(self, domain: str) -> Registry:
        self.lax.append(domain)
        return self

    async def resolve(self, reference: Any, **_: Any) -> Any:
        raise NotFound(f"{reference}: not found")

    async def push_blob(self, reference: Any, descriptor: Any, source: Any, **_: Any) -> str:
        self.blobs.append(descriptor.digest)
        self.on_blob()
        if self.bad:
            self.bad -= 1
            raise Unauthorized("push: no credentials")
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        return "pushed"

    async def push_manifest(self, reference: Any, data: bytes, media_type: str, **_: Any) -> Digest:
        self.manifests.append(reference)
        return Digest.of(data)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
async def pushing(tmp_path: Path, registry: Registry) -> AsyncIterator[Any]:
    async with running(tmp_path / "state", registry) as made:
        yield made


async def test_a_layer_is_on_its_way_before_the_last_step_ends(pushing, registry, context):
    path = context("FROM busybox\nCOPY f /f\n" + UNTIL_GO, {"f": "x"})
    registry.on_blob = (path / "go").touch
    built = (await pushing.build(path, tags=("host:5000/app:1", "host:5000/app:2"), push=True)).ok()
    kinds = [(e["type"], e.get("vertex", "")) for e in built.events]
    last = [vertex for kind, vertex in kinds if kind == "vertex.done" and vertex.isdigit()][-1]
    assert kinds.index(("vertex.started", "push:host:5000/app:1")) < kinds.index(("vertex.done", last))
    assert [each.tag for each in registry.manifests] == ["1", "2"]
    assert len(registry.blobs) == len(set(registry.blobs))


async def test_a_build_that_fails_ends_its_uploads_and_names_nothing(pushing, registry, context):
    path = context("FROM busybox\nCOPY f /f\n" + UNTIL_GO + "RUN false\n", {"f": "x"})
    registry.on_blob, registry.gate = (path / "go").touch, asyncio.Event()
    failed = await pushing.build(path, tags=("host:5000/app:1",), push=True)
    assert failed.error["code"] == "step-failed"
    assert registry.ended
    assert set(registry.ended) == {"cancelled"}
    assert registry.manifests == []


async def test_an_upload_that_fails_early_is_told_of_and_tried_again(pushing, registry, context):
    registry.bad = 1
    path = context("FROM busybox\nCOPY f /f\n", {"f": "x"})
    built = (await pushing.build(path, tags=("host:5000/app:1",), push=True)).ok()
    told = [e["text"] for e in built.events if e["type"] == "message"]
    assert told == ["push: no credentials: pushing host:5000/app:1 is tried again when the image is made"]
    assert len(registry.manifests) == 1


async def test_a_push_that_fails_to_the_end_is_the_builds_failure(pushing, registry, context):
    registry.bad = 100
    path = context("FROM busybox\nCOPY f /f\n", {"f": "x"})
    failed = await pushing.build(path, tags=("host:5000/app:1",), push=True)
    assert failed.error["code"] == "unauthorized"
    done = [e for e in failed.events if e["type"] == "vertex.done" and e["vertex"].startswith("push:")]
    assert [e["error"]["code"] for e in done] == ["unauthorized"]
    assert registry.manifests == []


async def test_only_layers_of_the_image_are_pushed(pushing, registry, context):
    text = "FROM busybox AS a\nCOPY f /f\nRUN cat /f /f > /g\nFROM busybox\nCOPY --from=a /g /g\n"
    output = OutputSpec("registry", "", {"name": "host:5000/app:1"})
    built = (await pushing.build(context(text, {"f": "x"}), outputs=(output,))).ok()
    image = pushing.store.images.get(built.info.image)
    layers = {layer.digest for layer in pushing.store.layers.chain(image.chain)}
    assert set(registry.blobs) == layers | {image.id}
    assert built.events[-1]["outputs"] == [{"type": "registry", "dest": "host:5000/app:1"}]


@pytest.mark.parametrize(("value", "lax"), [("true", ["host:5000"]), ("", ["host:5000"]), ("false", [])])
async def test_a_registry_is_insecure_where_its_output_says_so(pushing, registry, context, value, lax):
    output = OutputSpec("image", "", {"name": "host:5000/app:1", "push": "true", "registry.insecure": value})
    built = (await pushing.build(context("FROM busybox\nENV lax=1\n"), outputs=(output,))).ok()
    assert registry.lax == lax
    assert not [e for e in built.events if e["type"] == "message"]


async def test_a_push_without_a_name_is_refused_before_any_step_runs(pushing, context):
    failed = await pushing.build(context("FROM busybox\nRUN true\n"), push=True)
    assert "no name" in failed.error["message"]
    assert failed.ran == []
