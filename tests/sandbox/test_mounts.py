"""Mounts of a step: every kind, where they may go, and that their places vanish again."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import stat
from pathlib import Path

import pytest

from ocibuildd import errors
from ocibuildd.executor.untouched import untouched

pytestmark = pytest.mark.asyncio(loop_scope="module")


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def left(box, tree: str) -> list[str]:
    """What a step left in its tree; /etc is copied up for resolv.conf, unchanged and empty."""
    upper = box.upper(tree)
    if (upper / "etc").exists():
        assert untouched(upper, [box.upper("base")]) or len(os.listdir(upper)) > 1
    return [name for name in os.listdir(upper) if name != "etc"]


async def test_a_tmpfs_has_its_size_and_leaves_nothing(box):
    tree = box.new_tree()
    mount = {"kind": "tmpfs", "target": "/scratch/deep", "readonly": False, "size": 1 << 20}
    result = await box.sh("df -k /scratch/deep | tail -1; echo x > /scratch/deep/f", tree=tree, mounts=[mount])
    assert "1024" in result.output
    assert left(box, tree) == []


async def test_a_tmpfs_has_the_mode_of_the_directory_that_it_covers(box):
    mounts = [{"kind": "tmpfs", "target": target, "readonly": False} for target in ("/etc", "/tmp", "/new")]
    result = await box.sh("stat -c %a /etc /tmp /new", mounts=mounts)
    assert result.lines == ["755", "1777", "1777"]


async def test_a_secret_has_mode_and_owner_and_is_not_in_the_layer(box):
    tree = box.new_tree()
    mount = {"kind": "secret", "target": "/run/secrets/key", "readonly": True, "data": encoded(b"s3cret"),
             "mode": 0o400, "uid": 1000, "gid": 1000}
    result = await box.sh("stat -c '%a %u %g' /run/secrets/key; cat /run/secrets/key", tree=tree, mounts=[mount], user="app")
    assert result.lines == ["400 1000 1000", "s3cret"]
    assert left(box, tree) == []


async def test_another_user_cannot_read_a_secret(box):
    mount = {"kind": "secret", "target": "/key", "readonly": True, "data": encoded(b"s3cret")}
    assert (await box.sh("cat /key", mounts=[mount], user="app")).code != 0


async def test_heredoc_files_are_at_dev_pipes(box):
    files = [["EOF", encoded(b"#!/bin/sh\necho ran\n"), 0o755], ["data", encoded(b"\x00\xff"), 0o644]]
    mount = {"kind": "files", "target": "/dev/pipes", "readonly": True, "files": files}
    result = await box.sh("/dev/pipes/EOF; wc -c < /dev/pipes/data; touch /dev/pipes/x", mounts=[mount])
    assert result.lines[:2] == ["ran", "2"]
    assert result.code != 0


async def test_a_cache_keeps_what_steps_write(box):
    path = box.state / "cache-one"
    mount = {"kind": "cache", "target": "/cache", "readonly": False, "path": str(path), "mode": 0o750,
             "uid": 1000, "gid": 1000}
    tree = box.new_tree()
    await box.sh("echo kept > /cache/f", mounts=[mount], user="app", tree=tree)
    result = await box.sh("cat /cache/f; stat -c '%a %u %g' /cache", mounts=[mount])
    assert result.lines == ["kept", "750 1000 1000"]
    assert left(box, tree) == []


async def test_a_cache_that_main_made_becomes_the_sandboxs(box):
    path = box.state / "cache-two"
    path.mkdir()
    mount = {"kind": "cache", "target": "/cache", "readonly": False, "path": str(path)}
    assert (await box.sh("echo x > /cache/f && stat -c %u /cache", mounts=[mount])).lines == ["0"]


async def test_a_cache_starts_as_a_copy_of_its_base(box):
    tree = box.new_tree()
    await box.tree_of(tree, {"seed/": b"", "seed/a/": b"", "seed/a/f": b"from the base", "seed/l": "a/f"})
    mount = {"kind": "cache", "target": "/cache", "readonly": False, "path": str(box.state / "cache-three"),
             "lowers": [tree], "source": "/seed"}
    result = await box.sh("cat /cache/l; echo more > /cache/a/f", mounts=[mount])
    assert result.output == "from the base"
    assert (await box.sh("cat /cache/l", mounts=[mount])).output == "more\n"
    assert (box.upper(tree) / "seed/a/f").read_bytes() == b"from the base"


async def on_a_base(box, **change):
    """A cache mount that begins with a tree's directory."""
    tree = box.new_tree()
    await box.tree_of(tree, {"seed/": b"", "seed/f": b"from the base"})
    return {"kind": "cache", "target": "/cache", "readonly": False, "path": str(box.state / f"cache-{tree}"),
            "lowers": [tree], "source": "/seed", "uid": 1000, "gid": 1000, "mode": 0o750, **change}


