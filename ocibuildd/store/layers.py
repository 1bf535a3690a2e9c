"""Layers: where a layer's bytes are (``ports.Layer``).

A row is a layer *in its place*: the tree of a RUN's layer holds directories copied up from what is below
it and fits only over its own parent; a tree that holds nothing of its parents (``standalone``: COPY
--link, applied layers that lacked no parent directory) fits anywhere.  The blob is shared by diff id and
digest in any case: it is stored once however many rows name it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..errors import NotFound
from ..model.digest import Digest
from ..ports import Layer, LayerId
from .db import Database, Row
from .failpoints import hit
from .leases import Held
from .rows import trusted

_COLUMNS = "id, diff_id, digest, size, tar_size, media_type, content, tree"


def _layer(row: Row) -> Layer:
    return Layer(
        row[0], trusted(row[1]) if row[1] else None, trusted(row[2]) if row[2] else None, row[3], row[4],
        row[5], row[6], row[7],
    )


def pack_chain(chain: Iterable[LayerId]) -> str:
    """A chain as a column holds it."""
    return ",".join(map(str, chain))


def unpack_chain(text: str) -> tuple[LayerId, ...]:
    """The inverse of :func:`pack_chain`."""
    return tuple(map(int, text.split(","))) if text else ()


class Layers:
    """Layers by id, diff id, digest and content."""

    def __init__(self, db: Database, held: Held):
        self._db = db
        self._held = held
        self._pending: dict[LayerId, tuple[Layer, LayerId, bool]] = {}
        row = db.one("SELECT max(seq) FROM sqlite_sequence WHERE name = 'layers'")
        self._last: int = (row[0] if row else None) or 0

    def new(self, parent: LayerId = 0, *, tree: str = "", standalone: bool = False) -> LayerId:
        """A layer whose commit is under way: known in memory at once (chains may name it, ``get`` gives
        it), a row only at ``finish``.  A crash in between leaves nothing of it.

        parent: the layer below, 0 = none.  tree: as committed or about to be (``Trees.commit``).
        """
        self._last += 1
        self._pending[self._last] = (Layer(self._last, None, None, 0, 0, "", "", tree), parent, standalone)
        self._held.note(layers=(self._last,))
        return self._last

    def finish(
        self, layer: LayerId, *, diff_id: Digest, digest: Digest | None, size: int, tar_size: int,
        media_type: str, content: str = "", tree: str | None = None,
    ) -> Layer:
        """The layer's bytes are known and, where ``digest`` is given, the blob is committed: write the row.
        Raises NotFound for a layer that is neither pending nor there."""
        if layer in self._pending:
            before, parent, standalone = self._pending[layer]
        else:
            before, parent, standalone = self._whole(layer)
        after = Layer(
            layer, diff_id, digest, size, tar_size, media_type, content, before.tree if tree is None else tree
        )
        hit("layer.before-row")
        self._write(after, parent, standalone)
        hit("layer.after-row")
        self._db.after_commit(lambda: self._pending.pop(layer, None) and None)
        return after

    def drop(self, layer: LayerId) -> None:
        """Forget a pending layer (its build failed).  Its tree is the caller's to discard."""
        self._pending.pop(layer, None)

    def pending(self, layer: LayerId) -> bool:
        return layer in self._pending

    def has(self, layer: LayerId) -> bool:
        return layer in self._pending or self._db.one("SELECT 1 FROM layers WHERE id = ?", (layer,)) is not None

    def add(
        self, parent: LayerId, *, diff_id: Digest, digest: Digest | None, size: int, media_type: str,
        tar_size: int = 0, content: str = "", tree: str = "", standalone: bool = False,
    ) -> Layer:
        """A layer known by its digests from the start (pull, load, import, remote cache)."""
        self._last += 1
        layer = Layer(self._last, diff_id, digest, size, tar_size, media_type, content, tree)
        self._write(layer, parent, standalone)
        return layer

    def ensure(
        self, parent: LayerId, *, diff_id: Digest, digest: Digest | None, size: int, media_type: str,
    ) -> Layer:
        """``find``, or ``add`` where there is none.  Where a layer of the same diff id is unpacked as a
        standalone tree, the new row shares that tree; where one's blob is here under another digest
        (other compression), the row found keeps its own digest."""
        return self.find(diff_id, parent) or self.add(
            parent, diff_id=diff_id, digest=digest, size=size, media_type=media_type
        )

    def find(self, diff_id: Digest, parent: LayerId) -> Layer | None:
        """A layer with this diff id that may stand over ``parent``: made there, or standalone."""
        row = self._db.one(
            f"SELECT {_COLUMNS} FROM layers WHERE diff_id = ? AND (parent = ? OR standalone = 1)"
            " ORDER BY tree = '', id LIMIT 1",
            (diff_id, parent),
        )
        return self._seen(row)

    def find_content(self, content: str, parent: LayerId) -> Layer | None:
        """The oldest layer over ``parent`` (or standalone) with this content digest: for early cutoff."""
        row = self._db.one(
            f"SELECT {_COLUMNS} FROM layers WHERE content = ? AND content != '' AND"
            " (parent = ? OR standalone = 1) ORDER BY id LIMIT 1",
            (content, parent),
        )
        return self._seen(row)

    def lacking_blobs(self, chain: Sequence[LayerId]) -> list[Layer]:
        """Layers of a chain whose blob isn't here; one select."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM layers WHERE id IN (SELECT value FROM json_each(?))"
            " AND digest NOT IN (SELECT digest FROM blobs)",
            (f"[{pack_chain(chain)}]",),
        )
        return [_layer(row) for row in rows]

    def by_diff_id(self, diff_id: Digest) -> list[Layer]:
        """All layers with this diff id, whatever they stand on."""
        rows = self._db.all(f"SELECT {_COLUMNS} FROM layers WHERE diff_id = ? ORDER BY id", (diff_id,))
        return [_layer(row) for row in rows]

    def by_digest(self, digest: Digest) -> list[Layer]:
        """All layers whose blob this is."""
        rows = self._db.all(f"SELECT {_COLUMNS} FROM layers WHERE digest = ? ORDER BY id", (digest,))
        return [_layer(row) for row in rows]

    def with_blob(self, diff_id: Digest) -> Layer | None:
        """A layer with this diff id whose blob is in the store: no need to compress again."""
        row = self._db.one(
            f"SELECT {_COLUMNS} FROM layers WHERE diff_id = ?"
            " AND EXISTS (SELECT 1 FROM blobs WHERE blobs.digest = layers.digest) LIMIT 1",
            (diff_id,),
        )
        return self._seen(row)

    def get(self, layer: LayerId) -> Layer:
        """Raises NotFound (it was collected)."""
        if layer in self._pending:
            return self._pending[layer][0]
        row = self._db.one(f"SELECT {_COLUMNS} FROM layers WHERE id = ?", (layer,))
        if row is None:
            raise NotFound(f"layer {layer}: not in the store")
        return _layer(row)

    def chain(self, chain: Sequence[LayerId]) -> list[Layer]:
        """The layers of a chain, in its order, one select.  Raises NotFound."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM layers WHERE id IN (SELECT value FROM json_each(?))",
            (f"[{pack_chain(chain)}]",),
        )
        found = {row[0]: _layer(row) for row in rows}
        found.update((one, self._pending[one][0]) for one in chain if one in self._pending)
        try:
            return [found[one] for one in chain]
        except KeyError as error:
            raise NotFound(f"layer {error.args[0]}: not in the store") from None

    def parent(self, layer: LayerId) -> LayerId:
        """0 = none.  Raises NotFound."""
        return self._whole(layer)[1]

    def set_blob(self, layer: LayerId, *, digest: Digest, size: int, media_type: str) -> Layer:
        """The layer's blob is another (recompressed) or has come at last."""
        before, parent, standalone = self._whole(layer)
        after = replace(before, digest=digest, size=size, media_type=media_type)
        self._write(after, parent, standalone)
        return after

    def set_tree(self, layer: LayerId, tree: str, *, standalone: bool = False, tar_size: int = -1) -> Layer:
        """The layer is unpacked now ("" = no longer).  Where it is pending, in memory only.
        tar_size: as ``Applied`` tells, -1 = unchanged."""
        before, parent, alone = self._whole(layer)
        size = before.tar_size if tar_size < 0 else tar_size
        after = replace(before, tree=tree, tar_size=size)
        if layer in self._pending:
            self._pending[layer] = (after, parent, standalone)
        else:
            hit("layer.before-tree")
            self._write(after, parent, standalone if tree else alone and standalone)
        return after

    def remove(self, layer: LayerId) -> None:
        """Delete the row; tree and blob are the caller's to look after."""
        self._db.delete("layers", layer)
        self._db.after_commit(lambda: self._held.gone_layers.add(layer))

    def _seen(self, row: Row | None) -> Layer | None:
        if row is None:
            return None
        self._held.note(layers=(row[0],))
        return _layer(row)

    def _whole(self, layer: LayerId) -> tuple[Layer, LayerId, bool]:
        if layer in self._pending:
            return self._pending[layer]
        row = self._db.one(f"SELECT {_COLUMNS}, parent, standalone FROM layers WHERE id = ?", (layer,))
        if row is None:
            raise NotFound(f"layer {layer}: not in the store")
        return _layer(row), row[8], bool(row[9])

    def _write(self, layer: Layer, parent: LayerId, standalone: bool) -> None:
        self._held.note(layers=(layer.id,), blobs=(layer.digest,) if layer.digest else ())
        self._db.put(
            "layers",
            (
                layer.id, parent, int(standalone), str(layer.diff_id or ""), str(layer.digest or ""),
                layer.size, layer.tar_size, layer.media_type, layer.content, layer.tree, time.time(),
            ),
        )
