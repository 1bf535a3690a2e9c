"""What clients bring: directories, archives, Dockerfiles, ignore files; and uploads."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ocibuildd.build.context import is_archive, read_file
from ocibuildd.build.info import Settings
from ocibuildd.build.options import parse_hosts, step_limits
from ocibuildd.build.uploads import Uploads
from ocibuildd.errors import InvalidArgument, NotFound, TooLarge
from ocibuildd.model.request import BuildRequest, EmptyContext, ResourceLimits, UploadContext


@pytest.fixture
def root(tmp_path: Path) -> Any:
    (tmp_path / "file").write_text("data")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_file_is_read_within_its_directory(root: int, tmp_path: Path) -> None:
    assert read_file(root, "file", 10, "x") == b"data"
    assert read_file(root, "absent", 10, "x") is None
    assert read_file(root, "../../../file", 10, "x") == b"data"


@pytest.mark.parametrize("make", [
    lambda path: os.mkfifo(path), lambda path: path.mkdir(),
    lambda path: path.symlink_to("/proc/self/fd/0"),
])
def test_only_regular_files_are_read(root: int, tmp_path: Path, make: Any) -> None:
    make(tmp_path / "odd")
    try:
        assert read_file(root, "odd", 10, "x") is None
    except InvalidArgument:
        pass


def test_a_file_that_is_too_large_is_refused(root: int) -> None:
    with pytest.raises(TooLarge):
        read_file(root, "file", 3, "x")


def tar(**files: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.mark.parametrize(("head", "archive"), [
    (b"\x1f\x8b\x08", True), (b"BZh9", True), (b"\xfd7zXZ\x00", True), (b"FROM x", False), (b"", False),
])
def test_archives_are_told_from_dockerfiles(head: bytes, archive: bool) -> None:
    assert is_archive(head) == archive
    assert is_archive(tar(a="b")[:512])


def test_an_upload_is_whole_or_not_there(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", limit=10)
    upload = uploads.new()
    upload.write(b"12345")
    upload.close()
    assert uploads.path(upload.id).read_bytes() == b"12345"
    large = uploads.new()
    with pytest.raises(TooLarge):
        large.write(b"x" * 11)
    with pytest.raises(NotFound):
        uploads.path(large.id)
    uploads.remove(upload.id)


@pytest.mark.parametrize("name", ["", "../x", "a" * 32 + "/..", "A" * 32, "0" * 31])
def test_an_uploads_id_is_never_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound):
        Uploads(tmp_path / "uploads", limit=10).path(name)


@pytest.mark.parametrize(("text", "pair"), [
    ("a:1.2.3.4", ("a", "1.2.3.4")), ("a=::1", ("a", "::1")), ("a:[::1]", ("a", "::1")),
])
def test_hosts_are_read(text: str, pair: tuple[str, str]) -> None:
    assert parse_hosts([text]) == [pair]


@pytest.mark.parametrize("text", ["", "a", "a:", ":1", "a b:1", "a:1\n2"])
def test_bad_hosts_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_hosts([text])


def test_a_request_may_lower_limits_only() -> None:
    request = BuildRequest(context=EmptyContext(), limits=ResourceLimits(memory=5, pids=50))
    limits = step_limits(request, Settings(limits={"pids": 10, "nofile": 7}))
    assert (limits["memory"], limits["pids"], limits["nofile"]) == (5, 10, 7)


async def test_an_uploaded_tar_is_a_context(bench: Any) -> None:
    upload = bench.builds.upload()
    upload.write(tar(Dockerfile="FROM busybox\nCOPY f /f\nRUN cat /f\n", f="uploaded"))
    upload.close()
    request = BuildRequest(context=UploadContext(upload.id))
    started = await bench.builds.start(request, peer=bench.peer)
    info = await bench.builds.wait(started.id)
    assert info.state == "done", info.error
    assert "uploaded" in str(await bench.log(info.id))
    with pytest.raises(NotFound):
        bench.builds._uploads.path(upload.id)


async def test_an_uploaded_dockerfile_builds_without_a_context(bench: Any) -> None:
    upload = bench.builds.upload()
    upload.write(b"FROM busybox\nRUN echo alone\n")
    upload.close()
    request = BuildRequest(context=UploadContext(upload.id))
    started = await bench.builds.start(request, peer=bench.peer)
    assert (await bench.builds.wait(started.id)).state == "done"


async def test_only_local_clients_may_name_directories(bench: Any, context: Any) -> None:
    from ocibuildd.build.info import Peer
    from ocibuildd.model.request import LocalContext

    request = BuildRequest(context=LocalContext(str(context("FROM scratch\n"))))
    started = await bench.builds.start(request, peer=Peer(local=False))
    info = await bench.builds.wait(started.id)
    assert info.error["code"] == "denied"


async def test_draining_takes_no_new_builds(bench: Any, context: Any) -> None:
    from ocibuildd.errors import Unavailable

    path = context("FROM busybox\nRUN sleep 0.3\n")
    started = await bench.start(path)
    await bench.builds.drain(20)
    assert bench.builds.get(started.id).state == "done"
    with pytest.raises(Unavailable):
        await bench.start(path)
