"""Short ways to put things into a store."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import MEDIA_LAYER
from ocibuildd.ports import Record
from ocibuildd.store import Store
from ocibuildd.store.images import Image

MEMORY = Path("/dev/shm")


@contextmanager
def quick_directory() -> Iterator[Path]:
    """A temporary directory, in memory where possible: stores sync much, and a test that kills a process
    loses nothing of the page cache anyway."""
    in_memory = os.access(MEMORY, os.W_OK | os.X_OK)
    directory = Path(tempfile.mkdtemp(prefix="ocibuild-test-", dir=MEMORY if in_memory else None))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Filler:
    """Puts layers, records and images into a store."""

    def __init__(self, store: Store):
        self.store = store

    def layer(self, text: str, parent: int = 0, *, tree: int = -1) -> int:
        """A layer whose blob is ``text``; with a tree of so many bytes."""
        store = self.store
        digest = store.blobs.put(text.encode())
        name = ""
        if tree >= 0:
            name = store.trees.allocate()
            (store.trees.path(name) / "fs").mkdir(parents=True)
            store.trees.commit(name, tree)
        return store.layers.add(
            parent, diff_id=digest, digest=digest, size=len(text), media_type=MEDIA_LAYER, tree=name
        ).id

    def record(self, key: str, *chain: int, used: float = 0.0, cost: float = 1.0, **more: str) -> Record:
        """A cache record; ``used``: seconds since the epoch, 0 = now."""
        now = used or time.time()
        record = Record(
            key=key, chain=chain, value=more.pop("value", ""), preimage=more.pop("preimage", ""), cost=cost,
            created=now, build="b1", last_used=now, **more,
        )
        self.store.records.put(record)
        return record

    def image(self, text: str, *chain: int, name: str = "", **more: object) -> Digest:
        """An image whose config is ``text``."""
        config = self.store.blobs.put(text.encode())
        manifest = self.store.blobs.put(f"manifest of {text}".encode())
        self.store.images.put(Image(config, manifest, "application/json", chain, **more))  # type: ignore[arg-type]
        if name:
            self.store.images.tag(name, config)
        return config
