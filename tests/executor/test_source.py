"""Downloads: names, credentials, validators, checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ocibuildd.errors import Corrupt, Denied, InvalidArgument, NotFound
from ocibuildd.executor.source import (
    Downloads,
    authorization,
    file_name,
    git_authorization,
    last_modified,
    open_directory,
)
from ocibuildd.model.digest import Digest
from ocibuildd.model.graph import HttpSource
from ocibuildd.registry.fetch import Download
from ocibuildd.store import Store


@pytest.mark.parametrize(("url", "disposition", "name"), [
    ("http://h/a/b.tar", "", "b.tar"),
    ("http://h/a/b.tar?q=1", "", "b.tar"),
    ("http://h/", 'attachment; filename="x.bin"', "x.bin"),
    ("http://h/", 'attachment; filename="../../etc/passwd"', "passwd"),
    ("http://h/", "attachment; filename=..", "download"),
    ("http://h", "", "download"),
])
def test_a_download_has_a_name_that_is_no_path(url: str, disposition: str, name: str) -> None:
    assert file_name(url, disposition) == name


def test_credentials_are_for_their_host_alone() -> None:
    secrets = {"HTTP_AUTH_TOKEN_a.example": b"t", "GIT_AUTH_TOKEN": b"g"}
    assert authorization("https://a.example/x", secrets) == {"Authorization": "Bearer t"}
    assert authorization("https://b.example/x", secrets) == {}
    assert git_authorization("https://b.example/x", secrets)["Authorization"].startswith("basic ")


def test_a_header_with_a_line_break_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        authorization("https://h/", {"HTTP_AUTH_HEADER_h": b"a\r\nb"})


@pytest.mark.parametrize(("header", "seconds"), [
    ("Thu, 01 Jan 1970 00:00:10 GMT", 10.0), ("", None), ("nonsense", None),
])
def test_last_modified_is_read_with_care(header: str, seconds: float | None) -> None:
    assert last_modified(header) == seconds


def test_a_directory_is_opened_for_its_owner_only(tmp_path: Path) -> None:
    os.close(open_directory(str(tmp_path), "context", uid=os.geteuid()))
    with pytest.raises(Denied):
        open_directory(str(tmp_path), "context", uid=os.geteuid() + 12345)
    with pytest.raises(InvalidArgument):
        open_directory("relative", "context")
    with pytest.raises(NotFound):
        open_directory(str(tmp_path / "absent"), "context")


class Server:
    """A fetcher that answers from memory and counts."""

    def __init__(self, body: bytes):
        self.body, self.asked, self.headers = body, 0, {}

    async def fetch(self, url: str, write: Any, *, headers: Any = None, **_: Any) -> Download:
        self.asked += 1
        self.headers = dict(headers or {})
        if self.headers.get("If-None-Match") == "tag":
            return Download(fresh=False)
        write(self.body)
        return Download(True, len(self.body), "tag", "Thu, 01 Jan 1970 00:01:00 GMT")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "state").mkdir(mode=0o700)
    with Store.open(tmp_path / "state") as opened:
        yield opened


async def get(store: Store, server: Server, op: HttpSource, scratch: Path) -> Any:
    downloads = Downloads(server, store.blobs, store.sources)
    return await downloads.get(op, {}, lambda digest: None, scratch)


async def test_a_download_is_laid_out_and_asked_for_again_with_its_validator(
    store: Store, tmp_path: Path
) -> None:
    server, op = Server(b"data"), HttpSource("http://h/f", "")
    first = await get(store, server, op, tmp_path)
    status = os.stat("f", dir_fd=first.directory.fd)
    assert (status.st_mode & 0o777, status.st_mtime) == (0o600, 60)
    second = await get(store, server, op, tmp_path)
    assert server.headers == {"If-None-Match": "tag"}
    assert second.identity == first.identity
    assert (await get(store, server, replace(op, mode=0o644), tmp_path)).identity != first.identity
    for file in (first, second):
        file.directory.close()


async def test_a_checksum_that_is_known_needs_no_asking(store: Store, tmp_path: Path) -> None:
    server, op = Server(b"data"), HttpSource("http://h/f", "f", checksum=Digest.of(b"data"))
    for _ in range(2):
        (await get(store, server, op, tmp_path)).directory.close()
    assert server.asked == 1


async def test_a_checksum_that_isnt_met_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="expected sha256:"):
        await get(store, Server(b"x"), HttpSource("http://h/f", "f", Digest.of(b"y")), tmp_path)


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
async def test_a_checksum_may_be_of_another_algorithm(
    store: Store, tmp_path: Path, algorithm: str
) -> None:
    wanted = f"{algorithm}:{hashlib.new(algorithm, b'data').hexdigest()}"
    got = await get(store, Server(b"data"), HttpSource("http://h/f", "f", wanted), tmp_path)
    got.directory.close()
    with pytest.raises(Corrupt, match=f"{algorithm}:[0-9a-f]+, expected {wanted}"):
        await get(store, Server(b"other"), HttpSource("http://h/g", "g", wanted), tmp_path)
