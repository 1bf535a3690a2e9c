"""docker images, history, inspect, tag, rmi, save, load, push, pull, prune, df, as with dockerd."""

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
    docker.ok(
        "build",
        "-q",
        "-t",
        "cap/image:v",
        "--label",
        "k=v",
        dockerfile('FROM busybox\nRUN echo layer > /layer\nCMD ["sh"]\n'),
    )
    return "cap/image:v"


def test_version_and_info_answer(docker: Any) -> None:
    assert "API version" in docker.ok("version").out
    info = docker.ok("info").out
    assert "Swarm: inactive" in info
    assert "rootless" in info


def test_images_lists_filters_and_shows_intermediate_ones(docker: Any, image: str) -> None:
    ids = docker.ok(
        "images", "-q", "--no-trunc", "--filter", "label=k=v", "--filter", "reference=cap/*"
    ).out.split()
    assert json.loads(docker.ok("inspect", image).out)[0]["Id"] in ids
    assert len(docker.ok("images", "-aq").out.split()) > len(docker.ok("images", "-q").out.split())
    assert re.search(r"^cap/image +v +[0-9a-f]{12} ", docker.ok("images").out, re.MULTILINE)


def test_history_walks_the_instructions(docker: Any, image: str) -> None:
    lines = docker.ok("history", "--no-trunc", image).out.splitlines()
    assert "CMD" in lines[1]
    assert "echo layer > /layer" in lines[2] + lines[3]
    assert lines[1].startswith(json.loads(docker.ok("inspect", image).out)[0]["Id"])


def test_inspect_has_what_scripts_read(docker: Any, image: str) -> None:
    body = json.loads(docker.ok("inspect", image).out)[0]
    assert body["RepoTags"] == [image]
    assert body["Config"]["Cmd"] == ["sh"]
    assert body["Architecture"] == "amd64"
    assert len(body["RootFS"]["Layers"]) == 2
    assert body["Size"] > 100_000
    assert re.match(r"\d{4}-\d\d-\d\dT", body["Created"])
    missing = docker("inspect", "nosuch")
    assert missing.code == 1
    assert "no such object: nosuch" in missing.err.lower()


def test_tag_and_rmi_untag_then_delete(docker: Any, image: str) -> None:
    docker.ok("tag", image, "cap/other:t")
    assert docker.ok("rmi", "cap/other:t").out == "Untagged: cap/other:t\n"
    missing = docker("rmi", "cap/other:t")
    assert missing.code == 1
    assert "No such image: cap/other:t" in missing.err
    gone = docker.ok("rmi", image).out
    assert gone.startswith(f"Untagged: {image}\n")


def test_save_and_load_round_trip(docker: Any, image: str, tmp_path: Path) -> None:
    before = json.loads(docker.ok("inspect", image).out)[0]["Id"]
    docker.ok("save", "-o", tmp_path / "i.tar", image)
    docker.ok("rmi", "-f", image)
    assert docker.ok("load", "-i", tmp_path / "i.tar").out == f"Loaded image: {image}\n"
    assert json.loads(docker.ok("inspect", image).out)[0]["Id"] == before


def test_push_and_pull_through_a_registry(docker: Any, image: str, registry: str) -> None:
    name = f"{registry}/cap/image:v1"
    docker.ok("tag", image, name)
    pushed = docker.ok("push", name)
    assert f"The push refers to repository [{registry}/cap/image]" in pushed.out
    digest = re.search(r"v1: digest: (sha256:[0-9a-f]{64}) size: \d+", pushed.out)
    assert digest
    docker.ok("rmi", "-f", name, image)
    pulled = docker.ok("pull", name)
    assert f"Digest: {digest[1]}" in pulled.out
    assert f"Status: Downloaded newer image for {name}" in pulled.out
    assert f"Status: Image is up to date for {name}" in docker.ok("pull", name).out
    refused = docker("push", "127.0.0.1:1/cap/image:v1")
    assert refused.code == 1


def test_pull_of_what_is_not_there_fails(docker: Any, registry: str) -> None:
    missing = docker("pull", f"{registry}/no/such:tag")
    assert missing.code == 1
    assert "not found" in missing.err or "manifest unknown" in missing.err


def test_import_gives_an_image(docker: Any, busybox_tar: Path) -> None:
    done = docker.ok("import", "--change", 'CMD ["echo", "x"]', busybox_tar, "cap/imported:1")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", done.out)
    assert json.loads(docker.ok("inspect", "cap/imported:1").out)[0]["Config"]["Cmd"] == [
        "echo",
        "x",
    ]


def test_system_df_and_the_prunes_answer(docker: Any, image: str) -> None:
    assert "Build Cache" in docker.ok("system", "df").out
    assert "cap/image" in docker.ok("system", "df", "-v").out
    assert "Total reclaimed space" in docker.ok("image", "prune", "-f").out
    assert "Total" in docker.ok("builder", "prune", "-f").out
    assert "Total reclaimed space" in docker.ok("system", "prune", "-f").out


def test_what_needs_containers_says_so(docker: Any, image: str) -> None:
    assert docker.ok("ps", "-a").out.count("\n") == 1
    refused = docker("run", "--rm", image)
    assert refused.code != 0


def test_events_of_the_past_are_told(docker: Any, image: str) -> None:
    done = docker.ok("events", "--since", "1h", "--until", "0s", "--filter", "type=image")
    assert "tag" in done.out


def test_login_against_nothing_fails_and_stores_nothing(docker: Any) -> None:
    refused = docker("login", "-u", "x", "-p", "y", "127.0.0.1:1")
    assert refused.code == 1
