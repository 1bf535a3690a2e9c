"""docker login, logout, push, pull and builds that need credentials, as with dockerd."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Files = Callable[..., Path]


@pytest.fixture
def image(docker: Any, dockerfile: Files) -> str:
    docker.ok("build", "-q", "-t", "reg/image", dockerfile("FROM busybox\nRUN echo r > /r\n"))
    return "reg/image"


def test_login_stores_credentials_and_logout_forgets_them(
    docker: Any, closed_registry: str
) -> None:
    done = docker.ok("login", "-u", "user", "--password-stdin", closed_registry, stdin=b"pa:ss")
    assert "Login Succeeded\n" in done.out
    config = Path(docker.env["HOME"]) / ".docker/config.json"
    assert closed_registry in json.loads(config.read_text())["auths"]
    gone = docker.ok("logout", closed_registry)
    assert gone.out == f"Removing login credentials for {closed_registry}\n"
    assert closed_registry not in json.loads(config.read_text()).get("auths", {})


def test_login_with_a_wrong_password_fails(docker: Any, closed_registry: str) -> None:
    done = docker("login", "-u", "user", "--password-stdin", closed_registry, stdin=b"bad")
    assert done.code == 1
    assert re.search(r"login attempt to http://\S+/v2/ failed with status: 401 Unauth", done.err)


def test_a_push_with_credentials_succeeds(docker: Any, image: str, signed_in: str) -> None:
    name = f"{signed_in}/cap/one:v1"
    docker.ok("tag", image, name)
    done = docker.ok("push", name)
    assert done.out.startswith(f"The push refers to repository [{signed_in}/cap/one]\n")
    assert re.search(r"^[0-9a-f]{12}: Preparing\n", done.out, re.MULTILINE)
    assert re.search(r"^[0-9a-f]{12}: Pushed\n", done.out, re.MULTILINE)
    assert re.search(r"\nv1: digest: sha256:[0-9a-f]{64} size: \d+\n\Z", done.out)


def test_a_push_without_credentials_says_so_in_the_stream(
    docker: Any, image: str, closed_registry: str
) -> None:
    name = f"{closed_registry}/cap/none:v1"
    docker.ok("tag", image, name)
    done = docker("push", name)
    assert done.code == 1
    assert done.out.startswith(f"The push refers to repository [{closed_registry}/cap/none]\n")
    assert done.err == "no basic auth credentials\n"


def test_a_push_to_nobody_is_refused(docker: Any, image: str) -> None:
    docker.ok("tag", image, "127.0.0.1:1/cap/one:v1")
    done = docker("push", "127.0.0.1:1/cap/one:v1")
    assert done.code == 1
    assert done.out.startswith("The push refers to repository [127.0.0.1:1/cap/one]\n")
    assert "127.0.0.1:1" in done.err
    assert "connect" in done.err


def test_a_push_of_what_is_not_there_is_refused(docker: Any, registry: str) -> None:
    done = docker("push", f"{registry}/no/such:tag")
    assert done.code == 1
    assert f"An image does not exist locally with the tag: {registry}/no/such" in done.text


def test_all_tags_are_pushed_and_pulled(docker: Any, image: str, registry: str) -> None:
    for tag in ("a", "b"):
        docker.ok("tag", image, f"{registry}/cap/all:{tag}")
    pushed = docker.ok("push", "--all-tags", f"{registry}/cap/all")
    assert all(f"{tag}: digest: sha256:" in pushed.out for tag in ("a", "b"))
    docker.ok("rmi", f"{registry}/cap/all:a", f"{registry}/cap/all:b")
    pulled = docker.ok("pull", "-a", f"{registry}/cap/all")
    assert "a: Pulling from cap/all\n" in pulled.out
    assert "b: Pulling from cap/all\n" in pulled.out
    assert pulled.out.endswith(f"{registry}/cap/all\n")
    assert docker.ok("images", "-q", f"{registry}/cap/all").out.count("\n") == 2


def test_a_second_push_finds_the_layers_there(docker: Any, image: str, registry: str) -> None:
    docker.ok("tag", image, f"{registry}/cap/twice:v")
    docker.ok("push", f"{registry}/cap/twice:v")
    again = docker.ok("push", f"{registry}/cap/twice:v")
    assert again.out.count(": Layer already exists\n") == 2


def test_a_quiet_pull_prints_the_name_alone(docker: Any, image: str, registry: str) -> None:
    name = f"{registry}/cap/quiet:v1"
    docker.ok("tag", image, name)
    docker.ok("push", "-q", name)
    assert docker.ok("pull", "-q", name).out == f"{name}\n"


def test_a_pull_of_what_is_not_there_is_a_plain_error(docker: Any, registry: str) -> None:
    done = docker("pull", f"{registry}/cap/nosuch")
    assert done.code == 1
    assert done.out == "Using default tag: latest\n"
    expected = f"Error response from daemon: manifest for {registry}/cap/nosuch:latest not found"
    assert done.err.startswith(f"{expected}: manifest unknown: ")


def test_a_pull_without_credentials_is_denied(docker: Any, closed_registry: str) -> None:
    done = docker("pull", f"{closed_registry}/cap/secret:v")
    assert done.code == 1
    assert re.search(r"pull access denied for \S+|no basic auth credentials", done.err)


def test_a_build_uses_the_credentials_of_the_cli(
    docker: Any, image: str, signed_in: str, dockerfile: Files
) -> None:
    name = f"{signed_in}/cap/base:v1"
    docker.ok("tag", image, name)
    docker.ok("push", "-q", name)
    docker.ok("rmi", name)
    path = dockerfile(f"FROM {name}\nRUN cat /r\n")
    done = docker.ok("build", "--pull", "--no-cache", path)
    assert "\nr\n" in done.out


def test_a_build_without_credentials_says_what_was_denied(
    docker: Any, closed_registry: str, dockerfile: Files
) -> None:
    done = docker("build", dockerfile(f"FROM {closed_registry}/cap/hidden:v1\n"))
    assert done.code == 1
    assert "pull access denied for" in done.err
    assert "docker login" in done.err


def test_a_build_shows_the_pull_of_its_base(
    docker: Any, image: str, registry: str, dockerfile: Files
) -> None:
    name = f"{registry}/cap/pulled:v1"
    docker.ok("build", "-q", "-t", name, dockerfile("FROM busybox\nRUN echo pulled > /p\n"))
    docker.ok("push", "-q", name)
    docker.ok("rmi", "-f", name)
    docker.ok("builder", "prune", "-af")
    out = docker.ok("build", "--no-cache", dockerfile(f"FROM {name}\nRUN cat /p\n")).out
    start = f"\nStep 1/2 : FROM {name}\nv1: Pulling from cap/pulled\n"
    assert start in out
    assert re.search(rf": Pull complete\nDigest: sha256:[0-9a-f]{{64}}\nStatus: Downloaded newer image for {name}\n", out)


def test_a_build_from_what_is_not_there_says_so(
    docker: Any, registry: str, dockerfile: Files
) -> None:
    done = docker("build", dockerfile(f"FROM {registry}/cap/nosuch:v1\n"))
    assert done.code == 1
    assert f"manifest for {registry}/cap/nosuch:v1 not found: manifest unknown" in done.err


def test_search_answers_with_nothing_to_be_found(docker: Any) -> None:
    done = docker.ok("search", "foo")
    assert done.out.startswith("NAME")
    assert done.out.count("\n") == 1
