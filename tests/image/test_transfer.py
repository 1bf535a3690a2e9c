"""pull and push with a real registry, and with other tools at its other end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fixtures import podman, tool

from ocibuildd.errors import NotFound, RegistryError
from ocibuildd.export.image import OCI
from ocibuildd.export.layout import oci_layout, write_directory
from ocibuildd.model.oci import DOCKER_MANIFEST, MEDIA_MANIFEST, Platform
from ocibuildd.model.reference import Reference

HERE = Platform("amd64", "linux")


async def test_what_was_pushed_is_pulled_elsewhere(make_rig, registry_host, rootfs, flow):
    one, two = await make_rig(), await make_rig()
    name = f"{registry_host}/team/base:1"
    image = await one.images.import_rootfs(flow(rootfs), name)
    pushed = await one.images.push(name, emit=one.emit)
    pulled = await two.images.pull(name, emit=two.emit)
    assert (pulled.id, pulled.digest, pulled.fresh) == (image, pushed.digest, True)
    assert {"etc/motd", "bin/sh"} <= await two.tree_names(name)
    assert {t["text"] for t in one.told} >= {"pushed"}
    assert {t["text"] for t in two.told} >= {"done"}


async def test_a_second_pull_and_push_move_nothing(rig, registry_host, rootfs, flow):
    name = f"{registry_host}/base:1"
    await rig.images.import_rootfs(flow(rootfs), name)
    await rig.images.push(name)
    await rig.images.push(name, emit=rig.emit)
    assert {t["text"] for t in rig.told} == {"waiting", "exists"}
    assert not (await rig.images.pull(name)).fresh


async def test_a_neighbour_repository_lends_its_layers(rig, registry_host, rootfs, flow):
    await rig.images.import_rootfs(flow(rootfs), f"{registry_host}/one:1")
    await rig.images.push(f"{registry_host}/one:1")
    rig.images.tag(f"{registry_host}/one:1", f"{registry_host}/two:1")
    await rig.images.push(f"{registry_host}/two:1", emit=rig.emit)
    assert "mounted" in {t["text"] for t in rig.told}


async def test_all_tags_go_and_come(make_rig, registry_host, rootfs, tar, flow):
    one, two = await make_rig(), await make_rig()
    for tag in ("a", "b", "c"):
        await one.images.import_rootfs(flow(tar({tag: b""})), f"{registry_host}/many:{tag}")
    assert [p.tag for p in await one.images.push_all(f"{registry_host}/many")] == ["a", "b", "c"]
    assert len(await two.images.pull_all(f"{registry_host}/many")) == 3
    with pytest.raises(NotFound):
        await one.images.push_all(f"{registry_host}/none")


async def test_a_pull_by_digest_gets_a_name_by_digest(make_rig, registry_host, rootfs, flow):
    one, two = await make_rig(), await make_rig()
    await one.images.import_rootfs(flow(rootfs), f"{registry_host}/base:1")
    digest = (await one.images.push(f"{registry_host}/base:1")).digest
    pulled = await two.images.pull(f"{registry_host}/base@{digest}")
    assert two.images.find(f"{registry_host}/base@{digest}").id == pulled.id
    assert two.images.list()[0].names == ()


async def test_a_local_image_stands_in_for_a_registry_that_is_down(rig, rootfs, flow):
    await rig.images.import_rootfs(flow(rootfs), "127.0.0.1:1/base:1")
    reference = Reference.parse("127.0.0.1:1/base:1")
    assert (await rig.puller.resolve(reference, HERE)).warnings == ()
    newer = await rig.puller.resolve(reference, HERE, pull="newer")
    assert newer.local
    assert "local image" in newer.warnings[0]
    with pytest.raises(RegistryError):
        await rig.puller.resolve(reference, HERE, pull=True)


async def test_trees_are_made_again_from_blobs(rig, rootfs, flow):
    await rig.images.import_rootfs(flow(rootfs), "base:1")
    (layer,) = rig.store.layers.chain(rig.images.find("base:1").chain)
    rig.puller.unpacker.discard(layer.tree)
    assert rig.store.layers.get(layer.id).tree == ""
    assert "etc/motd" in await rig.tree_names("base:1")


async def test_two_who_want_a_tree_unpack_it_once(rig, rootfs, flow):
    import asyncio

    await rig.images.import_rootfs(flow(rootfs), "base:1")
    chain = rig.images.find("base:1").chain
    rig.puller.unpacker.discard(rig.store.layers.get(chain[0]).tree)
    one, two = await asyncio.gather(*(rig.puller.unpacker.ensure_trees(chain) for _ in range(2)))
    assert one == two
    assert len(list((rig.store.path / "trees").iterdir())) == 1


async def test_an_oci_layout_in_a_directory_is_a_place_to_pull_from(
    make_rig, rootfs, tar, flow, tmp_path
):
    one, two = await make_rig(), await make_rig()
    image = await one.images.import_rootfs(flow(rootfs), "base:1")
    packed = one.images._saver._package(one.images.find("base:1"), [Reference.parse("base:1")])
    write_directory(oci_layout([packed]), one.store.blobs, tmp_path / "layout")
    for text in ("", ":1", f"@{one.images.find('base:1').manifest}"):
        resolved = await two.puller.resolve(f"oci-layout://{tmp_path}/layout{text}", HERE)
        with two.store.leases.new() as lease:
            chain = await two.puller.fetch(resolved, lease=lease)
        assert resolved.id == image
        assert await two.puller.unpacker.ensure_trees(chain)
    for text in (":nosuch", "@sha256:" + "0" * 64, "/nosuch"):
        with pytest.raises(NotFound):
            await two.puller.resolve(f"oci-layout://{tmp_path}/layout{text}", HERE)


# --- other tools ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        ["--format", "oci"],
        ["--format", "v2s2"],
        ["--format", "oci", "--dest-compress-format", "zstd"],
    ],
)
async def test_what_skopeo_pushed_is_pulled(
    make_rig, registry_host, rootfs, flow, whole, tmp_path, form
):
    one, two = await make_rig(), await make_rig()
    image = await one.images.import_rootfs(flow(rootfs), "base:1")
    (tmp_path / "base.tar").write_bytes(await whole(one.images.save(["base:1"])))
    tool(
        "skopeo",
        "copy",
        "--dest-tls-verify=false",
        *form,
        f"docker-archive:{tmp_path}/base.tar",
        f"docker://{registry_host}/base:1",
        cwd=tmp_path,
    )
    await two.images.pull(f"{registry_host}/base:1")
    details = two.images.inspect(f"{registry_host}/base:1")
    assert details.manifest["mediaType"] == (DOCKER_MANIFEST if "v2s2" in form else MEDIA_MANIFEST)
    assert details.layers[0].diff_id == one.images.inspect(str(image)).layers[0].diff_id
    assert "etc/motd" in await two.tree_names(f"{registry_host}/base:1")


async def test_what_we_pushed_is_read_by_skopeo_and_unpacked_by_umoci(
    rig, registry_host, rootfs, flow, tmp_path
):
    image = await rig.images.import_rootfs(
        flow(rootfs), f"{registry_host}/base:1", changes=["LABEL a=b"]
    )
    await rig.images.push(f"{registry_host}/base:1")
    shown = json.loads(
        tool(
            "skopeo",
            "inspect",
            "--tls-verify=false",
            f"docker://{registry_host}/base:1",
            cwd=tmp_path,
        )
    )
    assert shown["Labels"] == {"a": "b"}
    tool(
        "skopeo",
        "copy",
        "--src-tls-verify=false",
        f"docker://{registry_host}/base:1",
        f"oci:{tmp_path}/out:1",
        cwd=tmp_path,
    )
    assert (tmp_path / "out/blobs/sha256" / image.hex).exists()
    tool(
        "umoci",
        "unpack",
        "--rootless",
        "--image",
        f"{tmp_path}/out:1",
        f"{tmp_path}/bundle",
        cwd=tmp_path,
    )
    assert (tmp_path / "bundle/rootfs/etc/motd").read_text() == "hello\n"


@pytest.mark.parametrize("form", ["docker", "oci"])
async def test_our_archives_are_read_by_skopeo(rig, rootfs, flow, whole, tmp_path, form):
    await rig.images.import_rootfs(flow(rootfs), "base:1")
    (tmp_path / "a.tar").write_bytes(await whole(rig.images.save(["base:1"], form=form)))
    seen = json.loads(tool("skopeo", "inspect", f"{form}-archive:{tmp_path}/a.tar", cwd=tmp_path))
    assert (seen["Os"], len(seen["Layers"])) == ("linux", 1)


async def test_an_index_of_skopeo_is_pulled_for_this_platform_and_pushed_on(
    make_rig, registry_host, rootfs, flow, whole, tmp_path
):
    one, two = await make_rig(), await make_rig()
    index = await multi_platform(one, registry_host, rootfs, flow)
    await two.images.pull(f"{registry_host}/multi:1", platform="linux/arm64")
    assert two.images.inspect(f"{registry_host}/multi:1").summary.platform == "linux/arm64"
    with pytest.raises(NotFound, match="no manifest for linux/s390x"):
        await two.images.pull(f"{registry_host}/multi:1", platform="linux/s390x")
    raw = tool(
        "skopeo",
        "inspect",
        "--raw",
        "--tls-verify=false",
        f"docker://{registry_host}/multi:1",
        cwd=tmp_path,
    )
    assert raw.encode() == index


async def multi_platform(rig, host, rootfs, flow) -> bytes:
    """An index for two platforms, put together and pushed by hand."""
    from ocibuildd.export.image import Entry, index_bytes
    from ocibuildd.export.push import Pusher

    entries = []
    for platform in ("linux/amd64", "linux/arm64"):
        name = f"{host}/multi:{platform.replace('/', '-')}"
        await rig.images.import_rootfs(
            flow(rootfs), name, platform=platform, changes=[f"LABEL p={platform}"]
        )
        await rig.images.push(name)
        image = rig.images.find(name)
        data = rig.store.blobs.read(image.manifest)
        entries.append(Entry(data, Platform(platform.split("/")[1], "linux")))
    index = index_bytes(entries)
    pusher = Pusher(rig.store.blobs, rig.registry, Reference.parse(f"{host}/multi:1"))
    await pusher.index(index, OCI.index)
    await pusher.close()
    return index


async def test_a_whole_index_is_pushed_as_the_bytes_that_came(
    make_rig, registry_host, rootfs, flow
):
    one, two = await make_rig(), await make_rig()
    index = await multi_platform(one, registry_host, rootfs, flow)
    for platform in ("linux/arm64", "linux/amd64"):
        await two.images.pull(f"{registry_host}/multi:1", platform=platform)
    two.images.tag(f"{registry_host}/multi:1", f"{registry_host}/copy:1")
    await two.images.push(f"{registry_host}/copy:1")
    fetched = await two.registry.resolve(Reference.parse(f"{registry_host}/copy:1"))
    assert fetched.data == index


async def test_an_image_of_60_layers_goes_and_comes(
    make_rig, registry_host, tar, flow, legacy, tmp_path
):
    one, two = await make_rig(), await make_rig()
    layers = [tar({f"file{n}": b"x" * n}) for n in range(60)]
    await one.images.load(flow(legacy(layers, [f"{registry_host}/deep:1"])))
    await one.images.push(f"{registry_host}/deep:1")
    await two.images.pull(f"{registry_host}/deep:1")
    assert {f"file{n}" for n in range(60)} <= await two.tree_names(f"{registry_host}/deep:1")
    shown = json.loads(
        tool(
            "skopeo",
            "inspect",
            "--tls-verify=false",
            f"docker://{registry_host}/deep:1",
            cwd=tmp_path,
        )
    )
    assert len(shown["Layers"]) == 60


async def test_layers_that_lack_their_parents_are_unpacked_over_them(
    make_rig, registry_host, tar, flow, legacy
):
    one, two = await make_rig(), await make_rig()
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("private/")
        info.type, info.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(info)
    await one.images.load(
        flow(legacy([buffer.getvalue(), tar({"private/file": b"x"})], [f"{registry_host}/gap:1"]))
    )
    await one.images.push(f"{registry_host}/gap:1")
    await two.images.pull(f"{registry_host}/gap:1")
    lowers = await two.puller.unpacker.ensure_trees(two.images.find(f"{registry_host}/gap:1").chain)
    found = await two.nsd.call("lookup", {"lowers": lowers, "stat": ["/private"], "read": []})
    assert json.dumps(found).find("448") > 0 or "0o700" in json.dumps(
        found
    )  # 0700, not the default 0755


async def test_podman_pulls_what_we_pushed(rig, registry_host, flow, tar, tmp_path):
    busybox = shutil.which("busybox")
    if not busybox:
        pytest.skip("busybox is not installed")
    data = tar({"bin/": b"", "bin/busybox": Path(busybox).read_bytes()})
    await rig.images.import_rootfs(
        flow(data), f"{registry_host}/bb:1", changes=['CMD ["/bin/busybox", "true"]']
    )
    await rig.images.push(f"{registry_host}/bb:1")
    with podman(tmp_path) as run:
        run("pull", "--tls-verify=false", f"{registry_host}/bb:1")
        shown = json.loads(run("inspect", f"{registry_host}/bb:1"))
    assert shown[0]["Id"] == rig.images.find(f"{registry_host}/bb:1").id.hex


@pytest.mark.parametrize("form", [["--format=oci", "--compression-format=zstd"], ["--format=v2s2"]])
async def test_what_podman_pushed_is_pulled(
    rig, registry_host, rootfs, flow, legacy, tar, tmp_path, form
):
    layers = [rootfs, tar({"etc/second": b"2\n"})]
    (tmp_path / "in.tar").write_bytes(legacy(layers, ["localhost/in:1"]))
    name = f"{registry_host}/podman:1"
    with podman(tmp_path) as run:
        run("load", "-i", tmp_path / "in.tar")
        run("push", "--tls-verify=false", *form, "localhost/in:1", name)
    await rig.images.pull(name)
    assert {"etc/motd", "etc/second"} <= await rig.tree_names(name)
    kinds = {layer["mediaType"] for layer in rig.images.inspect(name).manifest["layers"]}
    assert len(kinds) == 1
    assert kinds.pop().endswith("zstd" if "zstd" in form[-1] else "gzip")
