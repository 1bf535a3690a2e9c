"""The digest of a context: never seen, with remembered fingerprints, and remembered as a whole.

    python tests/bench/layer_scan.py [DIRECTORY [FILES]]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from layer_pack import SPEC
from layer_tree import make, measure

from ocibuildd.layer import recall
from ocibuildd.layer.checksum import checksum
from ocibuildd.layer.fingerprints import Fingerprints, now
from ocibuildd.layer.scan import Scan
from ocibuildd.layer.select import Source


def main() -> None:
    top = Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp/ocibuildd-bench")
    files = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    context = os.open(make(top, files, files * 7500), os.O_PATH | os.O_DIRECTORY)
    source = Source(fd=context, paths=(".",))
    prints = Fingerprints()
    measure("scan, nothing known", lambda: checksum(source, SPEC), lambda r: r["bytes"])
    checksum(source, SPEC, fingerprints=prints)
    prints.save(top / "prints")
    measure("load fingerprints", lambda: Fingerprints.load(top / "prints"), lambda _: files * 72)
    measure("scan, all known", lambda: checksum(source, SPEC, fingerprints=prints), lambda r: r["bytes"])
    ignoring = Source(fd=context, paths=(".",), ignore=("**/*.md", "node_modules", "**/.git", "!x"))
    measure("the same, four patterns", lambda: checksum(ignoring, SPEC, fingerprints=prints), lambda r: r["bytes"])
    for name, files_of in (("recall, nothing changed", source), ("the same, four patterns", ignoring)):
        scan, memory, started = Scan(), os.memfd_create("memory"), now()
        found = checksum(files_of, SPEC, fingerprints=prints, scan=scan)
        recall.remember(memory, started, found, scan, scan.dump())
        measure(name, lambda files_of=files_of, memory=memory: recall.recall(memory, files_of, SPEC), lambda r: r["bytes"])


if __name__ == "__main__":
    main()
