"""Sections B and C as far as they concern what nsd's children do with hostile bytes: layers, contexts,
configurations, secrets.  Registries, the API and Dockerfiles are their own suites' business."""

from __future__ import annotations

import base64
import gzip
import io
import os
import resource
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

import pytest
from patience import eventually

from ocibuildd.errors import BuildError

OUTPUT = {"compression": "none", "level": -1, "clamp": None}


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def item(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", pax: dict[str, str] | None = None, **fields):
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, 0o644
    info.pax_headers = pax or {}
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def apply(box, data: bytes, **limits) -> str:
    tree = "i" + os.urandom(8).hex()
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        box.call("apply", {"tree": tree, "lowers": [], "expect_diff_id": "", "limits": limits}, [file.fileno()])
    return tree


def zeros_gz(mebibytes: int) -> bytes:
    """A tar of one file of zeros, compressed 1,000 to 1."""
    info = tarfile.TarInfo("zeros")
    info.size = mebibytes << 20
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(info.tobuf())]
    block = bytes(1 << 20)
    parts += [packer.compress(block) for _ in range(mebibytes)]
    parts += [packer.compress(bytes(1024)), packer.flush()]
    return b"".join(parts)


def test_b50_a_decompression_bomb_ends_at_its_limit(box):
    """By size; by ratio from 1 GiB on (tests/layer)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(BuildError) as caught:
        apply(box, zeros_gz(200), bytes=16 << 20)
    assert caught.value.code in {"too-large", "invalid-argument"}
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 200 << 10)


def test_b50_a_bomb_of_entries_ends_at_its_limit(box):
    data = gzip.compress(tar(*(item(f"f{number}") for number in range(3000))))
    with pytest.raises(BuildError) as caught:
        apply(box, data, entries=1000)
    assert caught.value.code == "too-large"


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"00000000000\0"
    block += b" " * 8 + kind + bytes(100) + b"ustar\x0000" + bytes(247)
    total = sum(block)
    return (block[:148] + b"%06o\0 " % total + block[156:]).ljust(512, b"\0")[:512]


MALFORMED = {
    "size of nonsense": header(b"a", b"zzzzzzzzzzz"),
    "negative size": header(b"a", b"\xff" * 12),
    "huge size": header(b"a", b"\x80" + bytes(3) + struct.pack(">Q", 1 << 62)),
    "size without data": header(b"a", b"00000010000"),
    "bad checksum": header(b"a", b"00000000000")[:148] + b"0000000\0" + header(b"a", b"00000000000")[156:],
    "endless long name": header(b"././@LongLink", b"77777777777", b"L"),
    "pax of nonsense": header(b"x", b"00000000010", b"x") + b"99999999 path=x\n".ljust(512, b"\0"),
    "pax of no length": header(b"x", b"00000000010", b"x") + b"path=x\n".ljust(512, b"\0"),
    "truncated gzip": gzip.compress(tar(item("a", data=os.urandom(4096))))[:-2000],
    "garbage": os.urandom(5000),
    "a zip": b"PK\x03\x04" + os.urandom(2000),
    "long name": tar(item("n" * 70_000)),
    "deep path": tar(item("/".join("d" * 2000), data=b"x")),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_b51_a_malformed_tar_is_refused_soon_and_nsd_lives(box, name):
    pid, begun = box.client.pid, time.monotonic()
    with pytest.raises((BuildError, OSError)):
        apply(box, MALFORMED[name])
    assert time.monotonic() - begun < 10
    assert box.client.pid == pid


def test_b51_devices_and_set_ids_come_to_nothing_on_the_host(box):
    tree = apply(box, tar(
        item("dev-sda", tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o666),
        item("kmem", tarfile.CHRTYPE, devmajor=1, devminor=2, mode=0o666),
        item("posing", tarfile.CHRTYPE, devmajor=0, devminor=0),
        item("su", data=b"#!/bin/sh\n", mode=0o4755), item("shared", tarfile.DIRTYPE, mode=0o7777),
    ))
    root = box.state / "trees" / tree / "fs"
    assert not (root / "dev-sda").exists()
    assert not (root / "kmem").exists()
    assert (root / "su").stat().st_uid not in {0, os.getuid()}


def test_b53_the_applier_is_our_own(box):
    """tarfile's filters are no boundary (CVE-2025-4517 and its kin): the extraction must not use it."""
    source = Path(sys.modules["ocibuildd"].__file__).parent
    used = [path for path in source.rglob("*.py") if "tarfile" in path.read_text() and "extract" in path.read_text()]
    used = [path for path in used if ".extractall(" in path.read_text() or "import tarfile" in path.read_text()]
    assert not used


@pytest.mark.parametrize("key", ["user.overlay.opaque", "user.overlay.redirect", "trusted.overlay.opaque",
                                 "trusted.overlay.metacopy", "security.selinux", "security.ima", "user.overlay.whiteout"])
def test_b54_attributes_that_steer_overlayfs_do_not_come_from_an_image(box, key):
    tree = apply(box, tar(item("d", tarfile.DIRTYPE, pax={f"SCHILY.xattr.{key}": "y"}, mode=0o755)))
    path = box.state / "trees" / tree / "fs/d"
    assert key not in os.listxattr(path)
    result = box.run("ls -d /d /bin/sh", lowers=[box.base, tree])
    assert result.out.split() == ["/bin/sh", "/d"]


