"""The jobs on layers, through nsd: what one writes the next one reads."""

from __future__ import annotations

import base64
import io
import os
import tarfile

import pytest

from ocibuildd import errors

pytestmark = pytest.mark.asyncio(loop_scope="module")

GZIP = {"compression": "gzip", "level": -1, "clamp": None}
COPY = {"dest": "/app/", "chown": "", "chmod": "", "link": False, "parents": False, "exclude": [],
        "unpack": None, "is_add": False}


async def output(box, job, args, fds=()):
    """(result, what the job wrote)."""
    fd = os.memfd_create("out")
    try:
        result = await box.client.call(job, args, [fd, *fds])
        return result, os.pread(fd, 1 << 26, 0)
    finally:
        os.close(fd)


async def test_a_steps_diff_can_be_applied_elsewhere(box):
    tree, again = box.new_tree(), box.new_tree()
    await box.sh("echo hi > /new; chown 1000:1000 /new; rm /etc/group; mkdir -m 700 /d", tree=tree)
    packed, blob = await output(box, "diff", {"tree": tree, "lowers": ["base"], "output": GZIP})
    assert packed["entries"] >= 3
    assert not packed["empty"]
    applied = await box.apply(again, blob, ("base",))
    assert applied["diff_id"] == packed["diff_id"]
    assert applied["digest"] == packed["digest"]
    result = await box.sh("cat /new; stat -c '%u %a' /new /d; test -e /etc/group || echo gone", lowers=["base", again])
    assert result.lines == ["hi", "1000 644", "0 700", "gone"]


async def test_a_step_that_changes_nothing_gives_an_empty_layer(box):
    tree = box.new_tree()
    await box.sh("cat /etc/resolv.conf; ls /", tree=tree)
    packed, blob = await output(box, "diff", {"tree": tree, "lowers": ["base"], "output": GZIP})
    assert packed["empty"]
    assert blob == b""


async def test_a_copy_from_a_directory_becomes_a_layer(box, tmp_path):
    (tmp_path / "main.py").write_text("print()")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    sources = [{"fd": 1, "paths": ["main.py"], "ignore": []},
               {"inline": [["note", base64.b64encode(b"text").decode(), 0o644]], "paths": []}]
    args = {"sources": sources, "copy": COPY, "lowers": ["base"], "output": GZIP}
    try:
        packed, blob = await output(box, "pack", args, [fd])
    finally:
        os.close(fd)
    assert packed["entries"] >= 2
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        assert {"app/main.py", "app/note"} <= set(tar.getnames())


async def test_a_checksum_follows_content_and_not_time(box, tmp_path):
    (tmp_path / "f").write_text("one")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    args = {"source": {"fd": 0, "paths": ["f"]}, "copy": COPY}
    try:
        first = await box.client.call("checksum", args, [fd])
        os.utime(tmp_path / "f", (1, 1))
        second = await box.client.call("checksum", args, [fd])
        (tmp_path / "f").write_text("two")
        third = await box.client.call("checksum", args, [fd])
    finally:
        os.close(fd)
    assert first["digest"] == second["digest"] != third["digest"]


async def test_a_chain_can_be_looked_into(box):
    found = await box.client.call("lookup", {"lowers": ["base"], "stat": ["/bin/sh"], "read": ["/etc/passwd"]})
    assert "/bin/sh" in found["stat"]
    assert found["read"]["/etc/passwd"]


async def test_a_chain_becomes_a_tar(box):
    tree = box.new_tree()
    await box.sh("rm /etc/group; echo x > /x", tree=tree)
    _, data = await output(box, "archive", {"lowers": ["base", tree]})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = set(tar.getnames())
    assert {"x", "etc/passwd"} <= names
    assert "etc/group" not in names


async def test_two_chains_are_compared(box):
    tree = box.new_tree()
    await box.sh("rm /etc/group; echo x > /x", tree=tree)
    found = await box.client.call("compare", {"lowers_a": ["base"], "lowers_b": ["base", tree]})
    assert {(kind, path) for kind, path, _ in found["changes"]} >= {("added", "/x"), ("removed", "/etc/group")}


async def test_trees_of_subordinate_ids_are_removed_whatever_their_modes(box):
    tree = box.new_tree()
    await box.sh("mkdir -p /a/b/c; echo x > /a/b/c/f; chown -R 1000 /a; chmod -R 000 /a", tree=tree)
    path = box.state / "trees" / tree
    removed = await box.client.call("remove", {"paths": [str(path), str(path) + "-gone"]})
    assert removed["files"] >= 4
    assert not path.exists()


async def test_trees_are_measured_whatever_their_modes(box):
    tree = box.new_tree()
    await box.sh("mkdir /a; head -c 100000 /dev/zero > /a/f; chown -R 1000 /a; chmod 700 /a", tree=tree)
    path = box.state / "trees" / tree
    found = await box.client.call("measure", {"paths": [str(path), str(path) + "-gone"]})
    assert found["sizes"][0] >= 100_000
    assert found["sizes"][1] == 0


@pytest.mark.parametrize("path", ["/", "relative", "/etc/nothing", "{state}", "{state}/../x"])
async def test_only_what_is_below_the_state_directory_is_removed(box, path):
    with pytest.raises(errors.InvalidArgument):
        await box.client.call("remove", {"paths": [path.format(state=box.state)]})


async def test_a_tar_is_unpacked_as_plain_files_of_ours(box):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("d/f")
        info.size, info.uid = 3, 4242
        tar.addfile(info, io.BytesIO(b"abc"))
    target = box.state / "unpacked"
    target.mkdir()
    fd = os.memfd_create("tar")
    os.write(fd, buffer.getvalue())
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        assert (await box.client.call("unpack", {"path": str(target), "limits": {}}, [fd]))["files"] >= 1
    finally:
        os.close(fd)
    assert (target / "d/f").read_bytes() == b"abc"
    assert (target / "d/f").stat().st_uid == os.geteuid()


async def test_a_tree_is_made_once(box):
    with pytest.raises(errors.Conflict):
        await box.tree_of("base", {"f": b""})
    with pytest.raises(errors.InvalidArgument):
        await box.tree_of("../escape", {"f": b""})


async def test_a_wrong_diff_id_is_told(box):
    fd = os.memfd_create("layer")
    os.write(fd, b"\0" * 1024)
    os.lseek(fd, 0, os.SEEK_SET)
    args = {"tree": box.new_tree(), "lowers": [], "expect_diff_id": "sha256:" + "0" * 64, "limits": {}}
    try:
        with pytest.raises(errors.Corrupt):
            await box.client.call("apply", args, [fd])
    finally:
        os.close(fd)
