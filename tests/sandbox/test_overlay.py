"""Root file systems without the kernel's overlayfs: by fuse-overlayfs, and as copies.  All rungs give the same."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
from patience import eventually
from sandboxes import busybox_layer, opened

from ocibuildd import errors
from ocibuildd.sandbox import launch, roots, site

PLAIN = {"compression": "none", "level": -1, "clamp": None}
FIRST = "mkdir -p /a/b /c; echo 1 > /a/b/f; ln /a/b/f /a/g; echo 2 > /c/f; ln -s f /c/l; chown 5:6 /c/f; mkfifo /p"
SECOND = "rm -r /a/b; mkdir /a/b; echo 3 > /a/b/n; rm /c/l /etc/group; echo 4 >> /c/f; mv /etc/passwd /etc/p; rm -r /root"
THIRD = "ls -A /a/b /c /etc; cat /a/b/n /c/f /a/g; stat -c '%u:%g' /c/f; test -e /root || echo gone; test -p /p && echo pipe"


def rung(mode: str):
    reason = roots.fuse_problem() if mode == "fuse" else ""
    return pytest.param(mode, marks=pytest.mark.skipif(bool(reason), reason=reason))


RUNGS = [rung("kernel"), rung("fuse"), rung("copy")]


async def layer(box, tree, lowers):
    """Name, kind, owner, mode and content of what a step's layer has."""
    fd = os.memfd_create("layer")
    try:
        packed = await box.client.call("diff", {"tree": tree, "lowers": lowers, "output": PLAIN}, [fd])
        found = {}
        if packed["empty"]:
            return found
        with tarfile.open(fileobj=io.BytesIO(os.pread(fd, 1 << 26, 0))) as tar:
            for item in tar:
                reader = tar.extractfile(item) if item.isreg() else None
                data = reader.read() if reader else b""
                found[item.name] = (item.type, item.linkname, item.uid, item.gid, item.mode, data)
        return found
    finally:
        os.close(fd)


async def played(state, mode):
    """Three steps, one on another: what the first two's layers are and what the third says."""
    box = await opened(state, overlay=mode)
    try:
        assert box.client.capabilities.overlay == mode
        await box.sh(FIRST, tree="one")
        await box.sh(SECOND, tree="two", lowers=["base", "one"])
        third = await box.sh(THIRD, lowers=["base", "one", "two"])
        empty = await box.sh("true", tree="three", lowers=["base", "one", "two"])
        assert (third.code, empty.code) == (0, 0)
        second = await layer(box, "two", ["base", "one"])
        marks = [second.pop(name, None) for name in ("a/b/.wh..wh..opq", "a/b/.wh.f")]
        assert any(marks)  # a directory that was made anew is opaque, or has whiteouts
        return (
            await layer(box, "one", ["base"]), second, third.lines,
            await layer(box, "three", ["base", "one", "two"]),
        )
    finally:
        await box.client.close()


@pytest.mark.parametrize("mode", [rung("fuse"), rung("copy")])
async def test_a_lower_rung_gives_the_same_layers_and_the_same_root(state_dir, mode):
    expected = await played(state_dir / "kernel", "kernel")
    assert "etc/.wh.group" in expected[1]
    assert await played(state_dir / mode, mode) == expected
    assert not expected[3]


@pytest.mark.parametrize("mode", RUNGS)
async def test_whiteouts_and_replaced_directories_of_an_image_hide_what_is_below(state_dir, mode):
    box = await opened(state_dir, overlay=mode)
    try:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name in ("etc/.wh.group", "home/.wh..wh..opq", "home/new"):
                tar.addfile(tarfile.TarInfo(name))
        await box.apply("top", buffer.getvalue(), ("base",))
        result = await box.sh("ls -A /home; test -e /etc/group || echo gone", lowers=["base", "top"])
        assert result.lines == ["new", "gone"]
    finally:
        await box.client.close()


@pytest.mark.parametrize("mode", RUNGS)
async def test_no_mount_and_no_process_stays(state_dir, mode):
    box = await opened(state_dir, overlay=mode)
    try:
        mounts = [{"kind": "chain", "target": "/m", "lowers": ["base", "two"], "source": "bin", "readonly": True}]
        await box.apply("two", busybox_layer())
        result = await box.sh("test -x /m/busybox", lowers=["base", "two"], mounts=mounts)
        assert result.code == 0, result.output
        read = {"lowers": ["base", "two"], "stat": ["/etc/passwd"], "read": []}
        assert (await box.client.call("lookup", read))["stat"]
        assert await eventually("its servers end", lambda: not servers(state_dir))
        assert await eventually("tmp is empty", lambda: not list((state_dir / "tmp").iterdir()))
    finally:
        await box.client.close()


def servers(state):
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read()
        except OSError:
            continue
        if os.fsencode(state) in command and b"fuse-overlayfs" in command:
            found.append(pid)
    return found


async def test_the_limit_of_what_a_step_writes_does_not_count_the_copy(state_dir):
    box = await opened(state_dir, overlay="copy")
    try:
        quiet = await box.sh("sleep 1", limits={"upper_bytes": 100_000})
        assert quiet.outcome["reason"] == "exit"
        loud = await box.sh("dd if=/dev/zero of=/f bs=1000000 count=3; sleep 9", limits={"upper_bytes": 1_000_000})
        assert loud.outcome["reason"] == "disk-limit"
    finally:
        await box.client.close()


@pytest.mark.parametrize("mode", [rung("fuse")])
async def test_what_fuse_overlayfs_complains_of_is_told(state_dir, mode):
    (state_dir / "tmp").mkdir()
    state = os.fsencode(state_dir)
    with pytest.raises(errors.Unsupported, match=r"ended with 1: .*missing"):
        roots.fuse(state, [state + b"/missing"])
    assert not list((state_dir / "tmp").iterdir())


async def test_whole_roots_hide_what_is_below_on_every_rung(state_dir):
    box = await opened(state_dir, overlay="copy")
    await box.sh("rm /etc/group", tree="one")
    await box.client.close()
    box.client = await launch.start(state_dir, config={"network": False, "overlay": "kernel"})
    try:
        assert (await box.sh("test -e /etc/group", lowers=["base", "one"])).code == 1
        assert set(await layer(box, "one", ["base"])) == {"etc", "etc/.wh.group"}
    finally:
        await box.client.close()


def test_the_best_rung_that_works_is_taken(monkeypatch):
    broken = {"overlay": "Invalid argument", "rename": ""}
    monkeypatch.setattr(roots, "fuse_problem", lambda: "")
    assert site._choose_overlay("", {"overlay": "", "rename": ""}) == "kernel"
    assert site._choose_overlay("", broken) == "fuse"
    monkeypatch.setattr(roots, "fuse_problem", lambda: "/dev/fuse: Permission denied")
    assert site._choose_overlay("", broken) == "copy"
    with pytest.raises(errors.Unsupported, match="Permission denied"):
        site._choose_overlay("fuse", broken)
    with pytest.raises(errors.InvalidArgument):
        site._choose_overlay("best", broken)
