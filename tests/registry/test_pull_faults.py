"""Pulls from a registry that misbehaves: the right bytes, or a clear error; no credentials elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from patience import PATIENCE

from ocibuildd.errors import (
    BuildError,
    Corrupt,
    NotFound,
    RegistryError,
    TooLarge,
    Unauthorized,
    Unsupported,
)
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import MEDIA_INDEX, MEDIA_MANIFEST, Descriptor
from ocibuildd.model.reference import Reference
from ocibuildd.model.request import RegistryAuth
from ocibuildd.registry.config import RegistryConfig, RegistrySettings

DATA = bytes(range(256)) * 4000
USER = RegistryAuth("user", "secret")


async def read(client: Any, ref: Reference, descriptor: Descriptor, **options: Any) -> bytes:
    return b"".join([data async for data in client.blob(ref, descriptor, **options)])


async def test_a_manifest_is_kept_as_the_bytes_that_came(client, registry, ref):
    data = registry.add_image()
    fetched = await client.resolve(ref)
    assert (fetched.data, fetched.digest, fetched.media_type) == (
        data,
        Digest.of(data),
        MEDIA_MANIFEST,
    )


async def test_429_is_waited_out_as_long_as_the_registry_asks(client, registry, ref, faults, waits):
    registry.add_image()
    registry.break_("GET .*manifests", faults.status(429, Retry_After="7"))
    await client.resolve(ref)
    assert waits.seconds == [7.0]


async def test_429_without_end_is_an_error_that_says_so(client, registry, ref, faults):
    registry.break_("GET .*manifests", faults.status(429, Retry_After="3600"))
    with pytest.raises(RegistryError, match="3600 seconds") as caught:
        await client.resolve(ref)
    assert caught.value.details["status"] == 429


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_5xx_is_tried_again(client, registry, ref, faults, status):
    data = registry.add_image()
    registry.break_("GET .*manifests", faults.status(status), times=3)
    assert (await client.resolve(ref)).data == data


async def test_5xx_for_good_is_an_error_after_a_few_attempts(client, registry, ref, faults, waits):
    registry.break_("GET .*manifests", faults.status(503), times=99)
    with pytest.raises(RegistryError, match="HTTP 503"):
        await client.resolve(ref)
    assert len(waits.seconds) == 3


async def test_a_truncated_blob_is_resumed_where_it_broke(client, registry, ref, faults):
    descriptor = registry.add_blob(DATA)
    registry.break_("GET .*blobs", faults.cut(100_000), times=2)
    assert await read(client, ref, descriptor) == DATA
    ranges = [
        headers["Range"]
        for _, path, headers in registry.seen
        if "blobs" in path and "Range" in headers
    ]
    assert len(ranges) == 2
    assert all(r.startswith("bytes=") and r != "bytes=0-" for r in ranges)


async def test_ranges_that_are_refused_are_read_over(client, registry, ref, faults):
    descriptor = registry.add_blob(DATA)
    registry.break_("GET .*blobs", faults.cut(100_000))
    registry.break_(
        "GET .*blobs", faults.edit(status=200, body=DATA, headers={"Content-Range": None})
    )
    assert await read(client, ref, descriptor) == DATA


async def test_a_blob_that_always_breaks_at_once_is_an_error(client, registry, ref, faults):
    descriptor = registry.add_blob(DATA)
    registry.break_("GET .*blobs", faults.cut(0), times=99)
    with pytest.raises(RegistryError, match=r"broken|ended at") as caught:
        await read(client, ref, descriptor)
    assert caught.value.details.get("unreachable") or "ended" in caught.value.message


async def test_a_corrupted_blob_is_refused(client, registry, ref, faults):
    descriptor = registry.add_blob(DATA)
    registry.break_("GET .*blobs", faults.edit(body=DATA[:-1] + b"!"))
    with pytest.raises(Corrupt, match="digest"):
        await read(client, ref, descriptor)


@pytest.mark.parametrize("body", [DATA + b"more", DATA * 3])
async def test_more_bytes_than_the_descriptor_says_are_refused(client, registry, ref, faults, body):
    descriptor = registry.add_blob(DATA)
    registry.break_("GET .*blobs", faults.edit(body=body), times=99)
    got = 0
    with pytest.raises(Corrupt, match="expected"):
        async for data in client.blob(ref, descriptor):
            got += len(data)
    assert got <= descriptor.size


async def test_a_connection_reset_is_tried_again(client, registry, ref, faults):
    data = registry.add_image()
    registry.break_("GET .*manifests", faults.reset, times=2)
    assert (await client.resolve(ref)).data == data


async def test_a_registry_that_never_answers_is_given_up(
    make_client, impatient, registry, ref, faults
):
    registry.break_("GET .*manifests", faults.slow(2 * PATIENCE), times=99)
    with pytest.raises(RegistryError, match="no answer in time") as caught:
        await make_client(impatient).resolve(ref)
    assert caught.value.details["unreachable"]


async def test_a_blob_that_trickles_is_given_up(client, registry, ref, monkeypatch):
    monkeypatch.setattr("ocibuildd.registry.transport.SLOW_WINDOW", 0.05)
    monkeypatch.setattr("ocibuildd.registry.client.MAX_BROKEN", 1)

    async def trickle(request, handler):
        import asyncio

        from aiohttp import web

        response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
        await response.prepare(request)
        for _ in range(50):
            await response.write(b"x")
            await asyncio.sleep(0.02)
        return response

    registry.break_("GET .*blobs", trickle)
    with pytest.raises(RegistryError, match="no answer in time"):
        await read(client, ref, registry.add_blob(DATA))


async def test_a_registry_that_is_down_is_unreachable(client):
    with pytest.raises(RegistryError, match="can't connect") as caught:
        await client.resolve(Reference.parse("127.0.0.1:1/app:v1"))
    assert caught.value.details["unreachable"]


@pytest.mark.parametrize("kind", ["basic", "bearer"])
async def test_a_blob_behind_a_redirect_comes_without_showing_the_credentials(
    client, registry, other, ref, faults, kind
):
    registry.auth = kind
    descriptor = registry.add_blob(DATA)
    other.blobs = registry.blobs
    registry.break_("GET .*blobs", faults.redirect(f"http://{other.host}"), times=9)
    assert await read(client, ref, descriptor, auth={registry.host: USER}) == DATA
    assert other.seen
    assert all("Authorization" not in headers for _, _, headers in other.seen)


async def test_redirects_in_a_circle_end(client, registry, ref, faults):
    descriptor = registry.add_blob(DATA)
    registry.break_("GET .*blobs", faults.redirect(f"http://{registry.host}"), times=99)
    with pytest.raises(RegistryError, match="more than 10 redirects"):
        await read(client, ref, descriptor)


async def test_a_token_that_expires_on_the_way_is_fetched_anew(client, registry, ref):
    registry.auth = "bearer"
    data = registry.add_image()
    auth = {registry.host: USER}
    await client.resolve(ref, auth=auth)
    registry.tokens.clear()
    assert (await client.resolve(ref, auth=auth)).data == data
    assert registry.issued == 2


async def test_a_token_is_used_again_while_it_lives(client, registry, ref):
    registry.auth = "bearer"
    registry.add_image()
    for _ in range(3):
        await client.resolve(ref, auth={registry.host: USER})
    assert registry.issued == 1


async def test_a_token_that_is_about_to_end_is_renewed_before_use(client, registry, ref):
    registry.auth, registry.lifetime = "bearer", 5
    registry.add_image()
    for _ in range(2):
        await client.resolve(ref, auth={registry.host: USER})
    assert registry.issued == 2
    assert sum(1 for line in registry.methods("manifests")) == 3  # one 401, at the very first


@pytest.mark.parametrize("kind", ["basic", "bearer"])
async def test_a_wrong_password_is_unauthorized_and_not_tried_for_ever(client, registry, ref, kind):
    registry.auth = kind
    registry.add_image()
    with pytest.raises(Unauthorized):
        await client.resolve(ref, auth={registry.host: RegistryAuth("user", "wrong")})
    assert len(registry.seen) <= 4


async def test_credentials_of_one_registry_are_not_sent_to_another(client, registry, other):
    other.add_image()
    auth = {registry.host: USER}
    await client.resolve(Reference.parse(f"{other.host}/app:v1"), auth=auth)
    assert all("Authorization" not in headers for _, _, headers in other.seen)


async def test_an_identity_token_is_exchanged(client, registry, ref):
    registry.auth = "bearer"
    registry.add_image()
    await client.resolve(ref, auth={registry.host: RegistryAuth(identity_token="identity")})
    assert registry.methods("POST /token")


async def test_a_missing_digest_header_is_no_problem(client, registry, ref, faults):
    data = registry.add_image()
    registry.break_("manifests", faults.edit(headers={"Docker-Content-Digest": None}))
    assert (await client.resolve(ref)).digest == Digest.of(data)


async def test_a_digest_header_that_lies_is_an_error(client, registry, ref, faults):
    registry.add_image()
    registry.break_(
        "manifests", faults.edit(headers={"Docker-Content-Digest": "sha256:" + "0" * 64})
    )
    with pytest.raises(Corrupt):
        await client.resolve(ref)


async def test_a_head_that_is_unsupported_says_nothing(client, registry, ref, faults):
    registry.add_image()
    registry.break_("HEAD .*manifests", faults.status(405))
    assert await client.head(ref) is None


async def test_a_wrong_content_type_is_read_by_the_fields(client, registry, ref, faults):
    data = registry.add_image()
    registry.break_("manifests", faults.edit(headers={"Content-Type": "text/plain"}))
    assert (await client.resolve(ref)).media_type == MEDIA_MANIFEST
    assert data


async def test_a_content_type_that_contradicts_the_document_is_refused(
    client, registry, ref, faults
):
    registry.add_image()
    registry.break_("manifests", faults.edit(headers={"Content-Type": MEDIA_INDEX}))
    with pytest.raises(RegistryError, match="was served as"):
        await client.resolve(ref)


async def test_a_digest_wins_over_a_tag(client, registry, ref):
    registry.add_image(ref="v1", layer=b"one")
    wanted = registry.add_image(ref="v2", layer=b"two")
    both = Reference(ref.domain, ref.path, "v1", Digest.of(wanted))
    assert (await client.resolve(both)).data == wanted


async def test_a_manifest_of_another_digest_than_asked_for_is_refused(client, registry, ref):
    data = registry.add_image()
    wanted = Digest("sha256:" + "1" * 64)
    registry.manifests["app", str(wanted)] = (data, MEDIA_MANIFEST)
    with pytest.raises(Corrupt, match="expected"):
        await client.resolve(Reference(ref.domain, ref.path, None, wanted))


def descriptor(**changes: Any) -> dict[str, Any]:
    return {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": "sha256:" + "0" * 64,
        "size": 2,
    } | changes


HOSTILE = [
    ("both an index and a manifest", {"manifests": [], "layers": []}, RegistryError),
    ("a config in an index", {"manifests": [], "config": descriptor()}, RegistryError),
    (
        "a digest that is a path",
        {"config": descriptor(digest="../../../etc/passwd"), "layers": []},
        RegistryError,
    ),
    (
        "a digest of a weak kind",
        {"config": descriptor(digest="md5:" + "0" * 32), "layers": []},
        RegistryError,
    ),
    ("a negative size", {"config": descriptor(), "layers": [descriptor(size=-1)]}, RegistryError),
    (
        "a size past 64 bits",
        {"config": descriptor(), "layers": [descriptor(size=1 << 70)]},
        RegistryError,
    ),
    ("no config", {"layers": []}, RegistryError),
    ("no list of layers", {"config": descriptor(), "layers": {"a": 1}}, RegistryError),
    ("too many layers", {"config": descriptor(), "layers": [descriptor()] * 5000}, TooLarge),
    ("a foreign media type", {"mediaType": "text/html", "config": descriptor()}, Unsupported),
    ("schema 1", {"schemaVersion": 1, "fsLayers": []}, Unsupported),
    ("no schema version", {"schemaVersion": None, "config": descriptor()}, RegistryError),
]


@pytest.mark.parametrize(("what", "fields", "error"), HOSTILE, ids=[row[0] for row in HOSTILE])
async def test_a_hostile_manifest_is_refused(client, registry, ref, what, fields, error):
    data = json.dumps({"schemaVersion": 2, **fields}).encode()
    registry.add_manifest("app", "v1", data, "application/json")
    with pytest.raises(error):
        await client.resolve(ref)


RAW = [
    ("deep JSON", b'{"schemaVersion":2,"config":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("a key twice", b'{"schemaVersion":2,"layers":[],"layers":[1]}'),
    ("NaN", b'{"schemaVersion":NaN}'),
    ("no UTF-8", b'{"schemaVersion":2,"x":"\xff"}'),
    ("no object", b"[1,2]"),
    ("an unended string", b'{"schemaVersion":2,"' + b'\\"' * 100_000),
    ("HTML", b"<html>please log in</html>"),
    ("nothing", b""),
]


@pytest.mark.parametrize(("what", "data"), RAW, ids=[row[0] for row in RAW])
async def test_what_is_no_plain_json_is_refused(client, registry, ref, what, data):
    registry.add_manifest("app", "v1", data, MEDIA_MANIFEST)
    with pytest.raises(RegistryError):
        await client.resolve(ref)


async def test_a_manifest_over_4_mib_is_refused_before_it_is_read(client, registry, ref):
    registry.add_manifest("app", "v1", b" " * (5 << 20), MEDIA_MANIFEST)
    with pytest.raises(TooLarge, match="limit"):
        await client.resolve(ref)


async def test_urls_of_foreign_layers_are_not_followed(client, registry, other, ref):
    elsewhere = other.add_blob(DATA)
    foreign = Descriptor(
        elsewhere.media_type, elsewhere.digest, elsewhere.size, urls=(f"http://{other.host}/x",)
    )
    with pytest.raises(NotFound) as caught:
        await read(client, ref, foreign)
    assert "not followed" in caught.value.hint
    assert not other.seen


async def test_a_mirror_serves_first_and_the_registry_what_it_lacks(make_client, registry, other):
    config = RegistryConfig(
        {
            "example.com": RegistrySettings(
                mirrors=(f"{other.host}/mirror",), location=registry.host, http=True
            )
        },
        attempts=2,
    )
    client = make_client(config)
    ref = Reference.parse("example.com/app:v1")
    data = other.add_image("mirror/app")
    assert (await client.resolve(ref)).data == data
    assert not registry.seen
    only_here = registry.add_image(ref="v2", layer=b"here")
    assert (await client.resolve(Reference.parse("example.com/app:v2"))).data == only_here


async def test_a_mirror_never_sees_the_registrys_credentials(make_client, registry, other):
    registry.auth = other.auth = "basic"
    config = RegistryConfig(
        {"example.com": RegistrySettings(mirrors=(other.host,), location=registry.host, http=True)},
        attempts=1,
    )
    data = registry.add_image()
    other.add_image()
    fetched = await make_client(config).resolve(
        Reference.parse("example.com/app:v1"), auth={"example.com": USER}
    )
    assert fetched.data == data
    assert all("Authorization" not in headers for _, _, headers in other.seen)


async def test_a_mirror_that_breaks_in_the_middle_of_a_blob_is_left(
    make_client, registry, other, faults
):
    config = RegistryConfig(
        {"example.com": RegistrySettings(mirrors=(other.host,), location=registry.host, http=True)},
        attempts=1,
    )
    descriptor = registry.add_blob(DATA)
    other.add_blob(DATA)
    other.break_("GET .*blobs", faults.cut(50_000), times=99)
    assert (
        await read(make_client(config), Reference.parse("example.com/app:v1"), descriptor) == DATA
    )


async def test_a_blocked_registry_is_not_asked(make_client, registry, ref):
    config = RegistryConfig({registry.host: RegistrySettings(blocked=True)})
    with pytest.raises(BuildError, match="blocked"):
        await make_client(config).resolve(ref)
    assert not registry.seen


async def test_plain_http_is_not_spoken_where_nobody_allowed_it(make_client, registry, monkeypatch):
    monkeypatch.setattr("ocibuildd.registry.config.is_loopback", lambda host: False)
    registry.add_image()
    with pytest.raises(RegistryError, match=r"TLS|connection broken"):
        await make_client().resolve(Reference.parse(f"{registry.host}/app:v1"))
    assert not registry.methods("v2")


async def test_tags_come_from_all_pages(client, registry, ref):
    for tag in ("a", "b", "c", "d", "e"):
        registry.add_image(ref=tag, layer=tag.encode())
    assert await client.tags(ref) == ["a", "b", "c", "d", "e"]


async def test_next_pages_on_another_host_are_refused(client, registry, ref, faults):
    registry.break_("tags", faults.edit(headers={"Link": '<http://127.0.0.2/v2/x>; rel="next"'}))
    with pytest.raises(RegistryError, match="another host"):
        await client.tags(ref)


async def test_pages_without_end_end(client, registry, ref, faults):
    registry.add_image()
    registry.break_(
        "tags", faults.edit(headers={"Link": '</v2/app/tags/list?n=1>; rel="next"'}), times=10_000
    )
    assert await client.tags(ref) == ["v1"]
    assert len(registry.methods("tags")) <= 3
