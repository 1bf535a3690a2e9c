"""A layer of 20,000 files into a tree, and deleting it again.

    python tests/bench/layer_apply.py [DIRECTORY]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from layer_pack import SPEC
from layer_tree import make, measure

from ocibuildd.layer.apply import apply_layer
from ocibuildd.layer.copy import pack
from ocibuildd.layer.remove import remove
from ocibuildd.layer.select import Source
from ocibuildd.ports import Applied, Output


def main() -> None:
    top = Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp/ocibuildd-bench")
    context = os.open(make(top), os.O_PATH | os.O_DIRECTORY)
    for compression in ("none", "gzip", "zstd"):
        output: Output = {"compression": compression, "level": -1, "clamp": None}  # type: ignore[typeddict-item]
        with open(top / "layer", "w+b") as blob:
            pack([Source(fd=context, paths=(".",))], SPEC, None, blob.fileno(), output)
            measure(f"apply, {compression}", lambda blob=blob: run(top, blob.fileno()), lambda r: r["tar_size"])
    run(top, os.open(top / "layer", os.O_RDONLY), keep=True)
    measure("remove", lambda: remove([str(top / "applied")]), lambda r: r["bytes"], times=1)


def run(top: Path, blob: int, *, keep: bool = False) -> Applied:
    remove([str(top / "applied")])
    (top / "applied").mkdir()
    os.lseek(blob, 0, os.SEEK_SET)
    tree = os.open(top / "applied", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return apply_layer(blob, tree, squash=os.geteuid() != 0)
    finally:
        os.close(tree)
        if not keep:
            remove([str(top / "applied")])


if __name__ == "__main__":
    main()
