"""``system check --trees``: each unpacked layer held against its blob, which is unpacked once more beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..errors import Corrupt, NotFound
from ..ports import LayerId, Nsd
from ..store import Store
from ..store.check import CheckReport, Finding
from .unpack import Unpacker

NAMED = 3
"""Files of a tree that are named in a finding."""


async def check_trees(store: Store, nsd: Nsd, unpacker: Unpacker, report: CheckReport) -> None:
    """Add a finding for each tree that isn't what its blob says; times don't count.

    Layers whose blob isn't here, or is damaged itself, have nothing to be compared with.  Raises NoSpace."""
    rows = store.db.all("SELECT tree, min(id) FROM layers WHERE tree != '' AND digest != '' GROUP BY tree")
    for tree, layer in rows:
        try:
            changed = await _changed(store, nsd, unpacker, layer, tree)
        except (NotFound, Corrupt):
            continue
        report.trees += 1
        if changed and store.trees.has(tree):
            report.findings.append(Finding("tree", tree, _told(changed), "unpack its layer again when needed"))


async def _changed(
    store: Store, nsd: Nsd, unpacker: Unpacker, layer: LayerId, tree: str
) -> Sequence[Any]:
    """``blame.blame``'s changes, but for those of times only."""
    with store.leases.new(f"check of tree {tree}") as lease:
        row = store.layers.get(layer)
        lease.add(layers=(layer,))
        below = _below(store, layer)
        lease.add(layers=below)
        digest = await unpacker.obtain(row)
        lowers = await unpacker.ensure_trees(below)
        fd = store.blobs.open(digest)
        try:
            with store.space.reserve(row.tar_size):
                made = await unpacker.apply(fd, row.diff_id, lowers)
        finally:
            os.close(fd)
        try:
            args = {
                "lowers_a": [*lowers, made.tree], "lowers_b": [*lowers, tree],
                "blame": True, "every_byte": True,
            }  # fmt: skip
            found = (await nsd.call("compare", args))["changes"]
        finally:
            unpacker.discard(made.tree)
    return [change for change in found if change[3] != ["time"]]


def _below(store: Store, layer: LayerId) -> tuple[LayerId, ...]:
    """The layers that a tree was made over, lowest first; () for one that stands alone."""
    chain: list[LayerId] = []
    while True:
        row = store.db.one("SELECT parent, standalone FROM layers WHERE id = ?", (layer,))
        if row is None:
            raise NotFound(f"layer {layer}: not in the store")
        parent, standalone = row
        if not parent or (standalone and not chain):
            return tuple(reversed(chain))
        chain.append(parent)
        layer = parent


def _told(changes: Sequence[Any]) -> str:
    """What differs, the first few by name."""
    named = ", ".join(
        f"{path} {' and '.join(words) + ' ' if words else ''}{kind}" for kind, path, _, words in changes[:NAMED]
    )
    more = f" and {len(changes) - NAMED:,} more" if len(changes) > NAMED else ""
    return f"differs from its blob: {named}{more}"
