"""Blobs that the disk spoilt: found when they are read whole, made or pulled again by the next build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ocibuildd.model.digest import Digest
from ocibuildd.model.request import OutputSpec
from ocibuildd.store.check import checking, repair
from ocibuildd.store.gc import finish

from .conftest import running

TEXT = "FROM busybox\nRUN echo a > /a\nRUN cat /a > /b\n"


def spoil(bench: Any, image: str, number: int) -> Any:
    """Change a byte of an image's layer on the disk; its digest."""
    layer = bench.store.layers.chain(bench.store.images.get(image).chain)[number]
    path = bench.store.blobs.file(layer.digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    return layer.digest


def why(built: Any) -> list[str]:
    """Why steps ran."""
    return [e["reason"] for e in built.events if e["type"] == "vertex.done" and e.get("reason")]


async def test_a_damaged_layer_is_no_hit_once_a_check_has_put_it_aside(bench: Any, context: Any) -> None:
    path = context(TEXT)
    damaged = spoil(bench, (await bench.build(path)).ok().info.image, 1)
    report = finish(checking(bench.store))
    assert [(found.kind, found.id) for found in report.findings] == [("blob", damaged)]
    assert repair(bench.store, report) == 1
    again = (await bench.build(path)).ok()
    assert len(again.ran) == 2
    assert all(f"a layer of it is lost: blob {damaged.short}" in text for text in why(again))
    assert finish(checking(bench.store)).findings == []


@pytest.mark.parametrize("form", ["oci", "docker"])
async def test_a_damaged_layer_never_leaves_in_an_archive(
    form: str, bench: Any, context: Any, tmp_path: Path
) -> None:
    path = context(TEXT)
    damaged = spoil(bench, (await bench.build(path)).ok().info.image, 2)
    out = (OutputSpec(form, str(tmp_path / "out.tar"), {}),)
    failed = await bench.build(path, outputs=out)
    assert f"blob {damaged}: damaged on the disk" in failed.error["message"]
    healed = (await bench.build(path, outputs=out)).ok()
    assert len(healed.ran) == 1


async def test_a_damaged_config_is_written_again(bench: Any, context: Any) -> None:
    path = context(TEXT)
    image = Digest((await bench.build(path, reproducible=True)).ok().info.image)
    bench.store.blobs.file(image).chmod(0o600)
    bench.store.blobs.file(image).write_bytes(b"{}")
    repair(bench.store, finish(checking(bench.store)))
    assert (await bench.build(path, reproducible=True)).ok().info.image == image
    assert bench.store.blobs.read(image).startswith(b"{")


async def test_a_base_that_lost_a_layer_is_pulled_again(
    context: Any, tmp_path: Path, registry: str, client: Any
) -> None:
    base = f"{registry}/damaged/base:1"
    path = context(f"FROM {base}\nRUN cat /a\n", name="top")
    async with running(tmp_path / "one", client) as one:
        (await one.build(context(TEXT), tags=(base,), push=True)).ok()
    async with running(tmp_path / "two", client) as two:
        (await two.build(path)).ok()
        image = two.store.images.resolve(base).image
        damaged = spoil(two, image, 1)
        two.store.blobs.quarantine(damaged, "digest differs")
        again = (await two.build(path)).ok()
        told = [e["text"] for e in again.events if e["type"] == "message"]
        assert any("the blob of a layer is lost: it is pulled again" in text for text in told)
        assert two.store.blobs.verify(damaged) == ""
        assert two.store.images.resolve(base).image == image
