"""Section A, what images and steps do with paths: mounts, users, working directories, job arguments."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

import pytest

from ocibuildd.errors import BuildError
from ocibuildd.sandbox.spec import plan

SWAP = """
import os, time
os.chdir("{where}")
end = time.monotonic() + {seconds}
count = 0
while time.monotonic() < end or count < 1000:
    try:
        os.rename("{name}", "real")
        os.symlink("{target}", "{name}")
        os.unlink("{name}")
        os.rename("real", "{name}")
    except OSError:
        pass
    count += 1
print(count)
"""


def cache(box, name: str, target: str, **fields) -> dict:
    directory = box.state / "cache" / name
    directory.parent.mkdir(parents=True, exist_ok=True)
    return {"kind": "cache", "target": target, "path": str(directory), "readonly": False, "mode": 0o777, **fields}


def swapper(box, where: str, name: str, target: str, seconds: float, mounts: list) -> dict:
    code = SWAP.format(where=where, name=name, target=target, seconds=seconds)
    return box.spec(["/usr/bin/python3", "-S", "-B", "-c", code], mounts=mounts)


@pytest.mark.parametrize("row", ["a03", "a23"])
def test_a03_a23_a_shared_cache_whose_directories_turn_to_links_leads_nowhere(box, canary, row):
    """≥ 1,000 swaps while other steps mount inside the swapped directory."""
    shared = cache(box, f"race-{row}", "/data")
    box.run("mkdir -p /data/a/b", mounts=[shared])
    nested = [shared, {"kind": "tmpfs", "target": "/data/a/b", "readonly": False}]
    look = "grep -c '/b rw.* tmpfs ' /proc/self/mountinfo"
    victim = box.spec(["/bin/sh", "-c", f"touch /data/a/b/inside; cat {canary}/file; ls {canary}; {look}"], mounts=nested)
    attack = swapper(box, "/data", "a", f"{canary}", 1.5, [shared])
    before = canary.stat().st_ctime_ns

    async def race():
        import asyncio

        attacker = asyncio.create_task(box.start(attack))
        seen = []
        while not attacker.done():
            try:
                seen.append((await box.start(victim)).out)
            except (BuildError, OSError) as error:
                seen.append(str(error))
        return await attacker, seen

    attacker, seen = box.wait(race())
    assert int(attacker.out) >= 1000
    assert len(seen) > 5
    assert not any("untouched" in text for text in seen)
    assert canary.stat().st_ctime_ns == before, "something was made there, and taken away again"


@pytest.mark.parametrize("link", ["{canary}", "../../../../../../..{canary}", "/proc/1/root{canary}"])
@pytest.mark.parametrize("there", [False, True])
def test_a03_a_mount_point_behind_a_link_is_made_inside(box, canary, link, there):
    """What the race is for, without it: the link is there when the mount is made.  The host has the directory, or not."""
    link = link.format(canary=canary)
    lowers = box.variant({"a": f"->{link}"})
    if there:
        (canary / "b").mkdir()
    before = canary.stat().st_ctime_ns
    try:
        mount = {"kind": "tmpfs", "target": "/a/b", "readonly": False}
        if link.startswith("/proc"):
            with pytest.raises(BuildError, match="/a/b"):
                box.run("true", lowers=lowers, mounts=[mount])
        else:
            points = [line.split()[4] for line in box.run("cat /proc/self/mountinfo", lowers=lowers, mounts=[mount]).out.splitlines()]
            assert f"{canary}/b" in points
        assert canary.stat().st_ctime_ns == before, "something was made there, and taken away again"
    finally:
        if there:
            (canary / "b").rmdir()


@pytest.mark.parametrize("link", ["/", "../../../../../../..", "/proc/1/root", "/proc/self/root"])
def test_a15_a_source_that_links_to_the_root_is_the_root_of_its_stage(box, canary, link):
    stage = box.variant({"x": f"->{link}", "stage-marker": b""})
    mount = {"kind": "chain", "lowers": stage, "source": "/x", "target": "/mnt", "readonly": True}
    try:
        result = box.run(f"ls /mnt; cat /mnt{canary}/file", mounts=[mount])
    except (BuildError, OSError):
        return
    assert "untouched" not in result.out
    assert "stage-marker" in result.out


@pytest.mark.parametrize("link", ["{canary}", "../../../../../../..{canary}", "/proc/self/root{canary}"])
@pytest.mark.parametrize("source", ["/x", "/x/."])
def test_a15_a_source_that_links_to_a_directory_of_the_host_is_not_there(box, canary, source, link):
    stage = box.variant({"x": "->" + link.format(canary=canary)})
    mount = {"kind": "chain", "lowers": stage, "source": source, "target": "/mnt", "readonly": True}
    with pytest.raises(BuildError, match=r"No such file|Too many levels"):
        box.run("cat /mnt/file", mounts=[mount])


@pytest.mark.parametrize("cache_id", ["../../..", "/etc", "a/../../b", "x\0y", "a" * 10_000, "", ".", "é"])
@pytest.mark.parametrize("sharing", ["shared", "private", "locked"])
def test_a16_the_id_of_a_cache_is_no_path(tmp_path, cache_id, sharing):
    from ocibuildd.store.cache_mounts import CacheMounts
    from ocibuildd.store.db import Database

    (tmp_path / "cache").mkdir()
    database = Database(tmp_path / "db")
    try:
        with CacheMounts(tmp_path, database).try_acquire(cache_id, sharing) as grip:
            assert grip.path.parent.parent == tmp_path / "cache"
            assert grip.path.parent.name.isalnum()
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"cache"}
    finally:
        database.close()


def test_a17_a_source_swapped_by_another_step_is_never_the_host_s(box, canary):
    stage = [box.base]
    shared = cache(box, "toctou", "/data")
    box.run("mkdir -p /data/sub; touch /data/sub/mine", mounts=[shared])
    attack = swapper(box, "/data", "sub", f"{canary}", 1.0, [shared])
    tree_mount = {"kind": "chain", "lowers": stage, "source": "/data/sub", "target": "/mnt", "readonly": True}
    probe = box.spec(["/bin/sh", "-c", "cat /mnt/file /data/sub/file; ls /mnt"], mounts=[shared, tree_mount])

    async def race():
        import asyncio

        attacker = asyncio.create_task(box.start(attack))
        seen = []
        while not attacker.done():
            try:
                seen.append((await box.start(probe)).out)
            except (BuildError, OSError) as error:
                seen.append(str(error))
        return seen

    assert not any("untouched" in text for text in box.wait(race()))


@pytest.mark.parametrize("name", ["passwd", "group"])
@pytest.mark.parametrize("link", ["{host}", "../../../../../../..{host}", "/proc/self/root{host}", "/proc/1/root{host}"])
def test_a18_a_user_database_that_is_a_link_is_looked_up_inside_the_image(box, name, link):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        host = Path(directory, name)
        host.write_text("hostly:x:4321:4321::/:/bin/sh\n" if name == "passwd" else "hostly:x:4321:alice\n")
        lowers = box.variant({f"etc/{name}": "->" + link.format(host=host)})
        user = "hostly" if name == "passwd" else "0:hostly"
        with pytest.raises((BuildError, OSError)):
            box.run("id", lowers=lowers, user=user)


def test_a19_a_huge_user_database_is_not_read_to_its_end(box):
    lowers = box.variant({"etc/passwd": b""})
    tree = box.state / "trees" / lowers[-1] / "fs/etc/passwd"
    start = time.monotonic()
    # made inside, as a step would: the tree belongs to subordinate ids
    grown = "g" + os.urandom(8).hex()
    box.run("truncate -s 1G /etc/passwd 2>/dev/null || dd if=/dev/null of=/etc/passwd bs=1 seek=1G", lowers=lowers, tree=grown)
    with pytest.raises((BuildError, OSError)):
        box.run("id", lowers=[*lowers, grown], user="nobody-knows")
    assert time.monotonic() - start < 5
    assert tree.stat().st_size == 0


@pytest.mark.parametrize("name", ["etc/passwd", "etc/group"])
@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a19_a_user_database_that_is_no_file_does_not_block(box, name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, 0o666
    lowers = box.variant({name: info})
    start = time.monotonic()
    try:
        box.run("id", lowers=lowers, user="alice", limits={"timeout": 10})
    except (BuildError, OSError):
        pass
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("link", ["/proc/self/environ", "/proc/1/status", "/proc/self/fd/0"])
def test_a18_a_user_database_is_no_file_of_the_kernel_s(box, link):
    with pytest.raises(BuildError, match="/etc/passwd"):
        box.run("id", lowers=box.variant({"etc/passwd": f"->{link}"}), user="alice")


IMPASSABLE = {"loop": "/etc/{name}", "of the kernel": "/proc/self/fd/0", "read-only": "/sys/x", "through a file": "/etc/passwd/x"}


@pytest.mark.parametrize("name", ["resolv.conf", "hosts", "hostname"])
@pytest.mark.parametrize("link", IMPASSABLE.values(), ids=IMPASSABLE)
def test_a07_a_file_of_ours_that_has_no_place_in_the_image_is_named(box, name, link):
    lowers = box.variant({f"etc/{name}": "->" + link.format(name=name)})
    with pytest.raises(BuildError, match=f"/etc/{name}: in the image: "):
        box.run("true", lowers=lowers)


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a07_a_file_of_ours_covers_whatever_is_no_directory(box, kind):
    info = tarfile.TarInfo("etc/hostname")
    info.type = kind
    assert box.run("cat /etc/hostname", lowers=box.variant({"etc/hostname": info})).out == "box\n"


def test_a20_a_number_is_never_taken_for_a_name(box):
    lowers = box.variant({"etc/passwd": b"1000:x:0:0::/:/bin/sh\n4242:x:0:0::/:/bin/sh\n"})
    assert box.run("id -u", lowers=lowers, user="4242").out.strip() == "4242"
    assert box.run("id -u", lowers=lowers, user="1000").out.strip() == "1000"


@pytest.mark.parametrize("user", ["0:evil", ":", "4294967296", "-1", "nobody-knows", "0:-1", "0:4294967296", "99999999999999999999", "root:root:root", "a\nb", "0x0", "+1", " 0", "１"])
def test_a21_a_user_that_makes_no_sense_is_refused(box, user):
    try:
        result = box.run("id -u; id -g", user=user)
    except (BuildError, OSError):
        return
    assert result.code != 0, result.out


@pytest.mark.parametrize(("key", "value"), [
    ("security", "unconfined"), ("security", ""), ("security", None), ("security", "INSECURE"), ("security", 1),
    ("network", "bridge"), ("network", "container:x"), ("network", None), ("network", "HOST"), ("network", ["host"]),
])
def test_a22_an_unknown_mode_is_refused_and_switches_nothing_off(box, key, value):
    with pytest.raises(BuildError):
        box.run("true", **{key: value})


def test_a24_a_placeholder_is_removed_only_where_it_was_made(box, canary):
    inner = canary / "b"
    inner.mkdir()
    (inner / "c").mkdir()
    try:
        tree = "p" + os.urandom(8).hex()
        script = f"mv /a /moved 2>/dev/null || true; rm -rf /a; ln -s {canary} /a; ls -la / >/dev/null"
        mount = {"kind": "tmpfs", "target": "/a/b/c", "readonly": False}
        result = box.run(script, mounts=[mount], tree=tree)
        assert result.outcome["reason"] == "exit"
        assert (inner / "c").is_dir()
    finally:
        (inner / "c").rmdir()
        inner.rmdir()


def test_a24_what_a_step_put_in_the_place_of_a_placeholder_is_its_own(box):
    """Moved away and made anew, empty: it must not be taken for ours."""
    tree = "p" + os.urandom(8).hex()
    mounts = [{"kind": "tmpfs", "target": "/a/b/c", "readonly": False},
              {"kind": "secret", "target": "/x/y/z", "data": "", "readonly": True}]
    result = box.run("mv /a/b /a/old; mkdir /a/b; mv /x /old; mkdir -p /x/y; touch /x/y/z", mounts=mounts, tree=tree)
    assert result.code == 0, result.out
    upper = box.state / "trees" / tree / "fs"
    assert (upper / "a/b").is_dir()
    assert (upper / "x/y/z").is_file()
    assert not (upper / "a/old/c").exists()
    assert not (upper / "old/y/z").exists()


FUZZ = [
    ("lowers", "x"), ("lowers", [1]), ("lowers", ["../../etc"]), ("lowers", ["a/b"]), ("lowers", [""]), ("lowers", None),
    ("tree", "../x"), ("tree", "/etc"), ("tree", 7), ("args", []), ("args", "sh"), ("args", [None]), ("args", ["\0"]),
    ("args", ["x"] * 5000), ("env", [["A=B", "c"]]), ("env", [["A"]]), ("env", {"A": "b"}), ("cwd", 5), ("cwd", "\0"),
    ("mounts", [{}]), ("mounts", [{"kind": "dir", "fd": -1, "target": "/x"}]), ("mounts", [{"kind": "dir", "fd": 99, "target": "/x"}]),
    ("mounts", [{"kind": "cache", "target": "/x", "path": "relative", "readonly": False}]),
    ("mounts", [{"kind": "tmpfs", "target": "/x", "size": -1, "readonly": False}]), ("mounts", [[]] * 500),
    ("limits", {"memory": -1}), ("limits", {"pids": "x"}), ("limits", {"unheard-of": 1}), ("limits", [1]), ("limits", {"timeout": 1 << 70}),
    ("hosts", [["a"]]), ("hosts", [["a b", "1.2.3.4"]]), ("hosts", [["a", "nonsense"]]), ("dns", {"servers": ["nonsense"]}),
    ("dns", {"x": []}), ("step", "../x"), ("step", "A"), ("hostname", "a\nb"), ("hostname", "x" * 300), ("tty", "yes"),
    ("no_new_privileges", None), ("user", 5), ("env", [["A", "\0"]]),
]


@pytest.mark.parametrize(("key", "value"), FUZZ)
def test_a26_a_malformed_job_is_refused_and_nsd_lives(box, key, value):
    pid = box.client.pid
    spec = {**box.spec(["/bin/true"]), key: value}
    try:
        outcome = box.wait(box.start(spec)).outcome
        assert key in {"lowers", "cwd"} and outcome["reason"] == "exit"
    except (BuildError, OSError):
        pass
    assert box.client.pid == pid
    assert box.run("echo alive").out == "alive\n"


@pytest.mark.parametrize("job", ["", "nonsense", "../run", "__class__", "run ", None, 5, ["run"]])
def test_a26_an_unknown_job_is_refused_and_nsd_lives(box, job):
    pid = box.client.pid
    with pytest.raises((BuildError, OSError)):
        box.call(job, {})
    assert box.client.pid == pid


@pytest.mark.parametrize("tree", ["..", ".", "a/b", "/etc", "a\0b", "-x", "x" * 300, "a\n"])
def test_a27_a_tree_id_is_never_a_path(box, tree):
    with pytest.raises((BuildError, OSError, ValueError)):
        box.call("lookup", {"lowers": [tree], "stat": ["/"]})
    with pytest.raises(BuildError):
        plan(box.spec(["true"], tree=tree))


@pytest.mark.parametrize("path", ["/", "/tmp/..", "{state}", "{state}/", "{state}/trees/..", "{state}/trees/../..", "{canary}", "relative", "{state}/../{canary_name}"])
def test_a28_what_is_not_the_store_s_is_never_removed(box, canary, path):
    path = path.format(state=box.state, canary=canary, canary_name=canary.name)
    with pytest.raises((BuildError, OSError)):
        box.call("remove", {"paths": [path]})
    assert box.run("echo still here").out == "still here\n"


def tar(*entries) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def item(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"", **pax: str):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax
    info.mode = 0o777
    return info, data


ESCAPES = {
    "dot dot": lambda c: [item(f"../../../../../../../..{c}/evil", data=b"x")],
    "absolute": lambda c: [item(f"{c}/evil", data=b"x")],
    "link then file": lambda c: [item("l", tarfile.SYMTYPE, str(c)), item("l/evil", data=b"x")],
    "link of dots then file": lambda c: [item("l", tarfile.SYMTYPE, f"../../../../../../../..{c}"), item("l/evil", data=b"x")],
    "file over link": lambda c: [item("l", tarfile.SYMTYPE, f"{c}/file"), item("l", data=b"overwritten")],
    "hard link out": lambda c: [item("h", tarfile.LNKTYPE, f"{c}/file"), item("h", data=b"overwritten")],
    "hard link to link": lambda c: [item("l", tarfile.SYMTYPE, f"{c}/file"), item("h", tarfile.LNKTYPE, "l"), item("h", data=b"over")],
    "link as root": lambda c: [item("./", tarfile.SYMTYPE, str(c)), item("evil", data=b"x")],
    "link chain": lambda c: [item("a", tarfile.SYMTYPE, "b"), item("b", tarfile.SYMTYPE, str(c)), item("a/evil", data=b"x")],
    "directory turned link": lambda c: [item("d", tarfile.DIRTYPE), item("d", tarfile.SYMTYPE, str(c)), item("d/evil", data=b"x")],
    "pax path": lambda c: [item("x", data=b"x", path=f"../../../../../../..{c}/evil")],
    "whiteout of dots": lambda c: [item("l", tarfile.SYMTYPE, str(c)), item("l/.wh.file")],
    "opaque through link": lambda c: [item("l", tarfile.SYMTYPE, str(c)), item("l/.wh..wh..opq")],
    "whiteout of parent": lambda _: [item(".wh..."), item(".wh.")],
    "proc self": lambda c: [item("p", tarfile.SYMTYPE, "/proc/self/root"), item(f"p{c}/evil", data=b"x")],
}


@pytest.mark.parametrize("row", ["a29", "b51", "b52"])
@pytest.mark.parametrize("name", ESCAPES)
def test_a29_b51_b52_a_tar_that_points_out_of_its_root_stays_inside(box, canary, name, row):
    """b51: layers.  b52: on top of a layer that has the links.  a29: uploads, unpacked as plain files."""
    entries = ESCAPES[name](canary)
    try:
        if row == "b51":
            box.image(tar(*entries))
        elif row == "b52":
            below = box.image(tar(*entries[:1]))
            box.image(tar(*entries[1:]), lowers=[below])
        else:
            with tempfile.TemporaryFile() as file, tempfile.TemporaryDirectory(dir=box.state) as directory:
                file.write(tar(*entries))
                file.seek(0)
                box.call("unpack", {"path": directory, "limits": {}}, [file.fileno()])
    except (BuildError, OSError):
        pass  # refused
    assert {path.name: path.read_text() for path in canary.iterdir()} == {"file": "untouched"}


@pytest.mark.parametrize("link", ["{canary}", "../../../../../..{canary}"])
def test_a30_a_working_directory_through_a_link_is_made_inside(box, canary, link):
    lowers = box.variant({"w": "->" + link.format(canary=canary)})
    try:
        out = box.run("pwd; cat file", lowers=lowers, cwd="/w/sub").out
    except (BuildError, OSError):
        out = ""
    assert "untouched" not in out
    with tempfile.TemporaryFile() as blob:
        copy = {"dest": "/w/deeper", "mkdir": True, "chown": "", "chmod": "", "link": False, "parents": False,
                "exclude": [], "unpack": False, "is_add": False}
        output = {"compression": "none", "level": -1, "clamp": None}
        try:
            box.call("pack", {"sources": [], "copy": copy, "lowers": lowers, "output": output}, [blob.fileno()])
        except (BuildError, OSError):
            return


def test_a31_no_program_of_an_image_decompresses_its_layers(box):
    import gzip

    script = b"#!/bin/sh\necho ran > /tmp/ran\nexec /bin/cat\n"
    names = ("xz", "unpigz", "gzip", "zstd", "unxz", "pigz", "tar")
    programs = {f"usr/bin/{name}": script for name in names} | {f"bin/{name}": script for name in names}
    lowers = box.variant(programs)
    top = box.image(gzip.compress(tar(item("top", data=b"top"))), lowers=lowers)
    assert box.run("cat /top; test -e /tmp/ran && echo RAN", lowers=[*lowers, top]).out == "top"


def test_a32_nothing_is_imported_from_inside_an_image(box):
    import sys

    evil = b"open('/pwned', 'w').write('x')\n"
    names = ("pwd", "grp", "encodings/idna", "encodings/latin_1", "encodings/cp437", "locale", "traceback", "linecache", "tokenize", "stringprep")
    places = {path.lstrip("/") for path in sys.path if path.startswith("/") and not path.endswith(".zip")}
    lowers = box.variant({
        **{f"{place}/{name}.py": evil for place in sorted(places) for name in names},
        "etc/nsswitch.conf": b"passwd: evil\ngroup: evil\n", "lib/x86_64-linux-gnu/libnss_evil.so.2": b"\x7fELF",
    })
    mounts = [{"kind": "tmpfs", "target": "/m", "readonly": False}]
    for user in ("alice", "0:wheel"):
        assert box.run("ls /pwned /tmp", lowers=lowers, user=user, mounts=mounts, hosts=[["é.example", "1.2.3.4"]][:0]).out.count("pwned") == 1
    with pytest.raises((BuildError, OSError)):
        box.run("true", lowers=lowers, user="nobody-knows")
