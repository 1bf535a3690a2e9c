"""save and load: docker archives, old and new, and OCI layouts."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile

import pytest
import zstandard

from ocibuildd.errors import BuildError, Corrupt, InvalidArgument, NotFound
from ocibuildd.image.values import Loaded


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isreg()}


async def test_a_damaged_layer_is_an_error_before_the_first_byte(rig, rootfs, flow):
    await rig.images.import_rootfs(flow(rootfs), "base:1")
    (layer,) = rig.store.layers.chain(rig.store.images.all()[0].chain)
    file = rig.store.blobs.file(layer.digest)
    file.chmod(0o600)
    file.write_bytes(bytes(layer.size))
    with pytest.raises(Corrupt, match="damaged on the disk"):
        await anext(rig.images.save(["base:1"]))
    assert not rig.store.blobs.has(layer.digest)


@pytest.mark.parametrize("form", ["docker", "oci"])
async def test_what_is_saved_and_loaded_is_the_same_image(make_rig, rootfs, flow, whole, form):
    one, two = await make_rig(), await make_rig()
    image = await one.images.import_rootfs(flow(rootfs), "base:1")
    one.images.tag("base:1", "host:5000/x/y:2")
    data = await whole(one.images.save(["base:1", "host:5000/x/y:2"], form=form))
    assert await two.images.load(flow(data)) == [Loaded(image, ("base:1", "host:5000/x/y:2"))]
    assert two.images.inspect("base:1").manifest == one.images.inspect("base:1").manifest
    assert "etc/motd" in await two.tree_names("host:5000/x/y:2")


async def test_the_same_images_give_the_same_bytes(rig, rootfs, flow, whole):
    await rig.images.import_rootfs(flow(rootfs), "base:1")
    assert await whole(rig.images.save(["base:1"])) == await whole(rig.images.save(["base:1"]))


async def test_a_docker_archive_names_its_parts(rig, rootfs, flow, whole):
    image = await rig.images.import_rootfs(flow(rootfs), "base:1")
    files = members(await whole(rig.images.save(["base:1"])))
    entry = json.loads(files["manifest.json"])[0]
    assert entry["RepoTags"] == ["base:1"]
    assert entry["Config"] == f"blobs/sha256/{image.hex}"
    assert set(entry["Layers"]) <= set(files)
    assert set(json.loads(files["repositories"])) == {"base"}
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}


async def test_a_repository_without_tag_saves_all_its_tags(rig, rootfs, tar, flow, whole):
    await rig.images.import_rootfs(flow(rootfs), "base:1")
    await rig.images.import_rootfs(flow(tar({"x": b""})), "base:2")
    entries = json.loads(members(await whole(rig.images.save(["base"])))["manifest.json"])
    assert sorted(tag for entry in entries for tag in entry["RepoTags"]) == ["base:1", "base:2"]


async def test_an_image_saved_by_id_has_no_name(make_rig, rootfs, flow, whole):
    one, two = await make_rig(), await make_rig()
    image = await one.images.import_rootfs(flow(rootfs), "base:1")
    data = await whole(one.images.save([image.short]))
    assert json.loads(members(data)["manifest.json"])[0]["RepoTags"] is None
    assert await two.images.load(flow(data)) == [Loaded(image, ())]


async def test_saving_what_is_not_there_fails_before_the_first_byte(rig):
    with pytest.raises(NotFound):
        async for _ in rig.images.save(["nosuch"]):
            raise AssertionError("a byte came")


@pytest.mark.parametrize("compress", [False, True])
async def test_an_old_docker_archive_is_loaded(rig, rootfs, tar, flow, legacy, compress):
    upper = tar({"etc/": b"", "etc/.wh.motd": b"", "new": b"file"})
    data = legacy([rootfs, upper], ["old:1", "old:2"], compress=compress)
    (loaded,) = await rig.images.load(flow(data), emit=rig.emit)
    assert loaded.names == ("old:1", "old:2")
    names = await rig.tree_names("old:1")
    assert "new" in names
    assert "etc/motd" not in names
    raw = rig.images.inspect("old:1").raw
    assert raw["docker_version"] == "19.03"  # the config is kept as it came
    assert {layer.digest != layer.diff_id for layer in rig.images.inspect("old:1").layers} == {True}
    assert rig.told


async def test_layers_that_an_archive_links_are_followed(rig, rootfs, flow, legacy, tar):
    files = members(legacy([rootfs], ["old:1"]))
    files["shared/layer.tar"] = files.pop("0" * 64 + "/layer.tar")
    files["0" * 64 + "/layer.tar"] = b"->../shared/layer.tar"
    assert await rig.images.load(flow(tar(files)))
    assert "etc/motd" in await rig.tree_names("old:1")


@pytest.mark.parametrize(
    ("tag", "why"),
    [("Old:1", "must be lowercase"), ("old", "has no tag"), ("", "invalid reference"), ("old:-", "invalid reference"),
     ("old@sha256:" + "0" * 64, "has no tag")],
)  # fmt: skip
async def test_a_name_that_is_none_fails_the_load_and_the_image_stays(rig, rootfs, flow, legacy, tag, why):
    with pytest.raises(InvalidArgument, match=why) as failed:
        await rig.images.load(flow(legacy([rootfs], [tag, "good:1"])))
    image = rig.images.inspect("good:1").summary.id
    assert f"invalid tag {tag!r}" in str(failed.value)
    assert f"image {image} was loaded without that name" in str(failed.value)


async def test_a_bad_name_beside_a_layout_fails_the_load_too(rig, make_rig, rootfs, tar, flow, whole):
    await rig.images.import_rootfs(flow(rootfs), "base:1")
    files = members(await whole(rig.images.save(["base:1"])))
    entries = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps([{**entries[0], "RepoTags": ["BASE:2"]}]).encode()
    other = await make_rig()
    with pytest.raises(InvalidArgument, match="invalid tag 'BASE:2'"):
        await other.images.load(flow(tar(files)))
    assert other.images.inspect("base:1").summary.id


async def test_a_compressed_archive_is_loaded(rig, rootfs, flow, legacy):
    for number, pack in enumerate((gzip.compress, lzma.compress, zstandard.compress)):
        (loaded,) = await rig.images.load(flow(pack(legacy([rootfs], [f"old:{number}"]))))
        assert loaded.names == (f"old:{number}",)


async def test_a_loaded_image_can_be_saved_and_loaded_again(make_rig, rootfs, flow, whole, legacy):
    one, two = await make_rig(), await make_rig()
    (loaded,) = await one.images.load(flow(legacy([rootfs], ["old:1"])))
    again = await two.images.load(flow(await whole(one.images.save(["old:1"]))))
    assert again == [loaded]


def broken(change: str, rootfs: bytes, legacy, tar) -> bytes:
    data = legacy([rootfs], ["old:1"])
    files = members(data)
    if change == "cut off":
        return data[: len(data) // 2]
    if change == "no manifest":
        del files["manifest.json"]
    elif change == "manifest is no list":
        files["manifest.json"] = b'{"a": 1}'
    elif change == "manifest names a path outside":
        files["manifest.json"] = json.dumps([{"Config": "../../etc/passwd", "Layers": []}]).encode()
    elif change == "layer is another":
        files["0" * 64 + "/layer.tar"] = tar({"evil": b"x"})
    elif change == "layer is missing":
        del files["0" * 64 + "/layer.tar"]
    elif change == "layers and diff ids differ in number":
        entry = json.loads(files["manifest.json"])
        entry[0]["Layers"] *= 2
        files["manifest.json"] = json.dumps(entry).encode()
    elif change == "links in a circle":
        files["0" * 64 + "/layer.tar"] = b"->layer.tar"
    elif change == "config is no JSON":
        name = json.loads(files["manifest.json"])[0]["Config"]
        files[name] = b"not json"
    return tar(files)


BROKEN = [
    "cut off",
    "no manifest",
    "manifest is no list",
    "manifest names a path outside",
    "layer is another",
    "layer is missing",
    "layers and diff ids differ in number",
    "links in a circle",
    "config is no JSON",
]


async def test_a_broken_archive_is_refused_and_leaves_no_image(rig, rootfs, flow, legacy, tar):
    for change in BROKEN:  # one daemon for all of them: it takes longer to start than to refuse
        with pytest.raises(BuildError):
            await rig.images.load(flow(broken(change, rootfs, legacy, tar)))
            raise AssertionError(f"{change}: was loaded")
        assert rig.images.list(all=True) == [], change
        assert list((rig.store.path / "ingest").iterdir()) == [], change


async def test_a_layout_whose_blob_was_changed_is_refused(make_rig, rootfs, flow, whole, tar):
    one, two = await make_rig(), await make_rig()
    await one.images.import_rootfs(flow(rootfs), "base:1")
    layer = one.images.inspect("base:1").layers[0].digest
    files = members(await whole(one.images.save(["base:1"], form="oci")))
    name = "blobs/sha256/" + layer.removeprefix("sha256:")
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    with pytest.raises(BuildError):
        await two.images.load(flow(tar(files)))
    assert two.images.list(all=True) == []
    assert not two.store.blobs.has(layer)
