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
