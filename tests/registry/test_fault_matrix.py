"""Every fault on every kind of request: it is overcome, or it is an error that says what; nothing is half-written.

What a fault needs of its own (redirects, mirrors, resumed uploads) has tests in ``test_pull_faults`` and
``test_push_faults``; this is the table."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from faulty_registry import Faults
from patience import PATIENCE

from ocibuildd.errors import Corrupt, Denied, NotFound, RegistryError, TooLarge
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import MEDIA_MANIFEST
from ocibuildd.model.request import RegistryAuth

DATA = bytes(range(256)) * 4000
USER = RegistryAuth("user", "secret")
OK = None


async def never_reads(request: Any, handler: Any) -> Any:
    """Takes the headers and nothing more."""
    await asyncio.sleep(2 * PATIENCE)
    return await handler(request)


async def refuses_at_once(request: Any, handler: Any) -> Any:
    """Says no before it has read the body, and closes."""
    response = web.Response(status=503, headers={"Connection": "close"})
    await response.prepare(request)
    await response.write_eof()
    assert request.transport is not None
    request.transport.close()
    return response


async def half_headers(request: Any, handler: Any) -> Any:
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    request.transport.close()
    return web.Response()


async def no_http(request: Any, handler: Any) -> Any:
    assert request.transport is not None
    request.transport.write(b"220 smtp.example.com ESMTP\r\n\r\n")
    request.transport.close()
    return web.Response()


async def login_page(request: Any, handler: Any) -> Any:
    """What captive portals and misconfigured proxies do."""
    await request.read()
    return web.Response(text="<html>please log in</html>", content_type="text/html")


FAULTS: dict[str, Any] = {
    "429": Faults.status(429, Retry_After="1"),
    "429 for long": Faults.status(429, Retry_After="86400"),
    "500": Faults.status(500),
    "502": Faults.status(502),
    "503": Faults.status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "reset": Faults.reset,
    "cut": Faults.cut(10),
    "slow": Faults.slow(2 * PATIENCE),
    "never reads": never_reads,
    "refuses at once": refuses_at_once,
    "half headers": half_headers,
    "no http": no_http,
    "login page": login_page,
    "403": Faults.status(403),
    "404": Faults.status(404),
    "413": Faults.status(413),
    "418": Faults.status(418),
    "no digest": Faults.edit(headers={"Docker-Content-Digest": None}),
    "another digest": Faults.edit(headers={"Docker-Content-Digest": "sha256:" + "0" * 64}),
    "nonsense digest": Faults.edit(headers={"Docker-Content-Digest": "sha256:../../x"}),
}
ONCE = {"429", "500", "502", "503", "reset", "cut", "slow", "never reads", "refuses at once",
        "half headers", "no http"}  # fmt: skip
"""Faults that are met once and then overcome."""
SILENT = {"slow", "never reads"}
"""Faults that only a timeout tells."""
# What a fault leads to on: GET manifest, GET blob, PUT blob, PUT manifest.
TABLE: list[tuple[str, Any, Any, Any, Any]] = [
    *((name, OK, OK, OK, OK) for name in sorted(ONCE)),
    ("429 for long", RegistryError, RegistryError, RegistryError, RegistryError),
    ("login page", RegistryError, Corrupt, RegistryError, OK),
    ("403", Denied, Denied, Denied, Denied),
    ("404", NotFound, NotFound, RegistryError, NotFound),
    ("413", TooLarge, TooLarge, TooLarge, TooLarge),
    ("418", RegistryError, RegistryError, RegistryError, RegistryError),
    ("no digest", OK, OK, OK, OK),
    ("another digest", Corrupt, OK, Corrupt, Corrupt),
    ("nonsense digest", RegistryError, OK, Corrupt, Corrupt),
]
CASES = [(row[0], kind, row[kind + 1]) for row in TABLE for kind in range(4)]
PATTERNS = ("GET .*manifests", "GET .*blobs/sha", "PUT .*uploads", "PUT .*manifests")


async def pull_manifest(client: Any, registry: Any, ref: Any, blob: Any) -> None:
    data = registry.add_image()
    assert (await client.resolve(ref, auth={registry.host: USER})).data == data


async def pull_blob(client: Any, registry: Any, ref: Any, blob: Any) -> None:
    descriptor = registry.add_blob(DATA)
    parts = client.blob(ref, descriptor, auth={registry.host: USER})
    assert b"".join([data async for data in parts]) == DATA


async def push_blob(client: Any, registry: Any, ref: Any, blob: Any) -> None:
    path, descriptor = blob
    await client.push_blob(ref, descriptor, path, auth={registry.host: USER})
    assert registry.blobs[descriptor.digest] == path.read_bytes()


async def push_manifest(client: Any, registry: Any, ref: Any, blob: Any) -> None:
    data = b'{"schemaVersion":2}'
    digest = await client.push_manifest(ref, data, MEDIA_MANIFEST, auth={registry.host: USER})
    assert digest == Digest.of(data)


@pytest.fixture
def blob(tmp_path: Any) -> Any:
    """Larger than what sockets buffer."""
    from ocibuildd.model.oci import MEDIA_LAYER_GZIP, Descriptor

    data = bytes(range(256)) * 32_000
    (tmp_path / "blob").write_bytes(data)
    return tmp_path / "blob", Descriptor(MEDIA_LAYER_GZIP, Digest.of(data), len(data))


@pytest.mark.parametrize(
    ("fault", "kind", "expected"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES]
)
async def test_a_fault_is_overcome_or_told(
    make_client, impatient, registry, ref, blob, fault, kind, expected
):
    registry.auth = "bearer"
    client = make_client(impatient if fault in SILENT else None)
    registry.break_(PATTERNS[kind], FAULTS[fault], times=1 if fault in ONCE else 99)
    work = (pull_manifest, pull_blob, push_blob, push_manifest)[kind](client, registry, ref, blob)
    async with asyncio.timeout(2 * PATIENCE):
        if expected is OK:
            await work
        else:
            with pytest.raises(expected) as caught:
                await work
            assert str(caught.value)
            assert "Traceback" not in str(caught.value)
            if not issubclass(expected, Corrupt):
                assert blob[1].digest not in registry.blobs
    assert any(rule.times < 99 for rule in registry.rules)
