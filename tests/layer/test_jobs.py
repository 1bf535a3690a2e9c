"""The jobs of a real nsd: layers packed, kept, applied, compared."""

from __future__ import annotations

import os
import random

from ocibuildd.sandbox import launch

OUTPUT = {"compression": "gzip", "level": -1, "clamp": None}
SPEC = {
    "dest": "/app/", "chown": "", "chmod": "", "link": False, "parents": False, "exclude": [], "unpack": False,
    "is_add": False, "epoch": 0,
}


async def pack(nsd, tmp_path, name, reuse=None, blob=None):
    """(result, path of the blob)."""
    context = os.open(tmp_path / "context", os.O_PATH | os.O_DIRECTORY)
    out = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT)
    fds = [out, context]
    args = {"sources": [{"fd": 1, "paths": ["."]}], "copy": SPEC, "lowers": [], "output": OUTPUT}
    if reuse is not None:
        args["reuse"] = {"segments": reuse}
        if blob is not None:
            fds.append(os.open(blob, os.O_RDONLY))
            args["reuse"]["fd"] = 2
    try:
        return await nsd.call("pack", args, fds), tmp_path / name
    finally:
        for fd in fds:
            os.close(fd)


async def test_a_copy_is_packed_kept_applied_and_compared(tmp_path):
    (tmp_path / "context").mkdir()
    for number in range(400):
        (tmp_path / "context" / f"f{number}").write_bytes(random.Random(number).randbytes(9000))
    (tmp_path / "state").mkdir(mode=0o700)
    nsd = await launch.start(tmp_path / "state", config={"network": False})
    try:
        first, blob = await pack(nsd, tmp_path, "one", reuse="")
        (tmp_path / "context" / "f7").write_bytes(b"changed")
        kept, _ = await pack(nsd, tmp_path, "two", reuse=first["segments"], blob=blob)
        plain, _ = await pack(nsd, tmp_path, "three")
        assert first["digest"] != kept["digest"] == plain["digest"]
        trees = []
        for name in ("one", "two"):
            fd = os.open(tmp_path / name, os.O_RDONLY)
            applied = await nsd.call("apply", {"tree": f"t{name}", "lowers": []}, [fd])
            os.close(fd)
            trees.append(f"t{name}")
            assert applied["entries"] == 401
        found = await nsd.call("compare", {"lowers_a": trees[:1], "lowers_b": trees[1:]})
        assert ["changed", "/app/f7", 7] in found["changes"]
        await nsd.call("remove", {"paths": [str(tmp_path / "state" / "trees")]})
    finally:
        await nsd.close()


def fill(context):
    """A bit of all that a COPY can meet."""
    for number in range(60):
        path = context / f"d{number % 5}" / "e" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(number).randbytes(number * 700))
        path.chmod(0o755 if number % 7 == 0 else 0o644)
    (context / "big").write_bytes(random.Random(0).randbytes(3 << 20))
    with (context / "sparse").open("wb") as file:
        file.truncate(5 << 20)
    (context / "empty").mkdir()
    (context / ("long" * 40)).write_text("a name that needs a pax header")
    (context / "link").symlink_to("d1/e/f1")
    os.link(context / "d2" / "e" / "f7", context / "d3" / "hard")
    os.utime(context / "d1" / "e" / "f1", ns=(1, 1_600_000_000_123_456_789))


async def test_a_copy_is_the_same_bytes_as_the_diff_of_what_it_makes(tmp_path):
    (tmp_path / "context").mkdir()
    fill(tmp_path / "context")
    (tmp_path / "state").mkdir(mode=0o700)
    nsd = await launch.start(tmp_path / "state", config={"network": False})
    try:
        straight, blob = await pack(nsd, tmp_path, "straight")
        with blob.open("rb") as layer, (tmp_path / "around").open("w+b") as around:
            await nsd.call("apply", {"tree": "t", "lowers": []}, [layer.fileno()])
            args = {"tree": "t", "lowers": [], "output": OUTPUT}
            assert straight == {**await nsd.call("diff", args, [around.fileno()]), "stamps": straight["stamps"]}
        assert blob.read_bytes() == (tmp_path / "around").read_bytes()
        await nsd.call("remove", {"paths": [str(tmp_path / "state" / "trees")]})
    finally:
        await nsd.close()
