"""Images leave and arrive by a real registry, and other tools take them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Context = Callable[..., Path]
DOCKERFILE = 'FROM busybox\nRUN mkdir /d && echo hello > /d/f && ln /d/f /d/hard && ln -s f /d/soft\nRUN rm -r /d/soft && chown 1000:1000 /d/f\nCMD ["cat", "/d/f"]\n'


@pytest.fixture
def pushed(daemon: Any, context: Context, registry: str) -> str:
    """An image in the registry."""
    name = f"{registry}/e2e/pushed:1"
    daemon.ok("build", "-t", name, context(Dockerfile=DOCKERFILE))
    daemon.ok("push", name)
    return name


def need(program: str) -> str:
    path = shutil.which(program)
    if not path:
        pytest.skip(f"{program} is not installed")
    return path


def test_skopeo_copies_and_umoci_unpacks_what_was_pushed(pushed: str, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    subprocess.run(
        [need("skopeo"), "copy", "--src-tls-verify=false", f"docker://{pushed}", f"oci:{layout}:x"],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [need("umoci"), "unpack", "--rootless", "--image", f"{layout}:x", str(tmp_path / "bundle")],
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "bundle" / "rootfs" / "d" / "f").read_text() == "hello\n"
    assert not (tmp_path / "bundle" / "rootfs" / "d" / "soft").is_symlink()
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["process"]["args"] == ["cat", "/d/f"]


def test_what_was_pushed_and_removed_can_be_pulled_again(daemon: Any, pushed: str) -> None:
    before = json.loads(daemon.ok("inspect", pushed).out)[0]["Id"]
    daemon.ok("rmi", "-f", pushed)
    assert daemon("inspect", pushed).code != 0
    daemon.ok("pull", pushed)
    assert json.loads(daemon.ok("inspect", pushed).out)[0]["Id"] == before
    assert daemon.ok("run", "--rm", pushed).out == "hello\n"


def test_a_second_daemon_builds_from_what_the_first_pushed(
    make_daemon: Callable[..., Any], pushed: str, context: Context
) -> None:
    other = make_daemon()
    built = other.ok(
        "build", "--progress=plain", context(Dockerfile=f"FROM {pushed}\nRUN cat /d/f\n")
    )
    assert "hello" in built.text


def test_save_and_load_keep_the_image_id(
    daemon: Any, make_daemon: Callable[..., Any], context: Context, tmp_path: Path
) -> None:
    daemon.ok("build", "-t", "e2e/saved", context(Dockerfile=DOCKERFILE))
    image = json.loads(daemon.ok("inspect", "e2e/saved").out)[0]["Id"]
    daemon.ok("save", "-o", tmp_path / "image.tar", "e2e/saved")
    other = make_daemon()
    loaded = other.ok("load", "-i", tmp_path / "image.tar")
    assert "e2e/saved" in loaded.text
    assert json.loads(other.ok("inspect", "e2e/saved").out)[0]["Id"] == image


def test_every_layout_that_is_written_is_valid(
    daemon: Any, context: Context, tmp_path: Path
) -> None:
    """Each digest and size of an OCI layout is true."""
    import hashlib

    layout = tmp_path / "layout"
    daemon.ok("build", "-o", f"type=oci,dest={layout},tar=false", context(Dockerfile=DOCKERFILE))
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    todo, seen = json.loads((layout / "index.json").read_text())["manifests"], 0
    while todo:
        descriptor = todo.pop()
        blob = (layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
        assert len(blob) == descriptor["size"]
        assert "sha256:" + hashlib.sha256(blob).hexdigest() == descriptor["digest"]
        seen += 1
        if descriptor["mediaType"].endswith(("index.v1+json", "manifest.v1+json")):
            document = json.loads(blob)
            todo += (
                document.get("manifests", [])
                + document.get("layers", [])
                + [document["config"]] * ("config" in document)
            )
    assert seen >= 5


def test_a_wrong_password_is_the_registrys_answer_and_is_not_stored(
    daemon: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    failed = daemon("login", "-u", "x", "--password-stdin", "127.0.0.1:1", stdin=b"wrong")
    assert failed.code != 0
    assert not list(daemon.root.glob("home/.docker/config.json"))
