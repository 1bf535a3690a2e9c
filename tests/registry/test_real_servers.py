"""Debian's docker-registry: plain, with passwords, with TLS and client certificates."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from fixtures import accepts, free_port
from patience import eventually

from ocibuildd.errors import NotFound, RegistryError, Unauthorized
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import MEDIA_CONFIG, MEDIA_MANIFEST, Descriptor, Manifest, encode
from ocibuildd.model.reference import Reference
from ocibuildd.model.request import RegistryAuth
from ocibuildd.registry.client import RegistryClient
from ocibuildd.registry.config import RegistryConfig, RegistrySettings

pytestmark = pytest.mark.skipif(
    not shutil.which("docker-registry"), reason="docker-registry is not installed"
)

CONFIG = (
    b'{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
)
USER = RegistryAuth("user", "pässword")


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Starts a registry with more lines of configuration; gives its host."""
    processes: list[subprocess.Popen[bytes]] = []

    async def run(http: str = "", more: str = "") -> str:
        port = free_port()
        path = tmp_path / "registry.yml"
        path.write_text(
            "version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: "
            f"{tmp_path}/data}}\n  delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:{port}\n"
            + textwrap.indent(http, "  ")
            + more
        )
        processes.append(
            subprocess.Popen(
                ["docker-registry", "serve", path],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        await eventually("docker-registry", lambda: accepts(port))
        return f"127.0.0.1:{port}"

    yield run
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


async def push(
    client: RegistryClient, name: str, tmp_path: Path, size: int = 100_000, **options: Any
) -> bytes:
    ref = Reference.parse(name)
    parts = []
    for data in (CONFIG, os.urandom(size)):
        (tmp_path / "part").write_bytes(data)
        parts.append(Descriptor(MEDIA_CONFIG, Digest.of(data), len(data)))
        await client.push_blob(ref, parts[-1], tmp_path / "part", **options)
    data = encode(Manifest(media_type=MEDIA_MANIFEST, config=parts[0], layers=(parts[1],)))
    await client.push_manifest(ref, data, MEDIA_MANIFEST, **options)
    return data


async def test_what_was_pushed_is_resolved_listed_and_deleted(start, make_client, tmp_path):
    host, client = await start(), make_client(RegistryConfig())
    data = await push(client, f"{host}/a/b:v1", tmp_path)
    ref = Reference.parse(f"{host}/a/b:v1")
    assert (await client.resolve(ref)).data == data
    assert (await client.head(ref)).digest == Digest.of(data)
    assert await client.tags(ref) == ["v1"]
    await client.delete(Reference.parse(f"{host}/a/b@{Digest.of(data)}"))
    with pytest.raises(NotFound):
        await client.resolve(ref)


async def test_referrers_fall_back_to_the_tag_schema(start, make_client, tmp_path):
    host, client = await start(), make_client(RegistryConfig())
    data = await push(client, f"{host}/a/b:v1", tmp_path)
    where = Reference.parse(f"{host}/a/b")
    assert (await client.referrers(where, Digest.of(data))).manifests == ()
    config = Descriptor(MEDIA_CONFIG, Digest.of(CONFIG), len(CONFIG))
    subject = Descriptor(MEDIA_MANIFEST, Digest.of(data), len(data))
    note = encode(Manifest(media_type=MEDIA_MANIFEST, config=config, subject=subject))
    await client.push_manifest(where, note, MEDIA_MANIFEST)
    found = await client.referrers(where, Digest.of(data))
    assert [entry.digest for entry in found.manifests] == [Digest.of(note)]
    await client.delete(Reference.parse(f"{host}/a/b@{Digest.of(note)}"))
    assert (await client.referrers(where, Digest.of(data))).manifests == ()


async def test_a_blob_is_mounted_from_its_neighbour(start, make_client, tmp_path):
    host, client = await start(), make_client(RegistryConfig())
    (tmp_path / "blob").write_bytes(b"x" * 1000)
    descriptor = Descriptor(MEDIA_CONFIG, Digest.of(b"x" * 1000), 1000)
    assert (
        await client.push_blob(Reference.parse(f"{host}/one"), descriptor, tmp_path / "blob")
        == "pushed"
    )
    assert (
        await client.push_blob(
            Reference.parse(f"{host}/two"), descriptor, tmp_path / "blob", mount_from=["one"]
        )
        == "mounted"
    )


async def cutting_proxy(host: str, after: int) -> tuple[asyncio.Server, list[int]]:
    """Forwards connections to ``host``; the first that sends more than ``after`` bytes is cut there."""
    cuts: list[int] = []

    async def forward(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int
    ) -> None:
        done = 0
        while data := await reader.read(16_384):
            done += len(data)
            if limit and done > limit and not cuts:
                cuts.append(done)
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, _, port = host.partition(":")
        to_server = await asyncio.open_connection(address, int(port))
        both = [forward(reader, to_server[1], after), forward(to_server[0], writer, 0)]
        await asyncio.gather(*both, return_exceptions=True)

    return await asyncio.start_server(serve, "127.0.0.1", 0), cuts


async def test_an_upload_whose_connection_is_cut_arrives_all_the_same(start, make_client, tmp_path):
    server, cuts = await cutting_proxy(await start(), 400_000)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = make_client(RegistryConfig())
    data = await push(client, f"{host}/app:v1", tmp_path, size=2_000_000)
    assert cuts
    assert (await client.resolve(Reference.parse(f"{host}/app:v1"))).data == data
    await client.close()
    server.close()


@pytest.fixture
def htpasswd(tmp_path: Path) -> str:
    if not shutil.which("htpasswd"):
        pytest.skip("htpasswd is not installed")
    line = subprocess.run(
        ["htpasswd", "-Bbn", "user", USER.password], capture_output=True, check=True
    ).stdout
    (tmp_path / "htpasswd").write_bytes(line)
    return f"auth:\n  htpasswd: {{realm: here, path: {tmp_path}/htpasswd}}\n"


async def test_a_password_opens_the_registry(start, make_client, tmp_path, htpasswd):
    host, client = await start(more=htpasswd), make_client(RegistryConfig())
    data = await push(client, f"{host}/a:v1", tmp_path, auth={host: USER})
    assert (await client.resolve(Reference.parse(f"{host}/a:v1"), auth={host: USER})).data == data


@pytest.mark.parametrize("auth", [None, RegistryAuth("user", "wrong"), RegistryAuth("nobody", "x")])
async def test_without_the_password_it_stays_shut(start, make_client, tmp_path, htpasswd, auth):
    host, client = await start(more=htpasswd), make_client(RegistryConfig())
    with pytest.raises(Unauthorized):
        await client.resolve(Reference.parse(f"{host}/a:v1"), auth={host: auth} if auth else None)


async def test_login_tells_good_credentials_from_bad(start, make_client, htpasswd):
    host, client = await start(more=htpasswd), make_client(RegistryConfig())
    await client.login(host, USER)
    with pytest.raises(Unauthorized):
        await client.login(host, RegistryAuth("user", "wrong"))


@pytest.fixture
def authority(tmp_path: Path) -> dict[str, str]:
    """PEM files of an authority, a server and a client that it signed."""
    ca = trustme.CA()
    files = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "server", "cert", "key")}
    ca.cert_pem.write_to_path(files["ca"])
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files["server"])
    client = ca.issue_cert("client@example.com")
    client.cert_chain_pems[0].write_to_path(files["cert"])
    client.private_key_pem.write_to_path(files["key"])
    return files


