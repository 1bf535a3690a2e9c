"""A cache that one daemon writes and another one, which has nothing, reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ocibuildd.build.remote_cache import CacheConfig, CachedLayer, CachedRecord, extract, inject
from ocibuildd.errors import Corrupt
from ocibuildd.model.digest import Digest
from ocibuildd.model.request import CacheSpec
from ocibuildd.store.policy import Policy

from .conftest import running

TEXT = (
    "FROM busybox AS a\nCOPY f /f\nRUN tr a-z A-Z < /f > /g\n"
    "FROM busybox\nCOPY --from=a /g /g\nRUN cat /g > /h\n"
)


async def test_a_local_cache_is_read_by_another_daemon(context: Any, tmp_path: Path) -> None:
    path, cache = context(TEXT, {"f": "text"}), str(tmp_path / "cache")
    async with running(tmp_path / "one") as one:
        to = CacheSpec("local", {"dest": cache, "mode": "max"})
        first = (await one.build(path, cache_to=(to,))).ok()
        assert len(first.ran) == 4
    async with running(tmp_path / "two") as two:
        source = CacheSpec("local", {"src": cache})
        second = (await two.build(path, cache_from=(source,))).ok()
        assert second.ran == []
        assert second.info.image == first.info.image
        assert await two.read(second.info.image, "h") == b"TEXT"
        # What was used is its own now.
        assert [name for name in (await two.build(path)).ok().ran if "--from" not in name and "RUN cat" in name] == []


async def test_a_change_on_top_of_a_remote_cache_runs_only_itself(context: Any, tmp_path: Path) -> None:
    path, cache = context(TEXT, {"f": "text"}), str(tmp_path / "cache")
    async with running(tmp_path / "one") as one:
        (await one.build(path, cache_to=(CacheSpec("local", {"dest": cache, "mode": "max"}),))).ok()
    async with running(tmp_path / "two") as two:
        (path / "Dockerfile").write_text(TEXT + "RUN cat /h; echo more > /more\n")
        second = (await two.build(path, cache_from=(CacheSpec("local", {"src": cache}),))).ok()
        assert [name.split("] ")[1][:10] for name in second.ran] == ["RUN cat /h"]
        assert second.output == "TEXT"


async def test_a_cache_that_cant_be_read_is_a_warning(bench: Any, context: Any, tmp_path: Path) -> None:
    source = CacheSpec("local", {"src": str(tmp_path / "nothing")})
    built = (await bench.build(context("FROM busybox\nRUN true\n"), cache_from=(source,))).ok()
    assert any(e["type"] == "message" and "not imported" in e["text"] for e in built.events)


@pytest.mark.parametrize("kind", ["registry", "inline"])
async def test_a_cache_in_a_registry_is_read_by_another_daemon(
    kind: str, context: Any, tmp_path: Path, registry: str, client: Any
) -> None:
    path, ref = context(TEXT, {"f": kind}), f"{registry}/app:{kind}"
    async with running(tmp_path / "one", client) as one:
        to = CacheSpec(kind, {"ref": f"{ref}-cache", "mode": "max"} if kind == "registry" else {})
        first = (await one.build(path, cache_to=(to,), tags=(ref,), push=True)).ok()
    async with running(tmp_path / "two", client) as two:
        source = CacheSpec("registry", {"ref": f"{ref}-cache" if kind == "registry" else ref})
        second = (await two.build(path, cache_from=(source,))).ok()
        expected = 0 if kind == "registry" else 2
        assert len(second.ran) == expected
        assert await two.read(second.info.image, "h") == kind.upper().encode()
        assert first.info.steps == 4


INLINE = (CacheSpec("inline", {}),)


async def test_a_cache_in_the_image_changes_its_id_and_nothing_else(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN echo a > /a\n")
    plain = (await bench.build(path, reproducible=True)).ok().info.image
    one = (await bench.build(path, reproducible=True, cache_to=INLINE)).ok().info.image
    two = (await bench.build(path, reproducible=True, cache_to=INLINE)).ok().info.image
    assert one == two != plain
    assert bench.store.images.get(one).chain == bench.store.images.get(plain).chain


async def test_a_local_image_with_a_cache_in_it_is_asked_before_any_registry(
    bench: Any, context: Any
) -> None:
    path = context("FROM busybox\nRUN echo a > /a\nRUN cat /a > /b\n")
    (await bench.build(path, cache_to=INLINE, tags=("app:1",))).ok()
    bench.store.collect([Policy("everything", all=True)])
    assert bench.store.records.count() == 0
    source = (CacheSpec("registry", {"ref": "app:1"}),)
    again = (await bench.build(path, cache_from=source)).ok()
    assert again.ran == []


def cache_warnings(built: Any) -> list[str]:
    return [e["text"] for e in built.events if e["type"] == "message" and "not imported" in e["text"]]


async def test_an_image_without_a_cache_is_none_and_that_is_said(
    context: Any, tmp_path: Path, registry: str, client: Any
) -> None:
    path, ref = context("FROM busybox\nRUN echo a > /a\n"), f"{registry}/plain:1"
    async with running(tmp_path / "one", client) as one:
        (await one.build(path, tags=(ref,), push=True)).ok()
    async with running(tmp_path / "two", client) as two:
        built = (await two.build(path, cache_from=(CacheSpec("registry", {"ref": ref}),))).ok()
        (warning,) = cache_warnings(built)
        assert f"cache {ref}: the image has no cache in it: not imported" in warning
        assert "--cache-to" in warning
        assert len(built.ran) == 1


@pytest.mark.parametrize("form", ["index", "manifest"])
async def test_a_cache_of_buildkit_is_told_from_an_image(
    form: str, bench: Any, context: Any, tmp_path: Path
) -> None:
    config = b'{"layers":[],"records":[]}'
    of = {"mediaType": "application/vnd.buildkit.cacheconfig.v0", "size": len(config),
          "digest": str(Digest.of(config))}
    document = {"schemaVersion": 2, "mediaType": f"application/vnd.oci.image.{form}.v1+json"}
    document |= {"manifests": [of]} if form == "index" else {"config": of, "layers": []}
    (tmp_path / "bk" / "blobs" / "sha256").mkdir(parents=True)
    blob = json.dumps(document).encode()
    entry = {"mediaType": document["mediaType"], "digest": str(Digest.of(blob)), "size": len(blob),
             "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    for data in (blob, config):
        (tmp_path / "bk" / "blobs" / "sha256" / Digest.of(data).hex).write_bytes(data)
    (tmp_path / "bk" / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "bk" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    source = (CacheSpec("local", {"src": str(tmp_path / "bk")}),)
    built = (await bench.build(context("FROM busybox\nRUN true\n"), cache_from=source)).ok()
    (warning,) = cache_warnings(built)
    assert "it is a cache of" in warning


CONFIG = CacheConfig(1, (CachedLayer("d", "e", 1, "m"),), (CachedRecord("k", (0,), preimage="long"),))


def test_a_cache_goes_into_an_image_config_and_out_again() -> None:
    import msgspec

    inside = inject(b'{"architecture":"amd64"}', CONFIG)
    back = msgspec.json.decode(extract(inside), type=CacheConfig)
    assert back.records[0].key == "k"
    assert back.records[0].preimage == ""
    assert msgspec.json.decode(inside)["architecture"] == "amd64"


@pytest.mark.parametrize("config", [b"{}", b'{"ocibuildd.cache.v1":"!"}', b'{"ocibuildd.cache.v1":1}'])
def test_a_config_without_a_cache_is_refused(config: bytes) -> None:
    with pytest.raises(Corrupt):
        extract(config)