@pytest.mark.parametrize(("name", "value"), [
    ("LD_PRELOAD", "/tmp/evil.so"), ("LD_LIBRARY_PATH", "/tmp/."), ("PYTHONPATH", "/tmp/."), ("PYTHONHOME", "/tmp/."),
    ("PYTHONSTARTUP", "/tmp/x"), ("BASH_ENV", "/tmp/x"), ("GCONV_PATH", "/tmp/."), ("NOTIFY_SOCKET", "/run/x"),
])
def test_b55_variables_of_an_image_reach_the_step_and_nobody_else(box, name, value):
    lowers = box.variant({"tmp/evil.so": b"\x7fELF", "tmp/os.py": b"open('/pwned','w')", "tmp/x": b"touch /pwned\n"})
    result = box.run("env; ls /pwned", lowers=lowers, env=[["PATH", "/bin"], [name, value]], user="alice")
    assert f"{name}={value}" in result.out
    assert "No such file" in result.out
    environment = Path(f"/proc/{box.client.pid}/environ").read_bytes()
    assert value.encode() not in environment


@pytest.mark.parametrize("value", ["a\nb", "\x1b]0;x\x07", "é\udcff", "=", "%s%n", "$(id)", "x" * 100_000])
def test_b55_values_are_passed_as_they_are(box, value):
    result = box.python("""
        import hashlib
        print(hashlib.sha256(os.environb[b"VALUE"]).hexdigest())
    """, env=[["PATH", "/usr/bin"], ["VALUE", value]])
    import hashlib

    wanted = hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
    assert result.out.strip() == wanted


def pack(box, directory: Path, paths: list[str], **copy) -> bytes:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    spec = {"dest": "/", "chown": "", "chmod": "", "link": False, "parents": False, "exclude": [], "unpack": False,
            "is_add": False, **copy}
    try:
        with tempfile.TemporaryFile() as blob:
            box.call("pack", {"sources": [{"fd": 1, "paths": paths}], "copy": spec, "lowers": [box.base], "output": OUTPUT},
                     [blob.fileno(), fd])
            blob.seek(0)
            return blob.read()
    finally:
        os.close(fd)


@pytest.fixture
def context():
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("path", ["../{name}", "{canary}/file", "../../../../../../{canary}/file", "link", "directory/file", "up/{name}"])
def test_c60_a_copy_takes_nothing_from_outside_its_context(box, canary, context, path):
    (context / "link").symlink_to(canary / "file")
    (context / "directory").symlink_to(canary)
    (context / "up").symlink_to("..")
    try:
        data = pack(box, context, [path.format(canary=canary, name=canary.name + "/file")])
    except (BuildError, OSError):
        return
    assert b"untouched" not in data


def test_c60_a_fifo_a_socket_and_a_device_do_not_block_a_copy(box, context):
    import socket

    os.mkfifo(context / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(context / "sock"))
        (context / "file").write_text("plain")
        begun = time.monotonic()
        try:
            data = pack(box, context, ["."])
            assert b"plain" in data
        except (BuildError, OSError):
            pass
    assert time.monotonic() - begun < 10


def test_c66_a_secret_is_in_no_layer(box):
    secret = b"canary-" + base64.b32encode(os.urandom(10))
    tree = "s" + os.urandom(8).hex()
    mount = {"kind": "secret", "target": "/run/secrets/key", "readonly": True, "data": base64.b64encode(secret).decode(),
             "mode": 0o400, "uid": 0, "gid": 0}
    result = box.run("cat /run/secrets/key; stat -c %a /run/secrets/key; echo x > /run/secrets/key || true; touch /done",
                     tree=tree, mounts=[mount])
    assert secret.decode() in result.out
    assert "400" in result.out
    with tempfile.TemporaryFile() as blob:
        box.call("diff", {"tree": tree, "lowers": [box.base], "output": OUTPUT}, [blob.fileno()])
        blob.seek(0)
        data = blob.read()
    assert b"done" in data
    assert secret not in data
    assert b"secrets/key" not in data
    files = [path for path in (box.state / "trees" / tree).rglob("*") if path.is_file()]
    assert not any(secret in path.read_bytes() for path in files if os.access(path, os.R_OK))


def test_c66_a_secret_is_in_no_command_line(box):
    secret = "canary" + os.urandom(10).hex()
    mount = {"kind": "secret", "target": "/key", "readonly": True, "data": base64.b64encode(secret.encode()).decode()}
    number = f"75{os.getpid()}"
    spec = box.spec(["/bin/sleep", number], mounts=[mount])

    async def look():
        import asyncio

        running = asyncio.create_task(box.start(spec))

        def listed() -> bytes:
            seen = subprocess.run(["ps", "axeww"], capture_output=True, check=True).stdout
            return seen if f"sleep {number}".encode() in seen else b""

        seen = await eventually("the step", listed)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return seen

    assert secret.encode() not in box.wait(look())


def test_c60_the_race_of_a_directory_and_a_link_leads_nowhere(box, canary, context):
    """A context that changes while it is copied."""
    import threading

    (context / "d").mkdir()
    (context / "d" / "file").write_text("mine")
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.rename(context / "d", context / "real")
            os.symlink(canary, context / "d")
            os.unlink(context / "d")
            os.rename(context / "real", context / "d")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(30):
            try:
                assert b"untouched" not in pack(box, context, ["d/file"])
            except (BuildError, OSError):
                continue
    finally:
        stop.set()
        thread.join()
