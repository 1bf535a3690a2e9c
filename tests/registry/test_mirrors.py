"""Mirrors: their order, their own credentials, and what never goes to them."""

from __future__ import annotations

from typing import Any

import pytest
from faulty_registry import FaultyRegistry

from ocibuildd.errors import NotFound, RegistryError
from ocibuildd.model.oci import MEDIA_MANIFEST
from ocibuildd.model.reference import Reference
from ocibuildd.model.request import RegistryAuth
from ocibuildd.registry.config import RegistryConfig, RegistrySettings

REF = Reference.parse("example.com/app:v1")


@pytest.fixture
async def second(serve: Any) -> FaultyRegistry:
    return await serve(FaultyRegistry())


def config(registry: FaultyRegistry, *mirrors: str, attempts: int = 1) -> RegistryConfig:
    own = RegistrySettings(mirrors=mirrors, location=registry.host, http=True)
    return RegistryConfig({"example.com": own}, attempts=attempts)


async def test_mirrors_are_asked_in_their_order(make_client, registry, other, second):
    for each, layer in ((other, b"other"), (second, b"second")):
        each.add_image(layer=layer)
    first, last = second.host, other.host
    fetched = await make_client(config(registry, first, last)).resolve(REF)
    assert fetched.data == second.manifests["app", "v1"][0]
    assert not other.seen
    assert not registry.seen


@pytest.mark.parametrize("mirror", ["127.0.0.1:1", "127.0.0.1:1/with/prefix"])
async def test_a_mirror_that_is_down_is_passed_over(make_client, registry, other, mirror):
    data = other.add_image()
    client = make_client(config(registry, mirror, other.host))
    assert (await client.resolve(REF)).data == data


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502])
async def test_a_mirror_that_says_no_is_passed_over(make_client, registry, other, faults, status):
    data = registry.add_image()
    other.break_("manifests", faults.status(status), times=99)
    assert (await make_client(config(registry, other.host)).resolve(REF)).data == data


async def test_a_mirror_has_credentials_of_its_own(make_client, registry, other):
    other.auth = "basic"
    data = other.add_image()
    auth = {other.host: RegistryAuth("user", "secret"), "example.com": RegistryAuth("x", "y")}
    assert (await make_client(config(registry, other.host)).resolve(REF, auth=auth)).data == data
    assert not registry.seen


async def test_a_push_goes_to_the_registry_itself(make_client, registry, other, blob):
    path, descriptor = blob
    client = make_client(config(registry, other.host))
    assert await client.push_blob(REF, descriptor, path) == "pushed"
    await client.push_manifest(REF, b'{"schemaVersion":2}', MEDIA_MANIFEST)
    assert not other.seen
    assert ("app", "v1") in registry.manifests


async def test_what_nobody_has_is_the_registrys_own_answer(make_client, registry, other):
    with pytest.raises(NotFound, match="manifest unknown"):
        await make_client(config(registry, other.host)).resolve(REF)


async def test_a_registry_that_is_down_is_told_although_its_mirrors_lack_it(make_client, other):
    own = RegistrySettings(mirrors=(other.host,), location="127.0.0.1:1", http=True)
    client = make_client(RegistryConfig({"example.com": own}, attempts=1))
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1") as caught:
        await client.resolve(REF)
    assert caught.value.details["unreachable"]
