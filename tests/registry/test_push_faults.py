"""Pushes to a registry that misbehaves: the blob arrives whole, or a clear error; no credentials elsewhere."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from patience import PATIENCE

from ocibuildd.errors import Corrupt, Denied, RegistryError, TooLarge, Unauthorized
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import MEDIA_MANIFEST, Descriptor
from ocibuildd.model.reference import Reference
from ocibuildd.model.request import RegistryAuth
from ocibuildd.registry import upload
from ocibuildd.registry.config import RegistryConfig

USER = RegistryAuth("user", "secret")


async def test_a_blob_goes_in_one_put(client, registry, ref, blob):
    path, descriptor = blob
    assert await client.push_blob(ref, descriptor, path) == "pushed"
    assert registry.blobs[descriptor.digest] == path.read_bytes()
    assert [line.split()[0] for line in registry.methods("blobs")] == ["HEAD", "POST", "PUT"]


async def test_a_blob_that_is_there_is_not_sent(client, registry, ref, blob):
    path, descriptor = blob
    registry.add_blob(path.read_bytes())
    assert await client.push_blob(ref, descriptor, path) == "exists"
    assert [line.split()[0] for line in registry.methods("blobs")] == ["HEAD"]


async def test_a_blob_of_another_repository_is_mounted(client, registry, ref, blob, faults):
    path, descriptor = blob
    registry.add_blob(path.read_bytes())
    registry.break_("HEAD .*blobs", faults.status(404))
    assert await client.push_blob(ref, descriptor, path, mount_from=["base"]) == "mounted"
    assert any("mount=" in line and "from=base" in line for line in registry.methods("POST"))


@pytest.mark.parametrize("status", [202, 400, 404, 405])
async def test_a_mount_that_is_refused_becomes_an_upload(
    client, registry, ref, blob, faults, status
):
    path, descriptor = blob
    registry.mounts = False
    if status != 202:
        registry.break_("POST .*uploads", faults.status(status))
    assert await client.push_blob(ref, descriptor, path, mount_from=["base"]) == "pushed"
    assert registry.blobs[descriptor.digest] == path.read_bytes()


@pytest.mark.parametrize("status", [400, 404, 405, 501])
async def test_head_unsupported_is_no_obstacle(client, registry, ref, blob, faults, status):
    path, descriptor = blob
    registry.break_("HEAD", faults.status(status), times=9)
    assert await client.push_blob(ref, descriptor, path) == "pushed"


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
async def test_429_is_waited_out_at_every_step(client, registry, ref, blob, faults, waits, method):
    path, descriptor = blob
    registry.break_(f"{method} .*blobs", faults.status(429, Retry_After="3"))
    assert await client.push_blob(ref, descriptor, path) == "pushed"
    assert 3.0 in waits.seconds
    assert registry.blobs[descriptor.digest] == path.read_bytes()


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
@pytest.mark.parametrize("status", [500, 503])
async def test_5xx_is_tried_again_at_every_step(
    client, registry, ref, blob, faults, method, status
):
    path, descriptor = blob
    registry.break_(f"{method} .*blobs", faults.status(status), times=2)
    assert await client.push_blob(ref, descriptor, path) == "pushed"
    assert registry.blobs[descriptor.digest] == path.read_bytes()


async def test_5xx_for_good_is_an_error(client, registry, ref, blob, faults):
    path, descriptor = blob
    registry.break_("POST .*blobs", faults.status(503), times=999)
    with pytest.raises(RegistryError):
        await client.push_blob(ref, descriptor, path)
    assert descriptor.digest not in registry.blobs


async def test_an_upload_goes_on_where_the_connection_broke(client, registry, ref, blob, faults):
    path, descriptor = blob
    registry.break_("PUT .*uploads", faults.reset_after(registry, 65_536))
    assert await client.push_blob(ref, descriptor, path) == "pushed"
    assert registry.blobs[descriptor.digest] == path.read_bytes()
    sent = [headers for method, _, headers in registry.seen if method == "PATCH"]
    assert sent[0]["Content-Range"] == f"65536-{descriptor.size - 1}"
    assert int(sent[0]["Content-Length"]) == descriptor.size - 65_536


async def test_an_upload_that_the_registry_forgot_begins_again(client, registry, ref, blob, faults):
    path, descriptor = blob
    registry.break_("PUT .*uploads", faults.reset)
    registry.break_("GET .*uploads", faults.status(404))
    assert await client.push_blob(ref, descriptor, path) == "pushed"
    assert len(registry.methods("POST")) == 2


async def test_a_registry_that_breaks_every_upload_is_given_up(client, registry, ref, blob, faults):
    path, descriptor = blob
    registry.break_("(PUT|PATCH) .*uploads", faults.reset, times=999)
    with pytest.raises(RegistryError, match="broken off"):
        await client.push_blob(ref, descriptor, path)
    assert descriptor.digest not in registry.blobs


async def test_an_upload_may_take_longer_than_an_answer(make_client, registry, ref, blob):
    path, descriptor = blob

    async def slowly(request: Any, handler: Any) -> Any:
        await asyncio.sleep(0.5)
        return await handler(request)

    registry.break_("PUT .*uploads", slowly)
    # What is asked before may be asked again on a slow machine; a second upload would be seen.
    client = make_client(RegistryConfig(attempts=4, read_timeout=0.3, push_timeout=PATIENCE))
    assert await client.push_blob(ref, descriptor, path) == "pushed"
    assert len(registry.methods("(PUT|PATCH) .*uploads")) == 1


async def test_413_makes_the_chunks_smaller_until_they_fit(
    client, registry, ref, blob, faults, monkeypatch
):
    path, descriptor = blob
    monkeypatch.setattr(upload, "CHUNK", 128 << 10)
    monkeypatch.setattr(upload, "CHUNK_LEAST", 16 << 10)
    refuse = faults.status(413)

    async def limited(request: Any, handler: Any) -> Any:
        return await (refuse if request.content_length > 40_000 else handler)(
            *([request, handler] if request.content_length > 40_000 else [request])
        )

    registry.break_("(PUT|PATCH) .*uploads", limited, times=999)
    assert await client.push_blob(ref, descriptor, path) == "pushed"
    sizes = {int(h["Content-Length"]) for m, _, h in registry.seen if m == "PATCH"}
    assert 32 << 10 in sizes
    assert registry.blobs[descriptor.digest] == path.read_bytes()


async def test_413_for_everything_is_too_large(client, registry, ref, blob, faults):
    path, descriptor = blob
    registry.break_("(PUT|PATCH) .*uploads", faults.status(413), times=999)
    with pytest.raises(TooLarge):
        await client.push_blob(ref, descriptor, path)


async def test_a_registry_without_put_of_bodies_gets_chunks(client, registry, ref, blob, faults):
    path, descriptor = blob
    registry.break_("PUT .*uploads", faults.status(405))
    assert await client.push_blob(ref, descriptor, path) == "pushed"
    assert registry.methods("PATCH")


async def test_a_refused_digest_says_that_the_bytes_are_wrong(client, registry, ref, blob):
    path, descriptor = blob
    wrong = Descriptor(descriptor.media_type, Digest("sha256:" + "0" * 64), descriptor.size)
    with pytest.raises(Corrupt):
        await client.push_blob(ref, wrong, path)
    assert wrong.digest not in registry.blobs


async def test_a_file_of_another_size_is_not_sent(client, registry, ref, blob):
    path, descriptor = blob
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(Corrupt, match="expected"):
        await client.push_blob(ref, descriptor, path)


async def test_a_token_that_expires_during_a_push_is_fetched_anew(
    client, registry, ref, blob, faults
):
    path, descriptor = blob
    registry.auth = "bearer"

    async def expire(request: Any, handler: Any) -> Any:
        registry.tokens.clear()
        return await faults.status(
            401, WWW_Authenticate=f'Bearer realm="http://{registry.host}/token"'
        )(request, handler)

    registry.break_("PUT .*uploads", expire)
    assert await client.push_blob(ref, descriptor, path, auth={registry.host: USER}) == "pushed"
    assert registry.blobs[descriptor.digest] == path.read_bytes()
    assert registry.issued >= 2


async def test_a_push_without_rights_is_denied(client, registry, ref, blob, faults):
    path, descriptor = blob
    registry.break_("POST .*uploads", faults.status(403), times=9)
    with pytest.raises(Denied):
        await client.push_blob(ref, descriptor, path)


async def test_a_push_without_credentials_is_unauthorized(client, registry, ref, blob):
    path, descriptor = blob
    registry.auth = "basic"
    with pytest.raises(Unauthorized):
        await client.push_blob(ref, descriptor, path)


@pytest.mark.parametrize("kind", ["basic", "bearer"])
async def test_an_upload_location_elsewhere_never_sees_the_credentials(
    client, registry, other, ref, blob, faults, kind
):
    path, descriptor = blob
    registry.auth = kind
    other.uploads["x"] = bytearray()
    location = f"http://{other.host}/v2/app/blobs/uploads/x?state=1"

    async def elsewhere(request: Any, handler: Any) -> Any:
        return registry._refused(request) or await faults.status(202, Location=location)(
            request, handler
        )

    registry.break_("POST .*uploads", elsewhere, times=9)
    assert await client.push_blob(ref, descriptor, path, auth={registry.host: USER}) == "pushed"
    assert other.blobs[descriptor.digest] == path.read_bytes()
    assert all("Authorization" not in headers for _, _, headers in other.seen)


async def test_a_redirected_upload_is_followed_without_the_credentials(
    client, registry, other, ref, blob, faults
):
    path, descriptor = blob
    registry.auth = "basic"
    other.uploads["u0"] = bytearray()

    async def away(request: Any, handler: Any) -> Any:
        from aiohttp import web

        await request.read()
        return web.Response(
            status=307, headers={"Location": f"http://{other.host}{request.path_qs}"}
        )

    registry.break_("PUT .*uploads", away)
    assert await client.push_blob(ref, descriptor, path, auth={registry.host: USER}) == "pushed"
    assert all("Authorization" not in headers for _, _, headers in other.seen)


@dataclass
class Journal:
    """``store.uploads`` in memory."""

    left: dict[tuple[str, ...], str] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    ever: list[str] = field(default_factory=list)

    def get(self, *key: str) -> Any:
        return SimpleNamespace(location=self.left[key]) if key in self.left else None

    def put(self, registry: str, repository: str, digest: str, location: str, offset: int) -> None:
        self.left[registry, repository, digest] = location
        self.ever.append(location)

    def remove(self, *key: str) -> None:
        self.left.pop(key, None)

    def saw(self, registry: str, repository: str, digests: list[Digest]) -> None:
        self.known.append(repository)

    def seen_in(self, registry: str, digest: Digest) -> list[str]:
        return self.known


async def test_an_upload_goes_on_after_a_restart(make_client, registry, ref, blob, faults):
    path, descriptor = blob
    journal = Journal()
    registry.break_("PUT .*uploads", faults.reset_after(registry, 65_536))
    registry.break_("GET .*uploads", faults.status(503), times=999)
    with pytest.raises(RegistryError):
        await make_client(journal=journal).push_blob(ref, descriptor, path)
    assert journal.left
    registry.rules.clear()
    registry.seen.clear()
    assert await make_client(journal=journal).push_blob(ref, descriptor, path) == "pushed"
    assert registry.blobs[descriptor.digest] == path.read_bytes()
    assert not registry.methods("POST")
    assert registry.methods("PATCH")
    assert not journal.left


async def test_an_upload_whose_kept_bytes_are_wrong_begins_again(make_client, registry, ref, blob):
    path, descriptor = blob
    registry.uploads["old"] = bytearray(b"somebody else's bytes")
    journal = Journal(
        {(registry.host, "app", str(descriptor.digest)): "/v2/app/blobs/uploads/old?state=x"}
    )
    assert await make_client(journal=journal).push_blob(ref, descriptor, path) == "pushed"
    assert registry.blobs[descriptor.digest] == path.read_bytes()


async def test_a_repository_that_is_known_to_have_a_blob_is_asked_to_lend_it(
    make_client, registry, ref, blob, faults
):
    path, descriptor = blob
    registry.add_blob(path.read_bytes())
    registry.break_("HEAD", faults.status(404))
    client = make_client(journal=Journal(known=["elsewhere"]))
    assert await client.push_blob(ref, descriptor, path) == "mounted"


async def test_uploads_are_bounded(make_client, registry, ref, tmp_path, faults):
    running, most, met = 0, 0, asyncio.Event()

    async def count(request: Any, handler: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            met.set()
        try:
            await asyncio.wait_for(met.wait(), PATIENCE)
            return await faults.slow(0.02)(request, handler)  # a third might come
        finally:
            running -= 1

    registry.break_("PUT .*uploads", count, times=99)
    pushes = []
    client = make_client(RegistryConfig(uploads=2))
    for number in range(6):
        (tmp_path / str(number)).write_bytes(data := bytes([number]) * 100)
        pushes.append(
            client.push_blob(ref, Descriptor("x", Digest.of(data), 100), tmp_path / str(number))
        )
    await asyncio.gather(*pushes)
    assert most == 2


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_manifest_is_put_again_after_a_bad_moment(client, registry, ref, faults, status):
    registry.break_("PUT .*manifests", faults.status(status), times=2)
    data = b'{"schemaVersion":2}'
    assert await client.push_manifest(ref, data, MEDIA_MANIFEST) == Digest.of(data)
    assert registry.manifests["app", "v1"] == (data, MEDIA_MANIFEST)


async def test_a_manifest_that_the_registry_stored_otherwise_is_an_error(
    client, registry, ref, faults
):
    registry.break_(
        "PUT .*manifests", faults.edit(headers={"Docker-Content-Digest": "sha256:" + "0" * 64})
    )
    with pytest.raises(Corrupt, match="stored"):
        await client.push_manifest(ref, b"{}", MEDIA_MANIFEST)


async def test_a_manifest_without_tag_goes_under_its_digest(client, registry, ref):
    data = b'{"schemaVersion":2}'
    await client.push_manifest(Reference(ref.domain, ref.path), data, MEDIA_MANIFEST)
    assert ("app", str(Digest.of(data))) in registry.manifests


async def test_deleting_what_is_not_there_is_not_found(client, registry, ref):
    from ocibuildd.errors import NotFound

    with pytest.raises(NotFound):
        await client.delete(ref)
