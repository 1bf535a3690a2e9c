"""``ocibuild registry``, against Debian's docker-registry with deletion allowed."""

from __future__ import annotations

import shutil

import pytest
from fixtures import Daemon

pytestmark = pytest.mark.skipif(
    not shutil.which("docker-registry"), reason="docker-registry is not installed"
)


@pytest.fixture
def repository(daemon: Daemon, registry: str) -> str:
    """A repository with the tags one and two of one manifest."""
    name = f"{registry}/verbs/app"
    for tag in ("one", "two"):
        daemon.ok("tag", "busybox", f"{name}:{tag}")
        daemon.ok("push", "-q", f"{name}:{tag}")
    return name


def test_tags_are_listed_and_a_manifest_is_deleted_with_all_of_them(daemon: Daemon, repository: str) -> None:
    assert sorted(daemon.ok("registry", "tags", repository).out.split()) == ["one", "two"]
    done = daemon.ok("registry", "delete", "--manifest", f"{repository}:one")
    assert done.out.startswith(f"Deleted: {repository}@sha256:")
    gone = daemon("pull", f"{repository}:two")
    assert gone.code != 0
    assert "not found" in gone.text or "manifest unknown" in gone.text
    assert daemon.ok("inspect", f"{repository}:two").out  # what is here stays


def test_a_manifest_is_deleted_by_its_digest(daemon: Daemon, repository: str) -> None:
    line = daemon.ok("push", f"{repository}:one").out.splitlines()[-1]
    digest = next(word for word in line.split() if word.startswith("sha256:"))
    assert daemon.ok("registry", "delete", f"{repository}@{digest}").out == f"Deleted: {repository}@{digest}\n"
    assert daemon("registry", "delete", f"{repository}@{digest}").code != 0


def test_a_tag_that_the_registry_cannot_delete_is_left_with_the_way_out(daemon: Daemon, repository: str) -> None:
    done = daemon("registry", "delete", f"{repository}:one")
    assert done.code != 0
    assert f"name it by its digest ({repository}@sha256:…)" in done.err
    assert sorted(daemon.ok("registry", "tags", repository).out.split()) == ["one", "two"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tags", "{}:one"], "a repository is wanted, without a tag or digest"),
        (["delete", "{}"], "a tag or digest is wanted"),
        (["delete", "{}:nosuch", "--manifest"], "manifest_unknown"),
        (["tags", "{}/nosuch"], "name_unknown"),
        (["tags", "UPPER"], "must be lowercase"),
    ],
)
def test_what_cannot_be_is_said(daemon: Daemon, repository: str, args: list[str], message: str) -> None:
    done = daemon("registry", *(arg.format(repository) for arg in args))
    assert done.code != 0
    assert message in done.err