def tls(files: dict[str, str], *, mutual: bool) -> str:
    lines = f"tls:\n  certificate: {files['server']}\n  key: {files['server']}\n"
    return lines + (f"  clientcas: [{files['ca']}]\n" if mutual else "")


async def test_tls_with_the_right_authority(start, make_client, tmp_path, authority):
    host = await start(http=tls(authority, mutual=False))
    client = make_client(RegistryConfig({host: RegistrySettings(ca=authority["ca"])}))
    data = await push(client, f"{host}/a:v1", tmp_path)
    assert (await client.resolve(Reference.parse(f"{host}/a:v1"))).data == data


async def test_tls_with_an_unknown_authority_is_refused_with_the_way_out(
    start, make_client, authority
):
    host = await start(http=tls(authority, mutual=False))
    with pytest.raises(RegistryError, match="certificate") as caught:
        await make_client(RegistryConfig()).resolve(Reference.parse(f"{host}/a:v1"))
    assert "ca" in caught.value.hint


async def test_tls_unchecked_where_it_is_configured(start, make_client, tmp_path, authority):
    host = await start(http=tls(authority, mutual=False))
    client = make_client(RegistryConfig({host: RegistrySettings(insecure=True)}))
    assert await push(client, f"{host}/a:v1", tmp_path)


async def test_tls_unchecked_and_plain_http_for_one_push_alone(start, make_client, tmp_path, authority):
    unknown, plain = await start(http=tls(authority, mutual=False)), await start()
    strict = make_client(RegistryConfig({plain: RegistrySettings(ca=authority["ca"])}, attempts=1))
    for host in (unknown, plain):
        with pytest.raises(RegistryError):
            await push(strict, f"{host}/a:v1", tmp_path)
        assert await push(strict.lenient(host), f"{host}/a:v1", tmp_path)
        with pytest.raises(RegistryError):
            await strict.tags(Reference.parse(f"{host}/a"))


async def test_a_client_certificate_is_shown(start, make_client, tmp_path, authority):
    host = await start(http=tls(authority, mutual=True))
    settings = RegistrySettings(ca=authority["ca"], cert=authority["cert"], key=authority["key"])
    client = make_client(RegistryConfig({host: settings}))
    assert await push(client, f"{host}/a:v1", tmp_path)


async def test_without_a_client_certificate_the_door_stays_shut(start, make_client, authority):
    host = await start(http=tls(authority, mutual=True))
    client = make_client(RegistryConfig({host: RegistrySettings(ca=authority["ca"])}, attempts=1))
    with pytest.raises(RegistryError):
        await client.resolve(Reference.parse(f"{host}/a:v1"))


async def test_tls_files_that_are_not_there_are_named(start, make_client, authority):
    host = await start(http=tls(authority, mutual=False))
    client = make_client(RegistryConfig({host: RegistrySettings(ca="/nonexistent/ca.pem")}))
    with pytest.raises(RegistryError, match=r"/nonexistent/ca.pem"):
        await client.resolve(Reference.parse(f"{host}/a:v1"))
