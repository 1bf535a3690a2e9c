"""A COPY of 20,000 files into a layer: plain, compressed, and again with one file changed.

    python tests/bench/layer_pack.py [DIRECTORY]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from layer_tree import make, measure

from ocibuildd.layer.copy import pack
from ocibuildd.layer.select import Source
from ocibuildd.layer.sink import Reuse
from ocibuildd.ports import CopySpec, Output

SPEC: CopySpec = {
    "dest": "/app/", "chown": "", "chmod": "", "link": False, "parents": False, "exclude": [],
    "unpack": False, "is_add": False, "epoch": 0,
}  # fmt: skip


def main() -> None:
    top = Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp/ocibuildd-bench")
    tree = make(top)
    context = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    for compression in ("none", "gzip", "zstd"):
        output: Output = {"compression": compression, "level": -1, "clamp": None}  # type: ignore[typeddict-item]
        measure(f"pack, {compression}", lambda output=output: run(context, output), lambda r: r["tar_size"])
    output = {"compression": "gzip", "level": -1, "clamp": None}
    with open(top / "kept", "w+b") as blob:
        first = Reuse()
        pack([Source(fd=context, paths=(".",))], SPEC, None, blob.fileno(), output, reuse=first)
        changed = tree / "p7" / "d77" / "new.js"
        changed.write_bytes(b"changed" * 1000)
        kept = Reuse.load(first.dump(output), blob.fileno(), output)
        measure("pack, gzip, one file changed", lambda: run(context, output, kept), lambda r: r["tar_size"])
        print(f"{kept.kept} segments were kept of {3 * len(kept.made)}")
        changed.unlink()


def run(context: int, output: Output, reuse: Reuse | None = None):  # type: ignore[no-untyped-def]
    with tempfile.TemporaryFile() as out:
        return pack([Source(fd=context, paths=(".",))], SPEC, None, out.fileno(), output, reuse=reuse)


if __name__ == "__main__":
    main()
