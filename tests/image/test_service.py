"""Images as people use them: import, list, find, tag, history, remove, prune."""

from __future__ import annotations

import gzip
import lzma

import pytest
import zstandard

from ocibuildd.errors import BuildError, Conflict, InvalidArgument, NotFound
from ocibuildd.image.values import Removed
from ocibuildd.store.images import Image


async def test_a_root_file_system_becomes_an_image_whatever_its_compression(rig, rootfs, flow):
    for number, pack in enumerate((bytes, gzip.compress, lzma.compress, zstandard.compress)):
        image = await rig.images.import_rootfs(flow(pack(rootfs)), f"base:{number}")
        assert rig.images.find(f"base:{number}").id == image
        assert {"etc/motd", "bin/sh", "bin/busybox"} <= await rig.tree_names(f"base:{number}")


async def test_an_import_keeps_gzip_bytes_as_they_came(rig, rootfs, flow):
    import hashlib

    data = gzip.compress(rootfs)
    await rig.images.import_rootfs(flow(data), "base:1")
    layer = rig.images.inspect("base:1").layers[0]
    assert layer.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert layer.diff_id == "sha256:" + hashlib.sha256(rootfs).hexdigest()


async def test_changes_shape_the_config_of_an_import(rig, rootfs, flow):
    changes = [
        'CMD ["/bin/sh"]',
        "ENV A=b C=d",
        "EXPOSE 80",
        "LABEL x=y",
        "USER 1",
        "WORKDIR /w",
        "VOLUME /v",
    ]
    await rig.images.import_rootfs(flow(rootfs), "base:1", changes=changes, message="from afar")
    details = rig.images.inspect("base:1")
    config = details.config.config
    assert (config.cmd, config.env, config.user, config.working_dir) == (
        ("/bin/sh",),
        ("A=b", "C=d"),
        "1",
        "/w",
    )
    assert (config.labels, config.exposed_ports, config.volumes) == (
        {"x": "y"},
        {"80/tcp": {}},
        {"/v": {}},
    )
    assert details.config.history[0].comment == "from afar"


async def test_a_change_that_is_no_config_is_refused(rig, rootfs, flow):
    for change in ("RUN true", "COPY a b", "", "FROM x"):
        with pytest.raises(InvalidArgument, match="not a valid change command"):
            await rig.images.import_rootfs(flow(rootfs), "base:1", changes=[change])
    assert rig.images.list(all=True) == []


async def test_what_is_no_tar_is_not_imported(rig, flow):
    for data in (b"", b"this is no archive" * 100, b"\x1f\x8b\x08\0 broken"):
        with pytest.raises(BuildError):
            await rig.images.import_rootfs(flow(data), "base:1")
    assert rig.images.list(all=True) == []
    assert list((rig.store.path / "ingest").iterdir()) == []


async def test_a_truncated_import_leaves_nothing(rig, rootfs, flow):
    with pytest.raises(BuildError):
        await rig.images.import_rootfs(flow(gzip.compress(rootfs)[:-40]), "base:1")
    assert list((rig.store.path / "ingest").iterdir()) == []
    assert rig.store.blobs.bytes == 0


async def test_an_import_under_a_bad_name_is_refused(rig, rootfs, flow):
    for name in ("UPPER", "a b", "x@sha256:" + "0" * 64):
        with pytest.raises(InvalidArgument):
            await rig.images.import_rootfs(flow(rootfs), name)


async def test_an_image_is_found_by_name_id_and_prefix(rig, rootfs, flow):
    image = await rig.images.import_rootfs(flow(rootfs), "base")
    for text in (
        "base",
        "base:latest",
        "docker.io/library/base",
        str(image),
        image.hex,
        image.short,
        image.hex[:4],
    ):
        assert rig.images.find(text).id == image
    for text in ("nosuch", "base:2", "f" * 64 if image.hex[0] != "f" else "e" * 64):
        with pytest.raises(NotFound, match="No such image"):
            rig.images.find(text)


async def test_a_tag_is_another_name(rig, rootfs, flow):
    image = await rig.images.import_rootfs(flow(rootfs), "base:1")
    assert rig.images.tag("base:1", "host:5000/other").familiar == "host:5000/other:latest"
    assert rig.images.list()[0].names == ("base:1", "host:5000/other:latest")
    rig.images.tag(image.short, "third:x")
    assert len(rig.images.list()[0].names) == 3
    with pytest.raises(InvalidArgument):
        rig.images.tag("base:1", "a@sha256:" + "0" * 64)


async def test_lists_are_filtered(rig, rootfs, tar, flow):
    await rig.images.import_rootfs(flow(rootfs), "repo/one:1", changes=["LABEL a=1"])
    await rig.images.import_rootfs(flow(tar({"x": b"1"})), "two:2", changes=["LABEL a=2"])
    await rig.images.import_rootfs(flow(tar({"x": b"2"})))

    def names(**filters):
        return [s.names for s in rig.images.list(filters=filters)]

    assert names() == [(), ("two:2",), ("repo/one:1",)]
    assert names(dangling=["true"]) == [()]
    assert names(label=["a=2"]) == [("two:2",)]
    assert names(label=["a"]) == [("two:2",), ("repo/one:1",)]
    assert names(reference=["repo/*"]) == [("repo/one:1",)]
    assert names(reference=["two"], label=["a=1"]) == []
    assert names(before=["two:2"]) == [("repo/one:1",)]
    assert names(since=["two:2"]) == [()]
    assert names(until=["24h"]) == []