async def test_a_cache_is_filled_by_a_job_of_its_own(box):
    based = await on_a_base(box)
    assert await box.client.call("fill", based) == {"filled": True}
    assert await box.client.call("fill", based) == {"filled": False}
    result = await box.sh("cat /cache/f; stat -c ' %a %u %g' /cache", mounts=[based])
    assert result.output == "from the base 750 1000 1000\n"


async def test_what_a_fill_that_was_ended_left_does_not_count(box):
    based = await on_a_base(box)
    half = Path(based["path"] + ".new")
    half.mkdir()
    (half / "part").write_bytes(b"")
    assert (await box.sh("ls /cache", mounts=[based])).lines == ["f"]
    assert not half.exists()


async def test_steps_that_begin_at_once_share_a_cache_with_a_base(box):
    based = await on_a_base(box)
    results = await asyncio.gather(*(box.sh("cat /cache/f", mounts=[based]) for _ in range(4)))
    assert {result.output for result in results} == {"from the base"}


async def test_a_base_that_is_not_there_leaves_no_cache(box):
    based = await on_a_base(box, source="/nosuch")
    with pytest.raises(errors.NotFound, match="mount /cache: source /nosuch"):
        await box.sh("true", mounts=[based])
    path = Path(based["path"])
    assert list(path.parent.glob(f"{path.name}*")) == []


@pytest.mark.parametrize("change", [{"lowers": []}, {"kind": "tmpfs"}, {"path": "relative"}])
async def test_only_a_cache_with_a_base_is_filled(box, change):
    based = await on_a_base(box, **change)
    with pytest.raises(errors.InvalidArgument):
        await box.client.call("fill", based)


async def test_a_part_of_a_chain_is_read_only(box):
    tree = box.new_tree()
    await box.tree_of(tree, {"out/": b"", "out/bin/": b"", "out/bin/tool": b"built"})
    for lowers in ([tree], ["base", tree]):
        mount = {"kind": "chain", "target": "/mnt", "readonly": True, "lowers": lowers, "source": "/out/bin"}
        result = await box.sh("cat /mnt/tool; echo x > /mnt/tool", mounts=[mount])
        assert result.output.startswith("built")
        assert result.code != 0


async def test_one_file_of_a_chain_can_be_mounted(box):
    tree = box.new_tree()
    await box.tree_of(tree, {"f": b"one file"})
    mount = {"kind": "chain", "target": "/opt/here", "readonly": True, "lowers": [tree], "source": "/f"}
    out = box.new_tree()
    assert (await box.run("cat", "/opt/here", mounts=[mount], tree=out)).output == "one file"
    assert left(box, out) == []


async def test_a_writable_chain_throws_writes_away(box):
    tree = box.new_tree()
    await box.tree_of(tree, {"f": b"old"})
    mount = {"kind": "chain", "target": "/mnt", "readonly": False, "lowers": ["base", tree], "source": "/"}
    assert (await box.sh("echo new > /mnt/f; cat /mnt/f", mounts=[mount])).output == "new\n"
    assert (box.upper(tree) / "f").read_bytes() == b"old"


async def test_an_agents_socket_can_be_reached(box, tmp_path):
    path = box.state / "agent.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        mount = {"kind": "socket", "target": "/run/agent.sock", "readonly": False, "path": str(path),
                 "mode": 0o600, "uid": 0, "gid": 0}
        result = await box.sh("stat -c '%F %a %u' /run/agent.sock; nc local:/run/agent.sock < /dev/null", mounts=[mount])
    assert result.lines[0] == "socket 600 0"


