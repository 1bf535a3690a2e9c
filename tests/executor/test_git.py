"""Checkouts, from a git daemon on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures import accepts, free_port
from patience import until

from ocibuildd.errors import BuildError, Corrupt, InvalidArgument, NotFound
from ocibuildd.executor.git import _cause, checkout
from ocibuildd.model.graph import GitSource

pytestmark = pytest.mark.skipif(
    not shutil.which("git") or not Path("/usr/lib/git-core/git-daemon").exists(), reason="no git daemon"
)


@dataclass
class Repository:
    url: str
    path: Path
    first: str
    second: str


def git(path: Path, *args: str) -> str:
    env = {
        "PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b", "GIT_COMMITTER_DATE": "1000000000 +0000",
    }
    done = subprocess.run(["git", *args], cwd=path, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    base = tmp_path_factory.mktemp("git")
    path = base / "repo"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "sub").mkdir()
    (path / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (path / "sub" / "run.sh").chmod(0o700)
    (path / "out").symlink_to("/etc")
    (path / "f").write_text("one")
    git(path, "add", "-A")
    git(path, "commit", "-q", "-m", "one")
    first = git(path, "rev-parse", "HEAD")
    git(path, "tag", "v1")
    (path / "f").write_text("two")
    git(path, "commit", "-q", "-a", "-m", "two")
    second = git(path, "rev-parse", "HEAD")
    port = free_port()
    daemon = subprocess.Popen(
        ["/usr/lib/git-core/git-daemon", f"--base-path={base}", "--export-all", "--reuseaddr",
         "--listen=127.0.0.1", f"--port={port}"], stderr=subprocess.DEVNULL, start_new_session=True,
    )
    try:
        until("git's daemon", lambda: accepts(port))
        yield Repository(f"git://127.0.0.1:{port}/repo", path, first, second)
    finally:
        daemon.kill()
        daemon.wait()


async def get(op: GitSource, tmp_path: Path, **secrets: bytes) -> Any:
    return await checkout(op, secrets, tmp_path, lambda *_a, **_k: None)


def read(got: Any, name: str) -> str:
    fd = os.open(name, os.O_RDONLY, dir_fd=got.directory.fd)
    with os.fdopen(fd) as file:
        return file.read()


async def test_the_remotes_head_is_checked_out(repository: Repository, tmp_path: Path) -> None:
    got = await get(GitSource(repository.url), tmp_path)
    assert (got.commit, read(got, "f")) == (repository.second, "two")
    assert sorted(os.listdir(got.directory.fd)) == ["f", "out", "sub"]
    got.directory.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ref", ["v1", "first"])
async def test_a_tag_or_a_commit_is_checked_out(repository: Repository, tmp_path: Path, ref: str) -> None:
    wanted = repository.first if ref == "first" else ref
    got = await get(GitSource(repository.url, wanted, keep_git_dir=True), tmp_path)
    assert (got.commit, read(got, "f")) == (repository.first, "one")
    assert ".git" in os.listdir(got.directory.fd)
    got.directory.close()


async def test_modes_are_gits_and_times_the_commits(repository: Repository, tmp_path: Path) -> None:
    got = await get(GitSource(repository.url, subdir="sub", mtime="commit"), tmp_path)
    status = os.stat("run.sh", dir_fd=got.directory.fd)
    assert (status.st_mode & 0o7777, status.st_mtime) == (0o755, 1_000_000_000)
    got.directory.close()


async def test_the_same_commit_has_the_same_identity(repository: Repository, tmp_path: Path) -> None:
    found = [await get(GitSource(repository.url, ref), tmp_path) for ref in ("main", repository.second)]
    assert found[0].identity == found[1].identity
    other = await get(GitSource(repository.url, "v1"), tmp_path)
    assert other.identity != found[0].identity
    for each in (*found, other):
        each.directory.close()


@pytest.mark.parametrize(("op", "error"), [
    ({"ref": "absent"}, BuildError), ({"checksum": "0" * 40}, Corrupt), ({"subdir": "nowhere"}, NotFound),
    ({"subdir": "f"}, InvalidArgument),
])
async def test_what_cant_be_is_an_error_and_leaves_nothing(
    repository: Repository, tmp_path: Path, op: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await get(GitSource(repository.url, **op), tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_no_link_leads_out_of_a_checkout(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises((NotFound, InvalidArgument)):
        await get(GitSource(repository.url, subdir="out"), tmp_path)


@pytest.mark.parametrize("remote", ["file:///{}", "{}", "ext::sh -c touch% {}/hacked"])
async def test_no_other_transport_is_used(repository: Repository, tmp_path: Path, remote: str) -> None:
    with pytest.raises(BuildError):
        await get(GitSource(remote.format(repository.path)), tmp_path)
    assert not (repository.path / "hacked").exists()


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("ssh: Could not resolve hostname x: no\r\nfatal: Could not read from remote repository.\n\nadvice\n",
         "ssh: Could not resolve hostname x: no"),
        ("git@h: Permission denied (publickey).\nfatal: Could not read\n\nadvice\n", "git@h: Permission denied (publickey)."),
        ("remote: Counting\nfatal: unable to access 'u'\nadvice\n", "fatal: unable to access 'u'"),
        ("fatal: unable to connect to h:\nh[0: ::1]: errno=Connection refused\n\n",
         "fatal: unable to connect to h: h[0: ::1]: errno=Connection refused"),
        ("something\nelse\n", "else"),
        ("", ""),
    ],
)  # fmt: skip
def test_of_what_git_says_the_cause_is_told_not_the_advice(said: str, cause: str) -> None:
    assert _cause(said.encode()) == cause