async def test_a_filter_that_nobody_knows_is_refused(rig):
    for filters in ({"colour": ["red"]}, {"dangling": ["maybe"]}, {"until": ["soon"]}):
        with pytest.raises(InvalidArgument, match="invalid"):
            rig.images.list(filters=filters)


def intermediate(rig, parent, number):
    """A step on the way, with a config of its own."""
    import json

    image = rig.images.find(parent)
    config = json.loads(rig.store.blobs.read(image.id))
    config["history"].append({"created_by": f"step {number}", "empty_layer": True})
    digest = rig.store.blobs.put(json.dumps(config).encode())
    rig.store.images.put(
        Image(
            id=digest,
            manifest=None,
            media_type="",
            chain=image.chain,
            kind="intermediate",
            parent=image.id,
            created_by=f"step {number}",
            created=float(number),
            size=image.size,
        )
    )
    return digest


async def test_intermediate_images_are_listed_walked_and_tagged(rig, rootfs, flow):
    await rig.images.import_rootfs(flow(rootfs), "base:1")
    one = intermediate(rig, "base:1", 1)
    two = intermediate(rig, str(one), 2)
    assert len(rig.images.list()) == 1
    assert len(rig.images.list(all=True)) == 3
    lines = rig.images.history(str(two))
    assert [(line.created_by, line.id) for line in lines[:2]] == [
        ("step 2", str(two)),
        ("step 1", str(one)),
    ]
    assert lines[2].size > 0
    assert lines[0].size == 0
    rig.images.tag(str(one), "half:done")
    assert {name for s in rig.images.list() for name in s.names} == {"base:1", "half:done"}


async def test_removing_a_name_keeps_an_image_that_has_others(rig, rootfs, flow):
    image = await rig.images.import_rootfs(flow(rootfs), "base:1")
    rig.images.tag("base:1", "base:2")
    assert rig.images.remove("base:1") == [Removed("untagged", "base:1")]
    assert rig.images.remove("base:2") == [
        Removed("untagged", "base:2"),
        Removed("deleted", str(image)),
    ]
    with pytest.raises(NotFound):
        rig.images.remove("base:2")


async def test_removing_by_id_needs_force_for_several_repositories(rig, rootfs, flow):
    image = await rig.images.import_rootfs(flow(rootfs), "base:1")
    rig.images.tag("base:1", "other:1")
    with pytest.raises(Conflict, match="must be forced"):
        rig.images.remove(image.short)
    removed = rig.images.remove(image.short, force=True)
    assert [r.action for r in removed] == ["untagged", "untagged", "deleted"]


async def test_removing_by_id_takes_all_tags_of_one_repository(rig, rootfs, flow):
    image = await rig.images.import_rootfs(flow(rootfs), "base:1")
    rig.images.tag("base:1", "base:2")
    assert [r.action for r in rig.images.remove(str(image))] == ["untagged", "untagged", "deleted"]


async def test_an_image_that_others_were_made_from_is_not_deleted(rig, rootfs, flow):
    image = await rig.images.import_rootfs(flow(rootfs), "base:1")
    intermediate(rig, "base:1", 1)
    with pytest.raises(Conflict, match="dependent child images"):
        rig.images.remove(str(image), force=True)
    assert rig.images.remove("base:1") == [Removed("untagged", "base:1")]
    assert rig.images.find(str(image)).kind == "intermediate"


async def test_unnamed_parents_go_with_the_last_image(rig, rootfs, flow):
    await rig.images.import_rootfs(flow(rootfs), "base:1")
    one = intermediate(rig, "base:1", 1)
    two = intermediate(rig, str(one), 2)
    rig.images.tag(str(two), "done:1")
    removed = rig.images.remove("done:1")
    assert removed == [
        Removed("untagged", "done:1"),
        Removed("deleted", str(two)),
        Removed("deleted", str(one)),
    ]
    assert rig.images.find("base:1")


async def test_prune_takes_what_has_no_name_and_gives_the_bytes_back(rig, rootfs, tar, flow):
    await rig.images.import_rootfs(flow(rootfs), "base:1")
    lost = await rig.images.import_rootfs(flow(tar({"x": b"1" * 5000})))
    pruned = await rig.images.prune()
    assert pruned.removed == (Removed("deleted", str(lost)),)
    assert pruned.reclaimed > 0
    assert [s.names for s in rig.images.list()] == [("base:1",)]
    everything = await rig.images.prune({"dangling": ["false"]})
    assert Removed("untagged", "base:1") in everything.removed
    assert rig.images.list(all=True) == []
