"""Every form of ``-o``, and what other tools find in it."""

from __future__ import annotations

import json
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fixtures import podman, tool

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
DOCKERFILE = "FROM busybox\nRUN echo hello > /f\nCMD cat /f\n"


@pytest.fixture
def where(context: Callable[..., Path]) -> Path:
    return context(Dockerfile=DOCKERFILE)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Another tool, with a home of its own; the test is skipped where it isn't installed."""
    return partial(tool, cwd=tmp_path)


def read(layout: Path, digest: str) -> Any:
    return json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())


def written(
    daemon: Any, where: Path, layout: Path, *attrs: str, options: tuple[str, ...] = ()
) -> Any:
    """Build an OCI layout in a directory; gives its index.json."""
    spec = ",".join(["type=oci", f"dest={layout}", "tar=false", *attrs])
    daemon.ok("build", "-o", spec, *options, where)
    return json.loads((layout / "index.json").read_bytes())


def kinds(layout: Path, index: Any) -> set[str]:
    manifest = read(layout, index["manifests"][0]["digest"])
    return {layer["mediaType"].removeprefix(OCI) for layer in manifest["layers"]}


def test_several_outputs_are_made_each_in_its_own_form(
    daemon: Any, where: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    zstd, docker, files = tmp_path / "z", tmp_path / "d.tar", tmp_path / "files"
    daemon.ok(
        "build", "-t", "e2e/several", "-o", "type=image",
        "-o", f"type=oci,dest={zstd},tar=false,compression=zstd,name=e2e/named:7",
        "-o", f"type=docker,dest={docker}", "-o", f"type=tar,dest={tmp_path}/fs.tar",
        "-o", f"type=local,dest={files}", where,
    )  # fmt: skip
    index = json.loads((zstd / "index.json").read_bytes())
    assert (
        index["manifests"][0]["annotations"]["io.containerd.image.name"] == "docker.io/e2e/named:7"
    )
    assert (files / "f").read_text() == "hello\n"
    with tarfile.open(tmp_path / "fs.tar") as tar:
        assert tar.extractfile("f").read() == b"hello\n"  # type: ignore[union-attr]
    shown = json.loads(run("skopeo", "inspect", "--raw", f"docker-archive:{docker}"))
    assert shown["mediaType"].startswith(DOCKER)
    assert json.loads(daemon.ok("inspect", "e2e/several").out)[0]["Id"]


@pytest.mark.parametrize(
    ("attrs", "found"),
    [
        (["compression=gzip"], {"layer.v1.tar+gzip"}),
        (["compression=zstd"], {"layer.v1.tar+gzip", "layer.v1.tar+zstd"}),
        (["compression=zstd", "force-compression=true"], {"layer.v1.tar+zstd"}),
        (["compression=uncompressed", "force-compression=true"], {"layer.v1.tar"}),
        (["compression=gzip", "compression-level=1", "force-compression"], {"layer.v1.tar+gzip"}),
    ],
)
def test_a_compression_is_the_layers_media_type(
    daemon: Any,
    where: Path,
    tmp_path: Path,
    run: Callable[..., str],
    attrs: list[str],
    found: set[str],
) -> None:
    layout = tmp_path / "layout"
    new = "-".join(attrs)  # nobody has this layer yet
    (where / "Dockerfile").write_text(f"FROM busybox\nRUN echo {new} > /f\n")
    assert kinds(layout, written(daemon, where, layout, *attrs, "name=x:1")) == found
    run("skopeo", "copy", "--dest-compress-format=gzip", f"oci:{layout}:1", f"dir:{tmp_path}/again")
    if "zstd" not in attrs[0]:  # which umoci doesn't know yet
        run("umoci", "unpack", "--rootless", "--image", f"{layout}:1", tmp_path / "bundle")
        assert (tmp_path / "bundle/rootfs/f").read_text() == f"{new}\n"


def test_annotations_stand_at_every_level(daemon: Any, where: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    levels = [f"{level}:e.{level}=1" for level in (
        "manifest", "manifest-descriptor[linux/arm64]", "index", "index-descriptor",
    )]  # fmt: skip
    (where / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    top = written(daemon, where, layout, "annotation.by-attribute=2", options=(
        "--platform=linux/amd64,linux/arm64", *(f"--annotation={each}" for each in levels),
    ))["manifests"][0]  # fmt: skip
    assert top["annotations"] == {"e.index-descriptor": "1"}
    index = read(layout, top["digest"])
    assert index["annotations"] == {"e.index": "1"}
    amd, arm = index["manifests"]
    assert arm["annotations"] == {"e.manifest-descriptor[linux/arm64]": "1"}
    assert "annotations" not in amd
    assert read(layout, amd["digest"])["annotations"] == {"e.manifest": "1", "by-attribute": "2"}


def test_what_outputs_ask_wrongly_is_told_before_anything_runs(daemon: Any, where: Path) -> None:
    for spec, words in (
        ("type=image,compression=estargz", "expected gzip, zstd or uncompressed"),
        ("type=image,push=perhaps", "non-bool value specified for push"),
        ("type=image,annotation-index.a=b", "index annotations not supported for single platform"),
        ("type=image,name=h.example/a:1,push-by-digest=true,push=true", "can't push tagged ref"),
        ("type=image,push=true", "the image has no name"),
    ):
        failed = daemon("build", "--progress=plain", "-o", spec, where)
        assert failed.code != 0
        assert words in failed.text
        assert "RUN" not in failed.text
    warned = daemon.ok("build", "-o", "type=image,compresion=zstd", where)
    assert "attribute 'compresion' is not known" in warned.text


def test_a_push_by_digest_leaves_tags_alone(
    daemon: Any, where: Path, registry: str, tmp_path: Path, run: Callable[..., str]
) -> None:
    meta = tmp_path / "meta.json"
    spec = f"type=image,name={registry}/by/digest,push=true,push-by-digest=true,compression=zstd"
    daemon.ok("build", "-o", spec, "--metadata-file", meta, where)
    facts = json.loads(meta.read_text())
    by_digest = f"{registry}/by/digest@{facts['containerimage.digest']}"
    raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{by_digest}")
    assert json.loads(raw)["config"]["digest"] == facts["containerimage.config.digest"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://{registry}/v2/by/digest/tags/list")
    assert facts["image.name"] == by_digest
    assert (
        json.loads(daemon.ok("inspect", by_digest).out)[0]["Id"]
        == facts["containerimage.config.digest"]
    )


def test_the_metadata_are_buildkits(daemon: Any, where: Path, tmp_path: Path) -> None:
    meta, ident = tmp_path / "meta.json", tmp_path / "id"
    daemon.ok("build", "-t", "e2e/m:1", "--iidfile", ident, "--metadata-file", meta, where)
    facts = json.loads(meta.read_text())
    assert set(facts) == {
        "buildx.build.ref", "containerimage.config.digest", "containerimage.descriptor",
        "containerimage.digest", "image.name",
    }  # fmt: skip
    assert facts["containerimage.config.digest"] == ident.read_text()
    descriptor = facts["containerimage.descriptor"]
    assert descriptor["digest"] == facts["containerimage.digest"]
    assert descriptor["mediaType"] == OCI + "manifest.v1+json"
    assert descriptor["annotations"] == {"config.digest": ident.read_text()}


def test_a_repository_has_a_digest_once_it_was_pushed_or_pulled(
    daemon: Any, where: Path, registry: str
) -> None:
    name = f"{registry}/repo/digests:1"

    def digests() -> list[str]:
        found: list[str] = json.loads(daemon.ok("inspect", name).out)[0]["RepoDigests"]
        return found

    (where / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /digests\n")
    daemon.ok("build", "-t", name, where)
    assert digests() == []
    daemon.ok("push", name)
    assert len(before := digests()) == 1
    daemon.ok("tag", name, "e2e/other:1")
    assert digests() == before
    daemon.ok("rmi", "-f", name)
    daemon.ok("pull", name)
    assert digests() == before


def test_podman_loads_both_kinds_of_archive(daemon: Any, where: Path, tmp_path: Path) -> None:
    for kind in ("docker", "oci"):
        daemon.ok(
            "build",
            "-t",
            f"e2e/load:{kind}",
            "-o",
            f"type={kind},dest={tmp_path}/{kind}.tar",
            where,
        )
    with podman(tmp_path) as run:
        for kind in ("docker", "oci"):
            assert f"e2e/load:{kind}" in run("load", "-i", tmp_path / f"{kind}.tar")
        run("rmi", "--all", "--force")
