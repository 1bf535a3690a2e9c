"""docker images, history, inspect, tag, rmi, save, load, push, pull, prune, df, as with dockerd."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import subprocess
import tarfile
import threading
import time
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
    assert "LABEL k=v" in lines[1]
    assert "CMD" in lines[2]
    assert "echo layer > /layer" in lines[3]
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


def test_import_takes_a_url(docker: Any, busybox_tar: Path) -> None:
    def handler(*args: Any) -> Any:
        return http.server.SimpleHTTPRequestHandler(*args, directory=str(busybox_tar.parent))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            done = docker.ok("import", f"{url}/{busybox_tar.name}", "cap/imported:url")
            gone = docker("import", f"{url}/nosuch.tar")
        finally:
            server.shutdown()
            thread.join()
    first, last = done.out.splitlines()[0], done.out.splitlines()[-1]
    assert first == f"Downloading from {url}/{busybox_tar.name}"
    assert docker.ok("inspect", "-f", "{{.Id}}", "cap/imported:url").out.strip() == last
    assert gone.code == 1
    assert f"failed to GET {url}/nosuch.tar with status 404" in gone.err


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


def test_rmi_and_inspect_of_what_is_not_there_say_so(docker: Any) -> None:
    gone = docker("rmi", "nosuch")
    assert gone.code == 1
    assert "Error response from daemon: No such image: nosuch:latest\n" in gone.err
    missing = docker("inspect", "nosuch")
    assert missing.code == 1
    assert "no such object: nosuch" in missing.err.lower()
    assert docker("image", "inspect", "nosuch").err.lower().count("no such image: nosuch") == 1


def test_save_of_several_and_a_quiet_load(docker: Any, image: str, tmp_path: Path) -> None:
    docker.ok("tag", image, "cap/two:x")
    archive = tmp_path / "two.tar"
    docker.ok("save", "-o", archive, image, "cap/two:x")
    with tarfile.open(archive) as opened:
        names = opened.getnames()
        member = opened.extractfile("manifest.json")
        assert member is not None
        tags = sorted(tag for item in json.load(member) for tag in item["RepoTags"])
    assert "repositories" in names
    assert tags == ["cap/image:v", "cap/two:x"]
    done = docker.ok("load", "-q", "-i", archive)
    assert sorted(done.out.splitlines()) == [f"Loaded image: {tag}" for tag in tags]


def test_a_compressed_archive_loads_from_standard_input(docker: Any, image: str) -> None:
    saved = subprocess.run(
        [docker.program, "save", image], env=docker.env, capture_output=True, check=True
    ).stdout
    assert f"Loaded image: {image}\n" in docker.ok("load", stdin=gzip.compress(saved, 1)).out


def test_what_is_no_archive_does_not_load(docker: Any, tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_text("this is no archive" * 99)
    assert docker("load", "-i", tmp_path / "no.tar").code == 1


def test_image_prune_takes_dangling_images_and_all_where_asked(
    docker: Any, dockerfile: Files
) -> None:
    path = dockerfile("FROM busybox\nRUN echo prune > /prune\n")
    dangling = docker.ok("build", "-q", path).out.strip()
    pruned = docker.ok("image", "prune", "-f").out
    assert pruned.startswith("Deleted Images:\n")
    assert f"deleted: {dangling}\n" in pruned
    assert re.search(r"\nTotal reclaimed space: [\d.]+k?M?B\n\Z", pruned)
    young = docker.ok("image", "prune", "-a", "-f", "--filter", "until=24h")
    assert young.out == "Total reclaimed space: 0B\n"


def test_builder_prune_empties_the_cache(docker: Any, dockerfile: Files) -> None:
    path = dockerfile("FROM busybox\nRUN echo builder-prune > /p\n")
    docker.ok("rmi", docker.ok("build", "-q", path).out.strip())
    kept = docker.ok("builder", "prune", "-af", "--filter", "until=24h", "--keep-storage", "1GB")
    assert re.search(r"^Total( reclaimed space)?: ", kept.out, re.MULTILINE)
    docker.ok("builder", "prune", "-af")
    assert "Using cache" not in docker.ok("build", path).out


def test_system_df_and_system_prune_have_dockers_shape(docker: Any, image: str) -> None:
    lines = docker.ok("system", "df").out.splitlines()
    kinds = ["TYPE", "Images", "Containers", "Local Volumes", "Build Cache"]
    assert [re.split(r"  +", line)[0] for line in lines] == kinds
    verbose = docker.ok("system", "df", "-v").out
    for title in ("Images", "Containers", "Local Volumes"):
        assert f"{title} space usage:\n" in verbose
    assert "Build cache usage: " in verbose
    assert re.search(r"\nTotal reclaimed space: \S+\n\Z", "\n" + docker.ok("system", "prune", "-f").out)


def test_events_tell_of_tags_and_follow(docker: Any, image: str) -> None:
    docker.ok("tag", image, "cap/event:one")
    until = str(int(time.time()) + 2)  # followed for a while: it ends by itself
    options = ["--since", "1h", "--until", until, "--filter", "type=image"]
    out = docker.ok("events", *options, "--format", "{{json .}}").out
    events = [json.loads(line) for line in out.splitlines()]
    tags = [event for event in events if event["Action"] == "tag"]
    assert any(event["Actor"]["Attributes"]["name"] == "cap/event:one" for event in tags)
    assert {"Type", "Action", "Actor", "scope", "time", "timeNano"} <= set(tags[-1])


def test_info_has_what_the_cli_shows(docker: Any) -> None:
    info = json.loads(docker.ok("info", "--format", "{{json .}}").out)
    assert info["OSType"] == "linux"
    assert info["NCPU"] >= 1
    assert info["Images"] >= 1
    assert "name=rootless" in info["SecurityOptions"]
    assert info["Swarm"]["LocalNodeState"] == "inactive"
    assert not info.get("ServerErrors")


def test_commit_names_the_container_that_is_not_there(docker: Any) -> None:
    done = docker("commit", "nosuch")
    assert done.code == 1
    assert "No such container: nosuch" in done.err


def test_history_and_inspect_are_the_classic_builders(docker: Any, dockerfile: Files) -> None:
    path = dockerfile('FROM busybox\nARG A=1\nRUN echo $A > /a\nCOPY f /f\nCMD ["sh"]\n', f="x")
    docker.ok("build", "-t", "cap/classic", "--build-arg", "A=3", path)
    created = docker.ok(
        "history", "--no-trunc", "--format", "{{.CreatedBy}}", "cap/classic"
    ).out.splitlines()
    assert created[0] == '/bin/sh -c #(nop)  CMD ["sh"]'
    assert re.fullmatch(r"/bin/sh -c #\(nop\) COPY file:[0-9a-f]{64} in /f ", created[1])
    assert created[2] == "|1 A=3 /bin/sh -c echo $A > /a"
    assert created[3] == "/bin/sh -c #(nop)  ARG A=1"
    body = json.loads(docker.ok("inspect", "cap/classic").out)[0]
    ids = docker.ok("history", "--no-trunc", "-q", "cap/classic").out.split()
    assert body["Id"] == ids[0]
    assert body["Parent"] == ids[1]