@pytest.mark.parametrize("target", ["/", "/proc", "/proc/self", "/sys/kernel", "/dev", "/dev/null", "//proc/..//sys", "/x/../proc/y"])
async def test_nothing_may_be_mounted_over_the_kernels_file_systems(box, target):
    with pytest.raises(errors.InvalidArgument):
        await box.run("true", mounts=[{"kind": "tmpfs", "target": target, "readonly": False}])


@pytest.mark.parametrize("link", ["/proc", "/proc/self/root", "/dev", "/sys/kernel"])
async def test_a_symlink_of_the_image_leads_no_mount_into_proc(box, link):
    tree = box.new_tree()
    await box.tree_of(tree, {"trap": link})
    for target in ("/trap", "/trap/below"):
        mount = {"kind": "tmpfs", "target": target, "readonly": False}
        with pytest.raises((errors.BuildError, OSError)):
            await box.run("true", lowers=["base", tree], mounts=[mount])


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
async def test_an_image_whose_proc_sys_or_dev_is_a_symlink_is_refused(box, name):
    tree = box.new_tree()
    await box.tree_of(tree, {name: "/etc"})
    with pytest.raises(errors.InvalidArgument):
        await box.run("true", lowers=["base", tree])


@pytest.mark.parametrize("link", ["/run/resolv.conf", "../run/systemd/resolve/stub", "/../../../etc2/r"])
async def test_resolv_conf_may_be_a_dangling_symlink(box, link):
    tree, out = box.new_tree(), box.new_tree()
    await box.tree_of(tree, {"etc/": b"", "etc/resolv.conf": link})
    result = await box.sh("cat /etc/resolv.conf && readlink /etc/resolv.conf", lowers=["base", tree], tree=out)
    assert result.code == 0
    assert result.lines[-1] == link
    assert [name for name in os.listdir(box.upper(out)) if name != "etc"] == []


async def test_a_placeholder_that_a_step_fills_elsewhere_is_kept_out_of_harm(box):
    # the step swaps the mount's parent for a symlink to a directory that has a file of the same name
    tree = box.new_tree()
    mount = {"kind": "secret", "target": "/one/two/key", "readonly": True, "data": encoded(b"x")}
    await box.sh(
        "mkdir /canary; : > /canary/key; mv /one/two /one/gone; ln -s /canary /one/two", tree=tree, mounts=[mount],
    )
    upper = box.upper(tree)
    assert (upper / "canary/key").exists()
    assert stat.S_ISLNK((upper / "one/two").lstat().st_mode)


async def test_a_placeholder_that_a_step_uses_stays(box):
    tree = box.new_tree()
    mount = {"kind": "tmpfs", "target": "/work/cache", "readonly": False}
    await box.sh("echo x > /work/file", tree=tree, mounts=[mount])
    assert sorted(os.listdir(box.upper(tree) / "work")) == ["file"]


@pytest.mark.parametrize("source", ["/nope", "/../../etc/passwd-of-the-host", "/up/nope"])
async def test_a_source_that_is_not_there_is_named(box, source):
    tree = box.new_tree()
    await box.tree_of(tree, {"up": "/"})
    mount = {"kind": "chain", "target": "/mnt", "readonly": True, "lowers": [tree], "source": source}
    with pytest.raises(errors.NotFound):
        await box.run("true", mounts=[mount])


async def test_a_chain_of_many_layers_is_mounted(box):
    names = []
    for index in range(140):
        name = f"layer-with-a-rather-long-name-{index:04}"
        names.append(name)
        await box.tree_of(name, {f"f{index}": b"x"})
    result = await box.sh("ls / | grep -c '^f[0-9]'", lowers=["base", *names])
    assert result.output == "140\n"


async def test_mountinfo_tells_nothing_of_the_hosts_paths(box):
    result = await box.run("cat", "/proc/self/mountinfo")
    assert str(box.state) not in result.output
    assert "overlay" in result.output


async def test_fifty_steps_at_once(box):
    results = await asyncio.gather(*(box.run("true") for _ in range(50)))
    assert {result.code for result in results} == {0}


async def test_more_layers_than_overlayfs_takes_are_refused(box):
    with pytest.raises(errors.Unsupported, match="500"):
        await box.run("true", lowers=["base"] * 501)
