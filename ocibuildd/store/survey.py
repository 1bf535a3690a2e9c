"""The store's rows, read into a :class:`Graph` a page at a time."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import TYPE_CHECKING

from .db import Database
from .graph import Graph, ImageNode, LayerNode, MountNode, RecordNode
from .layers import unpack_chain
from .records import DIGESTS

if TYPE_CHECKING:
    from .store import Store

PAGE = 1_000
"""Rows between two breaths of the loop: about 3 ms."""

Steps = Generator[None, None, None]


def surveying(store: Store) -> Generator[None, None, Graph]:
    """Reads everything, yielding between pages; the caller lets the loop turn at each.

    Whoever acts on the graph begins to watch (``Held.watch``) before: what is put or looked up from then on
    is in ``held.recent_*`` and must be left alone.
    """
    graph = Graph()
    yield from _sizes(store.db, "SELECT digest, size FROM blobs WHERE digest > ?", graph.blobs)
    yield from _sizes(store.db, "SELECT id, size FROM trees WHERE id > ?", graph.trees)
    yield from _layers(store.db, graph)
    yield from _records(store.db, graph)
    yield from _images(store.db, graph)
    graph.mounts = [
        MountNode(m.hash, m.id, m.size, m.created, m.last_used, m.uses, m.in_use > 0, m.sharing)
        for m in store.cache_mounts.all()
    ]
    graph.leased_layers = frozenset(store.held.layers)
    graph.leased_blobs = frozenset(store.held.blobs)
    return graph


def _sizes(db: Database, sql: str, into: dict[str, int]) -> Steps:
    after = ""
    while rows := db.all(f"{sql} ORDER BY 1 LIMIT {PAGE}", (after,)):
        into.update(rows)
        after = rows[-1][0]
        yield


def _layers(db: Database, graph: Graph) -> Steps:
    after = 0
    while rows := db.all(
        f"SELECT id, digest, tree FROM layers WHERE id > ? ORDER BY id LIMIT {PAGE}", (after,)
    ):
        for layer, digest, tree in rows:
            graph.layers[layer] = LayerNode(digest, tree)
        after = rows[-1][0]
        yield


def _records(db: Database, graph: Graph) -> Steps:
    after = 0
    while rows := db.all(
        "SELECT id, key, kind, chain, value, cost, created, last_used, uses, description FROM records"
        f" WHERE id > ? ORDER BY id LIMIT {PAGE}",
        (after,),
    ):
        for _, key, kind, chain, value, *rest in rows:
            blobs = tuple(set(DIGESTS.findall(value))) if value else ()
            graph.records.append(RecordNode(key, kind, unpack_chain(chain), blobs, *rest))
        after = rows[-1][0]
        yield


def _images(db: Database, graph: Graph) -> Steps:
    for digest, manifests in db.all("SELECT digest, manifests FROM indexes"):
        graph.indexes[digest] = tuple(entry[0] for entry in json.loads(manifests))
    yield
    by_manifest: dict[str, str] = dict(db.all("SELECT manifest, id FROM images WHERE manifest != ''"))
    names: dict[str, list[str]] = {}
    targets: dict[str, set[str]] = {}
    for name, image, target in db.all("SELECT name, image, target FROM names"):
        members = graph.indexes.get(target, ())
        # A name that stands for an index pins the image of each platform that is here.
        for one in {image, *(by_manifest[member] for member in members if member in by_manifest)}:
            names.setdefault(one, []).append(name)
        targets.setdefault(image, set()).update((target, *members))
    yield
    after = ""
    while rows := db.all(
        "SELECT id, kind, chain, parent, manifest, blobs, labels, created, last_used, size, created_by"
        f" FROM images WHERE id > ? ORDER BY id LIMIT {PAGE}",
        (after,),
    ):
        for image, kind, chain, parent, manifest, blobs, labels, *rest in rows:
            held = {image, manifest, *targets.get(image, ())}
            if blobs:
                held.update(json.loads(blobs))
            held.discard("")
            graph.images[image] = ImageNode(
                image, kind, unpack_chain(chain), parent, tuple(held), tuple(names.get(image, ())),
                json.loads(labels) if labels else {}, *rest,
            )
        after = rows[-1][0]
        yield
